"""ARM: cluster-autoregressive pretraining, and classifiers that scan in four directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hybridmap.backbones.arm import ARM
from hybridmap.convert.arm_finetune import ArmFinetune
from hybridmap.convert.arm_pretrain import ArmPretrain
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.types import Batch
from parity_harness.hybrid import Recorder, check_model_gradients, decoder_blocks, load_learner
from parity_harness.recording import Recording

NEUTRAL = {"rms_norm", "residual_in_fp32", "fused_add_norm", "final_pool_type", "if_abs_pos_embed", "if_rope"}
NEUTRAL |= {"if_rope_residual", "if_devide_out", "use_middle_cls_token", "drop_path_rate"}
"""Official arguments without effect on an evaluation, or with one value in all recordings."""

FIXED = {"if_abs_pos_embed": True, "if_rope": False, "if_rope_residual": False, "use_middle_cls_token": True}
"""The values of those that would matter."""


def arm_config(args: dict[str, Any], **choices: Any) -> ARM.Config:
    """Ours from the arguments of an official constructor."""
    known = {"img_size", "patch_size", "embed_dim", "depth", "num_classes", "bimamba_type", "if_cls_token", "dec_embed_dim"}
    assert args.keys() <= known | NEUTRAL, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    assert all(args.get(name, value) == value for name, value in FIXED.items()), (
        f"options that the harness does not know: {args}"
    )
    return ARM.Config(
        img_size=args["img_size"],
        patch_size=args["patch_size"],
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        **choices,
    )


def finetune_config(args: dict[str, Any], **choices: Any) -> ARM.Config:
    """A classifier, read out by the mean of the patches."""
    assert args["bimamba_type"] == "v3"
    assert args["if_cls_token"]
    return arm_config(args, num_classes=args["num_classes"], **choices)


def pretrain_config(args: dict[str, Any], **choices: Any) -> ClusterAR.Config:
    """The objective around a one-way encoder."""
    assert args["bimamba_type"] == "None"
    one_way = arm_config(args, num_classes=0, directions=1, scan="cluster(4)", cls_token=False, positions="sincos", **choices)
    width = args["dec_embed_dim"]
    return ClusterAR.Config(backbone=one_way, decoder=ARMDecoder.Config(width=width, num_heads=width // 64))


def arm_finetune(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = ArmFinetune()
    model: ARM = finetune_config(args).build()
    model.load_state_dict(origin.convert(state, grid=model.grid).backbone, strict=True)
    model.to(rec.dtype).eval()

    images, labels = rec.input("image"), rec.input("labels")
    with Recorder({f"mixer{s}": block.mixer for s, block in enumerate(model.layers)}) as mixers:
        taps = model.encode_visible(model.partition(images), None, prefix=True, taps=range(args["depth"])).taps
    rec.check_each("feature.", r"(mixer\d+)", lambda name: mixers[name])
    rec.check_each("feature.", r"layer(\d+)", lambda s: taps[int(s)].branch)
    tokens = model.forward_features(images)
    total = torch.zeros((), dtype=rec.dtype)
    for kind, pool in (("cls", "cls"), ("pool", "avg")):
        reader: ARM = finetune_config(args, pool=pool).build().to(rec.dtype).eval()
        reader.head = model.head
        rec.check(f"output.features_{kind}", reader.forward_head(tokens, pre_logits=True))
        logits = reader.forward_head(tokens)
        rec.check(f"output.logits_{kind}", logits)
        total = total + F.cross_entropy(logits, labels)
    rec.check("output.loss", total)
    total.backward()
    check_model_gradients(rec, origin, model, state)


def arm_pretrain(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = ArmPretrain()
    objective: ClusterAR = pretrain_config(args).build()
    load_learner(objective, origin.convert(state, grid=objective.backbone.grid).weights)
    objective.to(rec.dtype).eval()

    images, shown = rec.input("image"), rec.tensors["extra.tokens"]
    patches = objective.backbone.partition(images)
    mask = objective.draw(patches, Batch(inputs=images, key=torch.zeros(len(images), dtype=torch.long)))
    additive = torch.zeros(state["mask"].shape, dtype=rec.dtype)
    additive.masked_fill_(~objective.allowed(patches, mask)[0, 0], -torch.inf)
    rec.check_true("our permission differs from the official mask", torch.equal(additive, state["mask"]))
    features = objective.backbone.encode_visible(patches, mask, causal=True, taps=range(args["depth"]))
    rec.check_each("feature.", r"layer(\d+)", lambda s: features.taps[int(s)].branch[:, shown])
    rec.check("feature.skip_last", features.taps[args["depth"] - 1].branch[:, shown])
    rec.check("output.latent", objective.decoder.memory(features)[:, shown])
    with Recorder(decoder_blocks(objective)) as blocks:
        pred = objective.predict(patches, mask)
    rec.check_each("feature.", r"(dec\d+)", lambda name: blocks[name][:, shown])
    first = pred.shape[1] - len(state["mask"])
    rec.check("output.pred", pred[:, first:][:, shown])
    rec.check("extra.tokens", shown)
    target = objective.target.values(patches)
    rec.check("output.token_loss", (pred - target).square().mean(-1).mean(0)[first:])
    loss = objective.step(patches, mask).total
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, objective, {name: value for name, value in state.items() if name != "mask"})

"""MAP's HybridNet (pretraining, and its encoder alone) and Mamba-R classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridmap.backbones import HybridNet
from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.convert import Origin
from hybridmap.convert.mamba_reg import MambaReg
from hybridmap.convert.map_hybridnet import MapHybridNet, released_layout
from hybridmap.layers import AddNorm, Registers
from hybridmap.layers.registers import positions
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tokens.masking import Random
from hybridmap.types import Mask, Patches, Tap
from parity_harness.recording import Recording

NEUTRAL = {"drop_rate", "drop_path_rate", "residual_in_fp32", "fused_add_norm", "norm_epsilon", "decoder_embed_dim"}
"""Official arguments without effect on a float32 evaluation, or read where they matter."""


def hybrid_config(args: dict[str, Any], layout: str) -> HybridNet.Config:
    """Ours from the arguments of MAP's and Mamba-Reg's ``VisionMamba``; the README beside the recordings lists its defaults."""
    known = {
        "img_size",
        "patch_size",
        "channels",
        "depth",
        "embed_dim",
        "num_classes",
        "num_cls_tokens",
        "cls_reduce",
        "ssm_cfg",
    }
    known |= {"num_heads", "rms_norm", "mlp_ratio", "decoder_num_heads"} | NEUTRAL
    assert args.keys() <= known, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    ssm: dict[str, Any] = args.get("ssm_cfg") or {}
    assert ssm.keys() <= {"d_state", "d_conv", "expand"}, f"mixer options that the harness does not know: {sorted(ssm)}"
    size = args["img_size"]
    return HybridNet.Config(
        img_size=tuple(size) if isinstance(size, list) else size,
        patch_size=args.get("patch_size", 16),
        in_chans=args.get("channels", 3),
        embed_dim=args["embed_dim"],
        num_classes=args.get("num_classes", 1000),
        layout=layout,
        num_heads=args.get("num_heads", 12),
        transformer_mlp_ratio=float(args.get("mlp_ratio", 4.0)) / 2,
        num_registers=args.get("num_cls_tokens", 1),
        cls_reduce=args.get("cls_reduce", 1),
        norm_kind="rms" if args.get("rms_norm", False) else "layer",
        residual_in_fp32=args.get("residual_in_fp32", False),
        drop_path=float(args.get("drop_path_rate", 0.1)),
        **ssm,
    )


def prepare(model: nn.Module, args: dict[str, Any], dtype: torch.dtype) -> Any:
    """The model in the dtype of the run, in evaluation, with the official epsilon of its fused norms where one was passed."""
    for module in model.modules():
        if isinstance(module, AddNorm) and "norm_epsilon" in args:
            module.eps = args["norm_epsilon"]
    return model.to(dtype).eval()


def load_learner(objective: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Converted weights into an objective, strictly: the backbone's below ``backbone.``, the decoder's below ``decoder.``."""
    named = {name if name.startswith("decoder.") else f"backbone.{name}": value for name, value in weights.items()}
    objective.load_state_dict(named, strict=True)


def check_model_gradients(rec: Recording, origin: Origin, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gradients of all parameters through the inverse of the converter."""
    gradients = {n.removeprefix("backbone."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    rec.check_gradients(origin.restore(gradients, {name: tuple(value.shape) for name, value in state.items()}))


class Scored(Random):
    """Masking by recorded scores in place of drawn ones."""

    recorded: Tensor

    def scores(self, patches: Patches, ranks: Tensor, key: Tensor) -> Tensor:
        return self.recorded


def masked_by(scores: Tensor, config: Random.Config, patches: Patches) -> Mask:
    """The mask that our masking makes of ``scores`` (B, N) over the image; the highest are masked."""
    masking = Scored(config)
    masking.recorded = scores
    batch, count = scores.shape
    return masking(patches, torch.zeros(batch, count, dtype=torch.long), (count,), torch.zeros(batch, dtype=torch.long))


def recorded_mask(rec: Recording, patches: Patches) -> Mask:
    """The recorded mask; where the orders behind it are recorded too, our masking must make the same of them."""
    mask = Mask.from_masked(rec.input("mask").bool())
    if "orders" in rec.names("input."):
        earliness = -rec.input("orders").argsort(1)  # the first in the order are masked
        ours = masked_by(earliness, Random.Config(ratio=rec.config["mask_rate"]), patches)
        rec.check_true("our masking makes another mask of the orders", torch.equal(ours.masked, mask.masked))
    return mask


def mamba_index(layout: str, i: int | str) -> int:
    """Our number of the official Mamba layer i."""
    return [s for s, kind in enumerate(layout) if kind == "M"][int(i)]


def transformer_index(layout: str, b: int | str) -> int:
    """Our number of the official Transformer block b."""
    return [s for s, kind in enumerate(layout) if kind == "T"][int(b)]


def check_patch_embed(rec: Recording, backbone: SequenceBackbone, patches: Patches) -> None:
    """Tokens before their positions are added."""
    rec.check("feature.patch_embed", backbone.embed(patches) - backbone.pos_embed)


def check_layers(rec: Recording, layout: str, taps: Mapping[int, Tap]) -> None:
    """Branch and stream of the Mamba layers, and the Transformer blocks with their outer addition."""

    def stream(i: str) -> Tensor:
        found = taps[mamba_index(layout, i)].stream
        assert found is not None
        return found

    rec.check_each("feature.", r"layer(\d+)_hidden", lambda i: taps[mamba_index(layout, i)].branch)
    rec.check_each("feature.", r"layer(\d+)_residual", stream)
    rec.check_each("feature.", r"vit(\d+)", lambda b: taps[transformer_index(layout, b)].branch)


class Recorder:
    """Keeps the outputs of some modules while it is entered."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules, self.outputs = modules, dict[str, Tensor]()

    def __enter__(self) -> dict[str, Tensor]:
        def keep(name: str) -> Any:
            return lambda module, inputs, output: self.outputs.update({name: output})

        self.hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        return self.outputs

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def decoder_blocks(objective: MAP) -> dict[str, nn.Module]:
    """The decoder's blocks by the names of the recordings."""
    return {f"dec{j}": block for j, block in enumerate(objective.decoder.layers)}


def map_pretrain(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = MapHybridNet()
    layout = released_layout({name: tuple(value.shape) for name, value in state.items()})
    rec.check_true("the layout does not have the recorded depth", layout.count("M") == args["depth"])
    decoder = MAPDecoder.Config(
        width=args.get("decoder_embed_dim", 192),
        num_heads=args.get("decoder_num_heads", 16),
        mlp_ratio=float(args.get("mlp_ratio", 4.0)),
    )
    objective = MAP.Config(backbone=hybrid_config(args, layout), decoder=decoder).build()
    load_learner(objective, origin.convert(state, num_heads=args.get("num_heads")).weights)
    objective = prepare(objective, args, rec.dtype)
    backbone: SequenceBackbone = objective.backbone

    patches: Patches = backbone.partition(rec.input("image"))
    mask = recorded_mask(rec, patches)
    check_patch_embed(rec, backbone, patches)
    features = backbone.encode_visible(patches, mask, taps=range(len(layout)))
    check_layers(rec, layout, features.taps)
    rec.check("output.encoder", features.patches)
    rec.check("output.encoder_full", backbone.encode_visible(patches, None).patches)
    if "output.patchify" in rec.tensors:
        rec.check("output.patchify", patches.content[:, : rec.tensors["output.patchify"].shape[1]])
    with Recorder(decoder_blocks(objective)) as blocks:
        rec.check("output.pred", objective.predict(patches, mask))
    rec.check_each("feature.", r"(dec\d+)", lambda name: blocks[name])
    loss = objective.step(patches, mask).total
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, objective, state)


def map_encoder(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = MapHybridNet()
    layout = released_layout({name: tuple(value.shape) for name, value in state.items()})
    config = hybrid_config(args, layout)
    model: HybridNet = config.build()
    model.load_state_dict(origin.convert(state, num_heads=config.num_heads, grid=model.grid).backbone, strict=True)
    model = prepare(model, args, rec.dtype)

    patches = model.partition(rec.input("image"))
    check_patch_embed(rec, model, patches)
    features = model.encode_visible(patches, recorded_mask(rec, patches), taps=range(len(layout)))
    everything = model.encode_visible(patches, None).patches
    check_layers(rec, layout, features.taps)
    rec.check("output.encoder", features.patches)
    rec.check("output.encoder_full", everything)
    loss = (features.patches * rec.input("cotangent")).mean() + everything.square().mean()
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)


def mamba_reg(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = MambaReg()
    layout = "M" * args["depth"]
    model: HybridNet = hybrid_config(args, layout).build()
    model.load_state_dict(origin.convert(state, grid=model.grid).backbone, strict=True)
    model = prepare(model, args, rec.dtype)

    images = rec.input("image")
    patches = model.partition(images)
    check_patch_embed(rec, model, patches)
    check_layers(rec, layout, model.encode_visible(patches, None, prefix=True, taps=range(len(layout))).taps)
    tokens = model.forward_features(images)
    rec.check("output.features", model.forward_head(tokens, pre_logits=True))
    logits = model(images)
    rec.check("output.logits", logits)
    loss = F.cross_entropy(logits, rec.input("labels"))
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)

    n, length = args.get("num_cls_tokens", 1), patches.content.shape[1]
    rec.check("extra.cls_positions", torch.tensor(positions(n, length)))
    rec.check("extra.token_idx", insertion_order(n, length))


def insertion_order(n: int, length: int) -> Tensor:
    """Which entry of [patches, registers] stands where in the sequence, read from what our registers do to numbered tokens."""
    registers = Registers(n, 1)
    with torch.no_grad():
        registers.token.copy_(torch.arange(length, length + n).view(1, n, 1))
        return registers.insert(torch.arange(length).view(1, length, 1).float())[0, :, 0].long()

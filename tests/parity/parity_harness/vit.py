"""MAE pretraining and the ViT classifiers that MAE fine-tunes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.backbones.vit import ViT
from hybridmap.convert.mae_pretrain import MaePretrain
from hybridmap.convert.mae_vit import MaeViT
from hybridmap.objectives.decoder import MAEDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.targets import Pixels
from hybridmap.tokens.masking import Random
from hybridmap.tokens.select import take
from parity_harness.hybrid import (
    Recorder,
    check_model_gradients,
    check_patch_embed,
    decoder_blocks,
    load_learner,
    masked_by,
)
from parity_harness.recording import Recording


def backbone_config(args: dict[str, Any], **choices: Any) -> ViT.Config:
    """Ours from the arguments of an official ViT constructor."""
    known = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "num_classes"}
    known |= {name for name in args if name.startswith("decoder_")} | {"norm_pix_loss", "drop_path_rate", "drop_rate"}
    assert args.keys() <= known, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    assert args.get("qkv_bias", True), "official ViTs of MAE are built with a bias for q, k and v"
    size = args["img_size"]
    return ViT.Config(
        img_size=tuple(size) if isinstance(size, list) else size,
        patch_size=args["patch_size"],
        in_chans=args.get("in_chans", 3),
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        mlp_ratio=float(args["mlp_ratio"]),
        **choices,
    )


def mae_pretrain(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = MaePretrain()
    decoder = MAEDecoder.Config(
        width=args["decoder_embed_dim"],
        depth=args["decoder_depth"],
        num_heads=args["decoder_num_heads"],
        mlp_ratio=float(args["mlp_ratio"]),
    )
    masking = Random.Config(ratio=rec.config["mask_ratio"], rounding="keep_floor")
    objective: MAP = MAP.Config(
        backbone=backbone_config(args),
        masking=masking,
        decoder=decoder,
        decoder_mask="mae",
        target=Pixels.Config(normalise=args["norm_pix_loss"]),
    ).build()
    loaded = origin.convert(state, num_heads=args["num_heads"], grid=objective.backbone.grid)
    load_learner(objective, loaded.weights)
    objective.to(rec.dtype).eval()

    patches = objective.backbone.partition(rec.input("image"))
    noise = rec.input("noise")
    mask = masked_by(noise, masking, patches)
    shuffled = noise.argsort(1)
    rec.check("output.mask", mask.masked.to(rec.dtype))
    rec.check("output.ids_restore", shuffled.argsort(1))
    kept = shuffled[:, : mask.visible.shape[1]]  # in the order in which the official encoder has them
    official = torch.cat([torch.zeros_like(kept[:, :1]), 1 + kept.argsort(1).argsort(1)], dim=1)  # class token first

    def reordered(tokens: Tensor) -> Tensor:
        return take(tokens, official)

    check_patch_embed(rec, objective.backbone, patches)
    depth = args["depth"]
    features = objective.backbone.encode_visible(patches, mask, taps=range(depth))
    rec.check("output.latent", reordered(torch.cat([features.prefix, features.patches], dim=1)))
    rec.check_each("feature.", r"block(\d+)", lambda i: reordered(features.taps[int(i)].branch))
    rec.check("feature.block_last", reordered(features.taps[depth - 1].branch))
    with Recorder(decoder_blocks(objective)) as blocks:
        rec.check("output.pred", objective.predict(patches, mask))
    rec.check_each("feature.", r"(dec\d+)", lambda name: blocks[name])
    loss = objective.step(patches, mask).total
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, objective, state)


def mae_vit(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    origin = MaeViT()
    pooled = rec.config["global_pool"]
    model: ViT = backbone_config(
        args,
        num_classes=args["num_classes"],
        pool="avg" if pooled else "cls",
        norm_position="pooled" if pooled else "tokens",
    ).build()
    model.load_state_dict(origin.convert(state, num_heads=args["num_heads"], grid=model.grid).backbone, strict=True)
    model.to(rec.dtype).eval()

    images, depth = rec.input("image"), args["depth"]
    patches = model.partition(images)
    check_patch_embed(rec, model, patches)
    taps = model.encode_visible(patches, None, prefix=True, taps=range(depth)).taps
    rec.check_each("feature.", r"block(\d+)", lambda i: taps[int(i)].branch)
    rec.check("feature.block_last", taps[depth - 1].branch)
    rec.check("output.features", model.forward_head(model.forward_features(images), pre_logits=True))
    logits = model(images)
    rec.check("output.logits", logits)
    loss = F.cross_entropy(logits, rec.input("labels"))
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)

"""Networks for clouds of points: classifiers of four kinds, and masked pretraining of three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.backbones.cloud import CloudBackbone
from hybridmap.convert.clouds import CloudOrigin, OfficialHybrid3D, OfficialPointMamba, OfficialPointTransformer
from hybridmap.objectives.chamfer import Chamfer
from hybridmap.objectives.map import MAP
from hybridmap.objectives.point_decoder import CurveDecoder, PointDecoder
from hybridmap.ops.points import chamfer_l2
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import VisibleFirst, Whole
from hybridmap.tokens.select import take
from hybridmap.types import Mask, Patches
from parity_harness.hybrid import check_model_gradients, load_learner
from parity_harness.recording import Recording

KNOWN = {
    *("trans_dim", "depth", "drop_path_rate", "cls_dim", "num_heads", "group_size", "num_group", "encoder_dims"),
    *("ordering", "bimamba_type", "label_smooth", "center_local_k", "mask_ratio", "mask_type", "loss", "drop_path", "drop_out"),
    *("rms_norm", "use_cls_token", "max_head", "avg_head", "decoder_depth", "decoder_num_heads"),
    *("transformer_config", "mamba_config"),
}
"""Official arguments that are read here, or without effect in evaluation."""


def told(rec: Recording) -> tuple[dict[str, Any], dict[str, Any]]:
    """(all official arguments on one level, what our converter is to be told)."""
    given: dict[str, Any] = dict(rec.config["config"])
    given |= given.get("transformer_config", {}) | given.get("mamba_config", {})
    assert given.keys() <= KNOWN, f"official arguments that the harness does not know: {sorted(given.keys() - KNOWN)}"
    assert given["trans_dim"] == given["encoder_dims"]
    assert not any(given.get(name) for name in ("ordering", "use_cls_token", "rms_norm"))
    return given, {"num_patches": given["num_group"], "patch_points": given["group_size"]}


def check_patches(rec: Recording, patches: Patches) -> None:
    """Centres, and the neighbourhoods of the first two, in a float64 run of all."""
    batch, count, values = patches.content.shape
    around = patches.content.view(batch, count, values // 3, 3)
    rec.check("output.center", patches.coords)
    rec.check("output.neighborhood", around[:, : rec.tensors["output.neighborhood"].shape[1]], around)


def classifier(rec: Recording, origin: CloudOrigin, extra: dict[str, Any]) -> tuple[CloudBackbone, dict[str, Tensor]]:
    """Our network with the recorded weights."""
    state, (_, how) = rec.state(), told(rec)
    loaded = origin.convert(state, told=how | extra)
    model: Any = loaded.config.build()  # type: ignore[union-attr]
    model.load_state_dict(loaded.backbone, strict=True)
    return model.to(rec.dtype).eval(), state


def check_classifier(rec: Recording, origin: CloudOrigin, extra: dict[str, Any] | None = None) -> None:
    model, state = classifier(rec, origin, extra or {})
    args, points = rec.config["config"], rec.input("points")
    patches = model.partition(points)
    check_patches(rec, patches)
    rec.check("output.tokens", model.embed(patches))
    depth = len(model.layers)
    taps = model.encode_visible(patches, None, prefix=True, taps=range(depth)).taps
    rec.check("feature.block0", taps[0].branch)
    rec.check("feature.blocks", taps[depth - 1].branch)
    logits = model(points)
    rec.check("output.logits", logits)
    rec.check("output.logits_single", model(points[:1]))
    labels = rec.input("labels")
    loss = F.cross_entropy(logits, labels, label_smoothing=args.get("label_smooth", 0.0))
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)


def mamba3d_cls(rec: Recording) -> None:
    args = rec.config["config"]
    extra = {"neighbours": args["center_local_k"], "channel_backwards": args["bimamba_type"] == "v4"}
    check_classifier(rec, OfficialHybrid3D(), extra)


def point_mae_cls(rec: Recording) -> None:
    check_classifier(rec, OfficialPointTransformer())


def pretraining(rec: Recording, origin: CloudOrigin, extra: dict[str, Any], decoder: Any, **choices: Any) -> tuple[MAP, dict]:
    """Our objective with the recorded weights."""
    state, (args, how) = rec.state(), told(rec)
    loaded = origin.convert(state, told=how | extra)
    objective: MAP = MAP.Config(
        backbone=loaded.config,  # type: ignore[arg-type]
        masking=Random.Config(ratio=args["mask_ratio"], rounding="floor"),
        decoder=decoder(width=args["trans_dim"], depth=args.get("decoder_depth", 4), num_heads=6),
        target=Chamfer.Config(kind={"cdl1": "l1", "cdl2": "l2"}[rec.config["config"]["loss"]]),
        **choices,
    ).build()
    load_learner(objective, loaded.weights)
    return objective.to(rec.dtype).eval(), state


def masked_only(x: Tensor, mask: Mask) -> Tensor:
    """What stands at masked positions, in the order of the scan."""
    return take(x, mask.masked.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : -mask.visible.shape[1]])


def rebuilt(pred: Tensor, mask: Mask) -> Tensor:
    """Predicted points of the masked patches, (B M, K, 3)."""
    return masked_only(pred, mask).flatten(0, 1).unflatten(1, (-1, 3))


def check_pretraining(rec: Recording, origin: CloudOrigin, extra: dict[str, Any], **choices: Any) -> None:
    objective, state = pretraining(rec, origin, extra, PointDecoder.Config, **choices)
    patches = objective.backbone.partition(rec.input("points"))
    check_patches(rec, patches)
    mask = Mask.from_masked(rec.input("mask").bool())
    drawn = objective.masking.kept((mask.masked.shape[1],))
    rec.check_true("our masking hides another number of patches", drawn == (mask.visible.shape[1],))
    rec.check("output.encoder", objective.backbone.encode_visible(patches, mask).patches)
    states: list[Tensor] = []
    handle = objective.decoder.norm.register_forward_hook(lambda module, args, output: states.append(output))
    pred = objective.predict(patches, mask)
    handle.remove()
    rec.check("output.decoder", masked_only(states[0], mask))
    rec.check("output.rebuild", rebuilt(pred, mask))
    loss = objective.step(patches, mask).total
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, objective, state)


def pointmap_pretrain(rec: Recording) -> None:
    args = rec.config["config"]
    extra = {"neighbours": args["center_local_k"], "channel_backwards": args["bimamba_type"] == "v4"}
    check_pretraining(rec, OfficialHybrid3D(), extra, regions=VisibleFirst.Config(), decoder_mask="map")


def point_mae_pretrain(rec: Recording) -> None:
    check_pretraining(rec, OfficialPointTransformer(), {}, regions=Whole.Config(), decoder_mask="mae")


def check_orders(rec: Recording, order: Callable[[int], Tensor]) -> None:
    """The official orders count through the batch."""
    for number, name in enumerate(("hilbert", "hilbert_trans")):
        found = order(number)
        flat = found + found.shape[1] * torch.arange(len(found), device=found.device)[:, None]
        rec.check(f"output.order_{name}", flat.view(1, -1))


def pointmamba_cls(rec: Recording) -> None:
    origin = OfficialPointMamba()
    model, state = classifier(rec, origin, {})
    points = rec.input("points")
    centres = CloudBackbone.partition(model, points).coords
    rec.check("output.center", centres)
    check_orders(rec, lambda number: model.order(centres, number))
    layers: Any = model.layers
    outputs: dict[str, Any] = {}
    hooks = [
        layers[0].register_forward_hook(lambda module, args, output: outputs.update(first=output)),
        model.norm.register_forward_hook(lambda module, args, output: outputs.update(last=output[0])),
    ]
    logits = model(points)
    for hook in hooks:
        hook.remove()
    branch, stream = outputs["first"]
    rec.check("feature.layer0", branch if stream is None else branch + stream)
    rec.check("feature.blocks", outputs["last"])
    rec.check("output.logits", logits)
    loss = F.cross_entropy(logits, rec.input("labels"))
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)


def pointmamba_pretrain(rec: Recording) -> None:
    origin = OfficialPointMamba()
    objective, state = pretraining(rec, origin, {}, CurveDecoder.Config, regions=Whole.Config(), decoder_mask="mae")
    points, mask = rec.input("points"), Mask.from_masked(rec.input("mask").bool())
    backbone: Any = objective.backbone
    plain = CloudBackbone.partition(backbone, points)
    rec.check("output.center", plain.coords)
    check_orders(rec, lambda number: backbone.order(plain.coords, number))
    steps = {backbone.partition(points, step_key).order: step_key for step_key in range(20)}
    losses = []
    for number in (0, 1):
        patches = backbone.partition(points, steps[number])
        rec.check(f"output.encoder{number}", backbone.encode_visible(patches, mask).patches)
        found = rebuilt(objective.predict(patches, mask), mask)
        rec.check(f"output.rebuild{number}", found)
        losses.append(objective.step(patches, mask).total)
        rec.check(f"output.loss{number}", losses[-1])
        expected = chamfer_l2(found, rebuilt(patches.content, mask))
        rec.check_true("the loss is another than that of the masked patches", torch.allclose(expected, losses[-1]))
    rec.check("output.loss", losses[0] + losses[1])
    (losses[0] + losses[1]).backward()
    check_model_gradients(rec, origin, objective, state)

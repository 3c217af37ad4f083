"""MambaVision classifiers, with BatchNorm in evaluation and with maps that windows do not divide."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from hybridmap.backbones import MambaVision
from hybridmap.convert.mambavision import MambaVisionOrigin
from parity_harness.hybrid import Recorder, check_model_gradients
from parity_harness.recording import Recording

KEPT = 4
"""Channels of the maps at high resolution that the recordings hold."""


def mambavision_config(args: dict[str, Any]) -> MambaVision.Config:
    """Ours from the arguments of the official class; the first two heads and windows are of stages that have neither."""
    known = {"dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "drop_path_rate", "num_classes"}
    known |= {"layer_scale", "layer_scale_conv"}
    assert args.keys() <= known, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    return MambaVision.Config(
        embed_dim=args["dim"],
        stem_dim=args["in_dim"],
        depths=tuple(args["depths"]),
        num_heads=tuple(args["num_heads"][2:]),
        window_size=tuple(args["window_size"][2:]),
        mlp_ratio=float(args["mlp_ratio"]),
        drop_path=args.get("drop_path_rate", 0.2),
        num_classes=args["num_classes"],
        layer_scale=args.get("layer_scale"),
        conv_layer_scale=args.get("layer_scale_conv"),
    )


def mambavision(rec: Recording) -> None:
    state = rec.state()
    origin = MambaVisionOrigin()
    config = mambavision_config(rec.config["args"])
    model: MambaVision = config.build()
    model.load_state_dict(origin.convert(state, num_heads=config.num_heads[0]).backbone, strict=True)
    model.to(rec.dtype).eval()

    watched = {f"level{s}_block{j}": block for s in (2, 3) for j, block in enumerate(model.stages[s].blocks)}
    watched |= {"patch_embed": model.stem} | {f"stage{s}": stage for s, stage in enumerate(model.stages)}
    images = rec.input("image")
    with Recorder(watched) as outputs:
        logits = model(images)
    for s in range(4):
        outputs[f"level{s}_pre"], outputs[f"level{s}"] = outputs[f"stage{s}"]
    rec.check_each("feature.", r"(patch_embed|level\d_pre)", lambda name: outputs[name][:, :KEPT])
    rec.check_each("feature.", r"(level\d|level\d_block\d+)", lambda name: outputs[name])
    rec.check("output.features", model.forward_head(model.forward_features(images), pre_logits=True))
    rec.check("output.logits", logits)
    loss = F.cross_entropy(logits, rec.input("labels"))
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)

"""PointNet4D and 4DMAP: features, logits and the pretraining loss of one clip under a recorded mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.convert.pointnet4d import OfficialPointNet4D
from hybridmap.objectives.fourd_map import FourDMAP, FrameDecoder
from hybridmap.types import Mask
from parity_harness.hybrid import Recorder, check_model_gradients
from parity_harness.recording import Recording


def pointnet4d_config(args: dict[str, Any], frames: int, points: int) -> PointNet4D.Config:
    """Ours from the arguments of the official constructor; the README beside the recordings lists its defaults."""
    known = {"num_classes", "feat_dim", "depth", "heads", "dim_head", "length", "head_hidden_dim", "max_frames"}
    assert args.keys() <= known, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    assert frames <= args["length"], "the official causal mask is shorter than the clip"
    return PointNet4D.Config(
        num_frames=frames,
        num_points=points,
        embed_dim=args["feat_dim"],
        depth=args["depth"],
        num_heads=args["heads"],
        head_width=args["dim_head"],
        num_classes=args["num_classes"],
        head_hidden=args["head_hidden_dim"],
        max_frames=args["max_frames"],
    )


def pointnet4d_4dmap(rec: Recording) -> None:
    args, options, state = rec.config["encoder_args"], rec.config["pretrain_args"], rec.state()
    assert options["feat_dim"] == args["feat_dim"]
    assert options["max_frames"] == args["max_frames"]
    origin = OfficialPointNet4D()
    config = pointnet4d_config(args, rec.config["frames"], options["num_points"])
    decoder = FrameDecoder.Config(depth=options["decoder_depth"], num_heads=options["decoder_heads"])
    learner: FourDMAP = FourDMAP.Config(backbone=config, decoder=decoder).build()
    whole: PointNet4D = config.build()
    learner.backbone.head = whole.head  # the recording has pretrained and classified with one network
    loaded = origin.convert(state, num_heads=args["heads"], keep_untrained=True)
    named = {name if name.startswith("decoder.") else f"backbone.{name}": value for name, value in loaded.weights.items()}
    learner.load_state_dict(named, strict=True)
    learner.to(rec.dtype).eval()

    clip = rec.input("clip")
    backbone: PointNet4D = learner.backbone
    patches, mask = backbone.partition(clip), Mask.from_masked(rec.input("mask"))
    rec.check_true("another number of frames is masked", int(mask.masked.sum(1)[0]) == rec.config["num_masked"])
    mixer = backbone.layers[0].get_submodule("mixer")
    with Recorder({"frame": backbone.frames, "mixer": mixer}) as seen:
        tokens = backbone.embed(patches)
        features = backbone.encode(tokens, patches.coords).patches
    rec.check("feature.frame", seen["frame"])
    rec.check("feature.mamba0", tokens + seen["mixer"])  # the official module adds its input
    rec.check("output.features", features)
    logits = backbone.forward_head(features)
    rec.check("output.logits", logits)
    shown = rec.tensors["output.preds"].shape[2]
    with torch.no_grad():
        preds = learner.predict(patches, mask)
    rec.check("output.preds", preds.unflatten(-1, (-1, 3))[:, :, :shown])
    pretrain = learner.step(patches, mask).total
    rec.check("output.loss_pretrain", pretrain)
    loss = pretrain + F.cross_entropy(logits.flatten(0, 1), rec.input("labels").flatten())
    rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, learner, state)

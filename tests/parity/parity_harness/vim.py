"""Vim classifiers with every option that a recording reaches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap import ops
from hybridmap.backbones.vim import Vim
from hybridmap.convert.vim import VimClassifier
from hybridmap.layers.mamba import MambaMixer
from hybridmap.layers.rotary import Rotary
from parity_harness.hybrid import Recorder, check_model_gradients, prepare
from parity_harness.recording import Recording

NEUTRAL = {"drop_rate", "drop_path_rate", "fused_add_norm", "norm_epsilon", "ft_seq_len"}
"""Official arguments without effect on a float32 evaluation, or read where they matter."""


def vim_config(args: dict[str, Any]) -> Vim.Config:
    """Ours from the arguments of Vim's ``VisionMamba``; the README beside the recordings lists its defaults."""
    known = {"img_size", "patch_size", "stride", "depth", "embed_dim", "d_state", "channels", "num_classes", "ssm_cfg"}
    known |= {"rms_norm", "residual_in_fp32", "final_pool_type", "bimamba_type", "if_bimamba", "if_divide_out"}
    known |= {"if_cls_token", "use_middle_cls_token", "use_double_cls_token", "if_abs_pos_embed", "init_layer_scale"}
    known |= {"if_rope", "if_rope_residual", "pt_hw_seq_len", "if_bidirectional"} | NEUTRAL
    assert args.keys() <= known, f"official arguments that the harness does not know: {sorted(args.keys() - known)}"
    assert not args.get("if_bimamba"), "the old name of v1 is not recorded"
    size, patch, ssm = args["img_size"], args.get("patch_size", 16), args.get("ssm_cfg") or {}
    assert ssm.keys() <= {"d_state", "d_conv", "expand"}, f"mixer options that the harness does not know: {sorted(ssm)}"
    if not args.get("if_cls_token", True):
        class_token = "none"
    elif args.get("use_double_cls_token", False):
        class_token = "double"
    else:
        class_token = "middle" if args.get("use_middle_cls_token", True) else "first"
    kind = args.get("bimamba_type", "v2")
    return Vim.Config(
        img_size=tuple(size) if isinstance(size, list) else size,
        patch_size=patch,
        stride=None if args.get("stride", 16) == patch else args["stride"],
        in_chans=args.get("channels", 3),
        embed_dim=args["embed_dim"],
        num_classes=args.get("num_classes", 1000),
        depth=args["depth"],
        class_token=class_token,
        pool=args.get("final_pool_type", "none"),
        positions="learned" if args.get("if_abs_pos_embed", True) else "none",
        mixer=kind if kind in ("v1", "v2") else "uni",
        divide=args.get("if_divide_out", True),
        layer_scale=args.get("init_layer_scale"),
        bidirectional_pairs=args.get("if_bidirectional", False),
        rope=args.get("if_rope", False),
        rope_residual=args.get("if_rope_residual", False),
        rope_side=args.get("pt_hw_seq_len", 14),
        norm_kind="rms" if args.get("rms_norm", True) else "layer",
        residual_in_fp32=args.get("residual_in_fp32", True),
        drop_path=float(args.get("drop_path_rate", 0.1)),
        **{"d_state": args.get("d_state", 16), **ssm},
    )


class Recorded(Rotary):
    """The recorded tables, which are rounded to float32, in place of computed ones."""

    cosine: Tensor
    sine: Tensor

    def tables(self, grid: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        return self.cosine, self.sine


def use_recorded_tables(rec: Recording, model: Vim, state: dict[str, Tensor]) -> None:
    """Compare our tables with the recorded ones, and take theirs."""
    cosine, sine = state["rope.freqs_cos"], state["rope.freqs_sin"]
    assert model.rope is not None
    ours = model.rope.tables(model.grid, cosine.device)
    near = all(torch.allclose(a.to(b.dtype), b, rtol=0, atol=1e-6) for a, b in zip(ours, (cosine, sine), strict=True))
    rec.check_true("the rotary tables differ", near)
    model.rope = Recorded(model.rope.dim, model.rope.side)
    model.rope.cosine, model.rope.sine = cosine, sine


class Forgetful(MambaMixer):
    """v1 with the gradient of the official backward pass, which is not that of its forward pass: the share of the gate's
    gradient that comes from the backward scan is lost. Our mixer's gradient is the derivative (tests/layers/test_mamba.py)."""

    def _scan_twice(self, xz: Tensor, fwd: ops.Parameters) -> Tensor:
        x, z = xz.chunk(2, dim=-1)
        still = torch.cat([x, z.detach()], dim=-1)
        return super()._scan_twice(still, fwd) + ops.mamba_inner(xz, fwd) - ops.mamba_inner(still, fwd)


def vim(rec: Recording) -> None:
    args, state = rec.config["args"], rec.state()
    config = vim_config(args)
    origin = VimClassifier("first" if config.class_token == "first" else "middle")
    model: Vim = config.build()
    model.load_state_dict(origin.convert(state, grid=model.grid).backbone, strict=True)
    model = prepare(model, args, rec.dtype)
    if config.rope:
        use_recorded_tables(rec, model, state)

    images = rec.input("image")
    with Recorder({str(s): layer for s, layer in enumerate(model.layers)}) as outputs:
        tokens = model.forward_features(images)
    rec.check_each("feature.", r"layer(\d+)_hidden", lambda s: outputs[s][0])
    rec.check_each("feature.", r"layer(\d+)_residual", lambda s: outputs[s][1])
    rec.check("output.features", model.forward_head(tokens, pre_logits=True))
    logits = model(images)
    rec.check("output.logits", logits)
    loss = F.cross_entropy(logits, rec.input("labels"))
    rec.check("output.loss", loss)
    if config.mixer == "v1":
        for module in model.modules():
            if isinstance(module, MambaMixer):
                module.__class__ = Forgetful
        loss = F.cross_entropy(model(images), rec.input("labels"))
        rec.check("output.loss", loss)
    loss.backward()
    check_model_gradients(rec, origin, model, state)

"""Operators: each case of a recording through the public functions, with the gradients of all its inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap import ops
from parity_harness.recording import Recording


def check_case(rec: Recording, case: str, inputs: dict[str, Tensor], out: dict[str, Tensor], loss: Tensor) -> None:
    """Compare the outputs of one case, and d loss / d input for every input but the cotangents."""
    for name, value in out.items():
        rec.check(f"output.{case}.{name}", value)
    asked = {n: v for n, v in inputs.items() if v.requires_grad and not n.startswith("cotangent")}
    gradients = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
    for (name, value), gradient in zip(asked.items(), gradients, strict=True):
        rec.check(f"grad.input.{case}.{name}", torch.zeros_like(value) if gradient is None else gradient)


def selective_scan(rec: Recording) -> None:
    for case, options, inputs in rec.cases():
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        out, last_state = ops.selective_scan_fn(
            **{name: inputs[name] for name in names if name in inputs},
            delta_softplus=options["delta_softplus"],
            return_last_state=True,
        )
        loss = (out * inputs["cotangent"]).sum()
        check_case(rec, case, inputs, {"out": out, "last_state": last_state}, loss)


def causal_conv1d(rec: Recording) -> None:
    for case, options, inputs in rec.cases():
        out = ops.causal_conv1d_fn(inputs["x"], inputs["weight"], inputs.get("bias"), activation=options["activation"])
        check_case(rec, case, inputs, {"out": out}, (out * inputs["cotangent"]).sum())


def add_norm(rec: Recording) -> None:
    for case, options, inputs in rec.cases():
        out, summed = ops.add_norm(
            inputs["x"],
            inputs.get("residual"),
            inputs["weight"],
            inputs.get("bias"),
            eps=options["eps"],
            kind=options["norm"],
        )
        loss = (out * inputs["cotangent_out"]).sum() + (summed * inputs["cotangent_residual"]).sum()
        check_case(rec, case, inputs, {"out": out, "residual_out": summed}, loss)


def mamba_inner(rec: Recording) -> None:
    """The fused inner block of Mamba, composed of our operators."""
    for case, options, inputs in rec.cases():
        x, z = inputs["xz"].chunk(2, dim=1)  # each (B, E, L)
        c = ops.causal_conv1d_fn(x, inputs["conv1d_weight"].squeeze(1), inputs.get("conv1d_bias"), activation="silu")
        states = inputs["A"].shape[1]
        rank = inputs["dt_proj_weight"].shape[1]
        delta, B, C = F.linear(c.transpose(1, 2), inputs["x_proj_weight"]).split([rank, states, states], dim=-1)
        dt = F.linear(delta, inputs["dt_proj_weight"])
        y = ops.selective_scan_fn(
            c,
            dt.transpose(1, 2),
            inputs["A"],
            B.transpose(1, 2),
            C.transpose(1, 2),
            inputs.get("D"),
            z=z,
            delta_bias=inputs.get("delta_bias"),
            delta_softplus=options["delta_softplus"],
        )
        out = F.linear(y.transpose(1, 2), inputs["out_proj_weight"], inputs.get("out_proj_bias"))
        check_case(rec, case, inputs, {"out": out}, (out * inputs["cotangent"]).sum())


def points(rec: Recording) -> None:
    """Sampling, neighbours and both Chamfer losses, by the rules of the CUDA operators."""
    cloud, config = rec.input("points"), rec.config
    assert cloud.shape[:2] == (config["batch"], config["points"])
    chosen = ops.points.fps(cloud, config["groups"], skip_origin=True)
    rec.check("output.fps_idx", chosen)
    centres = cloud.gather(1, chosen[..., None].expand(-1, -1, 3))
    distance, index = ops.points.knn(cloud, centres, config["k"])
    rec.check("output.knn_idx", index)
    rec.check("output.knn_dist", distance.sqrt())
    rec.check("output.ball_idx", ops.points.ball_query(cloud, centres, config["radius"], config["nsample"]))
    a, b = (rec.input(name).requires_grad_() for name in "ab")
    for name, run in (("cdl1", ops.points.chamfer_l1), ("cdl2", ops.points.chamfer_l2)):
        loss = run(a, b)
        rec.check(f"output.{name}", loss)
        for side, gradient in zip("ab", torch.autograd.grad(loss, (a, b)), strict=True):
            rec.check(f"grad.input.{name}.{side}", gradient)

"""Tables and laws: register positions, sine-cosine and resampled positions, schedule, layer decay, law of the mask ratio."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from hybridmap.backbones import ViT
from hybridmap.layers import resample, sincos_2d
from hybridmap.layers.registers import positions
from hybridmap.tokens.masking import truncated_normal
from hybridmap.tokens.scan import order
from hybridmap.train.optim import AdamW
from hybridmap.train.schedule import Cosine
from parity_harness.hybrid import insertion_order
from parity_harness.recording import Recording

RATIO = {"mean": 0.5, "std": 0.25, "low": 0.3, "high": 0.7}
"""The law of MAP's released mask ratio."""


def tables(rec: Recording) -> None:
    for i, grid in enumerate(rec.config.get("grids", ())):
        register_tables(rec, f"output.cls{i}", grid["H"], grid["W"], grid["n_cls"])
    for i, wanted in enumerate(rec.config.get("pos_embeds", ())):
        table = sincos_2d(wanted["dim"], (wanted["grid"], wanted["grid"]))[0]
        first = torch.zeros(int(wanted["cls_token"]), wanted["dim"])
        rec.check(f"output.pos{i}", torch.cat([first, table]))
    rec.check_each("output.", r"(interp\d+)", lambda name: resampled(rec, name))
    if "output.lr" in rec.tensors:
        rec.check("output.lr", learning_rates(rec.input("epochs"), rec.config["schedule"]))
    if "output.mask_ratio" in rec.tensors:
        drawn = [truncated_normal(q, **RATIO) for q in rec.input("quantiles").tolist()]
        rec.check("output.mask_ratio", torch.tensor(drawn, dtype=torch.float64))
    for name, recorded in rec.meta.get("layer_decay", {}).items():
        layer_decay(rec, name, recorded)


def register_tables(rec: Recording, name: str, rows: int, columns: int, n: int) -> None:
    """Where registers stand, and the order of tokens by rows and by columns."""
    length = rows * columns
    at = positions(n, length)
    sequence = insertion_order(n, length)
    rec.check(f"{name}.positions", torch.tensor(at))
    rec.check(f"{name}.token_idx", sequence)
    if f"{name}.cross_idx" not in rec.tensors:
        return
    # By columns: the same registers at the same places, and between them the patches column after column.
    is_patch = sequence < length
    by_columns = torch.arange(length + n)
    by_columns[is_patch] = is_patch.nonzero()[:, 0][torch.as_tensor(order("column", (rows, columns)))]
    recorded = rec.tensors[f"{name}.cross_idx"]
    if torch.equal(recorded.sort().values, torch.arange(length + n)):
        rec.check(f"{name}.cross_idx", by_columns)
    else:
        # Where segments are shorter than a row the official table names some tokens twice and others never; it is no order
        # that anything could have, and only the places of the registers can be compared.
        rec.used.add(f"{name}.cross_idx")
        rec.check_true(f"{name}.cross_idx: registers stand elsewhere", recorded[list(at)].tolist() == list(at))


def resampled(rec: Recording, name: str) -> Tensor:
    """A square table with a class row, for the square grid of the recorded result."""
    table, wanted = rec.input(name), rec.tensors[f"output.{name}"]
    old, new = (round((t.shape[1] - 1) ** 0.5) for t in (table, wanted))
    return torch.cat([table[:, :1], resample(table[:, 1:], (old, old), (new, new))], dim=1)


def learning_rates(epochs: Tensor, options: dict[str, Any]) -> Tensor:
    """MAE's schedule per iteration, at fractional epochs."""
    schedule = Cosine.Config(
        form="iter", warmup_epochs=float(options["warmup_epochs"]), min_lr=float(options["min_lr"])
    ).build()
    return torch.tensor(
        [schedule(e, float(options["epochs"]), float(options["lr"])) for e in epochs.tolist()], dtype=torch.float64
    )


PLACES = {
    r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias))": r"\1",
    r"(?:blocks|layers)\.(\d+)\.0\.(weight|bias)": r"layers.\1.norm1.\2",
    r"(?:blocks|layers)\.(\d+)\.1\.(weight|bias)": r"layers.\1.mlp.fc1.\2",
    r"fc_norm\.(weight|bias)": r"norm.\1",
    r"head\.(weight|bias)": r"head.fc.\1",
}
"""Parameters of the recorded toy (a norm and a linear map per layer) -> those of a ViT that lie in the same places."""


def layer_decay(rec: Recording, name: str, recorded: dict[str, Any]) -> None:
    """Scale of the learning rate and weight decay of every recorded parameter, as our optimiser groups those of a ViT."""
    rec.used.add(f"layer_decay.{name}")
    vit = ViT.Config(
        img_size=16, embed_dim=16, depth=recorded["depth"], num_heads=2, num_classes=3, pool="avg", norm_position="pooled"
    ).build()
    options = AdamW.Config(layer_decay=recorded["layer_decay"], weight_decay=recorded["weight_decay"])
    rules = options.build().rules(vit)
    for official, (scale, decay) in recorded["groups"].items():
        ours = [re.sub(pattern, place, official) for pattern, place in PLACES.items() if re.fullmatch(pattern, official)]
        rec.check_true(f"layer_decay.{name}: {official} has no place in our ViT", len(ours) == 1 and ours[0] in rules)
        if ours and ours[0] in rules:
            rule = rules[ours[0]]
            same = math.isclose(rule.lr_scale, scale, rel_tol=1e-9) and rule.weight_decay == decay
            rec.check_true(f"layer_decay.{name}: {official} is {(scale, decay)}, ours {rule}", same)

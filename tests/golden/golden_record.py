"""Computes the numbers that the golden files hold, and writes them anew:

    python tests/golden/golden_record.py

Do so only in a commit that says which number moved and why.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hybridmap.backbones import ARM, HybridNet, MambaVision, ViT, VMamba
from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.hashing import hash_ints, uniform
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder, MAPQueryDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.shift import FromEarlier, NextRegion, Shift
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import Rows
from hybridmap.types import Batch

LOSSES = Path(__file__).parent / "losses.json"
NETWORKS = Path(__file__).parent / "networks.json"

STEPS, BATCH, SIZE, PATCH, WIDTH = 10, 4, 32, 8, 32

ENCODERS = {
    "hybridnet": HybridNet.Config(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, layout="MMMT", num_heads=4, d_state=8),
    "vit": ViT.Config(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=3, num_heads=4),
    "mambavision": MambaVision.Config(
        img_size=4 * SIZE, embed_dim=8, depths=(1, 1, 2, 2), stem_dim=8, num_heads=(2, 4), window_size=(8, 3)
    ),
    "arm": ARM.Config(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=3),
    "vmamba": VMamba.Config(img_size=4 * SIZE, embed_dim=8, depths=(1, 1, 1, 1)),
}
"""A tiny network of each family."""

DECODER_MASKS = ("map", "mae", "local_mae", "ar")
"""The objectives: what a prediction may look at."""


def objective(encoder: str, decoder_mask: str) -> MAP.Config:
    """One cell of the table; MAE on a ViT is as released, with its own decoder and rounding."""
    as_released = encoder == "vit" and decoder_mask == "mae"
    return MAP.Config(
        backbone=ENCODERS[encoder],
        masking=Random.Config(ratio=0.75, rounding="keep_floor") if as_released else Random.Config(ratio=0.5),
        regions=Rows.Config(),
        decoder=MAEDecoder.Config(width=16, depth=1, num_heads=4)
        if as_released
        else MAPDecoder.Config(width=16, depth=1, num_heads=4),
        decoder_mask=decoder_mask,
    )


EARLIER = {
    "shift": partial(Shift.Config, count=3),
    "next_region": NextRegion.Config,
}
"""Objectives that predict from earlier features, on encoders that can read one way."""


def from_earlier(encoder: str, kind: str) -> FromEarlier.Config:
    return EARLIER[kind](backbone=ENCODERS[encoder], decoder=MAPQueryDecoder.Config(width=16, depth=1, num_heads=4))


def batch(step: int, size: int = SIZE) -> Batch:
    """Images of smooth waves, by formula from the step and the place in the batch."""
    key = torch.tensor([hash_ints(1, step, i) for i in range(BATCH)])
    frequency, phase, colour = (uniform(key, 6, stream).view(BATCH, 3, 2, 1, 1) for stream in range(3))
    axis = torch.arange(size) / size
    rows, columns = axis[:, None].expand(size, size), axis[None, :].expand(size, size)
    waves = torch.sin(6.28 * (frequency * 3 * torch.stack([rows, columns]) + phase)) * (0.5 + colour)
    return Batch(inputs=waves.sum(2), key=key, step_key=hash_ints(2, step))


def losses(encoder: str, kind: str) -> list[float]:
    """The first losses of training with plain AdamW; ``kind`` is a decoder mask or one of EARLIER."""
    torch.manual_seed(0)
    made = from_earlier(encoder, kind) if kind in EARLIER else objective(encoder, kind)
    learner = made.build().train()
    optimiser = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
    found: list[float] = []
    for step in range(STEPS):
        loss = learner(batch(step, learner.config.backbone.img_size)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def network(name: str) -> dict[str, Any]:
    """Parameters of a named model, and a hash over names, shapes and dtypes of its state dict."""
    with torch.device("meta"):
        model = MODELS[name].build()
    entries = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in sorted(model.state_dict().items())]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(entries),
        "sha256": hashlib.sha256("\n".join(entries).encode()).hexdigest(),
    }


def cells() -> list[tuple[str, str]]:
    """Pairs of a tiny network and an objective."""
    masked = [(encoder, decoder_mask) for encoder in ENCODERS for decoder_mask in DECODER_MASKS]
    return masked + [(encoder, kind) for encoder in ("hybridnet", "vit", "arm") for kind in EARLIER]


def main() -> None:
    torch.set_num_threads(1)
    recorded = {f"{encoder} {mask}": [round(value, 6) for value in losses(encoder, mask)] for encoder, mask in cells()}
    LOSSES.write_text("{\n" + ",\n".join(f'  "{name}": {values}' for name, values in recorded.items()) + "\n}\n")
    NETWORKS.write_text(json.dumps({name: network(name) for name in MODELS}, indent=1) + "\n")
    print(f"wrote {LOSSES} and {NETWORKS}; {len(ALIASES)} aliases share the entries of their models")


if __name__ == "__main__":
    main()

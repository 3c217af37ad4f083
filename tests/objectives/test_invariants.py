"""What must hold for every objective that predicts patches, on every family of backbones: perturb what must not matter, and
nothing moves.

Here: counts and order of what is masked; who may look at whom in the decoder; no way from hidden pixels to a prediction; the
loss against a loop; attention against its dense reference. Elsewhere: permissions against their definition and one another
(tokens/test_regions.py), settings that equal one another (test_map.py), patches that make the image again (test_images.py),
prediction from earlier features rank by rank (test_shift.py, test_cluster_ar.py), drawn ratios (test_masking.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridmap.backbones import ARM, HybridNet, MambaVision, Vim, ViT, VMamba
from hybridmap.backbones.base import Backbone
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.base import Objective
from hybridmap.objectives.decoder import Decoder, MAEDecoder, MAPDecoder, MAPQueryDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.shift import NextRegion, Shift
from hybridmap.tokens.masking import Diagonal, Random, Sequential
from hybridmap.tokens.regions import Clusters, Columns, Rows
from hybridmap.types import Batch, Mask, Patches

GRID: dict[str, Any] = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 16}
SEQUENCE: dict[str, Backbone.Config] = {
    "hybrid": HybridNet.Config(**GRID, layout="MT", num_heads=2, num_registers=2),
    "hybrid by columns": HybridNet.Config(**GRID, layout="MT", num_heads=2, scan="column"),
    "mamba-r": HybridNet.Config(**GRID, layout="MM", num_registers=2),
    "vim": Vim.Config(**GRID, depth=2),
    "vit": ViT.Config(**GRID, depth=2, num_heads=2),
    "arm": ARM.Config(**GRID, depth=2),
}
DENSE: dict[str, Backbone.Config] = {
    "mambavision": MambaVision.Config(
        img_size=(96, 160), embed_dim=8, depths=(1, 1, 2, 2), stem_dim=8, num_heads=(2, 4), window_size=(8, 3)
    ),
    "vmamba": VMamba.Config(img_size=(96, 160), embed_dim=8, depths=(1, 1, 1, 1)),
}
"""Units of 32 pixels: 3 x 5 of them, as of the patches above."""
MASKED: dict[str, dict[str, Any]] = {
    "map": {},
    "map by columns": {"regions": Columns.Config()},
    "map in clusters": {"regions": Clusters.Config(size=2), "masking": Random.Config(scope="region")},
    "map, diagonal": {"masking": Diagonal.Config(ratio=0.4)},
    "local mae": {"decoder_mask": "local_mae"},
    "mae": {"decoder_mask": "mae", "masking": Random.Config(ratio=0.75, rounding="keep_floor")},
    "mae's decoder": {"decoder_mask": "mae", "decoder": MAEDecoder.Config(width=16, depth=1, num_heads=4)},
    "ar mask": {"decoder_mask": "ar"},
    "ar tail": {"decoder_mask": "ar", "masking": Sequential.Config(count=4)},
    "ar tail by columns": {"decoder_mask": "ar", "masking": Sequential.Config(count=4), "regions": Columns.Config()},
}
COUNTS = {"map in clusters": 2 + 2 + 1 + 1 + 1 + 1, "map, diagonal": 6, "mae": 12, "ar tail": 4, "ar tail by columns": 4}
"""Masked patches of 15 where it is not half of them, 8."""
QUERIES = MAPQueryDecoder.Config(width=16, depth=1, num_heads=4)


def made(config: Objective.Config) -> Any:
    """With random weights everywhere, in evaluation mode."""
    objective: Objective = config.build()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective.eval()


def masked(backbone: Backbone.Config, setting: str, **fields: Any) -> MAP:
    given = {"decoder": MAPDecoder.Config(width=16, depth=1, num_heads=4)} | MASKED[setting] | fields
    return made(MAP.Config(backbone=backbone, **given))


def shifted(backbone: Any, setting: str) -> Any:
    if setting == "shift":
        return made(Shift.Config(backbone=backbone, count=4, decoder=QUERIES))
    if setting == "shift by columns":
        return made(Shift.Config(backbone=backbone, count=4, decoder=QUERIES, regions=Columns.Config()))
    return made(NextRegion.Config(backbone=backbone, decoder=QUERIES))


def arms() -> ClusterAR:
    backbone = replace(SEQUENCE["arm"], directions=1, scan="cluster(2)", cls_token=False)  # type: ignore[call-arg]
    return made(
        ClusterAR.Config(backbone=backbone, regions=Clusters.Config(size=2), decoder=ARMDecoder.Config(width=16, num_heads=2))
    )


CELLS: dict[str, Callable[[], Any]] = {
    **{
        f"{setting}, {name}": (lambda network=network, setting=setting: masked(network, setting))
        for setting in MASKED
        for name, network in (SEQUENCE | DENSE).items()
        if name.startswith("hybrid") or setting in ("map", "ar tail")
    },
    **{
        f"{setting}, {name}": (lambda network=network, setting=setting: shifted(network, setting))
        for setting in ("shift", "shift by columns", "next region")
        for name, network in SEQUENCE.items()
        if setting != "next region" or "columns" not in name
    },
    "cluster ar, arm": arms,
}
"""Every objective on the hybrid, two and those that look at earlier features alone on every family."""


@pytest.fixture(params=CELLS.values(), ids=CELLS)
def cell(request: pytest.FixtureRequest) -> Any:
    return request.param()


def drawn(objective: Any) -> tuple[Patches, Mask, Batch]:
    size = objective.config.backbone.img_size
    keys = torch.tensor([hash_ints(0, i) for i in range(2)])
    dtype = objective.decoder.mask_token.dtype
    batch = Batch(inputs=torch.randn(2, 3, *size, dtype=dtype), key=keys, step_key=1)
    patches = objective.backbone.partition(batch.inputs)
    return patches, objective.draw(patches, batch), batch


def predicted_by(objective: Any, patches: Patches, mask: Mask) -> Tensor:
    """(B, N), True where the loss looks."""
    if isinstance(objective, MAP):
        return mask.masked
    return torch.zeros_like(mask.masked).scatter(1, objective.predicted(patches), True)


@pytest.mark.parametrize("network", SEQUENCE)
@pytest.mark.parametrize("setting", MASKED)
def test_every_sample_hides_the_same_number_and_the_visible_stay_in_order(setting: str, network: str) -> None:
    _, mask, _ = drawn(masked(SEQUENCE[network], setting))
    hidden = COUNTS.get(setting, math.ceil(15 * 0.5))
    assert mask.masked.sum(1).tolist() == [hidden] * 2
    assert mask.visible.shape == (2, 15 - hidden)
    assert bool((mask.visible.diff(dim=1) > 0).all())
    assert not bool(mask.masked.gather(1, mask.visible).any())


def test_hidden_pixels_move_no_prediction(cell: Any) -> None:
    """Neither features nor predictions, bit by bit; the loss does move, since its target is there."""
    patches, mask, _ = drawn(cell)
    content = torch.where(mask.masked[..., None], 100 * torch.randn_like(patches.content), patches.content)
    others = replace(patches, content=content)
    with torch.no_grad():
        seen, seen_others = (cell.backbone.encode_visible(p, mask) for p in (patches, others))
        assert torch.equal(seen.patches, seen_others.patches)
        assert torch.equal(seen.prefix, seen_others.prefix)
        assert torch.equal(cell.predict(patches, mask), cell.predict(others, mask))
        assert cell.step(patches, mask).total != cell.step(others, mask).total


def test_visible_pixels_move_every_prediction_that_may_look_at_them(cell: Any) -> None:
    patches, mask, _ = drawn(cell)
    content = torch.where(mask.masked[..., None], patches.content, patches.content + torch.randn_like(patches.content))
    with torch.no_grad():
        before, after = cell.predict(patches, mask), cell.predict(replace(patches, content=content), mask)
    if isinstance(cell, MAP):
        allowed = cell.allowed(patches, mask)
        sees = ~mask.masked if allowed is None else (allowed & ~mask.masked[:, None, None, :]).any(-1)[:, 0]
        looking = sees.any(1, keepdim=True).expand_as(mask.masked) if allowed is None else sees
    else:
        looking = predicted_by(cell, patches, mask)
    assert torch.equal((before != after).any(-1), looking)


@pytest.mark.parametrize("decoder", [MAPDecoder, MAEDecoder], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("network", ["hybrid", "hybrid by columns", "mambavision"])
@pytest.mark.parametrize("setting", [name for name in MASKED if name != "mae's decoder"])
def test_features_move_only_predictions_that_may_look_at_them(setting: str, network: str, decoder: type[Decoder]) -> None:
    """By the definition of each decoder mask, written out over row and column."""
    small: Any = decoder.Config(width=16, depth=2, num_heads=4)
    objective = masked((SEQUENCE | DENSE)[network], setting, decoder=small)
    patches, mask, _ = drawn(objective)
    row, column = (patches.source[0] // 5).tolist(), (patches.source[0] % 5).tolist()

    def order(n: int) -> tuple[int, int]:
        """(rank of the region, rank of the patch)."""
        if isinstance(objective.config.regions, Clusters.Config):
            return row[n] // 2 * 3 + column[n] // 2, 0
        along = (row[n], column[n]) if isinstance(objective.config.regions, Rows.Config) else (column[n], row[n])
        return along[0], 15 * along[0] + along[1]

    def may_look(q: int, k: int) -> bool:
        (region_q, rank_q), (region_k, rank_k) = order(q), order(k)
        kind = objective.config.decoder_mask
        return {"mae": True, "local_mae": region_k == region_q, "map": region_k <= region_q, "ar": rank_k <= rank_q}[kind]

    with torch.no_grad():
        seen = objective.backbone.encode_visible(patches, mask)
        allowed = objective.allowed(patches, mask)
        before = objective.decoder(seen, mask, patches, allowed)
        for place in range(mask.visible.shape[1]):
            features = seen.patches.clone()
            features[:, place] += torch.randn_like(features[:, place])
            after = objective.decoder(replace(seen, patches=features), mask, patches, allowed)
            moved = (before != after).any(-1)  # (B, N)
            for b in range(2):
                k = int(mask.visible[b, place])
                assert moved[b].tolist() == [may_look(q, k) for q in range(15)]


@pytest.mark.parametrize("setting", ["map", "map by columns", "ar mask", "ar tail", "local mae"])
@pytest.mark.parametrize("network", SEQUENCE)
def test_a_causal_encoder_keeps_visible_pixels_of_later_regions_out(network: str, setting: str) -> None:
    scan = "column" if "columns" in setting else "row"
    if network == "arm" and scan == "column":
        pytest.skip("an ARM of four directions goes down the columns anyway")
    backbone = replace(SEQUENCE[network], scan=scan)  # type: ignore[call-arg]
    objective = masked(backbone, setting, encoder_causal="region")
    patches, mask, batch = drawn(objective)
    rank = objective.regions(patches, None)[0]
    free = masked(backbone, setting)
    free.load_state_dict(objective.state_dict())
    leaks = False
    with torch.no_grad():
        before, free_before = objective.predict(patches, mask), free.predict(patches, mask)
        for changed in rank.unique().tolist()[1:]:
            other = replace(
                patches, content=torch.where((rank == changed)[None, :, None], patches.content + 1, patches.content)
            )
            earlier = rank < changed
            assert torch.equal(before[:, earlier], objective.predict(other, mask)[:, earlier])
            leaks |= not torch.equal(free_before[:, earlier], free.predict(other, mask)[:, earlier])
    assert leaks or setting == "ar tail"  # the last region is hidden whole there; else the usual encoder does look ahead
    objective.train()(batch).total.backward()
    named = dict(objective.named_parameters())
    assert {name for name, p in named.items() if p.grad is None} == {name for name, p in named.items() if not p.requires_grad}
    assert not [name for name, p in named.items() if p.requires_grad and ".dirs." in name and ".fwd." not in name]


def test_a_causal_encoder_needs_a_scan_that_follows_the_regions_and_a_sequence() -> None:
    with pytest.raises(UserError, match="the scan 'row' does not follow the regions"):
        masked(SEQUENCE["hybrid"], "map by columns", encoder_causal="region")
    for network in DENSE.values():
        with pytest.raises(UserError, match="cannot encode causally"):
            drawn_loss(masked(network, "map", encoder_causal="region"))


def drawn_loss(objective: Any) -> Tensor:
    return objective(drawn(objective)[2]).total


def test_the_loss_is_that_of_a_loop_and_pulls_at_nothing_else(cell: Any) -> None:
    """Over what the decoder returned: the mean over predicted patches; zero for the target itself; no gradient elsewhere."""
    patches, mask, _ = drawn(cell)
    looked = predicted_by(cell, patches, mask)
    target = torch.empty_like(patches.content)
    for b in range(2):
        for n in range(15):
            x = patches.content[b, n]
            mean = x.sum() / len(x)
            target[b, n] = (x - mean) / (((x - mean) ** 2).sum() / (len(x) - 1) + 1e-6) ** 0.5
    pred = torch.randn_like(target).requires_grad_()
    returned = pred
    cell.decoder.register_forward_hook(lambda *_: returned)
    loss = cell.step(patches, mask).total
    errors = [(pred[b, n] - target[b, n]).square().mean() for b in range(2) for n in range(15) if looked[b, n]]
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    loss.backward()
    assert pred.grad is not None
    assert torch.equal(pred.grad.ne(0).any(-1), looked)
    returned = cell.target.values(patches)
    torch.testing.assert_close(returned, target)
    assert cell.step(patches, mask).total == 0


def dense_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    """Additive -inf before a softmax over all keys."""
    additive = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
    if causal:
        additive = additive.masked_fill(torch.ones_like(additive, dtype=torch.bool).triu(1), -torch.inf)
    if allowed is not None:
        additive = additive.expand(allowed.shape).masked_fill(~allowed, -torch.inf)
    return (q @ k.mT / q.shape[-1] ** 0.5 + additive).softmax(-1) @ v


def test_attention_equals_its_dense_reference_in_loss_and_every_gradient(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(cell.backbone, MambaVision | VMamba):
        pytest.skip("the decoder is that of the other families")
    batch = drawn(cell.double())[2]
    found = []
    for attend in (None, dense_attention):
        if attend is not None:
            monkeypatch.setattr("hybridmap.layers.attention.attend", attend)
        cell.zero_grad()
        loss = cell(batch).total
        loss.backward()
        found.append(
            {name: p.grad.clone() for name, p in cell.named_parameters() if p.grad is not None} | {"loss": loss.detach()}
        )
    torch.testing.assert_close(*found)  # float64: 1e-7

"""The recorder sees every matrix product of a computation, and the replay computes those and no others."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridmap.bench.products import PEAKS, Operand, Product, operations, peak, replay
from hybridmap.bench.step import Ledger
from hybridmap.layers import MambaMixer
from hybridmap.ops import use_backend

CPU = torch.device("cpu")


def sizes(products: Counter[Product]) -> Counter[tuple[int, ...]]:
    """(batch..., rows, inner, columns) -> how often."""
    found: Counter[tuple[int, ...]] = Counter()
    for product, times in products.items():
        found[(*product.left.shape, product.right.shape[-1])] += times
    return found


def test_two_layers_have_six_products_less_the_one_for_the_input() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False))
    x = torch.randn(11, 5)
    with Ledger(CPU) as ledger:
        network(x).sum().backward()
    # forward; gradients of both weights; gradient of what is between the layers, and none for the input
    assert sizes(ledger.products) == {
        (11, 5, 7): 1,
        (11, 7, 3): 1,
        (3, 11, 7): 1,
        (7, 11, 5): 1,
        (11, 3, 7): 1,
    }
    assert operations(ledger.products) == 2 * (11 * 5 * 7 * 2 + 11 * 7 * 3 * 3)
    assert ledger.shares().keys() == {"products", "rest"}
    assert sum(ledger.shares().values()) == pytest.approx(1)


def test_products_inside_of_attention_are_counted_in_both_directions() -> None:
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    with Ledger(CPU) as ledger:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert sizes(ledger.products) == {(6, 5, 8, 7): 2, (6, 5, 7, 8): 2, (6, 7, 5, 8): 2}
    assert "attention" in ledger.shares()


@pytest.mark.parametrize("variant", ["uni", "biscan"])
def test_products_inside_of_a_mixer_are_those_of_its_composition_and_one_that_is_repeated(variant: str) -> None:
    mixer = MambaMixer(8, d_state=3, dt_rank=2, variant=variant)
    found = {}
    for backend in ("torch", "reference"):
        with use_backend(backend), Ledger(CPU) as ledger:
            mixer(torch.randn(2, 5, 8)).sum().backward()
        found[backend] = sizes(ledger.products)
    # tokens, rank, channels: the step size, once more in the backward pass
    assert found["torch"] == found["reference"] + Counter({(10, 2, 16): len(mixer.directions)})


def test_autocast_shows_the_dtype_that_is_computed_in() -> None:
    with Ledger(CPU) as ledger, torch.autocast("cpu", torch.bfloat16):
        nn.Linear(4, 4)(torch.randn(2, 4))
    assert {product.dtype for product in ledger.products} == {torch.bfloat16}
    assert "casts" in ledger.shares()


def test_the_replay_makes_the_recorded_products_in_their_layouts() -> None:
    weight = torch.randn(6, 4)
    with Ledger(CPU) as first:
        torch.randn(3, 4) @ weight.T
        torch.randn(3, 4) @ weight.T
        torch.randn(2, 3, 4) @ torch.randn(2, 4, 5)
    transposed = Product(Operand((3, 4), (4, 1)), Operand((4, 6), (1, 4)), torch.float32)
    assert first.products[transposed] == 2
    run = replay(first.products, CPU)
    with Ledger(CPU) as second:
        run()
    assert second.products == first.products


def test_the_replay_of_nothing_does_nothing() -> None:
    replay(Counter(), CPU)()
    assert operations({}) == 0


def test_a_card_without_a_data_sheet_is_measured() -> None:
    rate, whose = peak(CPU)
    assert rate > 0
    assert whose == "by a product of side 512"


def test_no_card_hides_behind_a_shorter_name() -> None:
    names = [part for part, _ in PEAKS]
    for position, name in enumerate(names):
        assert not [earlier for earlier in names[:position] if earlier in name]

"""Keys in, uniforms out: the same numbers for every split of a batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridmap.hashing import _mix, _mix_int, _signed, derive, hash_ints, normal, uniform, uniform_int


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([hash_ints(seed, i) for i in range(n)])


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_tensor_hash_equals_the_host_hash(value):
    assert _mix(torch.tensor([value])).item() == _signed(_mix_int(value & (2**64 - 1)))


def test_splitmix64_known_answer():
    # the first output of splitmix64 seeded with 0 (Steele et al. 2014; Vigna's reference program)
    assert _mix_int(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_a_row_depends_on_its_key_alone():
    whole = uniform(keys(8), 32, stream=1)
    parts = torch.cat([uniform(part, 32, stream=1) for part in keys(8).split(3)])
    assert torch.equal(whole, parts)
    assert torch.equal(uniform(keys(8), 5, stream=1), whole[:, :5])


def test_streams_and_keys_are_uncorrelated_and_uniform():
    a, b = uniform(keys(64), 4096, 0), uniform(keys(64), 4096, 1)
    c = uniform(keys(64, seed=1), 4096, 0)
    for other in (b, c):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), other.flatten()]))[0, 1]) < 0.01
    assert abs(a.mean() - 0.5) < 0.005
    assert abs(a.var() * 12 - 1) < 0.01
    assert a.min() >= 0
    assert a.max() < 1


def test_host_hashes_mind_order_and_length():
    assert len({hash_ints(1, 2), hash_ints(2, 1), hash_ints(1), hash_ints(1, 2, 0)}) == 4
    assert all(0 <= uniform_int(k) < 1 for k in range(100))


def test_normal_numbers_are_normal_and_a_row_depends_on_its_key_alone():
    x = normal(keys(64), 4096, 0)
    assert abs(x.mean()) < 0.01  # five sigma
    assert abs(x.var() - 1) < 0.014
    assert abs((x**4).mean() - 3) < 0.1
    quantiles = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
    torch.testing.assert_close(x.flatten().quantile(quantiles), torch.special.ndtri(quantiles), atol=0.03, rtol=0)
    assert x.isfinite().all()
    assert torch.equal(normal(keys(8), 5, 0), x[:8, :5])
    assert abs(torch.corrcoef(torch.stack([x[:, ::2].flatten(), x[:, 1::2].flatten()]))[0, 1]) < 0.015  # of one pair
    assert not torch.equal(normal(keys(64), 4096, 1), x)


def test_parts_of_samples_have_keys_of_their_own():
    index = torch.arange(50).expand(8, -1)
    found = derive(keys(8), index, stream=3)
    assert found.unique().numel() == 400
    assert torch.equal(derive(keys(8), index[:, 7:9], stream=3), found[:, 7:9])
    assert torch.equal(derive(keys(8)[2:3], index[2:3], stream=3), found[2:3])
    assert not torch.isin(derive(keys(8), index, stream=4), found).any()
    drawn = uniform(found.flatten(), 64, 0)
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(torch.corrcoef(drawn[:20]).fill_diagonal_(0)).max() < 0.6  # neighbours share nothing

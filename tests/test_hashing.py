"""Keys in, uniforms out: the same numbers for every split of a batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridmap.hashing import _mix, _mix_int, _signed, hash_ints, uniform, uniform_int


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

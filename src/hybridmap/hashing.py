"""Randomness as a function: counter-based uniforms from integer keys, equal on every device and for every split of a batch.

No generator is carried through the code. A sample's ``key`` names it; ``uniform(key, n, stream)`` gives its n numbers of one
purpose (``stream``). The hash is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014), written in torch operations on int64, whose multiplication wraps as the original's does on uint64.
"""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor, arange, stack

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The 64-bit pattern of ``value`` as a Python integer in [-2**63, 2**63)."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def hash_ints(*values: int) -> int:
    """One signed 64-bit integer from several, on the host. The order of the arguments matters.

    >>> hash_ints(1, 2) != hash_ints(2, 1)
    True
    """
    state = 0
    for value in values:
        state = _mix_int((state + _GOLDEN + _mix_int(value & _MASK)) & _MASK)
    return _signed(state)


def uniform_int(key: int, stream: int = 0) -> float:
    """One number in [0, 1) from a host key: ``uniform`` for a single draw without a tensor."""
    return (hash_ints(key, stream) & _MASK) / 2.0**64


def _logical_shift(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    x = (x ^ _logical_shift(x, 30)) * _signed(_MIX1)
    x = (x ^ _logical_shift(x, 27)) * _signed(_MIX2)
    return x ^ _logical_shift(x, 31)


def uniform(key: Int[Tensor, "B"], n: int, stream: int) -> Float[Tensor, "B n"]:
    """n numbers in [0, 1) per key, multiples of 2**-24; ``stream`` tells the purposes of one key apart.

    Row b depends on ``key[b]`` alone: not on the batch around it, not on the device, not on ``n`` beyond its length.
    """
    counter = arange(n, device=key.device) * _signed(_GOLDEN) + _signed(_mix_int(stream + 1))
    bits = _mix(_mix(key)[:, None] + counter)
    return _logical_shift(bits, 40).float() * 2.0**-24


def normal(key: Int[Tensor, "B"], n: int, stream: int) -> Float[Tensor, "B n"]:
    """n standard normal numbers per key, none beyond 5.8: pairs of :func:`uniform` by the method of Box and Muller (1958).

    Row b depends on ``key[b]`` alone, as there; devices agree up to the rounding of logarithm, sine and cosine.
    """
    length, angle = uniform(key, n + n % 2, stream).unflatten(1, (-1, 2)).unbind(-1)
    radius, angle = (-2 * (-length).log1p()).sqrt(), 2 * math.pi * angle
    return stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :n]


def derive(key: Int[Tensor, "B"], index: Int[Tensor, "B M"], stream: int) -> Int[Tensor, "B M"]:
    """A key for each part of a sample, such as its patches, by the part's ``index``."""
    return _mix(_mix(key)[:, None] + index * _signed(_GOLDEN) + _signed(_mix_int(stream + 1)))

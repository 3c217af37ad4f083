"""Register tokens, spread evenly through a sequence of patches (Mamba-R).

    n = 3 registers among N = 10 patches, s = N // (n + 1) = 2:     p p R p p R p p R p p p p

Register k sits at s + k (s + 1); the last segment takes the remainder. Positions follow from N, nothing is stored.
Source: wangf3014/Mamba-Reg:models_mamba.py, utils.py @ 0f7c2da.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap.errors import UserError
from hybridmap.layers.decay import no_decay


def spacing(n: int, patches: int) -> int:
    """Patches before each of n registers.

    Raises:
        UserError: if there are too few patches to put one before each register and one at the end.
    """
    if patches < n + 1:
        raise UserError(
            f"{n} registers need at least {n + 1} patches to be spread among, got {patches}; "
            "use a larger image, a smaller patch or fewer registers"
        )
    return patches // (n + 1)


def positions(n: int, patches: int) -> tuple[int, ...]:
    """Where the registers stand in the sequence of ``patches + n`` tokens."""
    s = spacing(n, patches)
    return tuple(s + k * (s + 1) for k in range(n))


class Registers(nn.Module):
    """n learned tokens (``token``) with learned positions of their own (``pos``)."""

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.n = n
        self.token = no_decay(nn.Parameter(torch.zeros(1, n, dim)))
        self.pos = no_decay(nn.Parameter(torch.zeros(1, n, dim)))

    def insert(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B L D"]:
        """The sequence of N patches with the registers among them, L = N + n."""
        batch, count, _ = patches.shape
        s = spacing(self.n, count)
        body, tail = patches.split([self.n * s, count - self.n * s], dim=1)
        registers = (self.token + self.pos).expand(batch, -1, -1).unsqueeze(2)  # (B, n, 1, D)
        segments = torch.cat([body.unflatten(1, (self.n, s)), registers], dim=2)  # (B, n, s + 1, D)
        return torch.cat([segments.flatten(1, 2), tail], dim=1)

    def split(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B N D"]]:
        """(registers, patches) of a sequence that :meth:`insert` made."""
        length = sequence.shape[1]
        s = spacing(self.n, length - self.n)
        body, tail = sequence.split([self.n * (s + 1), length - self.n * (s + 1)], dim=1)
        segments = body.unflatten(1, (self.n, s + 1))
        return segments[:, :, s], torch.cat([segments[:, :, :s].flatten(1, 2), tail], dim=1)

"""Residual streams: the only place where they are written.

A Mamba layer keeps two tensors apart. The *stream* r is the running sum; the *branch* h is the last mixer's output, which
has not joined the sum yet. A Transformer block inside such a network works on the branch, never on the stream. One unit
``M M M T`` of the hybrid network:

          branch h              stream r
             │                     │
             ├──── DropPath ─────▶ ⊕           M    r = r + DropPath(h)        (r = h at the first M)
             ┌─ Mixer ◀─ Norm ◀────┤                h = Mixer(Norm(r))
             │                     │
             ├──── DropPath ─────▶ ⊕           M    the same
             ┌─ Mixer ◀─ Norm ◀────┤
             │                     │
             ├──── DropPath ─────▶ ⊕           M    the same
             ┌─ Mixer ◀─ Norm ◀────┤
             │                     │
        ┌────┤                     │           T    h = h + Block(h)
        │    ├─ LN1 ─ Attn ─┐      │                  = 2 h + Attn(LN1 h) + MLP(LN2(h + Attn(LN1 h)))
        │    ⊕ ◀────────────┘      │                r is not touched
        │    ├─ LN2 ─ MLP ──┐      │
        │    ⊕ ◀────────────┘      │
        └──▶ ⊕  outer skip         │
             │                     │
             ├──── DropPath ─────▶ ⊕ ─▶        next M, or at the end Norm(r + DropPath(h))

The block's own two residuals start from h, and h is added once more around it: the mixer's output counts twice and the
block's branches once, and all of it joins the stream at the next M, or at the final norm. In a run of several T the outer skip
goes once around the whole run (``outer_skip="per_run"``), since once around each of k would multiply h by 2^k
(``"per_block"``); a run of one is the same either way. ``"none"`` leaves plain pre-norm blocks; a stack of T alone is a plain
Vision Transformer, whose branch is its stream.

Drop path belongs to the *addition*: the rate stored in layer i acts on the output of layer i-1, and a last rate on the final
addition. Source: yunzeliu/MAP:models_mamba.py @ f3bcdff, wangf3014/Mamba-Reg:models_mamba.py @ 0f7c2da.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from timm.layers.drop import drop_path
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridmap.errors import UserError
from hybridmap.layers.attention import Attention, CrossAttention
from hybridmap.layers.norm import AddNorm, NormKind
from hybridmap.layers.swiglu import SwiGLU
from hybridmap.types import Tap

OuterSkip = Literal["per_run", "per_block", "none"]


class MambaBlock(nn.Module):
    """``r = r + DropPath(h); h = Mixer(Norm(r))``; the mixer is any module called as ``mixer(u, causal)``."""

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        norm_kind: NormKind = "rms",
        eps: float = 1e-5,
        residual_in_fp32: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = AddNorm(dim, eps, norm_kind, residual_in_fp32=residual_in_fp32)
        self.mixer = mixer
        self.drop_path = drop_path

    def forward(
        self, branch: Float[Tensor, "B L D"], stream: Float[Tensor, "B L D"] | None, causal: bool = False
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        if stream is not None:
            branch = drop_path(branch, self.drop_path, self.training)
        normed, summed = self.norm(branch, stream)
        return self.mixer(normed, causal), summed


class TransformerBlock(nn.Module):
    """``x = x + DropPath(Attn(LN1 x)); x = x + DropPath(MLP(LN2 x))``, exact GELU, hidden width ``int(mlp_ratio * dim)``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        eps: float = 1e-5,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "B L D"], allowed: Bool[Tensor, "..."] | None = None, causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        x = x + drop_path(self.attn(self.norm1(x), allowed, causal), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class MambaMlpBlock(nn.Module):
    """``x = x + DropPath(Mixer(LN1 x)); x = x + DropPath(SwiGLU(LN2 x))``: one sum, branch and stream are not kept apart.

    The mixer is any module called as ``mixer(u, causal, **inputs)``. Source: OliverRensu/ARM:Finetuning/models_mamba.py.
    """

    def __init__(self, dim: int, mixer: nn.Module, *, eps: float = 1e-5, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = SwiGLU(dim)
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "B L D"], allowed: None = None, causal: bool = False, **inputs: Any
    ) -> Float[Tensor, "B L D"]:
        x = x + drop_path(self.mixer(self.norm1(x), causal, **inputs), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class CrossBlock(nn.Module):
    """``x = x + Attn(LNq x, LNkv memory); x = x + MLP(LN x)``: queries and keys have separate norms, even of one sequence."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, *, eps: float = 1e-5, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(dim, eps)
        self.norm_kv = nn.LayerNorm(dim, eps)
        self.attn = CrossAttention(dim, num_heads, qkv_bias)
        self.norm_mlp = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(
        self, x: Float[Tensor, "B Q D"], memory: Float[Tensor, "B K D"], allowed: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B Q D"]:
        x = x + self.attn(self.norm_q(x), self.norm_kv(memory), allowed)
        return x + self.mlp(self.norm_mlp(x))


class Stack(nn.ModuleList):
    """Mamba and Transformer blocks in execution order, run as drawn above, or MambaMlp blocks; block s has the name ``s``."""

    checkpointing: int
    """Recompute the activations of every so manieth block in the backward pass instead of keeping them; 0 = of none."""

    def __init__(self, blocks: Iterable[nn.Module], *, outer_skip: str = "per_run", final_drop_path: float = 0.0) -> None:
        super().__init__(blocks)
        if outer_skip not in ("per_run", "per_block", "none"):
            raise UserError(f"outer_skip must be per_run, per_block or none, got {outer_skip!r}")
        self.final_drop_path = final_drop_path
        self.checkpointing = 0
        kinds = [isinstance(block, TransformerBlock) for block in self]
        joined = [a and b and outer_skip == "per_run" for a, b in pairwise(kinds)]  # s with s + 1
        skipped = [kind and outer_skip != "none" for kind in kinds]
        self._opens = [skip and not before for skip, before in zip(skipped, [False, *joined], strict=True)]
        self._closes = [skip and not after for skip, after in zip(skipped, [*joined, False], strict=True)]

    def forward(
        self,
        tokens: Float[Tensor, "B L D"],
        *,
        causal: bool = False,
        taps: Collection[int] = (),
        stop: int | None = None,
        **inputs: Any,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"] | None, dict[int, Tap]]:
        """Run the first ``stop`` blocks (all by default) -> (branch, stream, outputs of the blocks named in ``taps``).

        ``inputs`` go to every block.

        Raises:
            UserError: if a tap names a block that is not run.
        """
        depth = self._length(stop, taps)
        h, r, entry = tokens, None, tokens
        tapped: dict[int, Tap] = {}
        for s in range(depth):
            block = self[s]
            if isinstance(block, TransformerBlock | MambaMlpBlock):
                entry = h if self._opens[s] else entry
                h = self._run(s, h, None, causal, **inputs)
                h = h + entry if self._closes[s] else h
            else:
                h, r = self._run(s, h, r, causal, **inputs)
            if s in taps:
                tapped[s] = Tap(branch=h, stream=r)
        return h, r, tapped

    def finish(
        self, branch: Float[Tensor, "B L D"], stream: Float[Tensor, "B L D"] | None, norm: AddNorm | None
    ) -> Float[Tensor, "B L D"]:
        """The sum of branch and stream, normalised: ``Norm(r + DropPath(h))``; the sum itself without ``norm``."""
        if stream is not None:
            branch = drop_path(branch, self.final_drop_path, self.training)
        if norm is not None:
            return norm(branch, stream)[0]
        return branch if stream is None else stream + branch

    def truncate(self, length: int) -> None:
        """Drop all blocks from number ``length`` on; the others keep computing what they did."""
        del self[length:]

    def _length(self, stop: int | None, taps: Collection[int]) -> int:
        """How many blocks are to be run; refuses taps behind them."""
        depth = len(self) if stop is None else stop
        if taps and not 0 <= min(taps) <= max(taps) < depth:
            raise UserError(f"taps must be block numbers from 0 to {depth - 1}, got {sorted(taps)}")
        return depth

    def _run(self, s: int, *args: Any, **inputs: Any) -> Any:
        if self.checkpointing and s % self.checkpointing == 0 and torch.is_grad_enabled():
            return checkpoint(self[s], *args, use_reentrant=False, **inputs)
        return self[s](*args, **inputs)

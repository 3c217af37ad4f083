"""Softmax attention by ``scaled_dot_product_attention``: among the tokens of one sequence, or from queries to other tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hybridmap.errors import UserError


def head_width(dim: int, num_heads: int) -> int:
    """``dim / num_heads``.

    Raises:
        UserError: if the heads do not divide the width.
    """
    if num_heads < 1 or dim % num_heads:
        near = sorted((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: abs(n - num_heads))[:3]
        choices = ", ".join(map(str, sorted(near)))
        raise UserError(f"the width {dim} must be divisible by the number of heads, got num_heads={num_heads}; try {choices}")
    return dim // num_heads


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    """``softmax(q k^T / sqrt(head width)) v`` of (B, H, Q, W) queries and (B, H, K, W) keys and values.

    On CPUs half precision is widened to float32: there the backward pass of torch's own half precision attention takes two to
    three times as long as float32's with both casts (docs/diary.md). On CUDA devices the fused kernels want head widths that
    are multiples of 8: others, as the 12 of MAP's decoder, are filled up with zeros, which change no product.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), allowed, causal).to(q.dtype)
    width = q.shape[-1]
    if q.device.type == "cuda" and width % 8:
        q, k, v = (F.pad(t, (0, -width % 8)) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, allowed, is_causal=causal, scale=width**-0.5)[..., :width]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)


class Attention(nn.Module):
    """``proj(softmax(q k^T / sqrt(head width)) v)`` with q, k and v from one linear map ``qkv`` (rows in the order q, k, v).

    With ``qk_norm`` a LayerNorm acts on q and on k of every head.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_width) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B L D"], allowed: Bool[Tensor, "..."] | None = None, causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """``allowed`` broadcasts to (B, heads, L, L), True = query (row) may look at key (column); ``causal`` allows keys up to
        the query's own position."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_width))  # (B, L, 3, H, D/H)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, D/H)
        out = attend(self.q_norm(q), self.k_norm(k), v, allowed, causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of ``queries`` to ``memory``, which have separate linear maps ``q`` and ``kv`` (rows in the order k, v)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width(dim, num_heads)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "B Q D"], memory: Float[Tensor, "B K D"], allowed: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """``allowed`` broadcasts to (B, heads, Q, K), True = query (row) may look at key (column)."""
        q = self.q(queries).unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)  # (B, H, Q, D/H)
        kv = self.kv(memory).unflatten(-1, (2, self.num_heads, self.head_width))  # (B, K, 2, H, D/H)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, K, D/H)
        out = attend(q, k, v, allowed)
        return self.proj(out.transpose(1, 2).flatten(2))

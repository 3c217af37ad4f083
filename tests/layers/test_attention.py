import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.layers import Attention, CrossAttention

X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(q, k, v, heads, allowed=None):
    outs = []
    for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = q_h @ k_h.transpose(1, 2) / q_h.shape[-1] ** 0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        outs.append(scores.softmax(-1) @ v_h)
    return torch.cat(outs, -1)


def test_attention_is_softmax_of_scaled_products():
    a = Attention(12, 3).double()
    torch.testing.assert_close(a(X), a.proj(by_hand(*a.qkv(X).chunk(3, -1), heads=3)))


def test_attention_looks_only_where_it_is_allowed():
    a = Attention(12, 3).double()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = a.proj(by_hand(*a.qkv(X).chunk(3, -1), heads=3, allowed=allowed))
    torch.testing.assert_close(a(X, allowed.expand(2, 1, 5, 5)), expected)
    torch.testing.assert_close(a(X, causal=True), expected)


def test_cross_attention_reads_keys_and_values_from_the_memory():
    a = CrossAttention(12, 3).double()
    memory = X[:, :4] + 1
    allowed = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    allowed[:, 0] = True
    expected = a.proj(by_hand(a.q(X), *a.kv(memory).chunk(2, -1), heads=3, allowed=allowed))
    torch.testing.assert_close(a(X, memory, allowed.expand(2, 1, 5, 4)), expected)


@pytest.mark.parametrize("layer", [Attention, CrossAttention])
def test_heads_that_do_not_divide_the_width_are_refused_with_a_proposal(layer):
    with pytest.raises(UserError, match=r"1024 must be divisible .* num_heads=12; try 4, 8, 16"):
        layer(1024, 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_no_fused_kernel_takes_are_attended_to_all_the_same(masked):
    torch.manual_seed(0)
    layer, x = Attention(24, 2), torch.randn(2, 9, 24)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    expected = layer(x, allowed)
    found = layer.cuda()(x.cuda(), None if allowed is None else allowed.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)

import pytest
import torch
import torch.nn.functional as F

from hybridmap.errors import UserError
from hybridmap.layers import AddNorm, CrossBlock, MambaBlock, MambaMixer, Stack, TransformerBlock

X = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(layout, drop_path=0.0, **options):
    torch.manual_seed(1)

    def block(kind):
        if kind == "M":
            return MambaBlock(16, MambaMixer(16, d_state=2), drop_path=drop_path)
        return TransformerBlock(16, 4, 2.0)

    return Stack((block(kind) for kind in layout), **options).double(), AddNorm(16).double()


def rms(x, norm):
    return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def test_the_hybrid_unit_is_the_drawing():
    stack, final = build("MMMT")
    h, r = X, None
    for block in stack[:3]:
        r = h if r is None else r + h
        h = block.mixer(rms(r, block.norm))
    t = stack[3]
    attended = h + t.attn(F.layer_norm(h, (16,), t.norm1.weight, t.norm1.bias, 1e-5))
    h_out = h + attended + t.mlp(F.layer_norm(attended, (16,), t.norm2.weight, t.norm2.bias, 1e-5))
    branch, stream, taps = stack(X, taps=(2, 3))
    torch.testing.assert_close(taps[2].branch, h)
    torch.testing.assert_close(branch, h_out)
    torch.testing.assert_close(stream, r)
    torch.testing.assert_close(taps[3].stream, r)
    torch.testing.assert_close(stack.finish(branch, stream, final), rms(r + h_out, final))
    torch.testing.assert_close(stack.finish(branch, stream, None), r + h_out)


@pytest.mark.parametrize(
    ("layout", "outer_skip", "factor"),
    [("MT", "per_run", 2), ("MTTT", "per_run", 2), ("MTTT", "per_block", 8), ("MTTT", "none", 1), ("TTM", "per_run", 2)],
)
def test_silent_transformer_blocks_multiply_the_branch(layout, outer_skip, factor):
    stack, _ = build(layout, outer_skip=outer_skip)
    for block in stack:
        if isinstance(block, TransformerBlock):
            for linear in (block.attn.proj, block.mlp.fc2):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    last = max(s for s, kind in enumerate(layout) if kind == "T")
    before = X if layout[0] == "T" else stack(X, taps=(0,))[2][0].branch
    assert torch.equal(stack(X, taps=(last,))[2][last].branch, factor * before)


def test_a_stack_of_plain_transformer_blocks_keeps_one_stream():
    stack, _ = build("TT", outer_skip="none")
    branch, stream, _ = stack(X)
    assert stream is None
    torch.testing.assert_close(branch, stack[1](stack[0](X)))


def test_drop_path_acts_where_a_branch_joins_the_stream():
    stack, final = build("MM", drop_path=1.0, final_drop_path=1.0)
    stack.train()
    branch, stream, _ = stack(X)
    assert torch.equal(stream, X)  # the first branch never joined
    torch.testing.assert_close(stack.finish(branch, stream, final), rms(X, final))  # nor did the last
    stack.eval()
    assert not torch.equal(stack(X)[1], X)


def test_checkpointing_changes_no_number():
    stack, final = build("MTM", drop_path=0.5)
    results = []
    for checkpointing in (False, True):
        stack.checkpointing = checkpointing
        x = X.clone().requires_grad_()
        torch.manual_seed(3)
        branch, stream, _ = stack(x)
        stack.finish(branch, stream, final).square().sum().backward()
        results.append((x.grad, [p.grad.clone() for p in stack.parameters()]))
        stack.zero_grad()
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_stream_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    stack = Stack([MambaBlock(16, MambaMixer(16, d_state=2)) for _ in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        branch, stream, _ = stack(X.float())
    assert branch.dtype == torch.bfloat16
    assert stream.dtype == torch.float32


def test_truncating_inside_a_run_leaves_the_other_layers_alone():
    stack, _ = build("MTTM")
    whole = stack(X, taps=(1,))[2][1].branch
    stack.truncate(2)
    torch.testing.assert_close(stack(X)[0], whole)


def test_a_layer_that_does_not_exist_cannot_be_tapped():
    with pytest.raises(UserError, match="from 0 to 1"):
        build("MM")[0](X, taps=(2,))


def test_an_unknown_outer_skip_is_named():
    with pytest.raises(UserError, match="per_run, per_block or none"):
        build("MT", outer_skip="sometimes")


def test_a_cross_block_normalises_queries_and_memory_apart():
    block = CrossBlock(16, 4).double()
    for p in block.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    memory = X[:, :3] + 1
    allowed = torch.ones(5, 3, dtype=torch.bool).tril()

    def norm(layer, v):
        return F.layer_norm(v, (16,), layer.weight, layer.bias, 1e-5)

    x = X + block.attn(norm(block.norm_q, X), norm(block.norm_kv, memory), allowed)
    torch.testing.assert_close(block(X, memory, allowed), x + block.mlp(norm(block.norm_mlp, x)))

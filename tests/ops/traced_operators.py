"""What compilers and exporters need of the operators; run by test_tracing.py in a process without shape checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scan_problems import problem, relative
from test_mamba_inner import problem as inner_problem
from test_selective_scan import two_directions
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from hybridmap.errors import UserError
from hybridmap.ops import add_norm, bidirectional_scan, causal_conv1d, causal_conv1d_fn, selective_scan, use_backend

SCAN_ORDER = ("x", "dt", "A", "B", "C", "D", "z", "bias", "h0")


def scan_inputs(dtype: torch.dtype = torch.float32, without: tuple[str, ...] = (), length: int = 18) -> list[Tensor | None]:
    tensors = problem(2, length, 6, 4, dtype=dtype, without=without)
    return [tensors.get(name) for name in SCAN_ORDER]


# opcheck looks at the gradient of tensors that are no leaves
quietly = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@quietly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("without", [(), ("D", "z", "bias", "h0")], ids=str)
def test_selective_scan_passes_opcheck(dtype: torch.dtype, without: tuple[str, ...]) -> None:
    inputs = scan_inputs(dtype, without)
    opcheck(torch.ops.hybridmap.selective_scan, (*inputs, True, False, 0.5, True))
    opcheck(torch.ops.hybridmap.selective_scan, (*(None if t is None else t.detach() for t in inputs), True, True, 1.0, False))
    out, last, ckpt = torch.ops.hybridmap.selective_scan(*inputs, True, True, 1.0, True)
    saved = [None if t is None else t.detach() for t in (torch.ones_like(out), torch.ones_like(last), ckpt, *inputs)]
    opcheck(torch.ops.hybridmap.selective_scan_bwd, (*saved, True, True, 1.0))


@quietly
def test_bidirectional_scan_passes_opcheck() -> None:
    fwd, bwd, z = two_directions(batch=2, length=18, channels=6, states=4)
    opcheck(torch.ops.hybridmap.bidirectional_scan, (*fwd, *bwd, z, True, 0.5, True))
    opcheck(torch.ops.hybridmap.bidirectional_scan, (*fwd[:5], None, None, *bwd[:5], None, None, None, True, 0.5, True))


@quietly
@pytest.mark.parametrize("bias", [True, False])
def test_causal_conv1d_passes_opcheck(bias: bool) -> None:
    x, w = torch.randn(2, 9, 6, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    b = torch.randn(6, requires_grad=True) if bias else None
    opcheck(torch.ops.hybridmap.causal_conv1d, (x, w, b, True, bias))


@quietly
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_add_norm_passes_opcheck(kind: str, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, 9, 6, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(6, requires_grad=True) for _ in range(2))
    opcheck(torch.ops.hybridmap.add_norm, (x, residual, weight, bias, 1e-5, kind, True))
    opcheck(torch.ops.hybridmap.add_norm, (x, None, weight, None, 1e-5, kind, False))


@quietly
@pytest.mark.parametrize("directions", [1, 2])
def test_mamba_inner_passes_opcheck(directions: int) -> None:
    xz, *parameters = inner_problem(2, 18, 6, 4, 2, directions=directions)
    second = parameters[7:] or [None] * 7
    opcheck(torch.ops.hybridmap.mamba_inner, (xz, *parameters[:7], *second, 0.5, True))
    opcheck(torch.ops.hybridmap.mamba_inner, (xz.detach(), *parameters[:7], *second, 0.5, False))


class Layer(nn.Module):
    """Every operator once, on half of a larger tensor, as a mixer uses them."""

    def __init__(self, width: int = 6, states: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.taps = nn.Parameter(torch.randn(width, 4))
        self.A = nn.Parameter(-torch.rand(width, states))
        self.project = nn.Linear(width, width + 2 * states)
        self.widths = [width, states, states]

    def forward(self, x: Tensor) -> Tensor:
        u, stream = add_norm(x, x, self.weight)
        u, z = torch.cat([u, x], -1).chunk(2, -1)
        c = causal_conv1d(u, self.taps)
        dt, B, C = self.project(c).split(self.widths, -1)
        y = bidirectional_scan((c, dt, self.A, B, C), (c, dt, self.A, B, C), z)
        one, last = selective_scan(c, dt, self.A, B, C, z=z, reverse=True, return_last_state=True)
        return y + one + last.sum(-1)[:, None] + stream


def both(run: Callable[[Tensor], Tensor], layer: Layer, x: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    out = run(leaves[0])
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def test_a_layer_compiles_into_one_graph_for_any_length() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 18, 33):
        x = torch.randn(2, length, 6)
        for value, expected in zip(both(compiled, layer, x), both(layer, layer, x), strict=True):
            assert relative(value, expected) <= 1e-5
    with torch.no_grad():
        assert relative(compiled(x), layer(x)) <= 1e-6


def test_the_operator_stays_whole_in_a_compiled_graph() -> None:
    seen: list[str] = []

    def inspect(graph: torch.fx.GraphModule, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(Layer(), fullgraph=True, backend=inspect)(torch.randn(2, 5, 6))
    assert sum("hybridmap.bidirectional_scan" in name for name in seen) == 1
    assert sum("hybridmap.selective_scan" in name for name in seen) == 1


def test_compilation_notices_a_change_of_backend() -> None:
    x = torch.randn(2, 5, 6)
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    first = compiled(x)
    with use_backend("reference"):
        second = compiled(x)
    assert relative(second, first) <= 1e-5


def test_a_layer_survives_export_with_any_length() -> None:
    layer, length = Layer().eval(), torch.export.Dim("length", min=2, max=512)
    exported = torch.export.export(layer, (torch.randn(2, 18, 6),), dynamic_shapes=({1: length},))
    for tokens in (2, 18, 40):
        x = torch.randn(2, tokens, 6)
        assert relative(exported.module()(x), layer(x)) <= 1e-6


def test_an_exported_layer_can_still_be_trained() -> None:
    layer, x = Layer(), torch.randn(2, 18, 6)
    module = torch.export.export(layer, (x,)).module()
    leaf = x.clone().requires_grad_()
    module(leaf).square().sum().backward()
    _, gradient, *_ = both(layer, layer, x)
    assert relative(leaf.grad, gradient) <= 1e-5


def test_activation_checkpointing_of_a_compiled_layer() -> None:
    layer, x = Layer(), torch.randn(2, 18, 6)
    compiled = torch.compile(lambda t: checkpoint(layer, t, use_reentrant=False), fullgraph=True, backend="aot_eager")
    for value, expected in zip(both(compiled, layer, x), both(layer, layer, x), strict=True):
        assert relative(value, expected) <= 1e-5


# The kernels for CUDA devices


@quietly
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels run on the device")
def test_operators_pass_opcheck_with_interpreted_kernels() -> None:
    with use_backend("gpu"):
        inputs = scan_inputs(length=3)
        opcheck(torch.ops.hybridmap.selective_scan, (*inputs, True, True, 0.5, True))
        fwd, bwd, z = two_directions(batch=1, length=3, channels=2, states=2)
        opcheck(torch.ops.hybridmap.bidirectional_scan, (*fwd, *bwd, z, True, 0.5, True))


def on_cuda(values: list[Tensor | None]) -> list[Tensor | None]:
    return [None if v is None else v.detach().cuda().requires_grad_(v.requires_grad) for v in values]


@quietly
@pytest.mark.gpu
def test_operators_on_cuda_pass_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = on_cuda(scan_inputs(dtype))
        opcheck(torch.ops.hybridmap.selective_scan, (*inputs, True, True, 0.5, True))
    fwd, bwd, z = two_directions(batch=2, length=18, channels=6, states=4)
    opcheck(torch.ops.hybridmap.bidirectional_scan, (*on_cuda([*fwd, *bwd, z]), True, 0.5, True))
    x, w, b = on_cuda([torch.randn(shape, requires_grad=True) for shape in ((2, 9, 6), (6, 4), (6,))])
    opcheck(torch.ops.hybridmap.causal_conv1d, (x, w, b, True, False))
    opcheck(torch.ops.hybridmap.add_norm, (x, x.detach() + 1, b, None, 1e-5, "rms", True))


@pytest.mark.gpu
def test_a_layer_on_cuda_compiles_into_one_graph() -> None:
    layer = Layer().cuda()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for length in (5, 18):
        x = torch.randn(2, length, 6, device="cuda")
        for value, expected in zip(both(compiled, layer, x), both(layer, layer, x), strict=True):
            assert relative(value, expected) <= 1e-5


# Mistakes, which the shape checks of the other tests would report first


def test_mistakes_are_told_in_one_sentence() -> None:
    good = problem(2, 5, 6, 4, dtype=torch.float32)
    for name, value, words in [
        ("x", torch.zeros(5, 6), "as \\(batch, L, E\\)"),
        ("dt", torch.zeros(2, 5, 7), "dt of shape \\(2, 5, 6\\)"),
        ("B", torch.zeros(2, 4, 5), "B of shape \\(2, 5, 4\\)"),
        ("D", torch.zeros(5), "D of shape"),
        ("h0", torch.zeros(2, 4, 6), "h0 of shape"),
        ("z", torch.zeros(2, 5, 6, dtype=torch.bfloat16), "z is torch.bfloat16"),
    ]:
        with pytest.raises(UserError, match=words):
            selective_scan(**(good | {name: value}))
    with pytest.raises(UserError, match="x is torch"):
        selective_scan(**{name: t.detach().long() for name, t in good.items()})
    x, dt, A, B, C = (good[name] for name in SCAN_ORDER[:5])
    with pytest.raises(UserError, match="A direction is"):
        bidirectional_scan((x, dt, A, B), (x, dt, A, B, C))
    with pytest.raises(UserError, match="Both directions"):
        bidirectional_scan((x, dt, A, B, C), (x, dt, A[:, :2], B[..., :2], C[..., :2]))
    with pytest.raises(UserError, match="squeeze the middle axis"):
        causal_conv1d(x, torch.zeros(6, 1, 4))
    with pytest.raises(UserError, match="activation"):
        causal_conv1d_fn(x.mT, torch.zeros(6, 4), None, "gelu")
    with pytest.raises(UserError, match="check the width"):
        add_norm(x, x, torch.zeros(5))
    with pytest.raises(UserError, match="kind"):
        add_norm(x, x, torch.zeros(6), kind="batch")
    with pytest.raises(UserError, match="A backend is one of"):
        use_backend("cuda")

"""The selective scan: its formula by gradcheck, each implementation against it, and the laws that any scan obeys."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_problems import DEVICES, OPTIONAL, problem, relative, run_with_gradients, truth_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from hybridmap.ops import bidirectional_scan, causal_conv1d_fn, selective_scan, selective_scan_fn, use_backend
from hybridmap.ops.check import ACTIVATION_GRADIENT, OUTPUT, PARAMETER_GRADIENT
from hybridmap.ops.selective_scan import cpu

BACKENDS = ["reference", "torch", "cpu"]
NARROW = ("dx", "ddt", "dB", "dC", "dz")


def assert_within_bounds(values: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in values.items():
        if name == "out":
            bound = OUTPUT[dtype]
        elif name == "last_state":
            bound = OUTPUT[torch.float32]
        else:
            bound = (ACTIVATION_GRADIENT if name in NARROW else PARAMETER_GRADIENT)[dtype]
        assert relative(value, truth[name]) <= bound, f"{name}: {relative(value, truth[name]):.2e} > {bound:.0e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("without", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_reference_agrees_with_finite_differences(without: tuple[str, ...], reverse: bool) -> None:
    tensors = problem(1, 3, 2, 2, without=without)
    softplus = "bias" in tensors
    if not softplus:  # then dt is the step size itself, which is positive
        tensors["dt"] = tensors["dt"].detach().exp().requires_grad_()

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(tensors, values, strict=True))
        return selective_scan(**named, softplus=softplus, reverse=reverse, out_scale=0.7, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()))


def test_reference_can_be_differentiated_twice() -> None:
    tensors = problem(1, 2, 2, 1)
    assert torch.autograd.gradgradcheck(
        lambda *v: selective_scan(**dict(zip(tensors, v, strict=True))), tuple(tensors.values())
    )


def test_reference_is_the_recurrence_written_by_hand() -> None:
    t = {name: value.detach() for name, value in problem(1, 2, 1, 1).items()}
    delta = torch.log1p(torch.exp(t["dt"] + t["bias"]))[0, :, 0]
    h, expected = t["h0"][0, 0, 0], []
    for i in range(2):
        h = torch.exp(delta[i] * t["A"][0, 0]) * h + delta[i] * t["x"][0, i, 0] * t["B"][0, i, 0]
        y = h * t["C"][0, i, 0] + t["D"][0] * t["x"][0, i, 0]
        expected.append(y * t["z"][0, i, 0] * torch.sigmoid(t["z"][0, i, 0]))
    out, last = selective_scan(**t, return_last_state=True)
    torch.testing.assert_close(out.flatten(), torch.stack(expected))
    torch.testing.assert_close(last.flatten(), h.reshape(1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_meets_the_float64_reference(backend: str, dtype: torch.dtype, reverse: bool, device: str) -> None:
    tensors = problem(3, 37, 24, 16, dtype=dtype, device=device)
    backend_here = None if device != "cpu" and backend == "cpu" else backend
    flags = {"reverse": reverse, "out_scale": 0.5}
    values = run_with_gradients(tensors, backend=backend_here, **flags)
    assert values["out"].dtype == values["dB"].dtype == dtype
    assert values["last_state"].dtype == values["dA"].dtype == torch.float32
    assert_within_bounds(values, truth_of(tensors, **flags), dtype)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 35, 63, 64, 65, 196])
def test_any_length_is_scanned_right(length: int, backend: str) -> None:
    tensors = problem(1, length, 5, 3, dtype=torch.float32)
    assert_within_bounds(run_with_gradients(tensors, backend=backend), truth_of(tensors), torch.float32)


@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([0, 1, 15, 16, 17, 35]),
    channels=st.sampled_from([1, 2, 3, 5, 7, 8, 9, 16, 31, 65, 140]),
    states=st.integers(1, 18),
    without=st.sets(st.sampled_from(OPTIONAL)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    softplus=st.booleans(),
    reverse=st.booleans(),
    strided=st.booleans(),
    cached=st.sampled_from([1, 1 << 20]),
    backend=st.sampled_from(BACKENDS[1:]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_shape_and_option_is_scanned_right(
    batch, length, channels, states, without, dtype, softplus, reverse, strided, cached, backend
) -> None:
    tensors = problem(batch, length, channels, states, dtype=dtype, without=tuple(without))
    if not softplus:
        tensors["dt"] = tensors["dt"].detach().abs().requires_grad_()
        tensors.pop("bias", None)
    if strided:
        tensors = {name: inside_a_larger_tensor(value) for name, value in tensors.items()}
    flags = {"softplus": softplus, "reverse": reverse}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_CACHED", cached)
        values = run_with_gradients(tensors, backend=backend, **flags)
    truth = truth_of(tensors, **flags)
    for name in values:  # one channel or state can cancel to almost nothing, so the bounds are absolute here
        scale = 1 + truth[name].abs().max().item() if truth[name].numel() else 1
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(values[name].double(), truth[name], rtol=0, atol=bound * scale)


def inside_a_larger_tensor(value: Tensor) -> Tensor:
    """The same numbers as a view of a larger tensor that is NaN everywhere else."""
    if value.dim() < 2:
        return value
    larger = torch.full((*value.shape[:-1], 2 * value.shape[-1] + 3), torch.nan, dtype=value.dtype, device=value.device)
    view = larger[..., 1 : 1 + value.shape[-1]]
    view.copy_(value.detach())
    return view.requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("offset", [-1e4, -80.0, -20.0, 20.0, 80.0, 1e4])
def test_extreme_step_sizes_are_as_good_as_the_float32_loop(offset: float, backend: str) -> None:
    """Up to numbers below the smallest normal one, which an implementation may take for zero."""
    tensors = problem(2, 37, 8, 16, dtype=torch.float32, dt_offset=offset, dt_scale=5.0)
    loop = run_with_gradients(tensors, backend="reference")
    truth = truth_of(tensors)
    for name, value in run_with_gradients(tensors, backend=backend).items():
        assert value.isfinite().all()
        bound = OUTPUT[torch.float32] if name in ("out", "last_state") else ACTIVATION_GRADIENT[torch.float32]
        reached = relative(loop[name], truth[name])
        vanishing = torch.finfo(torch.float32).tiny * value.numel() ** 0.5
        assert (value.double() - truth[name]).norm() <= max(bound, 4 * reached) * truth[name].norm() + vanishing, name


def test_a_vanishing_decay_is_exactly_zero() -> None:
    tensors = problem(1, 4, 3, 2, dtype=torch.float32, without=("bias",), dt_offset=1e4)
    forgotten = {name: value for name, value in tensors.items() if name != "h0"}
    assert torch.equal(selective_scan(**tensors), selective_scan(**forgotten))


@pytest.mark.parametrize("name", ["x", "dt"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_poisons_the_later_tokens_of_its_channel_and_nothing_else(backend: str, name: str) -> None:
    for reverse in (False, True):
        tensors = {k: v.detach() for k, v in problem(3, 37, 20, 4, dtype=torch.float32).items()}
        tensors[name][1, 18, 7] = torch.nan
        with use_backend(backend):
            poisoned = selective_scan(**tensors, reverse=reverse).isnan()
        expected = torch.zeros_like(poisoned)
        expected[1, slice(None, 19) if reverse else slice(18, None), 7] = True
        assert torch.equal(poisoned, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_flip_scan_flip(backend: str) -> None:
    tensors = problem(2, 21, 8, 4, dtype=torch.float32)
    along = ("x", "dt", "B", "C", "z")
    flipped = {k: (v.detach().flip(1) if k in along else v.detach()).requires_grad_() for k, v in tensors.items()}
    with use_backend(backend):
        out, last = selective_scan(**tensors, reverse=True, return_last_state=True)
        expected, expected_last = selective_scan(**flipped, return_last_state=True)
        torch.testing.assert_close(out, expected.flip(1))
        torch.testing.assert_close(last, expected_last)
        gradients = torch.autograd.grad(out.sum(), list(tensors.values()))
        expected_gradients = torch.autograd.grad(expected.sum(), list(flipped.values()))
    for name, g, e in zip(tensors, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(g, e.flip(1) if name in along else e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 16, 20])
def test_a_split_scan_with_carried_state_equals_the_whole(backend: str, cut: int) -> None:
    tensors = problem(2, 37, 6, 4, dtype=torch.float32)

    def in_two(**t: Tensor) -> tuple[Tensor, Tensor]:
        parts, state = [], t.pop("h0")
        for piece in (slice(None, cut), slice(cut, None)):
            own = {k: v[:, piece] if k in ("x", "dt", "B", "C", "z") else v for k, v in t.items()}
            out, state = selective_scan(**own, h0=state, return_last_state=True)
            parts.append(out)
        return torch.cat(parts, 1), state

    whole = run_with_gradients(tensors, backend=backend)
    for name, value in run_with_gradients(tensors, scan=in_two, backend=backend).items():
        assert relative(value, whole[name]) <= 2e-6, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_step_carries_the_state_unchanged(backend: str) -> None:
    tensors = problem(2, 20, 6, 4, dtype=torch.float32, without=("bias",))
    tensors["dt"] = torch.zeros_like(tensors["dt"])
    with use_backend(backend):
        _, last = selective_scan(**tensors, softplus=False, return_last_state=True)
    assert torch.equal(last, tensors["h0"])


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_scan_gives_empty_outputs_and_zero_gradients(backend: str, batch: int, length: int) -> None:
    tensors = problem(batch, length, 4, 3, dtype=torch.float32)
    with use_backend(backend):
        out, last = selective_scan(**tensors, return_last_state=True)
        gradients = torch.autograd.grad((out.sum() + last.sum()), list(tensors.values()), materialize_grads=True)
    assert out.shape == (batch, length, 4)
    assert torch.equal(last, tensors["h0"])
    for name, gradient in zip(tensors, gradients, strict=True):
        if name != "h0":
            assert gradient.shape == tensors[name].shape
            assert not gradient.any()


def test_the_result_depends_neither_on_chunks_nor_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = problem(5, 37, 20, 4, dtype=torch.float32)
    expected = run_with_gradients(tensors, backend="torch")
    for chunk, cached in itertools.product((1, 5, 64), (1, 3000)):
        monkeypatch.setattr(cpu, "CHUNK", chunk)
        monkeypatch.setattr(cpu, "_CACHED", cached)
        for name, value in run_with_gradients(tensors, backend="torch").items():
            assert relative(value, expected[name]) <= 1e-6, (name, chunk, cached)


def test_two_runs_are_bitwise_equal_and_threads_hardly_matter() -> None:
    tensors = problem(4, 33, 96, 16, dtype=torch.float32)
    once, again = run_with_gradients(tensors), run_with_gradients(tensors)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parallel = run_with_gradients(tensors)
    finally:
        torch.set_num_threads(threads)
    for name, value in once.items():
        assert torch.equal(value, again[name]), name
        assert relative(parallel[name], value) <= 1e-6, name


def test_no_uninitialised_memory_is_read() -> None:
    tensors = problem(3, 19, 7, 5, dtype=torch.float32)
    expected = run_with_gradients(tensors)
    torch.use_deterministic_algorithms(True)  # also fills every fresh tensor with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory
    for name, value in run_with_gradients(tensors).items():
        assert torch.equal(value, expected[name]), name


def test_inputs_and_cotangents_are_not_written_to() -> None:
    tensors = problem(2, 19, 6, 4, dtype=torch.float32)
    before = {name: t.detach().clone() for name, t in tensors.items()}
    out = selective_scan(**tensors)
    cotangent = torch.randn_like(out)
    kept = cotangent.clone()
    torch.autograd.grad(out, list(tensors.values()), cotangent)
    assert torch.equal(cotangent, kept)
    for name, t in tensors.items():
        assert torch.equal(t, before[name]), name


def test_without_a_gradient_no_state_is_kept() -> None:
    tensors = problem(2, 19, 6, 4, dtype=torch.float32)
    saved: list[Tensor] = []

    def run(**t: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s) or s, lambda s: s):
            return selective_scan(**t)

    with torch.no_grad():
        quiet = run(**tensors)
    assert not saved
    assert not quiet.requires_grad
    assert torch.equal(run(**{name: t.detach() for name, t in tensors.items()}), quiet)
    assert not saved
    loud = run(**tensors)
    assert torch.equal(loud, quiet)
    assert any(s.shape == (2, 2, 1, 4, 16) for s in saved)  # chunks batch blocks S channels


def test_a_gradient_is_returned_for_whatever_wants_one() -> None:
    tensors = {name: t.detach() for name, t in problem(2, 19, 6, 4, dtype=torch.float32).items()}
    for name, t in tensors.items():
        wanting = tensors | {name: t.clone().requires_grad_()}
        (gradient,) = torch.autograd.grad(selective_scan(**wanting).sum(), wanting[name])
        assert gradient.shape == t.shape
        assert gradient.dtype == t.dtype


def test_activation_checkpointing_changes_nothing() -> None:
    tensors = problem(2, 19, 6, 4, dtype=torch.float32)

    def recomputed(**t: Tensor) -> tuple[Tensor, Tensor]:
        names = list(t)
        return checkpoint(
            lambda *v: selective_scan(**dict(zip(names, v, strict=True)), return_last_state=True),
            *t.values(),
            use_reentrant=False,
        )

    expected = run_with_gradients(tensors)
    for name, value in run_with_gradients(tensors, scan=recomputed).items():
        assert torch.equal(value, expected[name]), name


def test_autocast_leaves_the_scan_in_the_dtype_it_was_given() -> None:
    tensors = problem(2, 19, 6, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(**tensors)
    assert torch.equal(inside, selective_scan(**tensors))


class _Scans(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return selective_scan(**{name: t.detach() for name, t in problem(1, 5, 4, 2, dtype=torch.float32).items()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_workers_can_scan() -> None:
    selective_scan(**problem(1, 5, 4, 2, dtype=torch.float32))
    batches = list(DataLoader(_Scans(), batch_size=2, num_workers=2, multiprocessing_context="fork"))
    assert len(batches) == 2
    assert all(batch.isfinite().all() for batch in batches)


# Both directions of a layer


def two_directions(dtype: torch.dtype = torch.float32, **shape: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    order = ("x", "dt", "A", "B", "C", "D", "bias")
    first, second = (problem(**shape, dtype=dtype, without=("h0",)) for _ in range(2))
    return [first[name] for name in order], [second[name] for name in order], first["z"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [True, False])
def test_both_directions_are_the_mean_of_two_scans(backend: str, gated: bool) -> None:
    fwd, bwd, z = two_directions(batch=3, length=37, channels=10, states=4)
    gate = z if gated else None
    leaves = [*fwd, *bwd, *([z] if gated else [])]
    with use_backend(backend):
        out = bidirectional_scan(fwd, bwd, gate)
        separate = torch.zeros_like(out)
        for (x, dt, A, B, C, D, bias), reverse in ((fwd, False), (bwd, True)):
            separate = separate + selective_scan(x, dt, A, B, C, D=D, z=gate, bias=bias, reverse=reverse, out_scale=0.5)
        cotangent = torch.randn_like(out)
        gradients = torch.autograd.grad(out, leaves, cotangent)
        expected = torch.autograd.grad(separate, leaves, cotangent)
    assert relative(out, separate) <= 1e-6
    for g, e in zip(gradients, expected, strict=True):
        assert relative(g, e) <= 2e-6


def test_directions_may_share_tensors_and_leave_out_others() -> None:
    (x, dt, A, B, C, D, _), (_, _, A_other, *_), z = two_directions(batch=2, length=18, channels=6, states=4)
    leaves = [x, dt, A, A_other, B, C, D, z]

    def run(x, dt, A, A_other, B, C, D, z):
        return bidirectional_scan((x, dt, A, B, C, D), (x, dt, A_other, B, C), z, scale=1.0)

    truth_leaves = [t.detach().double().requires_grad_() for t in leaves]
    out, truth = run(*leaves), run(*truth_leaves)
    assert relative(out, truth) <= OUTPUT[torch.float32]
    for g, e in zip(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(truth.sum(), truth_leaves), strict=True):
        assert relative(g, e) <= ACTIVATION_GRADIENT[torch.float32]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_directions_meet_the_float64_reference(dtype: torch.dtype, device: str) -> None:
    fwd, bwd, z = two_directions(dtype, batch=3, length=20, channels=12, states=8)
    leaves = [t.detach().to(device).requires_grad_() for t in (*fwd, *bwd, z)]
    truth_leaves = [t.detach().double().requires_grad_() for t in (*fwd, *bwd, z)]
    out, truth = (bidirectional_scan(t[:7], t[7:14], t[14]) for t in (leaves, truth_leaves))
    assert relative(out, truth) <= OUTPUT[dtype]
    gradients, expected = (torch.autograd.grad(o.sum(), t) for o, t in ((out, leaves), (truth, truth_leaves)))
    for leaf, g, e in zip(leaves, gradients, expected, strict=True):
        assert relative(g, e) <= (ACTIVATION_GRADIENT if leaf.dim() == 3 else PARAMETER_GRADIENT)[dtype]


# The drop-in


def widely_used_formula(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """What the drop-in must equal, channels first, written for clarity: any form of B and C is spread to (batch, E, S, L)."""
    batch, channels, length = u.shape

    def spread(M: Tensor) -> Tensor:
        if M.dim() == 2:
            return M[None, :, :, None].expand(batch, *M.shape, length)
        M = M if M.dim() == 4 else M[:, None]
        return M.repeat_interleave(channels // M.shape[1], 1)

    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    B, C = spread(B), spread(C)
    h, ys = u.new_zeros(batch, *A.shape), []
    for d, x, b, c in zip(delta.unbind(2), u.unbind(2), B.unbind(3), C.unbind(3), strict=True):
        h = torch.exp(d[..., None] * A) * h + d[..., None] * b * x[..., None]
        ys.append((h * c).sum(-1))
    y = torch.stack(ys, 2)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


@pytest.mark.parametrize("form_of_B", ["tokens", "groups", "constant"])
@pytest.mark.parametrize("form_of_C", ["tokens", "groups", "constant"])
def test_the_drop_in_equals_the_widely_used_formula(form_of_B: str, form_of_C: str) -> None:
    batch, channels, states, length = 2, 6, 3, 18
    shapes = {"tokens": (batch, states, length), "groups": (batch, 2, states, length), "constant": (channels, states)}
    full = form_of_B != form_of_C
    leaves = {
        "u": torch.randn(batch, channels, length),
        "delta": torch.rand(batch, channels, length),
        "A": -torch.rand(channels, states),
        "B": torch.randn(shapes[form_of_B]),
        "C": torch.randn(shapes[form_of_C]),
    }
    if full:
        leaves |= {"D": torch.randn(channels), "z": torch.randn(leaves["u"].shape), "delta_bias": torch.rand(channels)}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    out, last = selective_scan_fn(**leaves, delta_softplus=full, return_last_state=True)
    expected, expected_last = widely_used_formula(**leaves, delta_softplus=full)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, expected_last, rtol=1e-5, atol=1e-5)
    cotangents = torch.randn_like(out), torch.randn_like(last)
    gradients = torch.autograd.grad((out, last), list(leaves.values()), cotangents)
    expected_gradients = torch.autograd.grad((expected, expected_last), list(leaves.values()), cotangents)
    for name, g, e in zip(leaves, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_drop_in_takes_mixed_dtypes() -> None:
    u, delta = torch.randn(2, 4, 9, dtype=torch.bfloat16), torch.rand(2, 4, 9, dtype=torch.bfloat16)
    A, B, C = -torch.rand(4, 3), torch.randn(2, 3, 9), torch.randn(2, 3, 9)
    out = selective_scan_fn(u, delta, A, B, C)
    assert out.dtype == torch.bfloat16
    expected, _ = widely_used_formula(u.double(), delta.double(), A.double(), B.double(), C.double())
    assert relative(out, expected) <= OUTPUT[torch.bfloat16]
    constant = selective_scan_fn(u, delta, A, torch.randn(4, 3), C)
    assert constant.dtype == torch.bfloat16


class PlainMamba(nn.Module):
    """A mixer as other people's repositories write it, against the usual function names and layouts."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.states, self.rank = states, 2
        self.in_proj = nn.Linear(width, 4 * width, bias=False)
        self.conv1d = nn.Conv1d(2 * width, 2 * width, 4, groups=2 * width, padding=3)
        self.x_proj = nn.Linear(2 * width, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, 2 * width)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(2 * width, 1))
        self.D = nn.Parameter(torch.ones(2 * width))
        self.out_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        x = causal_conv1d_fn(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([self.rank, self.states, self.states], dim=-1)
        dt = (self.dt_proj.weight @ dt.transpose(1, 2)).contiguous()
        y = selective_scan_fn(
            x,
            dt,
            -torch.exp(self.A_log),
            B.transpose(1, 2).contiguous(),
            C.transpose(1, 2).contiguous(),
            self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        return self.out_proj(y.transpose(1, 2))

    def forward_by_textbook(self, tokens: Tensor) -> Tensor:
        """The same network without a function of ours."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[..., : tokens.shape[1]])
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([self.rank, self.states, self.states], dim=-1)
        dt, A = self.dt_proj.weight @ dt.transpose(1, 2), -torch.exp(self.A_log)
        y, _ = widely_used_formula(x, dt, A, B.mT, C.mT, self.D, z, self.dt_proj.bias, delta_softplus=True)
        return self.out_proj(y.transpose(1, 2))


def test_a_model_written_against_the_usual_names_runs_and_learns() -> None:
    model, tokens = PlainMamba(8, 4), torch.randn(4, 20, 8)
    target = tokens.roll(1, 1)
    torch.testing.assert_close(model(tokens), model.forward_by_textbook(tokens), rtol=1e-5, atol=1e-5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(tokens), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

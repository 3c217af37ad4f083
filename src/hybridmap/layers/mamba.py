"""The Mamba (S6) mixer, in one direction, two or four.

    u ──in_proj──┬─ x ─ conv ─ SiLU ─ c ─┬────────────────────┐
                 │                       └─ x_proj ─ δ, B, C ─ scan ─ y ─ · SiLU(z) ─ out_proj ──▶
                 └─ z ─────────────────────────────────────────────────────┘

    Δ_t = softplus(W_dt δ_t + b_dt)          h_t = exp(Δ_t ⊗ A) ∘ h_{t-1} + (Δ_t ∘ c_t) ⊗ B_t          A = -exp(A_log)
    y_t = h_t · C_t + D ∘ c_t                g_t = y_t ∘ SiLU(z_t)

A backward direction walks the same memory from the last token (``reverse=True``), with an anti-causal convolution; nothing is
flipped. Everything between the linear maps is in ``hybridmap.ops``, whose scan keeps state, exponentials and sums in at least
float32. The bias of ``dt_proj`` is not added by the linear map but inside the scan.
Source: Mamba (arXiv:2312.00752), Vision Mamba (arXiv:2401.09417); semantics of state-spaces/mamba v1.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.errors import UserError
from hybridmap.layers.decay import state_parameter
from hybridmap.ops.mamba_inner import scan_inputs

SCALES = {"uni": 1.0, "v1": 1.0, "v2": 0.5, "biscan": 0.5, "v3": 0.25}
"""Variant of :class:`MambaMixer` -> what the sum of its directions is multiplied by."""


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scan_parameters(
    conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Float[Tensor, "E S"], D: Float[Tensor, "E"]
) -> ops.Parameters:
    """What ``ops.mamba_inner`` needs of one direction's modules."""
    return ops.Parameters(
        taps=conv.weight.squeeze(1),
        taps_bias=conv.bias,
        x_proj=x_proj.weight,
        dt_proj=dt_proj.weight,
        A=-at_least_float32(A_log).exp(),
        D=D,
        bias=dt_proj.bias,
    )


def init_A_log(inner: int, d_state: int, device: torch.device | str | None = None) -> nn.Parameter:
    """``log(1 .. d_state)`` in every row: the real S4D initialisation."""
    steps = torch.arange(1, d_state + 1, dtype=torch.float32, device=device).log()
    return state_parameter(nn.Parameter(steps.repeat(inner, 1)))


@torch.no_grad()
def init_dt(
    dt_proj: nn.Linear, *, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4, scale: float = 1.0, constant: bool = False
) -> None:
    """Step sizes log-uniform in [low, high]: weights in ``±rank^-1/2 * scale``, bias the inverse softplus of the step."""
    bound = dt_proj.in_features**-0.5 * scale
    nn.init.constant_(dt_proj.weight, bound) if constant else nn.init.uniform_(dt_proj.weight, -bound, bound)
    dt = torch.empty_like(dt_proj.bias).uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
    dt_proj.bias.copy_(dt + (-torch.expm1(-dt)).log())


@torch.no_grad()
def init_mixers(mixers: Sequence[MambaMixer], released: bool) -> None:
    """What a network adds to its mixers' own start: output projections shrink by the root of the depth.

    ``released``: only the first direction keeps its initial step sizes, the others' biases are zero, as in the code of Vim,
    Mamba-R and ARM.
    """
    for mixer in mixers:
        mixer.out_proj.weight.div_(len(mixers) ** 0.5)
        for direction in mixer.directions[1:] if released else ():
            nn.init.zeros_(direction.dt_proj.bias)


def freeze_backward(network: nn.Module) -> None:
    """No gradients for the directions of all mixers that a causal call leaves out: every one but the forward scan."""
    for mixer in network.modules():
        if isinstance(mixer, MambaMixer):
            for name, parameter in mixer.dirs.named_parameters():
                if not name.startswith("fwd."):
                    parameter.requires_grad_(False)


class Direction(nn.Module):
    """What one scanning direction owns; directions share only ``in_proj``, ``out_proj`` and the gate."""

    def __init__(self, inner: int, *, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        self.conv = nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = init_A_log(inner, d_state)
        self.D = state_parameter(nn.Parameter(torch.ones(inner)))
        init_dt(self.dt_proj)

    def parameters_of_scan(self) -> ops.Parameters:
        """For ``ops.mamba_inner``."""
        return scan_parameters(self.conv, self.x_proj, self.dt_proj, self.A_log, self.D)


class MambaMixer(nn.Module):
    """Mixer of the backbones: (B, L, dim) -> (B, L, dim) along the sequence.

    ``variant``, with S the equations above and rev the reversal of the sequence:

    ==========  ====================================================  ==================================
    uni         S(u; fwd)                                             one direction
    v1          S(u; fwd) + rev(S(rev u; fwd with bwd's A))           A alone is per direction; the
                                                                      convolution stays forward; never halved
    v2          S(u; fwd) + rev(S(rev u; bwd)), halved if ``divide``  all but in_proj, out_proj and the gate
    biscan      v2, always halved                                     as v2
    v3          v2 along the sequence and v2 across it (with col_fwd  as v2, in four sets
                and col_bwd), always a quarter of the sum
    ==========  ====================================================  ==================================

    v3 also walks the sequence in a second order, such as column by column, which every call brings along (``across``).
    ``layer_scale`` multiplies the output by a learned vector that starts at this value.
    Source: hustvl/Vim:mamba-1p1p1, wangf3014/Mamba-Reg:mamba_custom.py, OliverRensu/ARM:Finetuning/mamba_simple.py.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        variant: str = "biscan",
        divide: bool = True,
        conv_bias: bool = True,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if variant not in SCALES:
            raise UserError(f"variant must be uni, v1, v2, biscan or v3, got {variant!r}")
        inner = int(expand * dim)
        shape: dict[str, Any] = {
            "d_state": d_state,
            "d_conv": d_conv,
            "dt_rank": math.ceil(dim / 16) if dt_rank == "auto" else dt_rank,
            "conv_bias": conv_bias,
        }
        self.variant = variant
        self.scale = 1.0 if variant == "v2" and not divide else SCALES[variant]
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.dirs = nn.ModuleDict({"fwd": Direction(inner, reverse=False, **shape)})
        if variant == "v1":
            self.dirs["bwd"] = nn.ParameterDict({"A_log": init_A_log(inner, d_state)})
        elif variant != "uni":
            self.dirs["bwd"] = Direction(inner, reverse=True, **shape)
        if variant == "v3":
            self.dirs["col_fwd"] = Direction(inner, reverse=False, **shape)
            self.dirs["col_bwd"] = Direction(inner, reverse=True, **shape)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))

    @property
    def directions(self) -> list[Direction]:
        """Those with a full set of parameters, forward first."""
        return [direction for direction in self.dirs.values() if isinstance(direction, Direction)]

    def forward(
        self, u: Float[Tensor, "B L D"], causal: bool = False, across: Int[Tensor, "#B L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """``causal=True`` scans forward only, so that token t sees no later one. ``across``, for v3 alone: the positions in the
        order of the second walk, each once; one row serves all samples.

        Raises:
            UserError: if v3 lacks its second walk.
        """
        xz = self.in_proj(u)  # (B, L, 2 E)
        fwd, *rest = (direction.parameters_of_scan() for direction in self.directions)
        if causal or self.variant == "uni":
            y = ops.mamba_inner(xz, fwd)
        elif self.variant == "v1":
            y = self._scan_twice(xz, fwd)
        elif self.variant == "v3":
            y = self._scan_across(xz, [fwd, *rest], across)
        else:
            y = ops.mamba_inner(xz, fwd, *rest, scale=self.scale)
        out = self.out_proj(y)
        return out if self.gamma is None else out * self.gamma

    def _scan_twice(self, xz: Float[Tensor, "B L E2"], fwd: ops.Parameters) -> Float[Tensor, "B L E"]:
        """v1: what was convolved and projected once is scanned both ways, backwards with an A of its own."""
        x, z = xz.chunk(2, dim=-1)
        c, dt, A, *rest = scan_inputs(ops.causal_conv1d(x, fwd.taps, fwd.taps_bias), fwd)
        A_b = -at_least_float32(self.dirs["bwd"]["A_log"]).exp()  # pyright: ignore[reportIndexIssue]
        return ops.bidirectional_scan((c, dt, A, *rest), (c, dt, A_b, *rest), z, scale=self.scale)

    def _scan_across(
        self, xz: Float[Tensor, "B L E2"], directions: list[ops.Parameters], across: Int[Tensor, "#B L"] | None
    ) -> Float[Tensor, "B L E"]:
        """v3: both ways along the sequence, and both ways along the second walk, whose result is put back in place."""
        if across is None:
            raise UserError("a mixer of variant v3 scans in a second order too; call it with across=positions of that order")
        fwd, bwd, col_fwd, col_bwd = directions
        y = ops.mamba_inner(xz, fwd, bwd, scale=self.scale)
        walked = ops.mamba_inner(_permuted(xz, across), col_fwd, col_bwd, scale=self.scale)
        return y + _permuted(walked, across.argsort(dim=1))


def _permuted(x: Float[Tensor, "B L W"], index: Int[Tensor, "#B L"]) -> Float[Tensor, "B L W"]:
    """The tokens in the order of ``index``; one row of it serves all samples."""
    if len(index) == 1:
        return x.index_select(1, index[0])
    batch, length, _ = x.shape
    rows = index + length * torch.arange(batch, device=x.device)[:, None]  # whole tokens are copied, not single values
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(x.shape)


@dataclass
class InferenceParams:
    """Where decoding stands: how many tokens were seen, and each layer's (conv state, scan state) by its ``layer_idx``."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    key_value_memory_dict: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Mamba(nn.Module):
    """Drop-in for the widely used module ``Mamba`` (one direction): same arguments, parameter names, cache and ``step``.

    ``use_fast_path`` is accepted and has no effect: every path computes the same. On which device and by which kernel is
    decided in ``hybridmap.ops``. Source: interface of state-spaces/mamba v1.1.1, mamba_ssm/modules/mamba_simple.py.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **made)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **made
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **made)
        init_dt(self.dt_proj, low=dt_min, high=dt_max, floor=dt_init_floor, scale=dt_scale, constant=dt_init == "constant")
        self.A_log = init_A_log(self.d_inner, d_state, device)
        self.D = state_parameter(nn.Parameter(torch.ones(self.d_inner, device=device)))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def forward(
        self, hidden_states: Float[Tensor, "B L D"], inference_params: InferenceParams | Any = None
    ) -> Float[Tensor, "B L D"]:
        """With ``inference_params`` the first call fills the cache (prefill) and every later one decodes a single token."""
        cache = None
        if inference_params is not None:
            cache = self._cache_of(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *cache)[0]
        xz = self.in_proj(hidden_states)  # (B, L, 2 E)
        if cache is None:
            return self.out_proj(ops.mamba_inner(xz, self._parameters_of_scan()))
        x, z = xz.chunk(2, dim=-1)  # each (B, L, E)
        y, last_state = self._scan(x, z)
        with torch.no_grad():
            conv_state, ssm_state = cache
            conv_state.copy_(F.pad(x.transpose(1, 2), (self.d_conv - x.shape[1], 0)))
            ssm_state.copy_(last_state)
        return self.out_proj(y)

    def step(
        self, hidden_states: Float[Tensor, "B L D"], conv_state: Float[Tensor, "B E W"], ssm_state: Float[Tensor, "B E S"]
    ) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B E W"], Float[Tensor, "B E S"]]:
        """Decode one token; both states are updated in place and returned.

        Raises:
            UserError: if more than one token came.
        """
        if hidden_states.shape[1] != 1:
            raise UserError(
                f"step() decodes one token at a time, got {hidden_states.shape[1]}; prefill longer inputs by forward()"
            )
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)  # each (B, 1, E)
        window = torch.cat([conv_state[:, :, 1:].transpose(1, 2), x.to(conv_state.dtype)], dim=1)  # (B, W, E)
        y, last_state = self._scan(window.to(x.dtype), z, h0=ssm_state)
        with torch.no_grad():
            conv_state.copy_(window.transpose(1, 2))
            ssm_state.copy_(last_state)
        return self.out_proj(y), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Float[Tensor, "B E W"], Float[Tensor, "B E S"]]:
        """Zero states for ``batch_size`` sequences: the last inputs of the convolution, and the scan state in at least float32.

        ``max_seqlen`` is part of the usual signature; the cache does not grow with the length.
        """
        weight = self.conv1d.weight
        dtype = dtype or weight.dtype
        conv_state = torch.zeros(batch_size, self.d_inner, self.d_conv, device=weight.device, dtype=dtype)
        state_dtype = torch.promote_types(dtype, torch.float32)
        return conv_state, torch.zeros(batch_size, self.d_inner, self.d_state, device=weight.device, dtype=state_dtype)

    def _parameters_of_scan(self) -> ops.Parameters:
        return scan_parameters(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)

    def _scan(
        self, x: Float[Tensor, "B W E"], z: Float[Tensor, "B L E"], h0: Tensor | None = None
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E S"]]:
        """Gated output and last state for the newest L tokens of ``x``; the earlier ones only reach the convolution."""
        p = self._parameters_of_scan()
        newest = ops.causal_conv1d(x, p.taps, p.taps_bias)[:, -z.shape[1] :]
        c, dt, A, B, C, D, bias = scan_inputs(newest, p)
        return ops.selective_scan(c, dt, A, B, C, D=D, z=z, bias=bias, h0=h0, return_last_state=True)

    def _cache_of(self, inference_params: Any, batch_size: int) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise UserError("a Mamba layer needs a layer_idx to find its cache; build it as Mamba(..., layer_idx=i)")
        caches = inference_params.key_value_memory_dict
        if self.layer_idx not in caches:
            caches[self.layer_idx] = self.allocate_inference_cache(batch_size, inference_params.max_seqlen)
        return caches[self.layer_idx]

"""From which tokens every token of a layer hears, and how loudly: attention of T layers, hidden attention of M layers.

    T    weights[t, s] = softmax_s(q_t . k_s / sqrt(head width))                             one map per head
    M    alpha[t, s, e] = sum_n C_t[n] exp(A[e, n] (Delta_{s+1} + .. + Delta_t)[e]) Delta_s[e] B_s[n]    for s <= t, otherwise 0

so that a scan is ``y_t = sum_s alpha[t, s] c_s + D c_t``, channel by channel, with c what the convolution returned; a scan from
the last token has the mirror image. A channel of a scan is to it what a head is to attention, only that its weights have signs
and do not sum to one. As the paper does for its pictures we take absolute values; these are averaged over the channels, and
each row is divided by its sum, which makes it comparable with attention. Directions of one layer are added with their signs
before, as the layer adds them. Neither D, nor the convolution, nor the gate is part of the map.
Source: The Hidden Attention of Mamba Models (arXiv:2403.01590), sections 3 and 4 (absolute values: second version, Figure 4).

``token_map`` knows a function per type of mixer and gives it what the mixer is called with; a mixer of your own joins by
``@token_map.register(Mine)``. ``capture`` calls them from hooks while a network runs; the network itself is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.hierarchical import HierarchicalBackbone, Stage
from hybridmap.backbones.mambavision import WindowStage
from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.backbones.vim import MambaStack
from hybridmap.errors import UserError
from hybridmap.layers.attention import Attention
from hybridmap.layers.mamba import Mamba, MambaMixer, at_least_float32, scan_parameters
from hybridmap.layers.mambavision import MambaVisionMixer
from hybridmap.layers.ss2d import DIRECTIONS, SS2D
from hybridmap.ops.mamba_inner import Parameters, scan_inputs
from hybridmap.ops.selective_scan.reference import Direction
from hybridmap.tokens.scan import order

T = TypeVar("T")

_BLOCK = 1 << 22
"""Weights that exist at a time while a layer's channels are averaged; at 32 bits each, 16 MiB."""


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """Row t says how the layer's output at token t is shared among the tokens s; rows sum to one."""

    letter: str
    """The kind of layer, T (attention) or M (scan)."""
    mean: Float[Tensor, "B L L"]
    """Of all heads, or of all channels and directions."""
    parts: dict[str, Float[Tensor, "B L L"]]
    """Each head, or each direction, by itself."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the layer works on a map of its own, its tokens in raster order; None where they are the tokens of
    the backbone's sequence."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan of a layer: what ``ops.selective_scan`` is given, and in which order it walks."""

    inputs: Direction
    reverse: bool = False
    """From the last token to the first."""
    order: Int[Tensor, "L"] | None = field(default=None)
    """Scanned position -> position in the layer's sequence, where these differ."""


def attention_weights(
    q: Float[Tensor, "B H L W"], k: Float[Tensor, "B H L W"], allowed: Bool[Tensor, "..."] | None = None, causal: bool = False
) -> Float[Tensor, "B H L L"]:
    """``softmax(q k^T / sqrt(W))`` in at least float32: what ``layers.attention.attend`` multiplies its values with."""
    scores = at_least_float32(q) @ at_least_float32(k).mT / q.shape[-1] ** 0.5
    if causal:
        length = q.shape[-2]
        allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1)


def hidden_attention(scan: Direction, *, reverse: bool = False) -> Float[Tensor, "B E L L"]:
    """The exact alpha of every channel, signs included, in at least float32; it is large, so give it few channels at a time.

    Cut the sequence into halves, these into halves again, and so on: each pair of tokens is parted by one cut. With m the last
    token before it, ``exp(A sum(s+1..t)) = exp(A sum(s+1..m)) exp(A sum(m+1..t))``, where as A < 0 no factor can overflow,
    and all pairs of one cut are a matrix product over the states. That takes L log2(L) exponentials per state instead of L^2,
    and no differences of long sums.
    """
    wide = torch.promote_types(scan.dt.dtype, torch.float32)
    dt, A, B, C = (tensor.to(wide) for tensor in (scan.dt, scan.A, scan.B, scan.C))
    delta = F.softplus(dt if scan.bias is None else dt + scan.bias.to(wide)).mT  # (B, E, L)
    if reverse:
        delta, B, C = delta.flip(-1), B.flip(1), C.flip(1)
    length = delta.shape[-1]
    size = 1 << max(length - 1, 0).bit_length()
    delta = F.pad(delta, (0, size - length))
    B, C = (F.pad(tensor, (0, 0, 0, size - length)) for tensor in (B, C))
    alpha = delta.new_zeros(*delta.shape, size)
    alpha.diagonal(dim1=-2, dim2=-1).copy_(delta * (B * C).sum(-1).unsqueeze(1))

    def decay(steps: Float[Tensor, "B E pairs half"]) -> Float[Tensor, "B E pairs half S"]:
        value = torch.exp(steps.unsqueeze(-1) * A[:, None, None])
        # Products of two such factors stay normal numbers: processors are very slow with smaller ones.
        return value.masked_fill_(value < torch.finfo(wide).tiny ** 0.5, 0)

    half = 1
    while half < size:
        early, late = delta.unflatten(-1, (-1, 2, half)).unbind(-2)  # each (B, E, pairs, half)
        until_middle = early.flip(-1).cumsum(-1).flip(-1) - early
        keys = decay(until_middle) * early.unsqueeze(-1) * B.unflatten(1, (-1, 2, half))[:, None, :, 0]
        queries = decay(late.cumsum(-1)) * C.unflatten(1, (-1, 2, half))[:, None, :, 1]
        squares = alpha.unflatten(-1, (-1, 2, half)).unflatten(-4, (-1, 2, half))[:, :, :, 1, :, :, 0]
        squares.diagonal(dim1=2, dim2=4).copy_((queries @ keys.mT).permute(0, 1, 3, 4, 2))
        half *= 2
    alpha = alpha[..., :length, :length]
    return alpha.flip(-1, -2) if reverse else alpha


def scan_map(scans: Mapping[str, Scan], grid: tuple[int, int] | None = None) -> TokenMap:
    """The map of a layer that adds these scans, all of the same channels, block by block so that memory stays bounded."""
    first = next(iter(scans.values())).inputs
    batch, length, channels = first.dt.shape
    step = max(1, _BLOCK // (batch * (1 << max(length - 1, 0).bit_length()) ** 2))
    total: Tensor | None = None
    parts: dict[str, Tensor] = {}
    for start in range(0, channels, step):
        added: Tensor | None = None
        for name, scan in scans.items():
            alpha = hidden_attention(_some_channels(scan.inputs, slice(start, start + step)), reverse=scan.reverse)
            if scan.order is not None:
                place = scan.order.argsort()
                alpha = alpha[..., place[:, None], place]
            loud = alpha.abs().sum(1)  # (B, L, L)
            parts[name] = parts[name] + loud if name in parts else loud
            added = alpha if added is None else added + alpha
        assert added is not None
        loud = added.abs().sum(1)
        total = loud if total is None else total + loud
    assert total is not None
    return TokenMap(letter="M", mean=_shares(total), parts={name: _shares(part) for name, part in parts.items()}, grid=grid)


def _some_channels(scan: Direction, own: slice) -> Direction:
    D, bias = (None if vector is None else vector[own] for vector in (scan.D, scan.bias))
    return Direction(scan.x[..., own], scan.dt[..., own], scan.A[own], scan.B, scan.C, D, bias)


def _shares(weights: Float[Tensor, "B L L"]) -> Float[Tensor, "B L L"]:
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


@singledispatch
def token_map(mixer: nn.Module, *args: Any, **kwargs: Any) -> TokenMap:
    """The map of a mixer called with these arguments, by the mixer's type.

    Raises:
        UserError: for a type without a function.
    """
    raise UserError(
        f"a map was expected of every layer, but how {type(mixer).__name__} mixes tokens is not known; choose other layers, "
        "or write a function for it and register it with hybridmap.report.attention_maps.token_map.register"
    )


@token_map.register(Attention)
def _(
    mixer: Attention, x: Float[Tensor, "B L D"], allowed: Bool[Tensor, "..."] | None = None, causal: bool = False
) -> TokenMap:
    heads = mixer.qkv(x).unflatten(-1, (3, mixer.num_heads, mixer.head_width))  # (B, L, 3, H, D/H)
    q, k, _ = heads.permute(2, 0, 3, 1, 4).unbind(0)
    weights = attention_weights(mixer.q_norm(q), mixer.k_norm(k), allowed, causal)
    return TokenMap(
        letter="T", mean=weights.mean(1), parts={f"head {number}": head for number, head in enumerate(weights.unbind(1))}
    )


@token_map.register(MambaMixer)
def _(
    mixer: MambaMixer, u: Float[Tensor, "B L D"], causal: bool = False, across: Int[Tensor, "#B L"] | None = None
) -> TokenMap:
    """Of whole images only, which all have the same walk ``across``."""
    x = mixer.in_proj(u).chunk(2, dim=-1)[0]
    forward, *rest = mixer.directions
    scans = {"forward": _scan(x, forward.parameters_of_scan())}
    if not causal and mixer.variant == "v1":
        A = -at_least_float32(mixer.dirs["bwd"]["A_log"]).exp()  # pyright: ignore[reportIndexIssue]
        scans["backward"] = Scan(inputs=scans["forward"].inputs._replace(A=A), reverse=True)
    elif not causal and rest:
        scans["backward"] = _scan(x, rest[0].parameters_of_scan(), reverse=True)
    if not causal and across is not None:
        for direction, name in zip(rest[1:], ("across forward", "across backward"), strict=True):
            walked = _scan(x[:, across[0]], direction.parameters_of_scan(), direction.reverse)
            scans[name] = replace(walked, order=across[0])
    return scan_map(scans)


@token_map.register(Mamba)
def _(mixer: Mamba, hidden_states: Float[Tensor, "B L D"], inference_params: Any = None) -> TokenMap:
    x = mixer.in_proj(hidden_states).chunk(2, dim=-1)[0]
    p = scan_parameters(mixer.conv1d, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D)
    return scan_map({"forward": _scan(x, p)})


@token_map.register(MambaVisionMixer)
def _(mixer: MambaVisionMixer, u: Float[Tensor, "B L D"]) -> TokenMap:
    """Of the half of the channels that is scanned."""
    x, ahead = mixer.in_proj(u).chunk(2, dim=-1)[0], mixer.d_conv // 2
    c = ops.causal_conv1d(F.pad(x, (0, 0, 0, ahead)), mixer.conv_x.weight.squeeze(1))[:, ahead:]
    p = scan_parameters(mixer.conv_x, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D)
    return scan_map({"forward": Scan(inputs=Direction(*scan_inputs(c, p._replace(bias=2 * p.bias))))})


@token_map.register(SS2D)
def _(mixer: SS2D, u: Float[Tensor, "B rows columns D"]) -> TokenMap:
    c = F.silu(mixer.conv2d(mixer.in_proj(u).permute(0, 3, 1, 2))).flatten(2).mT  # (B, L, E), row by row
    grid = (u.shape[1], u.shape[2])
    walks = {"row": None, "column": order("column", grid, u.device)}
    A, D = -at_least_float32(mixer.A_logs).exp(), mixer.Ds
    scans = {}
    for k, (reverse, walk) in enumerate((reverse, walk) for reverse in (False, True) for walk in walks):
        place = walks[walk]
        x = c if place is None else c[:, place]
        delta, B, C = F.linear(x, mixer.x_proj_weight[k]).split([mixer.dt_rank, mixer.d_state, mixer.d_state], -1)
        dt = F.linear(delta, mixer.dt_projs_weight[k])
        inputs = Direction(x, dt, A.chunk(DIRECTIONS)[k], B, C, D.chunk(DIRECTIONS)[k], mixer.dt_projs_bias[k])
        scans[f"{walk}s {'backward' if reverse else 'forward'}"] = Scan(inputs=inputs, reverse=reverse, order=place)
    return scan_map(scans, grid)


def _scan(x: Float[Tensor, "B L E"], p: Parameters, reverse: bool = False) -> Scan:
    c = ops.causal_conv1d(x, p.taps, p.taps_bias, reverse=reverse)
    return Scan(inputs=Direction(*scan_inputs(c, p)), reverse=reverse)


def mixers(backbone: ImageBackbone) -> list[nn.Module]:
    """What mixes the tokens of each layer, in execution order; a block without a known mixer stands for itself."""
    if isinstance(backbone, SequenceBackbone):
        blocks = list(backbone.layers)
    elif isinstance(backbone, HierarchicalBackbone):
        blocks = [block for stage in backbone.stages if isinstance(stage, Stage) for block in stage.blocks]
    else:
        blocks = [backbone]
    return [mixer for block in blocks for mixer in (list(_known(block)) or [block])]


def is_known(mixer: nn.Module) -> bool:
    """Whether ``token_map`` has a function for its type."""
    return token_map.dispatch(type(mixer)) is not token_map.dispatch(object)


def _known(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost known modules."""
    if is_known(module):
        yield module
    else:
        for child in module.children():
            yield from _known(child)


def join_windows(found: TokenMap, rows: int, columns: int, window: int) -> TokenMap:
    """The map of windows (B windows, window^2, window^2), padded at the right and at the bottom, as one of the whole grid.

    Where there is padding, rows of the map sum to less than one: the rest is heard from there.
    """
    padded = (rows + -rows % window, columns + -columns % window)
    places = torch.arange(padded[0] * padded[1], device=found.mean.device).view(1, *padded, 1)
    places = window_partition(places, (window, window)).flatten(1)  # (windows, window^2)
    inside = (torch.arange(padded[0])[:, None] < rows) & (torch.arange(padded[1]) < columns)
    real = inside.flatten().nonzero().flatten().to(places.device)

    def joined(weights: Float[Tensor, "windows W W"]) -> Float[Tensor, "B L L"]:
        whole = weights.new_zeros(len(weights) // len(places), inside.numel(), inside.numel())
        whole[:, places[:, :, None], places[:, None]] = weights.unflatten(0, (-1, len(places)))
        return whole[:, real[:, None], real]

    parts = {name: joined(part) for name, part in found.parts.items()}
    return TokenMap(letter=found.letter, mean=joined(found.mean), parts=parts, grid=(rows, columns))


def _mirrored(found: TokenMap) -> TokenMap:
    """The map of a layer that was given its sequence from the end."""
    parts = {f"{name}, from the end": part.flip(-1, -2) for name, part in found.parts.items()}
    return replace(found, mean=found.mean.flip(-1, -2), parts=parts)


@torch.no_grad()
def capture(
    backbone: ImageBackbone, images: Float[Tensor, "B C H W"], layers: Collection[int], keep: Callable[[TokenMap], T]
) -> dict[int, T]:
    """Run the network once on normalised ``images``: layer number -> what ``keep`` makes of its map.

    A map is made and given to ``keep`` before the layer itself runs, so that no two whole maps have to exist at a time.

    Raises:
        UserError: for a layer number that there is not, or a kind of layer without a function.
    """
    found = mixers(backbone)
    missing = [number for number in layers if not 0 <= number < len(found)]
    if missing:
        raise UserError(f"layers have the numbers 0 to {len(found) - 1} in this network, got {', '.join(map(str, missing))}")
    kept: dict[int, T] = {}
    windows: list[tuple[int, int, int]] = []  # rows, columns and window of the stage that runs, where it has windows
    in_pairs = isinstance(backbone, SequenceBackbone) and isinstance(backbone.layers, MambaStack) and backbone.layers.pairs

    def look(number: int, mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        made = token_map(mixer, *args, **kwargs)
        if windows:
            made = join_windows(made, *windows[0])
        elif in_pairs and number % 2:  # the second of a pair reads from the end
            made = _mirrored(made)
        kept[number] = keep(made)

    def enter(stage: WindowStage, args: tuple[Any, ...]) -> None:
        windows.append((*args[0].shape[-2:], stage.window))

    def leave(stage: WindowStage, args: tuple[Any, ...], output: Any) -> None:
        windows.clear()

    hooks = [
        found[number].register_forward_pre_hook(partial(look, number), with_kwargs=True) for number in dict.fromkeys(layers)
    ]
    for stage in (module for module in backbone.modules() if isinstance(module, WindowStage)):
        hooks += [stage.register_forward_pre_hook(enter), stage.register_forward_hook(leave)]
    try:
        backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {number: kept[number] for number in dict.fromkeys(layers)}


__all__ = [
    "Scan",
    "TokenMap",
    "attention_weights",
    "capture",
    "hidden_attention",
    "is_known",
    "join_windows",
    "mixers",
    "scan_map",
    "token_map",
]

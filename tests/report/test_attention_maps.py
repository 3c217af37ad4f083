"""The maps are what the layers compute: values weighted by them give the layers' own outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.errors import UserError
from hybridmap.layers import Attention, Mamba, MambaMixer
from hybridmap.layers.mambavision import MambaVisionMixer
from hybridmap.layers.ss2d import SS2D
from hybridmap.ops.selective_scan.reference import Direction
from hybridmap.report import attention_maps
from hybridmap.report.attention_maps import (
    Scan,
    TokenMap,
    attention_weights,
    capture,
    hidden_attention,
    mixers,
    scan_map,
    token_map,
)
from hybridmap.tokens.scan import order


def scan_of(length: int, channels: int = 5, states: int = 3, batch: int = 2, dtype: torch.dtype = torch.float64) -> Direction:
    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    A = -torch.rand(channels, states, dtype=dtype) * 4 - 0.01
    tokens = (batch, length)
    return Direction(
        noise(*tokens, channels),
        noise(*tokens, channels),
        A,
        noise(*tokens, states),
        noise(*tokens, states),
        noise(channels),
        noise(channels),
    )


def scanned(scan: Direction, reverse: bool = False) -> Tensor:
    x, dt, A, B, C, D, bias = scan
    return ops.selective_scan(x, dt, A, B, C, D=D, bias=bias, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 21])
def test_a_scan_is_its_hidden_attention(length: int, reverse: bool) -> None:
    """y_t = sum_s alpha[t, s] x_s + D x_t, in float64."""
    scan = scan_of(length)
    alpha = hidden_attention(scan, reverse=reverse)
    assert alpha.shape == (2, 5, length, length)
    y = torch.einsum("bets,bse->bte", alpha, scan.x) + scan.D * scan.x
    torch.testing.assert_close(y, scanned(scan, reverse), atol=1e-12, rtol=1e-12)


def test_hidden_attention_is_the_formula() -> None:
    """Written as in the paper, for every pair of tokens by itself."""
    scan = scan_of(6, batch=1)
    delta = torch.nn.functional.softplus(scan.dt + scan.bias)[0]
    alpha = hidden_attention(scan)[0]
    for t in range(6):
        for s in range(t + 1):
            decay = torch.exp(delta[s + 1 : t + 1].sum(0)[:, None] * scan.A)  # (E, S)
            expected = (scan.C[0, t] * decay * scan.B[0, s]).sum(-1) * delta[s]
            torch.testing.assert_close(alpha[:, t, s], expected, atol=1e-12, rtol=1e-12)


def test_no_token_hears_a_later_one() -> None:
    scan = scan_of(11)
    assert torch.equal(hidden_attention(scan), hidden_attention(scan).tril())
    assert torch.equal(hidden_attention(scan, reverse=True), hidden_attention(scan, reverse=True).triu())


def test_a_reverse_scan_is_the_mirror_image() -> None:
    scan = scan_of(10)
    mirrored = scan._replace(**{name: getattr(scan, name).flip(1) for name in ("x", "dt", "B", "C")})
    assert torch.equal(hidden_attention(scan, reverse=True), hidden_attention(mirrored).flip(-1, -2))


def test_steps_of_any_size_give_finite_weights() -> None:
    scan = scan_of(40, dtype=torch.float32)
    for factor in (0.0, 1e3, 1e6):
        extreme = scan._replace(dt=scan.dt * factor)
        alpha = hidden_attention(extreme)
        assert alpha.isfinite().all()
        y = torch.einsum("bets,bse->bte", alpha, scan.x) + scan.D * scan.x
        torch.testing.assert_close(y, scanned(extreme), atol=1e-3 * max(1, factor), rtol=1e-3)


def test_a_map_does_not_depend_on_how_many_channels_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = {"forward": Scan(inputs=scan_of(9)), "backward": Scan(inputs=scan_of(9), reverse=True)}
    whole = scan_map(scans)
    monkeypatch.setattr(attention_maps, "_BLOCK", 2 * 2 * 16**2)  # two channels
    pieces = scan_map(scans)
    torch.testing.assert_close(pieces.mean, whole.mean)
    for name in scans:
        torch.testing.assert_close(pieces.parts[name], whole.parts[name])
    alpha = [hidden_attention(scan.inputs, reverse=scan.reverse) for scan in scans.values()]
    loud = sum(alpha).abs().mean(1)  # type: ignore[union-attr]
    torch.testing.assert_close(whole.mean, loud / loud.sum(-1, keepdim=True))


def test_a_scan_in_another_order_is_brought_back_to_the_sequence() -> None:
    """Columns of a 3 x 4 map: the same weights as the scan itself, at the places where the tokens came from."""
    places, scan = order("column", (3, 4)), scan_of(12, batch=1)
    found = scan_map({"columns": Scan(inputs=scan, order=places)}).mean[0]
    straight = scan_map({"columns": Scan(inputs=scan)}).mean[0]
    torch.testing.assert_close(found[places][:, places], straight)
    assert not torch.equal(found, straight)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_weights_are_those_of_the_layer(causal: bool) -> None:
    attention, x = Attention(12, 3).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        found = token_map(attention, x, None, causal)
        v = attention.qkv(x).unflatten(-1, (3, 3, 4))[:, :, 2].transpose(1, 2)  # (B, H, L, W)
        weights = torch.stack(list(found.parts.values()), 1)
        out = attention.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, attention(x, None, causal), atol=1e-12, rtol=1e-12)
    assert list(found.parts) == ["head 0", "head 1", "head 2"]
    torch.testing.assert_close(found.mean, weights.mean(1))
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    if causal:
        assert torch.equal(found.mean, found.mean.tril())


def test_forbidden_keys_have_no_weight() -> None:
    q, allowed = torch.randn(1, 2, 4, 3), torch.eye(4, dtype=torch.bool)
    assert torch.equal(attention_weights(q, q, allowed), torch.eye(4).expand(1, 2, -1, -1))


@pytest.mark.parametrize("variant", ["uni", "v1", "v2", "biscan"])
def test_the_map_of_a_mixer_is_that_of_its_scans(variant: str) -> None:
    """The scans of the map, gated, projected and scaled, are the mixer's output."""
    mixer, u = MambaMixer(8, d_state=4, variant=variant).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    scans: dict[str, Scan] = {}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(attention_maps, "scan_map", lambda given: scans.update(given) or scan_map(given))
        found = token_map(mixer, u)
        z = mixer.in_proj(u).chunk(2, -1)[1]
        y = sum(
            torch.einsum("bets,bse->bte", hidden_attention(scan.inputs, reverse=scan.reverse), scan.inputs.x)
            + scan.inputs.D * scan.inputs.x
            for scan in scans.values()
        )
        out = mixer.out_proj(mixer.scale * y * nn.functional.silu(z))
        torch.testing.assert_close(out, mixer(u), atol=1e-12, rtol=1e-12)
    assert list(scans) == (["forward"] if variant == "uni" else ["forward", "backward"])
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(2, 9, dtype=torch.float64))
    assert torch.equal(found.parts["forward"], found.parts["forward"].tril())
    if variant != "uni":
        assert torch.equal(found.parts["backward"], found.parts["backward"].triu())


def scans_of(mixer: nn.Module, u: Tensor) -> tuple[dict[str, Scan], TokenMap]:
    """The scans from which a mixer's map is made, and the map."""
    scans: dict[str, Scan] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_maps, "scan_map", lambda given, *grid: scans.update(given) or scan_map(given, *grid))
        return scans, token_map(mixer, u)


def output_of(scan: Scan) -> Tensor:
    """What a scan gives by its hidden attention, in the order of the layer's sequence."""
    alpha, x = hidden_attention(scan.inputs, reverse=scan.reverse), scan.inputs.x
    y = torch.einsum("bets,bse->bte", alpha, x) + scan.inputs.D * x
    return y if scan.order is None else y[:, scan.order.argsort()]


@torch.no_grad()
def test_the_map_of_mambavisions_mixer_is_that_of_its_scan() -> None:
    mixer, u = MambaVisionMixer(8, d_state=4).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    scans, found = scans_of(mixer, u)
    mixer.out_proj = nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(output_of(scans["forward"]), mixer(u)[..., :4], atol=1e-12, rtol=1e-12)
    assert torch.equal(found.mean, found.mean.tril())


@torch.no_grad()
def test_the_map_of_vmambas_mixer_is_that_of_its_four_scans() -> None:
    mixer, u = SS2D(8, d_state=2).double(), torch.randn(2, 3, 4, 8, dtype=torch.float64)
    scans, found = scans_of(mixer, u)
    out = mixer.out_proj(mixer.out_norm(sum(output_of(scan) for scan in scans.values())))
    torch.testing.assert_close(out, mixer(u).flatten(1, 2), atol=1e-12, rtol=1e-12)
    assert list(scans) == ["rows forward", "columns forward", "rows backward", "columns backward"]
    assert found.grid == (3, 4)
    columns = order("column", (3, 4))
    in_columns = found.parts["columns forward"][:, columns[:, None], columns]
    assert torch.equal(in_columns, in_columns.tril())


def test_attention_with_normed_queries_and_keys() -> None:
    attention, x = Attention(12, 3, qk_norm=True).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        attention.q_norm.weight.normal_()
        weights = torch.stack(list(token_map(attention, x).parts.values()), 1)
        v = attention.qkv(x).unflatten(-1, (3, 3, 4))[:, :, 2].transpose(1, 2)
        out = attention.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, attention(x), atol=1e-12, rtol=1e-12)


def test_windows_are_joined_without_their_padding() -> None:
    """3 x 5 positions in windows of 2 x 2: six windows, in each of which all hear all alike."""
    found = TokenMap(letter="T", mean=torch.full((6, 4, 4), 0.25), parts={})
    joined = attention_maps.join_windows(found, 3, 5, 2)
    assert joined.grid == (3, 5)
    row, column = torch.arange(15) // 5, torch.arange(15) % 5
    same = (row[:, None] // 2 == row // 2) & (column[:, None] // 2 == column // 2)
    assert torch.equal(joined.mean[0], same * 0.25)


@torch.no_grad()
def test_the_map_of_a_mixer_of_four_directions_is_that_of_its_scans() -> None:
    """A 3 x 4 map, walked along its rows and down its columns."""
    mixer, u = MambaMixer(8, d_state=4, variant="v3").double(), torch.randn(2, 12, 8, dtype=torch.float64)
    across = order("column", (3, 4))[None]
    scans: dict[str, Scan] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_maps, "scan_map", lambda given: scans.update(given) or scan_map(given))
        found = token_map(mixer, u, across=across)
    y = torch.zeros(2, 12, 16, dtype=torch.float64)
    for scan in scans.values():
        alpha, x = hidden_attention(scan.inputs, reverse=scan.reverse), scan.inputs.x
        own = torch.einsum("bets,bse->bte", alpha, x) + scan.inputs.D * x
        y += own if scan.order is None else own[:, scan.order.argsort()]
    out = mixer.out_proj(0.25 * y * nn.functional.silu(mixer.in_proj(u).chunk(2, -1)[1]))
    torch.testing.assert_close(out, mixer(u, across=across), atol=1e-12, rtol=1e-12)
    assert list(found.parts) == ["forward", "backward", "across forward", "across backward"]
    walked = found.parts["across backward"][:, across[0][:, None], across[0]]
    assert torch.equal(walked, walked.triu())
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(2, 12, dtype=torch.float64))


def test_a_causal_call_has_no_backward_direction() -> None:
    found = token_map(MambaMixer(8), torch.randn(1, 5, 8), causal=True)
    assert list(found.parts) == ["forward"]
    assert torch.equal(found.mean, found.mean.tril())


def test_the_drop_in_has_a_map_too() -> None:
    found = token_map(Mamba(8), torch.randn(1, 5, 8))
    assert found.letter == "M"
    assert torch.equal(found.mean, found.mean.tril())


def hybrid() -> HybridNet:
    return HybridNet.Config(layout="MMT", embed_dim=16, num_heads=2, img_size=16, patch_size=4, num_registers=2).build().eval()


def test_capturing_changes_nothing_and_leaves_nothing_behind() -> None:
    backbone, images = hybrid(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = backbone.forward_features(images)
        kept = capture(backbone, images, (2, 0), lambda found: (found.letter, found.mean.shape))
        assert torch.equal(backbone.forward_features(images), before)
    assert kept == {2: ("T", (2, 18, 18)), 0: ("M", (2, 18, 18))}
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_hooks_are_removed_when_something_fails() -> None:
    backbone = hybrid()

    def fail(found: TokenMap) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        capture(backbone, torch.randn(1, 3, 16, 16), (0,), fail)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_a_layer_that_there_is_not() -> None:
    for wrong in (-1, 3):
        with pytest.raises(UserError, match=f"numbers 0 to 2 in this network, got {wrong}"):
            capture(hybrid(), torch.randn(1, 3, 16, 16), (0, wrong), lambda found: found)


class Mean(nn.Module):
    """A mixer that nobody has registered."""

    def forward(self, u: Tensor, causal: bool = False) -> Tensor:
        return u.mean(1, keepdim=True).expand_as(u)


def test_a_mixer_that_is_not_known_is_named_and_can_be_registered() -> None:
    backbone, images = hybrid(), torch.randn(1, 3, 16, 16)
    backbone.layers[1].mixer = Mean()  # type: ignore[union-attr]
    assert len(mixers(backbone)) == 3
    assert set(capture(backbone, images, (0, 2), lambda found: found.letter)) == {0, 2}
    with pytest.raises(UserError, match="how MambaBlock mixes tokens is not known; choose other layers, or write a function"):
        capture(backbone, images, (1,), lambda found: found)

    class Known(Mean):
        pass

    @token_map.register(Known)
    def _(mixer: Known, u: Tensor, causal: bool = False) -> TokenMap:
        return TokenMap(letter="A", mean=u.new_full((len(u), u.shape[1], u.shape[1]), 1 / u.shape[1]), parts={})

    backbone.layers[1].mixer = Known()  # type: ignore[union-attr]
    assert capture(backbone, images, range(3), lambda found: found.letter) == {0: "M", 1: "A", 2: "T"}

"""PointNet4D: what a frame may know, sizes, the parts of timm's contract that it keeps, and the way from official files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hybridmap.backbones.pointnet4d import CausalAttention, PointNet4D
from hybridmap.config import from_yaml, to_yaml
from hybridmap.convert.pointnet4d import OfficialPointNet4D
from hybridmap.errors import UserError

SMALL: PointNet4D.Config = PointNet4D.Config(num_classes=3).small()
FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def build(**changes: Any) -> PointNet4D:
    """A small network in evaluation whose positions matter."""
    model: PointNet4D = replace(SMALL, **changes).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def clips(batch: int = 2, frames: int = 4, points: int = 64) -> Tensor:
    return torch.rand(batch, frames, points, 3) * 2 - 1


def test_the_temporal_stack_has_its_published_size() -> None:
    with torch.device("meta"):
        model: PointNet4D = PointNet4D.Config().build()
    assert sum(parameter.numel() for parameter in model.layers.parameters()) == 159_221_760
    assert model.frame_pos.shape == (1, 256, 1024)
    assert model.blank().shape == (1, 150, 2048, 3)


def test_shapes() -> None:
    model = build()
    x = clips()
    features = model.forward_features(x)
    assert features.shape == (2, 4, 32)
    assert model(x).shape == (2, 4, 3)
    assert model.forward_head(features, pre_logits=True).shape == (2, 4, model.head_hidden_size)
    assert model.pooled(model.encode_visible(model.partition(x), None)).shape == (2, 32)
    assert model(clips(1, 8, 100)).shape == (1, 8, 3)


@pytest.mark.parametrize("changed", [0, 2, 3])
def test_a_later_frame_changes_no_earlier_output(changed: int) -> None:
    model, x = build(), clips()
    other = x.clone()
    other[:, changed] = clips()[:, 0]
    with torch.no_grad():
        before, after = model(x), model(other)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=0)
    assert not torch.isclose(after[:, changed:], before[:, changed:]).all(-1).any()


def test_a_clip_cut_short_gives_the_same_outputs() -> None:
    model, x = build(), clips()
    with torch.no_grad():
        torch.testing.assert_close(model(x[:, :2]), model(x)[:, :2])


def test_pointnet_sees_one_frame_at_a_time() -> None:
    model, x = build(), clips()
    with torch.no_grad():
        tokens = model.embed(model.partition(x)) - model.frame_pos[:, :4]
        alone = torch.stack([model.frames(x[:, t]) for t in range(4)], dim=1)
    torch.testing.assert_close(tokens, alone)


def test_the_order_of_points_beyond_the_first_plays_no_part_where_all_neighbours_are_seen() -> None:
    model, x = build(neighbours=(64, 64, 64), radii=(1.5, 1.5)), clips()
    mixed = torch.cat([x[:, :, :1], x[:, :, 1:].flip(2)], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(model(mixed), model(x))


def test_time_has_places() -> None:
    model = build()
    still = clips(1, 1).expand(-1, 4, -1, -1)
    tokens = model.embed(model.partition(still))
    assert not torch.allclose(tokens[:, 0], tokens[:, 3])


def test_attention_is_masked_softmax_with_gelu_behind_the_projection() -> None:
    attention = CausalAttention(6, num_heads=2, head_width=5).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for q_h, k_h, v_h in zip(q.split(5, -1), k.split(5, -1), v.split(5, -1), strict=True):
        scores = q_h @ k_h.mT / 5**0.5
        heads.append(scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1) @ v_h)
    expected = nn.functional.gelu(attention.proj(torch.cat(heads, -1)))
    torch.testing.assert_close(attention(x), expected)


def test_chunks_of_frames_change_nothing_in_evaluation() -> None:
    model = build()
    chunked = replace(model.config, frame_chunk=3).build()
    chunked.load_state_dict(model.state_dict())
    x = clips()
    with torch.no_grad():
        torch.testing.assert_close(chunked.eval()(x), model(x))


@pytest.mark.parametrize("chunk", [0, 3])
def test_recomputed_activations_give_the_same_gradients_and_count_batches_once(chunk: int) -> None:
    x, results = clips(), []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = build(frame_chunk=chunk).train()
        model.set_grad_checkpointing(recompute)
        model(x).square().mean().backward()
        results.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    torch.testing.assert_close(*results)


def test_every_parameter_gets_a_gradient() -> None:
    for model in (build().train(), build(num_classes=0).train()):
        model(clips()).square().mean().backward()
        lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert lacking == []


def test_an_encoder_has_no_head_and_can_be_given_one() -> None:
    model = SMALL.encoder().build()
    assert not list(model.head.parameters())
    assert model.head_hidden_size == 32
    assert torch.equal(model.eval()(x := clips()), model.forward_features(x))
    model.reset_classifier(5)
    assert model(x).shape == (2, 4, 5)
    assert model.head_hidden_size == 16
    assert model.get_classifier() is model.head.fc
    model.reset_classifier(0)
    assert model(x).shape == (2, 4, 16)


def test_layers_are_numbered_and_taps_hold_their_outputs() -> None:
    model, x = build(), clips()
    ids = model.layer_ids()
    assert {ids[n] for n in ids if n.startswith(("frames.", "frame_pos"))} == {0}
    assert {ids[n] for n in ids if n.startswith("layers.1.")} == {2}
    assert {ids[n] for n in ids if n.startswith("head.")} == {3}
    features = model.encode_visible(model.partition(x), None, taps=(0, 1))
    assert torch.equal(features.taps[1].branch, features.patches)
    assert not torch.equal(features.taps[0].branch, features.patches)
    with pytest.raises(UserError, match="from 0 to 1, got"):
        model.encode_visible(model.partition(x), None, taps=(2,))


def test_places_in_time_and_the_recurrence_are_marked() -> None:
    names = build().no_weight_decay()
    assert "frame_pos" in names
    assert {"layers.0.mixer.dirs.fwd.A_log", "layers.0.mixer.dirs.fwd.D"} <= names
    assert "layers.0.mixer.dirs.fwd.A_log" not in build().no_weight_decay(decay_ssm_state=True)


def test_the_configuration_survives_yaml() -> None:
    assert from_yaml(to_yaml(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 64, 3), r"\(batch, frames, points, 3\).*got \(2, 64, 3\)"),
        (torch.zeros(1, 4, 64, 2), r"x, y, z go last"),
        (torch.zeros(1, 4, 64, 3, dtype=torch.int64), "floating point.*int64"),
        (torch.zeros(1, 9, 64, 3), "positions for 1 to 8 frames, got 9"),
        (torch.zeros(1, 0, 64, 3), "positions for 1 to 8 frames, got 0"),
        (torch.zeros(1, 4, 15, 3), "at least 16 points, got 15"),
    ],
)
def test_what_is_no_clip_is_refused_in_one_sentence(given: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build().partition(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_frames": 9}, "max_frames must be at least num_frames, 9, got 8"),
        ({"num_points": 10}, "centres must become fewer"),
        ({"centres": (8, 16)}, "centres must become fewer"),
        ({"frame_chunk": -1}, "frame_chunk must be 0"),
        ({"radii": (0.0, 1.0)}, "positive radius"),
    ],
)
def test_impossible_networks_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes).build()


# Official files


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """The state dict of the recording."""
    tensors = load_file(FIXTURES / "pointnet4d-4dmap-a.safetensors")
    return {name.removeprefix("state."): value.float() for name, value in tensors.items() if name.startswith("state.")}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def test_a_pretraining_file_becomes_an_encoder_and_its_decoder(official: dict[str, Tensor]) -> None:
    origin, args = OfficialPointNet4D(), json.loads((FIXTURES / "pointnet4d-4dmap-a.json").read_text())["config"]
    assert origin.recognises(shapes(official))
    loaded = origin.convert(official, num_heads=args["encoder_args"]["heads"])
    config = loaded.config
    assert isinstance(config, PointNet4D.Config)
    assert (config.depth, config.embed_dim, config.num_heads, config.head_width) == (2, 32, 2, 16)
    assert (config.num_classes, config.max_frames, config.num_points, config.mlp_ratio) == (0, 16, 544, 4.0)
    assert loaded.decoder == {"width": 32, "depth": 2, "mlp_ratio": 4.0, "num_heads": 8}
    assert set(loaded.report.dropped) == {f"encoder.head.{i}.{leaf}" for i in (0, 1, 3) for leaf in ("weight", "bias")}
    loaded.build()
    back = origin.restore(loaded.weights, shapes(official))
    assert back.keys() == official.keys() - loaded.report.dropped.keys()
    assert all(torch.equal(value, official[name]) for name, value in back.items())


def test_a_classifier_keeps_its_head(official: dict[str, Tensor]) -> None:
    state = {name.removeprefix("encoder."): value for name, value in official.items() if name.startswith("encoder.")}
    loaded = OfficialPointNet4D().convert(state, num_heads=2)
    assert not loaded.report.dropped
    model = loaded.build()
    assert isinstance(model, PointNet4D)
    assert (model.num_classes, model.config.head_hidden, model.config.num_points) == (7, 24, 2048)
    assert torch.equal(model.head.fc.weight, state["head.3.weight"])


def test_other_files_are_not_taken_for_ours(official: dict[str, Tensor]) -> None:
    origin = OfficialPointNet4D()
    assert not origin.recognises({"encoder.first_conv.0.weight": (128, 3, 1), "pos_embed.0.weight": (128, 3)})
    with pytest.raises(UserError, match=r"encoder\.surplus"):
        origin.convert(official | {"encoder.surplus": torch.zeros(1)}, num_heads=2)
    with pytest.raises(UserError, match=r"decoder\.norm\.weight"):
        origin.convert({name: value for name, value in official.items() if name != "decoder.norm.weight"}, num_heads=2)
    with pytest.raises(UserError, match="give num_heads"):
        origin.convert(official, num_heads=3)

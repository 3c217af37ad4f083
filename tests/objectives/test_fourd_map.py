"""4DMAP: what may reach a prediction, which frames are drawn, the loss written out, and where its weights go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.config import from_yaml, override, to_yaml
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.objectives.fourd_map import FourDMAP, FrameDecoder
from hybridmap.tasks.frame_classification import FrameClassification
from hybridmap.tokens.masking import Random, Sequential
from hybridmap.types import Batch, Learner, Mask

FRAMES, POINTS = 6, 64
SMALL: FourDMAP.Config = override(FourDMAP.Config(backbone=PointNet4D.Config()).small(), {"backbone.num_frames": FRAMES})


def build(**changes: Any) -> FourDMAP:
    """A small learner in evaluation, with random weights everywhere."""
    learner: FourDMAP = override(SMALL, changes).build()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner.eval()


def batch(size: int = 2, first: int = 0) -> Batch:
    clips = torch.rand(size, FRAMES, POINTS, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Batch(inputs=clips, key=torch.tensor([hash_ints(0, first + i) for i in range(size)]), step_key=1)


def masked(*frames: int, size: int = 2) -> Mask:
    return Mask.from_masked(torch.isin(torch.arange(FRAMES), torch.tensor(frames)).expand(size, -1))


def predictions(learner: FourDMAP, clips: Tensor, mask: Mask) -> Tensor:
    with torch.no_grad():
        return learner.predict(learner.backbone.partition(clips), mask)


def other_frame(clips: Tensor, t: int) -> Tensor:
    changed = clips.clone()
    changed[:, t] = torch.rand_like(changed[:, t]) * 2 - 1
    return changed


def test_it_is_a_learner_whose_every_parameter_gets_a_gradient() -> None:
    learner = build().train()
    assert isinstance(learner, Learner)
    learner(batch()).total.backward()
    assert [n for n, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("t", [1, 3, 5])
def test_a_masked_frame_does_not_reach_its_own_prediction_nor_earlier_ones(t: int) -> None:
    learner, clips, mask = build(), batch().inputs, masked(1, 3, 5)
    before, after = predictions(learner, clips, mask), predictions(learner, other_frame(clips, t), mask)
    torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=0)


def test_a_masked_frame_reaches_later_predictions_through_visible_frames_between_alone() -> None:
    learner, clips = build(), batch().inputs
    changed = other_frame(clips, 1)
    for hidden, reached in ([1, 2, 3], {4, 5}), ([1, 3, 5], {2, 3, 4, 5}):
        mask = masked(*hidden)
        moved = (predictions(learner, clips, mask) != predictions(learner, changed, mask)).any(-1).any(0)
        assert set(moved.nonzero().flatten().tolist()) == reached


@pytest.mark.parametrize("t", [0, 2, 4])
def test_a_visible_frame_reaches_predictions_from_its_own_time_on(t: int) -> None:
    learner, clips, mask = build(), batch().inputs, masked(1, 3, 5)
    before, after = predictions(learner, clips, mask), predictions(learner, other_frame(clips, t), mask)
    moved = (before != after).any(-1).all(0)
    assert moved.tolist() == [s >= t for s in range(FRAMES)]


def test_what_is_predicted_for_a_masked_frame_depends_on_its_place() -> None:
    learner, mask = build(), masked(*range(1, FRAMES))
    found = predictions(learner, batch().inputs, mask)
    assert not torch.allclose(found[:, 2], found[:, 3])


def test_same_key_same_mask_whatever_the_batch_around_it() -> None:
    learner = build()

    def drawn(given: Batch) -> Tensor:
        return learner.draw(learner.backbone.partition(given.inputs), given).masked

    whole, tail = drawn(batch(4)), drawn(batch(2, first=2))
    assert torch.equal(whole[2:], tail)
    assert torch.equal(whole, drawn(batch(4)))
    assert len({tuple(row) for row in drawn(batch(16)).tolist()}) > 4
    assert (whole.sum(1) == FRAMES // 2).all()


def test_the_loss_is_the_chamfer_distance_on_masked_frames_alone() -> None:
    learner, given = build(), batch()
    patches = learner.backbone.partition(given.inputs)
    mask = learner.draw(patches, given)
    found = predictions(learner, given.inputs, mask).unflatten(-1, (-1, 3))
    forth, back = [], []
    for b, t in mask.masked.nonzero().tolist():
        squared = torch.cdist(found[b, t].double(), given.inputs[b, t].double()).square()
        forth.append(squared.amin(1))
        back.append(squared.amin(0))
    expected = (torch.cat(forth).mean() + torch.cat(back).mean()).float()
    torch.testing.assert_close(learner(given).total, expected)
    torch.testing.assert_close(learner.step(patches, mask).total, expected)


def test_a_few_steps_lower_the_loss() -> None:
    learner: FourDMAP = SMALL.build().train()
    optimizer, losses = torch.optim.AdamW(learner.parameters(), 3e-3), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = learner(batch()).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_decoder_is_plain_causal_blocks_over_features_and_mask_tokens() -> None:
    learner, clips, mask = build(), batch().inputs, masked(0, 4)
    patches, decoder = learner.backbone.partition(clips), learner.decoder
    x = learner.backbone.forward_features(clips).clone()
    x[:, [0, 4]] = decoder.mask_token
    x = x + decoder.frame_pos[:, :FRAMES]
    for block in decoder.layers:
        x = block(x, None, True)
    torch.testing.assert_close(decoder.pred(decoder.norm(x)), learner.predict(patches, mask))


def test_frames_may_have_another_number_of_points_than_are_predicted() -> None:
    learner = build()
    clips = torch.rand(1, 3, 100, 3)
    assert learner(Batch(inputs=clips, key=torch.tensor([1]))).total.isfinite()
    assert learner.predict(learner.backbone.partition(clips), Mask.from_masked(torch.tensor([[True, False, True]]))).shape == (
        1,
        3,
        3 * POINTS,
    )


def test_later_frames_can_be_masked_on_purpose() -> None:
    learner = FourDMAP.Config(backbone=SMALL.backbone, masking=Sequential.Config(count=2)).build()
    mask = learner.draw(learner.backbone.partition(batch().inputs), batch())
    assert mask.masked.tolist() == [[False] * 4 + [True] * 2] * 2


def test_half_precision_keeps_the_loss_in_float32() -> None:
    learner = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(batch()).total
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_weights_go_on_to_another_run_and_to_classification() -> None:
    learner = build()
    weights = {name: torch.randn_like(value.float()).to(value.dtype) for name, value in learner.state_dict().items()}
    report = learner.initialise(weights)
    assert set(report.loaded) == weights.keys()
    assert not report.fresh
    task: FrameClassification = FrameClassification.Config(backbone=SMALL.backbone, num_classes=5).build()
    report = task.initialise(weights)
    assert all(name.startswith("decoder.") for name in report.dropped)
    assert set(report.fresh) == {n for n in task.state_dict() if n.startswith("backbone.head.")}
    assert torch.equal(task.backbone.frame_pos, weights["backbone.frame_pos"])


def test_a_classifier_gives_its_backbone_and_other_networks_are_refused() -> None:
    task: FrameClassification = FrameClassification.Config(backbone=SMALL.backbone, num_classes=5).build()
    report = build().initialise(task.state_dict())
    assert set(report.dropped) == {n for n in task.state_dict() if n.startswith("backbone.head.")}
    assert all(n.startswith("decoder.") for n in report.fresh)
    with pytest.raises(UserError, match="another backbone"):
        build(**{"backbone.depth": 1}).initialise(build().state_dict())


def test_running_statistics_are_measured_on_whole_clips() -> None:
    learner = build()
    norm = learner.backbone.frames.sa1.mlp[1]
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.running_mean.clone()  # pyright: ignore[reportOptionalMemberAccess]
    learner.settle([batch()])
    assert not torch.equal(before, norm.running_mean)  # pyright: ignore[reportArgumentType]
    assert not learner.training


def test_the_configuration_survives_yaml() -> None:
    assert from_yaml(to_yaml(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"masking": Random.Config(ratio=0)}, "ratio of 0 there are none; try 0.5"),
        ({"masking": Random.Config(scope="region")}, "leave masking.scope at image"),
        ({"decoder": FrameDecoder.Config(depth=0)}, "at least one block, got depth 0"),
        ({"decoder": FrameDecoder.Config(num_heads=5)}, "divisible by the number of heads, got num_heads=5"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replace(SMALL, **config).build()
    assert "\n" not in str(caught.value)


def test_a_single_frame_and_other_backbones_are_refused() -> None:
    with pytest.raises(UserError, match="one patch must be masked and another visible"):
        build()(Batch(inputs=torch.rand(1, 1, POINTS, 3), key=torch.tensor([1])))
    with pytest.raises(UserError, match=r"backbone must be of type hybridmap\.backbones\.pointnet4d:PointNet4D, got"):
        override(SMALL, {"backbone.type": "hybridmap.backbones.vit:ViT"})

"""Action segmentation: measures by hand-made cases, the loss written out, and which weights are taken over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.errors import UserError
from hybridmap.tasks.frame_classification import FrameClassification, edit_score, matches, measures, segments
from hybridmap.types import Batch, Learner

SMALL: PointNet4D.Config = PointNet4D.Config().small()


def build(num_classes: int = 3, **fields: Any) -> FrameClassification:
    return FrameClassification.Config(backbone=SMALL, num_classes=num_classes, **fields).build().eval()


def batch(labels: list[list[int]]) -> Batch:
    clips = torch.rand(len(labels), 4, 64, 3) * 2 - 1
    return Batch(inputs=clips, key=torch.arange(len(labels)), labels=torch.tensor(labels))


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


# Measures


def test_segments_are_runs() -> None:
    assert segments(letters("aabccc")) == [(97, 0, 2), (98, 2, 3), (99, 3, 6)]
    assert segments([1]) == [(1, 0, 1)]


@pytest.mark.parametrize(
    ("predicted", "true", "score"),
    [
        ("aabb", "abbb", 100),  # the same segments of other lengths
        ("aaaa", "abab", 25),  # three of four are missing
        ("abab", "aaaa", 25),  # three too many
        ("abcd", "abed", 75),  # one replaced
        ("aaaa", "bbbb", 0),
        ("aaaabbbabbbbbcccc", "aaaaaabbbbbbbcccc", 60),  # that of the module's picture
        ("abc", "cab", 100 / 3),  # moved: one removed, one added
    ],
)
def test_the_edit_score(predicted: str, true: str, score: float) -> None:
    assert edit_score(letters(predicted), letters(true)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "true", "overlap", "found"),
    [
        ("aaaabbbb", "aaaabbbb", 0.5, (2, 2, 2)),
        ("aaaabbbb", "bbbbaaaa", 0.1, (0, 2, 2)),  # right classes at wrong times
        ("aaaabbbb", "aabbbbbb", 0.5, (2, 2, 2)),  # a: 2 of 4, b: 4 of 6
        ("aaaabbbb", "aabbbbbb", 0.51, (1, 2, 2)),
        ("aaaaaaab", "aabbbbbb", 0.25, (1, 2, 2)),  # a: 2 of 7, b: 1 of 6
        ("aabaabaa", "aaaaaaaa", 0.25, (1, 5, 1)),  # the second and third a come too late, b is nowhere
        ("aaaa", "abba", 0.25, (1, 1, 3)),
        ("cccc", "aabb", 0.1, (0, 1, 2)),
    ],
)
def test_segments_are_found_by_overlap_and_once(predicted: str, true: str, overlap: float, found: tuple[int, ...]) -> None:
    assert matches(letters(predicted), letters(true), overlap) == found


def test_measures_of_two_clips() -> None:
    found = measures([letters("aaaabbbb"), letters("aaaa")], [letters("aabbbbbb"), letters("abba")])
    assert found["accuracy"] == pytest.approx(100 * (6 + 2) / 12)
    assert found["edit"] == pytest.approx((100 + 100 / 3) / 2)
    # Three of three predicted and five true segments at 10 and 25 per cent; at 50 the clip "aaaa" finds nothing.
    assert found["f1@10"] == pytest.approx(100 * 2 * 3 / 8)
    assert found["f1@25"] == pytest.approx(100 * 2 * 3 / 8)
    assert found["f1@50"] == pytest.approx(100 * 2 * 2 / 8)


def test_a_perfect_prediction_has_100_everywhere_and_a_wrong_one_0() -> None:
    labels = [[0, 0, 1, 2, 2], [3, 3, 3, 3, 3]]
    assert set(measures(labels, labels).values()) == {100.0}
    assert set(measures([[4] * 5, [4] * 5], labels).values()) == {0.0}


def test_measures_refuse_what_does_not_belong_together() -> None:
    with pytest.raises(UserError, match="one predicted class per labelled frame, got 2 for 3"):
        measures([[0, 1]], [[0, 1, 1]])
    with pytest.raises(UserError, match="got no clips"):
        measures([], [])
    with pytest.raises(UserError, match="got 0 for 0"):
        measures([[]], [[]])


# The learner


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_labelled_frames(smoothing: float) -> None:
    task, given = build(smoothing=smoothing), batch([[0, 1, 2, -1], [2, 2, -1, 0]])
    assert isinstance(task, Learner)
    assert given.labels is not None
    logits, known = task.backbone(given.inputs), given.labels >= 0
    expected = F.cross_entropy(logits[known], given.labels[known], label_smoothing=smoothing)
    torch.testing.assert_close(task(given).total, expected)


def test_a_batch_without_a_known_frame_costs_nothing() -> None:
    loss = build().train()(batch([[-1] * 4])).total
    loss.backward()
    assert loss.item() == 0.0


def test_every_parameter_gets_a_gradient_and_a_layer() -> None:
    task = build().train()
    task.set_grad_checkpointing()
    task(batch([[0, 1, 2, 0], [1, 1, 0, 2]])).total.backward()
    assert [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert task.layer_ids().keys() == dict(task.named_parameters()).keys()


@pytest.mark.parametrize("labels", [None, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)])
def test_a_label_for_every_frame_is_needed(labels: Tensor | None) -> None:
    given = Batch(inputs=torch.rand(2, 4, 64, 3), key=torch.arange(2), labels=labels)
    with pytest.raises(UserError, match=r"every frame needs a label, \(2, 4\)"):
        build()(given)


@pytest.mark.parametrize(
    ("fields", "message"), [({"num_classes": 0}, "at least one class, got 0"), ({"smoothing": 1.0}, r"in \[0, 1\), got 1.0")]
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**fields)


class Clips:
    """Three clips in memory, labelled as the learner answers but for some frames of the last."""

    def __init__(self, task: FrameClassification, wrong: int = 0) -> None:
        self.points = np.random.default_rng(0).uniform(-1, 1, (3, 4, 64, 3)).astype(np.float32)
        with torch.no_grad():
            self.labels = task.backbone(torch.as_tensor(self.points)).argmax(-1).numpy()
        self.labels[2, :wrong] = (self.labels[2, :wrong] + 1) % 3

    def __len__(self) -> int:
        return len(self.points)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.points[index], self.labels[index]


def test_evaluation_measures_the_likeliest_classes_and_leaves_the_mode() -> None:
    task = build()
    assert task.evaluate(Clips(task)) == dict.fromkeys(("accuracy", "edit", "f1@10", "f1@25", "f1@50"), 100.0) | {"clips": 3.0}
    clips = Clips(task, wrong=3)
    first, second = (task.train().evaluate(clips, batch_size=size) for size in (1, 2))
    assert first == second
    assert first["accuracy"] == 75.0
    assert task.training


def test_evaluation_refuses_unknown_labels_and_nothing() -> None:
    task = build()
    clips = Clips(task)
    clips.labels[1, 2] = -1
    with pytest.raises(UserError, match="clip 1 has a frame with the label -1, but classes are 0 to 2"):
        task.evaluate(clips)
    clips.points = clips.points[:0]
    with pytest.raises(UserError, match="no clips"):
        task.evaluate(clips)


def test_weights_of_such_a_run_are_taken_whole_and_the_last_layer_where_classes_agree() -> None:
    task, other = build(), build(5)
    assert set(task.initialise(build().state_dict()).loaded) == task.state_dict().keys()
    report = task.initialise(other.state_dict())
    assert set(report.fresh) == set(report.dropped) == {"backbone.head.fc.weight", "backbone.head.fc.bias"}
    assert torch.equal(task.backbone.head.hidden.weight, other.backbone.head.hidden.weight)


def test_weights_of_a_bare_backbone_are_taken_too() -> None:
    task, backbone = build(), SMALL.encoder().build()
    report = task.initialise(backbone.state_dict())
    assert all(name.startswith("backbone.head.") for name in report.fresh)
    assert torch.equal(task.backbone.frame_pos, backbone.frame_pos)


def test_weights_of_another_network_are_refused_in_one_sentence() -> None:
    weights = build().state_dict()
    for change in ({"backbone.layers.7.norm1.weight": torch.zeros(32)}, {"backbone.frame_pos": torch.zeros(1, 9, 32)}):
        with pytest.raises(UserError, match="another network") as caught:
            build().initialise(weights | change)
        assert "\n" not in str(caught.value)
    del weights["backbone.frames.sa2.mlp.0.weight"]
    with pytest.raises(UserError, match=r"frames\.sa2\.mlp\.0\.weight is missing"):
        build().initialise(weights)

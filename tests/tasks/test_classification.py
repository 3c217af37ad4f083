"""Fine-tuning takes over what pretraining made, and is measured honestly."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.backbones import ARM, HybridNet, MambaVision, ViT
from hybridmap.data.folder import ImageFolder
from hybridmap.data.loader import each
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.layers.mixing import Mixing
from hybridmap.layers.pos_embed import resample
from hybridmap.tasks.classification import Accuracy, Classification
from hybridmap.types import Batch

PLAIN = Mixing.Config(mixup=0.0, cutmix=0.0)


def learner(backbone, **settings) -> Classification:
    return Classification.Config(backbone=backbone, num_classes=5, **settings).build()


def pretraining(backbone) -> dict[str, Tensor]:
    """What a pretraining run saves: the encoder, and a decoder."""
    state = {f"backbone.{name}": torch.randn_like(value) for name, value in backbone.encoder().build().state_dict().items()}
    return state | {"decoder.mask_token": torch.randn(1, 1, 8), "decoder.layers.0.norm_q.weight": torch.randn(8)}


def batch(size: int = 4) -> Batch:
    inputs = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(inputs=inputs, key=torch.arange(size), labels=torch.arange(size) % 5)


def test_pretrained_weights_leave_registers_neck_and_head_fresh_and_drop_the_decoder(hybrid: HybridNet.Config):
    model, weights = learner(hybrid), pretraining(hybrid)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.initialise(weights)
    assert set(report.dropped) == {"decoder.mask_token", "decoder.layers.0.norm_q.weight"}
    assert set(report.fresh) == {
        f"backbone.{name}"
        for name in (
            "registers.token",
            "registers.pos",
            "head.reduce.weight",
            "head.norm.weight",
            "head.fc.weight",
            "head.fc.bias",
        )
    }
    assert set(report.loaded) | set(report.fresh) == set(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.fresh else weights[name]), name


def test_untrained_registers_and_head_of_a_pretraining_file_are_dropped(hybrid: HybridNet.Config):
    weights = {f"backbone.{name}": value for name, value in hybrid.build().state_dict().items()} | {
        "decoder.mask_token": torch.ones(1)
    }
    report = learner(hybrid).initialise(weights)
    assert report.dropped["backbone.registers.token"] == "pretraining does not train it"
    assert "backbone.head.fc.weight" in report.fresh


def test_a_vit_pretrained_on_tokens_gets_a_fresh_norm_behind_the_pooling(vit: ViT.Config):
    report = learner(vit).initialise(pretraining(vit))
    assert "backbone.norm.weight" in report.fresh
    assert "backbone.norm.weight" in report.dropped
    assert "backbone.pos_embed" in report.loaded
    tokens = learner(replace(vit, pool="cls", norm_position="tokens")).initialise(pretraining(vit))
    assert "backbone.norm.weight" in tokens.loaded


FOUR_WAY = ARM.Config(img_size=32, patch_size=8, embed_dim=16, depth=2)
ONE_WAY = replace(FOUR_WAY, img_size=24, directions=1, scan="cluster(2)", positions="sincos")


def test_one_pretrained_direction_is_copied_to_all_four():
    model, weights = learner(FOUR_WAY), pretraining(ONE_WAY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.initialise(weights)
    assert set(report.fresh) == {
        f"backbone.{name}" for name in ("cls_token", "norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias")
    }
    assert {name for name in report.dropped if name.startswith("backbone.")} == {"backbone.norm.weight", "backbone.norm.bias"}
    for block, s in zip(model.backbone.layers, range(2), strict=True):
        for direction in block.mixer.directions:
            assert torch.equal(direction.D, weights[f"backbone.layers.{s}.mixer.dirs.fwd.D"])
    assert torch.equal(model.backbone.cls_pos, torch.zeros(1, 1, 16))
    torch.testing.assert_close(model.backbone.pos_embed, resample(weights["backbone.pos_embed"], (3, 3), (4, 4)))
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.fresh)
    assert torch.equal(learner(ONE_WAY).backbone.from_pretraining(weights)["decoder.mask_token"], weights["decoder.mask_token"])


def test_four_pretrained_directions_are_taken_over_with_their_norm():
    model, weights = learner(FOUR_WAY), pretraining(FOUR_WAY)
    report = model.initialise(weights)
    assert set(report.fresh) == {f"backbone.{name}" for name in ("cls_token", "cls_pos", "head.fc.weight", "head.fc.bias")}
    assert torch.equal(model.backbone.norm.weight, weights["backbone.norm.weight"])
    again = learner(replace(FOUR_WAY, img_size=48)).initialise(model.state_dict())
    assert not again.fresh


@pytest.mark.parametrize("change", [{"depth": 3}, {"embed_dim": 32}])
def test_one_direction_of_another_size_is_refused(change: dict):
    with pytest.raises(UserError, match="of another network"):
        learner(FOUR_WAY).initialise(pretraining(replace(ONE_WAY, **change)))


def test_positions_are_resampled_to_another_grid(hybrid: HybridNet.Config):
    weights = pretraining(hybrid)
    for size, grid in (((48, 48), (6, 6)), ((32, 64), (4, 8))):
        model = learner(replace(hybrid, img_size=size))
        model.initialise(weights)
        torch.testing.assert_close(model.backbone.pos_embed, resample(weights["backbone.pos_embed"], (4, 4), grid))


def test_a_classification_run_is_taken_over_whole_but_for_a_head_of_other_classes(hybrid: HybridNet.Config):
    weights = {name: torch.randn_like(value) for name, value in learner(hybrid).state_dict().items()}
    same = learner(hybrid).initialise(weights)
    assert not same.fresh
    assert not same.dropped
    other = Classification.Config(backbone=hybrid, num_classes=3).build().initialise(weights)
    assert set(other.fresh) == {"backbone.head.fc.weight", "backbone.head.fc.bias"}
    assert "5 classes, this one 3" in other.fresh["backbone.head.fc.bias"]


def test_a_bare_backbone_is_taken_over(hybrid: HybridNet.Config):
    model, weights = learner(hybrid), hybrid.build().state_dict()
    report = model.initialise(weights)
    assert not report.fresh
    assert all(torch.equal(value, weights[name]) for name, value in model.backbone.state_dict().items())
    encoder = learner(hybrid).initialise(hybrid.encoder().build().state_dict())
    assert "backbone.head.fc.weight" in encoder.fresh
    assert "backbone.layers.0.norm.weight" in encoder.loaded


@pytest.mark.parametrize("change", [{"layout": "MMMTMMMT"}, {"layout": "MM"}, {"layout": "MTMM"}, {"embed_dim": 32}])
def test_weights_of_another_network_are_refused_and_change_nothing(hybrid: HybridNet.Config, change: dict):
    model = learner(hybrid)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="of another network"):
        model.initialise(pretraining(replace(hybrid, **change)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_loss_is_cross_entropy_with_smoothing(hybrid: HybridNet.Config):
    model = learner(hybrid, mixing=PLAIN, smoothing=0.1)
    given = batch()
    expected = F.cross_entropy(model.backbone(given.inputs), given.labels, label_smoothing=0.1)
    torch.testing.assert_close(model(given).total, expected)


def test_mixed_targets_follow_the_mixed_images(hybrid: HybridNet.Config):
    model, given = learner(hybrid, mixing=Mixing.Config(cutmix=0.0)), batch()
    torch.manual_seed(3)
    loss = model(given).total
    torch.manual_seed(3)
    images, kept = model.mixing(given.inputs)
    logits = model.backbone(images)
    assert 0 < kept < 1
    expected = kept * F.cross_entropy(logits, given.labels) + (1 - kept) * F.cross_entropy(logits, given.labels.flip(0))
    torch.testing.assert_close(loss, expected)


def test_evaluation_does_not_mix(hybrid: HybridNet.Config):
    model = learner(hybrid).eval()
    assert torch.equal(model(batch()).total, model(batch()).total)


def averages(learner: Classification) -> dict[str, Tensor]:
    """Weights that differ from the learner's, as a moving average does."""
    drawn = torch.Generator().manual_seed(1)
    state = {name: value for name, value in learner.state_dict().items() if value.is_floating_point()}
    return {name: value + 0.05 * torch.randn(value.shape, generator=drawn) for name, value in state.items()}


def test_mesa_adds_the_divergence_from_what_the_averaged_weights_answer(hybrid: HybridNet.Config):
    task = learner(replace(hybrid, drop_path=0.0), mixing=PLAIN, mesa=2.0).train()
    plain = task(batch())
    average = averages(task)
    task.follow(average, 0.5)
    loss = task(batch())
    twin = learner(replace(hybrid, drop_path=0.0), mixing=PLAIN).eval()
    twin.load_state_dict(task.state_dict() | average)
    with torch.no_grad():
        theirs = twin.backbone(batch().inputs).softmax(1)
        ours = task.backbone(batch().inputs).log_softmax(1)
    divergence = (theirs * (theirs.log() - ours)).sum(1).mean()
    torch.testing.assert_close(loss.parts["mesa"], divergence)
    assert divergence > 1e-4
    torch.testing.assert_close(loss.total, plain.total + 2.0 * divergence)


def test_mesas_teacher_drops_no_path_and_learns_nothing(hybrid: HybridNet.Config):
    task = learner(replace(hybrid, drop_path=0.5), mixing=PLAIN, mesa=1.0).train()
    average = averages(task)
    before = {name: value.clone() for name, value in average.items()}
    task.follow(average, 1.0)
    answers = [task._averaged_logits(batch().inputs) for _ in range(2)]
    assert torch.equal(answers[0], answers[1])
    assert task.backbone.training
    task(batch()).total.backward()
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in average.items())


def test_mesa_leaves_the_statistics_of_its_teacher_alone():
    config = MambaVision.Config(embed_dim=8, stem_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2), img_size=64)
    task = learner(config, mixing=PLAIN, mesa=1.0).train()
    average = averages(task)
    before = {name: value.clone() for name, value in average.items()}
    task.follow(average, 1.0)
    task(Batch(inputs=torch.randn(4, 3, 64, 64), key=torch.arange(4), labels=torch.arange(4)))
    assert all(torch.equal(value, before[name]) for name, value in average.items())


def test_mesa_begins_after_a_part_of_the_run_and_is_no_matter_of_evaluation(hybrid: HybridNet.Config):
    task = learner(hybrid, mixing=PLAIN, mesa=1.0, mesa_start=0.25).train()
    task.follow(averages(task), 0.2)
    assert task(batch()).parts == {}
    task.follow(averages(task), 0.25)
    assert set(task(batch()).parts) == {"mesa"}
    assert task.eval()(batch()).parts == {}


def test_mesa_without_an_average_is_refused(hybrid: HybridNet.Config):
    with pytest.raises(UserError, match=r"moving average of the weights, of which there is none; set train\.ema"):
        learner(hybrid, mesa=1.0).follow(None, 0.0)
    learner(hybrid).follow(None, 0.0)
    with pytest.raises(UserError, match="mesa must be 0"):
        learner(hybrid, mesa=-1.0)


def test_every_parameter_gets_a_gradient_and_a_layer_id(hybrid: HybridNet.Config, vit: ViT.Config):
    for backbone in (hybrid, replace(vit, pool="cls", norm_position="tokens")):
        model = learner(backbone)
        model(batch()).total.backward()
        names = {name for name, p in model.named_parameters()}
        assert {name for name, p in model.named_parameters() if p.grad is not None} == names
        assert set(model.layer_ids()) == names


def test_a_small_head_can_be_asked_for(hybrid: HybridNet.Config):
    assert learner(hybrid, head_std=2e-5).backbone.get_classifier().weight.abs().max() < 1e-4


def test_accuracy_counts_right_answers(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    model = learner(hybrid)
    images, labels, _ = next(each(gratings.build(), 20))
    with torch.no_grad():
        logits = model.backbone.eval()(images)
    found = Accuracy.Config(test=gratings, batch_size=7).build()(model.train(), "cpu")
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert found["top5"] == 100.0
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["images"] == 20
    assert model.training


def test_an_exam_without_a_folder_is_not_held(hybrid: HybridNet.Config):
    assert Accuracy.Config(test=ImageFolder.Config()).build()(learner(hybrid), "cpu") == {}


def test_missing_labels_and_other_classes_are_refused(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    model = learner(hybrid)
    with pytest.raises(UserError, match="needs labelled images"):
        model(replace(batch(), labels=None))
    with pytest.raises(UserError, match="head has 5 classes, but the images to evaluate have 3"):
        model.evaluate(replace(gratings, num_classes=3), "cpu")
    with pytest.raises(UserError, match="at least one class"):
        Classification.Config(backbone=hybrid, num_classes=0).build()


def test_evaluation_refuses_as_many_classes_of_other_names(hybrid: HybridNet.Config):
    names = tuple(f"grating{i}" for i in range(4))
    data = Synthetic.Config(size=32, length=10, num_classes=5)
    assert learner(hybrid, class_names=data.build().classes).evaluate(data)["images"] == 10
    with pytest.raises(UserError, match="a class 'grating4' that training did not know"):
        learner(hybrid, class_names=(*names, "tabby")).evaluate(data)

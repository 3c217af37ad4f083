"""The linear probe as a training run: only the classifier learns, and it learns from the right features."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.backbones import HybridNet, MambaVision, ViT
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.tasks.features import describe
from hybridmap.tasks.linear_classification import LinearClassification
from hybridmap.types import Batch


def probe(backbone, **settings) -> LinearClassification:
    torch.manual_seed(0)
    return LinearClassification.Config(backbone=backbone, num_classes=5, **settings).build()


def images(side: int = 32) -> Tensor:
    return torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0))


def batch(side: int = 32) -> Batch:
    return Batch(inputs=images(side), key=torch.arange(6), labels=torch.arange(6) % 5)


def test_the_loss_is_that_of_the_protocol_written_out(hybrid: HybridNet.Config):
    task = probe(hybrid)
    loss = task(batch()).total
    with torch.no_grad():
        features = describe(task.backbone, images())
        normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
        expected = F.cross_entropy(normed @ task.head.weight.T + task.head.bias, batch().labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_only_the_classifier_learns(hybrid: HybridNet.Config):
    task = probe(hybrid).train()
    task(batch()).total.backward()
    assert {name for name, p in task.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert all(p.grad is None for p in task.backbone.parameters())
    assert task.head.weight.grad is not None
    assert task.head.weight.grad.abs().sum() > 0


def test_the_backbone_stays_as_it_is_even_where_it_has_statistics():
    config = MambaVision.Config(
        embed_dim=8, stem_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2), img_size=64, drop_path=0.5, num_classes=5
    )
    task = probe(config).train()
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    first, second = (describe(task.backbone, images(64)) for _ in range(2))
    assert torch.equal(first, second)
    task(batch(64))
    assert all(torch.equal(value, before[name]) for name, value in task.backbone.state_dict().items())
    assert task.norm.training
    assert not task.eval().norm.training


def test_a_pretrained_backbone_is_taken_over_and_the_decoder_is_not(hybrid: HybridNet.Config):
    task = probe(hybrid)
    wanted = {f"backbone.{name}": torch.randn_like(value) for name, value in task.backbone.state_dict().items()}
    report = task.initialise(wanted | {"decoder.mask_token": torch.zeros(1)})
    assert all(torch.equal(task.state_dict()[name], value) for name, value in wanted.items())
    assert set(report.dropped) == {"decoder.mask_token"}
    assert set(report.fresh) == {
        "head.weight",
        "head.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }


def test_a_bare_backbone_and_another_grid_are_taken_over(vit: ViT.Config):
    small = replace(vit, img_size=16).image_encoder().build()
    weights = {name: torch.randn_like(value) for name, value in small.state_dict().items()}
    task = probe(vit)
    task.initialise(weights)
    first = next(name for name in weights if name.startswith("layers."))
    assert torch.equal(task.backbone.state_dict()[first], weights[first])


@pytest.mark.parametrize("change", [{"embed_dim": 32}, {"layout": "MMT"}, {"layout": "MMMTT"}])
def test_another_backbone_is_refused(hybrid: HybridNet.Config, change: dict):
    with pytest.raises(UserError, match="the weights are of another backbone"):
        probe(hybrid).initialise(probe(replace(hybrid, **change)).state_dict())


def test_it_is_measured_as_other_classifiers_are(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    assert set(probe(hybrid).evaluate(gratings)) == {"top1", "top5", "loss", "images"}


def test_images_without_labels_are_refused(hybrid: HybridNet.Config):
    with pytest.raises(UserError, match="needs labelled images"):
        probe(hybrid)(Batch(inputs=images(), key=torch.arange(6)))


def test_features_are_those_of_the_probe(vit: ViT.Config):
    task = probe(vit).eval()
    with torch.no_grad():
        normed = F.batch_norm(describe(task.backbone, images()), task.norm.running_mean, task.norm.running_var, eps=1e-6)
        expected = task.head(normed)
        torch.testing.assert_close(task.logits(images()), expected)

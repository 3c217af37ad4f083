"""One pass of a frozen network."""

import pytest
import torch
from torch import nn

from hybridmap.backbones import HybridNet, ViT
from hybridmap.data.loader import each
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.tasks.features import Table, common_labels, describe, extract, named, raw_pixels


def test_features_are_the_mean_of_the_final_patch_tokens(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    backbone = hybrid.encoder().build()
    table = extract(backbone, gratings, batch_size=8)
    images = torch.cat([images for images, _, _ in each(gratings.build(), 20)])
    with torch.no_grad():
        expected = backbone.eval().forward_features(images).mean(1)
    torch.testing.assert_close(table.features, expected)
    assert table.labels is not None
    assert table.labels.tolist() == [i % 5 for i in range(20)]
    assert table.paths[3] == "synthetic:3"


def test_features_of_a_vit_are_its_class_token(vit: ViT.Config, gratings: Synthetic.Config):
    backbone = vit.encoder().build().eval()
    images = next(each(gratings.build(), 4))[0]
    with torch.no_grad():
        torch.testing.assert_close(describe(backbone, images), backbone.forward_features(images)[:, 0])


def test_features_do_not_depend_on_the_batch_size(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    backbone = hybrid.build()
    torch.testing.assert_close(
        extract(backbone, gratings, batch_size=3).features, extract(backbone, gratings, batch_size=20).features
    )


def test_the_network_is_left_as_it_was_found(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    backbone = HybridNet(hybrid)
    backbone.train()
    backbone.norm.eval()
    extract(backbone, gratings)
    assert backbone.training
    assert not backbone.norm.training
    assert all(p.grad is None for p in backbone.parameters())


def test_any_function_of_images_has_features(gratings: Synthetic.Config):
    assert extract(raw_pixels, gratings).features.shape == (20, 3 * 32 * 32)


def test_a_module_without_a_backbone_is_refused(gratings: Synthetic.Config):
    with pytest.raises(UserError, match="Linear has none"):
        extract(nn.Linear(2, 2), gratings)


def test_labels_must_exist_and_agree():
    def table(classes: tuple[str, ...] | None) -> Table:
        labels = None if classes is None else torch.zeros(2, dtype=torch.int64)
        return Table(features=torch.zeros(2, 3), labels=labels, paths=("a.jpg", "b.jpg"), classes=classes)

    with pytest.raises(UserError, match=r"a\.jpg has no class"):
        common_labels(table(None), table(("cat",)))
    with pytest.raises(UserError, match="dog is only in one"):
        common_labels(table(("cat", "dog")), table(("cat",)))


def test_a_folder_that_is_not_named_is_told_from_data_that_needs_none(gratings: Synthetic.Config):
    from hybridmap.data.folder import ImageFolder

    assert named(gratings)
    assert named(gratings, ImageFolder.Config(root="somewhere"))
    assert not named(gratings, ImageFolder.Config())

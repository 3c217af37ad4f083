"""Colours of patch features: likeness is kept, nothing is random, every network has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.vim import Vim
from hybridmap.backbones.vit import ViT
from hybridmap.backbones.vmamba import VMamba
from hybridmap.errors import UserError
from hybridmap.report.features import components, depths_of, feature_components, feature_picture

SMALL: dict[str, Any] = {"embed_dim": 16, "img_size": (32, 64), "patch_size": 8}
NETWORKS: dict[str, Backbone.Config] = {
    "hybrid": HybridNet.Config(layout="MMT", num_heads=2, num_registers=2, scan="column", **SMALL),
    "vit": ViT.Config(depth=5, num_heads=2, **SMALL),
    "vim": Vim.Config(depth=4, **SMALL),
    "arm": ARM.Config(depth=2, directions=1, scan="cluster(2)", cls_token=False, positions="sincos", **SMALL),
    "mambavision": MambaVision.Config(img_size=(64, 96), embed_dim=8, depths=(1, 1, 2, 2), num_heads=(2, 2)),
    "vmamba": VMamba.Config(img_size=(64, 96), embed_dim=8, depths=(1, 1, 1, 1)),
}


def test_the_components_are_those_of_largest_variance() -> None:
    """Against the eigenvectors of the covariance."""
    features = torch.randn(2, 6, 4, 5) * torch.tensor([3.0, 0.1, 2.0, 0.3, 1.0, 0.2])[:, None, None]
    found = components(features)
    assert found.colours.shape == (2, 4, 5, 3)
    x = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    torch.testing.assert_close(torch.tensor(found.shares).double(), (values.flip(0) / values.sum())[:3], atol=1e-6, rtol=0)
    for k in range(3):
        scores = (x - x.mean(0)) @ vectors[:, -1 - k]
        colour = found.colours[..., k].flatten().double()
        inside = (colour > 0) & (colour < 1)
        assert abs(torch.corrcoef(torch.stack([scores[inside], colour[inside]]))[0, 1]) == pytest.approx(1, abs=1e-6)


def test_signs_are_settled() -> None:
    """Rotating or mirroring the features' own axes changes no colour, and a rare kind of patch is bright."""
    features = torch.randn(1, 6, 5, 7) * torch.tensor([3.0, 2.5, 2.0, 0.3, 1.0, 0.2])[:, None, None]
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    first = components(features).colours
    for other in (features, -features, torch.einsum("ij,bjhw->bihw", rotation, features)):
        torch.testing.assert_close(components(other).colours, first, atol=1e-4, rtol=0)
    rare = torch.zeros(1, 3, 4, 4)
    rare[0, :, 1, 2] = -5.0
    red = components(rare).colours[0, ..., 0]
    assert red[1, 2] == red.max()
    assert red[1, 2] > red[0, 0]


def test_like_features_have_like_colours_across_images() -> None:
    kinds = torch.randn(3, 8)
    labels = torch.randint(3, (2, 4, 4))
    colours = components(kinds[labels].permute(0, 3, 1, 2)).colours
    for kind in range(3):
        assert torch.equal(colours[labels == kind].amax(0), colours[labels == kind].amin(0))


@pytest.mark.parametrize("features", [torch.zeros(1, 4, 3, 3), torch.randn(1, 1, 3, 3), torch.randn(1, 8, 1, 1)])
def test_missing_components_are_grey(features: Tensor) -> None:
    found = components(features)
    assert (found.colours[..., 1:] == 0.5).all()
    assert found.shares[1:] == (0.0, 0.0)
    assert found.colours.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_colours_at_several_depths(name: str) -> None:
    backbone, images = NETWORKS[name].build().eval(), torch.randn(2, 3, *NETWORKS[name].img_size)
    found = feature_components(backbone, images)
    assert list(found) == depths_of(backbone)
    assert list(found)[-1] == len(backbone.feature_info) - 1
    for depth, made in found.items():
        stride = backbone.feature_info[depth]["reduction"]
        assert made.colours.shape[1:3] == tuple(-(-side // stride) for side in images.shape[2:])
        assert 0 < sum(made.shares) <= 1 + 1e-6
    last = max(found)
    alone = feature_components(backbone, images, [last])[last]
    torch.testing.assert_close(alone.colours, found[last].colours, atol=1e-4, rtol=0)
    picture = feature_picture(backbone, images, torch.rand(2, 3, *images.shape[2:]))
    assert picture.width > len(found) * 128


def test_patches_stand_row_by_row_whatever_the_scan() -> None:
    """A network that only embeds patches colours a patch of its own where it is."""
    backbone = HybridNet.Config(layout="M", scan="column", num_registers=0, **SMALL).build().eval()
    with torch.no_grad():
        for parameter in backbone.layers.parameters():
            parameter.zero_()
        assert backbone.pos_embed is not None
        backbone.pos_embed.zero_()
        image = torch.zeros(1, 3, 32, 64)
        image[:, :, 8:16, 40:48] = torch.randn(3, 8, 8)
    red = feature_components(backbone, image, [0])[0].colours[0, ..., 0]
    assert int(red.argmax()) == 1 * 8 + 5
    assert (red == red.max()).sum() == 1


def test_depths_are_spread_and_wrong_ones_are_refused() -> None:
    assert [depths_of(ViT.Config(depth=depth, num_heads=2, **SMALL).build()) for depth in (1, 2, 12)] == [
        [0],
        [0, 1],
        [2, 5, 8, 11],
    ]
    with pytest.raises(UserError, match="layers have the numbers 0 to 2 in this network, got 3"):
        feature_components(NETWORKS["hybrid"].build(), torch.zeros(1, 3, 32, 64), [0, 3])
    with pytest.raises(UserError, match="stages have the numbers 0 to 3 in this network, got -1, 9"):
        feature_components(NETWORKS["vmamba"].build(), torch.zeros(1, 3, 64, 96), [-1, 9])

"""Images without files: reproducible, and with something in them to learn."""

from __future__ import annotations

import pytest
import torch

from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError


def test_an_image_depends_on_its_label_and_key_and_not_on_its_batch() -> None:
    data = Synthetic.Config(size=16, length=40).build()
    batch = data.samples([1, 12, 33], [5, 6, 7])
    assert torch.equal(batch.images[1], data.sample(12, 6).image)
    assert torch.equal(batch.images[1], data.sample(2, 6).image)
    assert not torch.equal(batch.images[1], data.sample(3, 6).image)
    assert batch.labels.tolist() == [1, 2, 3]
    assert data.labelled() == tuple(f"grating{i}" for i in range(10))


def test_images_have_about_mean_zero_and_variance_one() -> None:
    images = Synthetic.Config(size=(24, 32)).build().samples(range(64), range(64)).images
    assert images.shape == (64, 3, 24, 32)
    assert abs(images.mean()) < 0.05
    assert 0.7 < images.std() < 1.1


def test_the_spectrum_tells_the_classes_apart() -> None:
    data = Synthetic.Config(size=32, num_classes=4).build()

    def spectrum(indices: range, offset: int) -> torch.Tensor:
        images = data.samples(indices, [offset + i for i in indices]).images
        return torch.fft.rfft2(images.mean(1)).abs().flatten(1)

    train, test = spectrum(range(80), 0), spectrum(range(40), 1000)
    nearest = torch.cdist(test, train).argmin(1) % 4
    assert (nearest == torch.arange(40) % 4).float().mean() > 0.9


def test_no_images_or_no_classes_are_refused() -> None:
    with pytest.raises(UserError, match="one image and one class"):
        Synthetic.Config(length=0)

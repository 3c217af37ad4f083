"""From files to batches. One data set per file; the loader turns any of them into an endless, reproducible stream."""

from hybridmap.data.base import Dataset, Sample, Samples, UnreadableImage
from hybridmap.data.bundled import BundledPhotos
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop, Crop, RandomResizedCrop, denormalise, normalise
from hybridmap.data.loader import Loader, each
from hybridmap.data.synthetic import Synthetic

__all__ = [
    "BundledPhotos",
    "CentreCrop",
    "Crop",
    "Dataset",
    "ImageFolder",
    "Loader",
    "RandomResizedCrop",
    "Sample",
    "Samples",
    "Synthetic",
    "UnreadableImage",
    "denormalise",
    "each",
    "normalise",
]

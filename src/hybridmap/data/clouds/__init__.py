"""Where clouds of points come from: made from formulas, read from the benchmarks' files, or from any folder of meshes."""

from hybridmap.data.clouds.cache import FpsCache, Ordered
from hybridmap.data.clouds.files import CloudFiles
from hybridmap.data.clouds.modelnet40 import ModelNet40Cache, ModelNet40Hdf5, ModelNet40Text, open_modelnet40
from hybridmap.data.clouds.modelnet_few_shot import ModelNetFewShot
from hybridmap.data.clouds.procedural import Procedural, moving_clip
from hybridmap.data.clouds.scanobjectnn import ScanObjectNN
from hybridmap.data.clouds.shapenet55 import ShapeNet55
from hybridmap.data.clouds.shapenetpart import ShapeNetPart
from hybridmap.data.clouds.source import Cloud, CloudSource, normalise_cloud

__all__ = [
    "Cloud",
    "CloudFiles",
    "CloudSource",
    "FpsCache",
    "ModelNet40Cache",
    "ModelNet40Hdf5",
    "ModelNet40Text",
    "ModelNetFewShot",
    "Ordered",
    "Procedural",
    "ScanObjectNN",
    "ShapeNet55",
    "ShapeNetPart",
    "moving_clip",
    "normalise_cloud",
    "open_modelnet40",
]

"""Where clouds of points come from: made from formulas, read from the benchmarks' files, or from any folder of meshes."""

from hybridmap.data.clouds.source import Cloud, CloudSource, normalise_cloud

__all__ = ["Cloud", "CloudSource", "normalise_cloud"]

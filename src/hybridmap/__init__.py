"""Masked autoregressive pretraining (MAP) of hybrid Mamba-Transformer vision backbones, on any machine.

    import timm, hybridmap
    model = timm.create_model("hybridnet_base_patch16_224", num_classes=10)

Importing registers the backbones with timm and does nothing else: no device is touched and nothing is downloaded. Rooms, from
the bottom up: ``ops`` (scan, convolution, fused norm), ``layers``, ``tokens`` (partition, regions, masking), ``backbones``,
``objectives`` (MAP; MAE and local MAE are settings of it), ``tasks``, ``data``, ``train``, ``recipes``, ``report``, ``cli``.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

# Read when torch loads its OpenMP, so it acts where hybridmap comes first, as on the command line: threads that wait for one
# another spin for some 20 microseconds, then sleep. The default of a millisecond makes many small operations crawl as soon as
# anything else runs on the machine; not to spin at all halves the speed on an idle one.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from hybridmap import backbones as _backbones
from hybridmap.errors import UserError
from hybridmap.ops import show_config

try:
    __version__ = version("hybridmap")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

del _backbones

__all__ = ["UserError", "__version__", "show_config"]

"""The mathematics with a fast path: one folder per operator, one public function each.

Every operator is a formula in ``reference.py``, an implementation behind a ``torch.library`` operator ``hybridmap::<name>``,
and the contract in the folder's ``__init__.py``. ``show_config`` says which implementation runs and why, ``check_kernels``
compares each with the float64 reference.
"""

from hybridmap.ops import points
from hybridmap.ops.add_norm import add_norm
from hybridmap.ops.backend import active, show_config, use_backend
from hybridmap.ops.causal_conv1d import causal_conv1d, causal_conv1d_fn
from hybridmap.ops.check import check_kernels
from hybridmap.ops.mamba_inner import Parameters, mamba_inner
from hybridmap.ops.selective_scan import bidirectional_scan, selective_scan, selective_scan_fn

__all__ = [
    "Parameters",
    "active",
    "add_norm",
    "bidirectional_scan",
    "causal_conv1d",
    "causal_conv1d_fn",
    "check_kernels",
    "mamba_inner",
    "points",
    "selective_scan",
    "selective_scan_fn",
    "show_config",
    "use_backend",
]

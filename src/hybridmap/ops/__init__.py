"""The mathematics with a fast path: one folder per operator, one public function each."""

from hybridmap.ops.add_norm import add_norm
from hybridmap.ops.causal_conv1d import causal_conv1d, causal_conv1d_fn
from hybridmap.ops.selective_scan import bidirectional_scan, selective_scan, selective_scan_fn

__all__ = ["add_norm", "bidirectional_scan", "causal_conv1d", "causal_conv1d_fn", "selective_scan", "selective_scan_fn"]

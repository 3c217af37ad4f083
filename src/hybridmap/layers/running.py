"""Norms that keep running statistics of what they saw in training (BatchNorm), measured anew on something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def running_norms(module: nn.Module) -> list[_NormBase]:
    """The norms inside of ``module`` that keep running statistics."""
    return [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.running_mean is not None]


@contextmanager
def measured_anew(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Inside, norms forget their statistics and keep the plain mean over all batches that pass, which they normalise by their
    own. Nothing else about a network is put into training: no drop path disturbs what is measured."""
    kept = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.train(training)

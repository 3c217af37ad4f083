"""Weight decay is declared where a parameter is born, as a mark on it; nobody matches names later.

Two marks: ``no_weight_decay`` (positions, class and register tokens) and ``ssm_state`` (``A_log`` and ``D`` of every scanning
direction, which the optimiser's field ``decay_ssm_state`` decides about). 1-D parameters and biases need no mark. The marks
are attributes of the parameter: moving a model keeps them, and whoever replaces a parameter marks the new one.
Source of the idea: crowsonkb/k-diffusion, ``apply_wd``.
"""

from __future__ import annotations

from torch import nn


def no_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter that is never decayed."""
    parameter.no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def state_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter of the state-space recurrence, decayed only where ``decay_ssm_state`` asks for it."""
    parameter.ssm_state = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def is_never_decayed(parameter: nn.Parameter) -> bool:
    """Whether :func:`no_decay` marked it."""
    return getattr(parameter, "no_weight_decay", False)


def is_ssm_state(parameter: nn.Parameter) -> bool:
    """Whether :func:`state_parameter` marked it."""
    return getattr(parameter, "ssm_state", False)

"""Clouds of the test's own."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def drawn() -> np.random.Generator:
    return np.random.default_rng(0)

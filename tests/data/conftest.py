"""Pictures in directories, and a cache that belongs to the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indices and shards from elsewhere are kept here."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Thirty noisy pictures, 24 x 32 pixels, in three classes."""
    drawn = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / "album" / ("ant", "bee", "cow")[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "album"

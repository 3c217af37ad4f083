"""Freed memory stays where it is wanted, and nobody's own settings are overruled."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from hybridmap.ops.heap import _OWN_WISHES, keep_freed_memory

PAGES = """
import resource, sys, torch
from hybridmap.ops.heap import keep_freed_memory
assert keep_freed_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(5 << 20) for _ in range(8)]  # 20 MB each
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(max(pages() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_was_freed_is_used_again_without_asking_the_system(unchecked_environment: dict[str, str]) -> None:
    environment = {name: value for name, value in unchecked_environment.items() if name not in _OWN_WISHES}
    run = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 10_000  # of 40,960 pages, which is what every round fetches without it


@pytest.mark.parametrize("name", _OWN_WISHES)
def test_a_user_who_has_settled_it_is_not_overruled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name not in os.environ or os.environ[name]
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False

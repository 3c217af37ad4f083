"""Prints which families of recordings are still to come, at the end of every run of this folder."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from parity_harness import FOLDER, TO_COME, family, recordings

    present = sorted({name for path in recordings() if path.is_file() and (name := family(path)) in TO_COME})
    terminalreporter.section("parity with the official implementations")
    terminalreporter.line(f"recordings: {FOLDER}")
    terminalreporter.line("families still to come: " + ", ".join(TO_COME))
    terminalreporter.line("of these with recordings here, not compared: " + (", ".join(present) or "none"))

"""Being asked to stop: the first signal is noted and answered at the end of a step, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any


class Interrupts:
    """While this context is open, SIGTERM, SIGINT (Ctrl-C) and what schedulers send instead (SIGUSR1, SIGUSR2, SIGXCPU) are
    noted in ``received`` instead of ending the process.

    Python lets only the main thread handle signals; entered elsewhere, this does nothing.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
    )

    def __init__(self, *, echo_s: float = 0.0) -> None:
        """``echo_s``: seconds within which further signals are the same one: a scheduler sends it to all processes, and the
        launcher, which is one of them, passes it on."""
        self._echo_s = echo_s
        self._at = 0.0
        self.received: int | None = None
        """Number of the first signal; None = none so far."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif time.monotonic() - self._at >= self._echo_s:
            os._exit(128 + number)


def exit_code(number: int) -> int:
    """0 where a scheduler asked, and the run can be continued; 130 after SIGINT (the shell's convention)."""
    return 128 + number if number == signal.SIGINT else 0

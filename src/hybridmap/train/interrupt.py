"""Being asked to stop: the first SIGTERM or SIGINT is noted and answered at the end of a step, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While this context is open, SIGTERM and SIGINT (Ctrl-C) are noted in ``received`` instead of ending the process.

    Python lets only the main thread handle signals; entered elsewhere, this does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
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
        if self.received is not None:
            os._exit(128 + number)
        self.received = number


def exit_code(number: int) -> int:
    """0 after SIGTERM (a scheduler asked, and the run can be continued), 130 after SIGINT (the shell's convention)."""
    return 0 if number == signal.SIGTERM else 128 + number

from __future__ import annotations

import os
import signal
import threading

import pytest

from hybridmap.train.interrupt import Interrupts, exit_code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_first_signal_is_noted(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.received is None
        os.kill(os.getpid(), number)
        assert interrupts.received == number
        assert exit_code(number) == code
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with Interrupts() as interrupts:
            found.extend([signal.getsignal(signal.SIGTERM), interrupts.received])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before, None]

from __future__ import annotations

import os
import signal
import threading

import pytest

from hybridmap.train.interrupt import Interrupts, exit_code

SCHEDULERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.mark.parametrize(("number", "code"), [*((number, 0) for number in SCHEDULERS), (signal.SIGINT, 130)])
def test_a_first_signal_is_noted(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.received is None
        os.kill(os.getpid(), number)
        assert interrupts.received == number
        assert exit_code(number) == code
    assert signal.getsignal(number) is before


def test_an_echo_of_the_first_signal_is_no_second_one() -> None:
    with Interrupts(echo_s=60.0) as interrupts:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupts.received == signal.SIGUSR1


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

"""One piece of work beside the rest."""

from __future__ import annotations

import threading

import pytest

from hybridmap.errors import UserError
from hybridmap.train.background import Background


def test_work_goes_on_beside_and_is_waited_for() -> None:
    go, done = threading.Event(), []
    with Background() as background:
        background.start(lambda: (go.wait(10), done.append(1)))  # type: ignore[arg-type, return-value]
        assert not done
        go.set()
    assert done == [1]


def test_what_goes_wrong_is_raised_where_it_is_waited_for_and_once() -> None:
    def fail() -> None:
        raise UserError("no room")

    background = Background()
    background.start(fail)
    with pytest.raises(UserError, match="no room"):
        background.wait()
    assert not background.failed
    background.wait()


def test_leaving_because_of_an_error_waits_and_keeps_that_error() -> None:
    def fail() -> None:
        raise UserError("no room")

    background = Background()

    def leave() -> None:
        with background:
            background.start(fail)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        leave()
    assert background.failed

"""Work that is done beside the training, one piece at a time, such as writing a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Background:
    """A thread that does one thing at a time. What goes wrong in it is said where its end is waited for.

    While this context is open, work may be under way; leaving it waits for the end of that, whatever the reason for leaving.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do ``work`` beside whatever comes next; what was started before has to be over (:meth:`wait`)."""
        assert self._thread is None

        def do() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=do, name="hybridmap-background")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the work under way has gone wrong; :meth:`wait` says how."""
        return self._error is not None

    def wait(self) -> None:
        """Until the work under way is over.

        Raises:
            Exception: whatever the work raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

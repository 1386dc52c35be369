"""SIGTERM and SIGINT while training: finish the step, save, and only then end."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Notes the first signal; the second acts as if nobody listened.

    Usable as a context; elsewhere than in the main thread, where Python allows no handlers, it
    listens to nothing.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "StopSignals":
        """Begin to listen."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the handlers back that were there."""
        self._restore()

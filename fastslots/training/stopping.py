"""Signals that end a run between two steps: half a step must not become a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the run, after the step under way was done and a checkpoint written."""


class Stopping:
    """Takes note of SIGINT and SIGTERM while it is entered, instead of obeying at once.

    A second SIGINT is obeyed at once. A second SIGTERM is not: a launcher and the system may each send one.
    Signals reach the main thread alone; in another one nothing changes.

    Attributes:
        signal: The first signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_stopped(number: int) -> None:
    """Raises what ends a run that a signal stopped.

    Raises:
        Terminated: If it was SIGTERM.
        KeyboardInterrupt: If it was SIGINT.
    """
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

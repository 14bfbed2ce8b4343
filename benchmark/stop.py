"""How a run is stopped: asked once, cells end after their current step; asked again, at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A cell has ended early because the run was asked to stop; the text says what of it is kept."""


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as requests while the block runs; signals reach the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Ask to stop; the second time is a KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

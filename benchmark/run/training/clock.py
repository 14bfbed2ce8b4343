"""Times of training steps, waits included; on a GPU by events, so that no step waits for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class StepClock:
    """Times of training steps: from asking for a batch to asking for the next one, whatever is done or waited for.

    A GPU is asked by events of its own, which it passes between two steps and which are read later, so that no step
    waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []
        self._waits: list[float] = []

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches; each is one step, which ends when the next batch is requested."""
        rest, start = iter(batches), self._mark()
        while True:
            asked = time.perf_counter()
            try:
                batch = next(rest)
            except StopIteration:
                return
            wait = time.perf_counter() - asked
            yield batch
            end = self._mark()
            self._marks.append((start, end))
            self._waits.append(wait)
            start = end

    def read(self) -> tuple[list[float], list[float]]:
        """Return seconds of the steps since the last call, and for how many of them a batch was waited for.

        Waits are those of this process; a GPU may have been at work meanwhile.
        """
        marks, waits, self._marks, self._waits = self._marks, self._waits, [], []
        if self._device.type != "cuda":
            return [end - start for start, end in marks], waits
        if marks:
            marks[-1][1].synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks], waits

    def _mark(self) -> Any:
        """Return this moment: seconds, or on a GPU an event."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def wait_for(device: torch.device) -> None:
    """Return when the device has done all its work; on a CPU it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

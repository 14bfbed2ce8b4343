"""Reading rows of pixels ahead of the training loop, in processes of their own.

Only bytes travel: a process gets row numbers and gives back uint8 pixels, in the order in which they were asked for. An
array on disk goes to such a process by the name of its file, whichever way the process is started.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark.data.prepared import Array
from benchmark.errors import CellError

_AHEAD = 4
"""Batches that each process reads ahead."""


class PixelRows(Dataset[Tensor]):
    """Some rows at a time of an array of pixels.

    Args:
        pixels: uint8 ``[N, ...]``.
    """

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Return uint8 ``[len(rows), ...]``, a copy."""
        return torch.from_numpy(np.asarray(self.pixels[rows]))


class PixelLoader:
    """Reads batches of rows ahead.

    Args:
        pixels: uint8 ``[N, ...]``.
        workers: processes, at least one. They live as long as this object.
        device: where the pixels go; for a GPU they are handed over in pinned memory, from which it copies by itself.
        start_method: "fork", "spawn" or "forkserver"; None is the system's own.
    """

    def __init__(
        self, pixels: Array, *, workers: int, device: torch.device, start_method: str | None = None
    ) -> None:
        self._device = device
        self._rows: list[np.ndarray] = []
        self._loader: DataLoader[Tensor] = DataLoader(
            PixelRows(pixels),
            batch_size=None,
            sampler=self._rows,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            multiprocessing_context=start_method,
            worker_init_fn=_leave_interrupts,
            generator=torch.Generator(),  # else every epoch would draw from the one that the run draws from
        )

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield the pixels of each item, uint8, in order.

        Raises:
            CellError: a process ended or could not read.
        """
        self._rows[:] = rows
        # memory is pinned for the GPU that is current
        current = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        with _no_signal_handler(), current:
            batches = iter(self._loader)
        for _ in rows:
            yield _next(batches)


def _leave_interrupts(_: int) -> None:
    """Leave Ctrl-C to the run, which may want the batches that it has asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _next(batches: Iterator[Tensor]) -> Tensor:
    try:
        return next(batches)
    except Exception as error:  # a process that dies shows as one of many, as it leaves connections half open
        reason = f"{type(error).__name__}: {error}".strip(" :\n").splitlines()[-1]
        raise CellError(
            f"a process that loads images failed or died ({reason}): lower --num-workers (0 reads without such "
            "processes); often there was too little memory or shared memory (/dev/shm)"
        ) from error


@contextlib.contextmanager
def _no_signal_handler() -> Iterator[None]:
    """Keep torch from raising out of a signal handler when a process dies: reading from it will tell."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere torch sets none
            signal.signal(signal.SIGCHLD, before)


def _by_name(array: np.memmap[Any, Any]) -> tuple[Any, ...]:
    """Reduce a memory-mapped array to its place in its file; one that is scattered there, to its values."""
    if array.filename is None or not array.flags.c_contiguous:
        return np.asarray, (np.array(array),)
    whole: Any = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return np.memmap, (str(array.filename), array.dtype, "r", offset, array.shape)


# for all that is sent to another process; pickles written to files stay as they were
ForkingPickler.register(np.memmap, _by_name)

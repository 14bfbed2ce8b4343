"""Checkpoint of an unfinished adaptation: written after every epoch, read to continue with identical results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.checkpoints import read_content
from benchmark.errors import DataError
from benchmark.files import write_whole

_VERSION = 3  # raise it whenever the state is kept in another form


class Checkpoint:
    """One file that holds all a training run needs to go on.

    Args:
        path: where it is kept.
        key: hash of everything that shapes the run; a checkpoint of another run is not used.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, f"{_VERSION}|{key}"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by ``state`` (tensors and plain values)."""
        full = {"key": self._key, **state}
        write_whole(self._path, lambda path: torch.save(full, path))

    def load(self, say: Callable[[str], object] = lambda line: None) -> dict[str, Any] | None:
        """Return the state; None without a checkpoint, or if it belongs to another run, which is reported."""
        if not self._path.exists():
            return None
        try:
            state = read_content(self._path)
        except DataError:
            say(f"{self._path.name}: damaged checkpoint, not used: training starts anew")
            return None
        if isinstance(state, dict) and state.get("key") == self._key:
            return state
        say(
            f"{self._path.name}: checkpoint of other settings, data or another version, not used: training starts anew"
        )
        return None

    def remove(self) -> None:
        """Delete the checkpoint: the run is finished."""
        self._path.unlink(missing_ok=True)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of the generators that a step on a device draws from: the CPU's and its own."""
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), own


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Go on drawing where :func:`random_state` was called; another device of the same kind may do so."""
    torch.set_rng_state(state[0])
    if state[1] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)

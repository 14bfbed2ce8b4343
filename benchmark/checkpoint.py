"""State of an unfinished adaptation: written whole after every epoch, read back to go on with identical results."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch


class Checkpoint:
    """One file that holds all a training run needs to go on.

    Args:
        path: where it is kept.
        key: hash of everything that shapes the run; a checkpoint of another run is not used.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by ``state`` (tensors and plain values) and the random state."""
        full = {"key": self._key, "rng": _random_state(), **state}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(full, temporary)
        os.replace(temporary, self._path)

    def load(self) -> dict[str, Any] | None:
        """Return the state and restore the random state; None if there is none, or none of this run."""
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        if state.get("key") != self._key:
            return None
        _restore_random_state(state["rng"])
        return state

    def remove(self) -> None:
        """Delete the checkpoint: the run is finished."""
        self._path.unlink(missing_ok=True)


def _random_state() -> dict[str, Any]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

"""The state of a cell folder: the settings it was made with, and whether its adapter was imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.store.cells import CellFolder, UnreadableError


def stored_hash(folder: CellFolder) -> str | None:
    """Return the adaptation hash of what lies in a cell folder; None when it is empty or damaged."""
    config = _read_config(folder)
    return str(config["adapt_hash"]) if "adapt_hash" in config else None


def imported(folder: CellFolder) -> dict[str, Any] | None:
    """Return where the adapter of a cell was imported from; None when it was trained here."""
    try:
        origin = folder.read_json("adapt.json").get("imported")
    except UnreadableError:
        return None
    return dict(origin) if isinstance(origin, Mapping) else None


def _read_config(folder: CellFolder) -> dict[str, Any]:
    try:
        return folder.read_config()
    except UnreadableError:
        return {}


def _read_result(folder: CellFolder, task: str) -> dict[str, Any]:
    try:
        return folder.read_json(f"{task}.json")
    except UnreadableError:
        return {}

"""Whether two runs of one command have left the same: results bit for bit, and no file more or less."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from benchmark.store.cells import CellFolder
from benchmark.store.compare import compare_cells

RESULTS = (".safetensors", ".npz", ".json", ".yaml", ".jsonl")
"""Endings of the files of a cell."""
CELLS = "runs/*/*/*/seed-*"
_CLOCKS = re.compile(r"time|step|wait|_s\b|_s$|images_per|memory|\[ms\]|rss", re.IGNORECASE)
"""Columns of report tables that say how long something took, or what it needed."""


def differences(plain: Path, again: Path) -> list[str]:
    """Return what differs between two output folders, or two data folders, in words.

    Args:
        plain: what an undisturbed run left.
        again: what the other one left.
    """
    lines = [f"{name} is only in {plain.parent.name}" for name in sorted(_names(plain) - _names(again))]
    lines += [f"{name} is left over" for name in sorted(_names(again) - _names(plain))]
    for name in sorted(cell.relative_to(plain) for cell in plain.glob(CELLS)):
        if (again / name).is_dir():
            cell = CellFolder(plain / name)
            found = compare_cells(cell, CellFolder(again / name), list(cell.results()))
            lines += [f"{name}/{x.name}: {x.differing} differ, at {x.where}" for x in found if x.differing]
            if not _same_bytes(plain / name, again / name, "adapter.safetensors"):
                lines.append(f"{name}/adapter.safetensors: other bytes")
    for pattern in ("results.csv", "features/*", "phantom/*/*", "shared/*/result.json"):
        for file in plain.glob(pattern):
            name = str(file.relative_to(plain))
            if not file.name.startswith(".") and not _same_bytes(plain, again, name):
                lines.append(f"{name}: other bytes")
    for file in plain.glob("report/*.csv"):
        if (again / "report" / file.name).exists() and _table(file) != _table(again / "report" / file.name):
            lines.append(f"report/{file.name} differs")
    return lines


def _names(folder: Path) -> set[str]:
    """Return the names of all files and folders but locks, which may stay behind, and notes of who has looked."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not (path.name.startswith(".") and path.name.endswith(("lock", "verified.json")))
    }


def _same_bytes(plain: Path, again: Path, name: str) -> bool:
    one, other = plain / name, again / name
    if not (one.exists() and other.exists()):
        return one.exists() == other.exists()
    return one.read_bytes() == other.read_bytes()


def _table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, less what a clock or a gauge of memory has told."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: value for key, value in row.items() if not _CLOCKS.search(key)}
            for row in csv.DictReader(file)
        ]

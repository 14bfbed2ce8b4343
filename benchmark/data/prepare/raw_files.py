"""The raw files that a prepared folder was made of: which are missing, and whether one has changed since."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.data.prepare.images import FolderGuard
from benchmark.errors import DataError
from benchmark.files import write_whole

SOURCES = ".sources.csv"
_NAMED = 3
_GONE = (0, 0, 0)


def _state(path: Path) -> tuple[int, int, int]:
    """Return bytes and times of a file; of a folder (a DICOM series) the sum and the latest of its files'."""
    states = [os.stat(item) for item in path.iterdir()] if path.is_dir() else [os.stat(path)]
    times = [(state.st_mtime_ns, state.st_ctime_ns) for state in states] or [(0, 0)]
    written, changed = (max(values) for values in zip(*times, strict=True))
    return sum(state.st_size for state in states), written, changed


@dataclass
class RawFiles:
    """Raw files that are decoded.

    Attributes:
        raw: folder of the downloads.
        names: of the files, relative to it.
        allow_outside: take files that names or links place outside of it.
    """

    raw: Path
    names: Iterable[str]
    allow_outside: bool

    @cached_property
    def states(self) -> dict[str, tuple[int, ...]]:
        """The bytes and both times of change of every file; zeros if it is missing.

        A copy may keep the time that a file carries (mtime), but not the time when it was put there (ctime).

        Raises:
            DataError: a file is outside of the folder.
        """
        inside = FolderGuard(self.raw, allow_outside=self.allow_outside)
        found: dict[str, tuple[int, ...]] = {}
        for name in map(str, self.names):
            if problem := inside.problem(name):
                raise DataError(
                    f"{self.raw}: '{name}' is not read: {problem}. If that is meant, add --allow-outside"
                )
            try:
                found[name] = _state(self.raw / name)
            except OSError:
                found[name] = _GONE
        return found

    def check_missing(self) -> None:
        """Stop at once, before anything is made or replaced, if files are missing.

        Raises:
            DataError: files are missing or empty.
        """
        if missing := [name for name, state in self.states.items() if state[0] == 0]:
            named = ", ".join([f"'{name}'" for name in missing[:_NAMED]] + ["..."] * (len(missing) > _NAMED))
            raise DataError(
                f"{self.raw}: {len(missing):,} of {len(self.states):,} image files are missing or empty: {named}. "
                "Complete the download and run the same command again, or leave them out with --on-bad-image skip"
            )

    def changed(self, folder: Path, same: Callable[[set[str]], bool]) -> bool:
        """Return whether a file has other content than when the folder was prepared; times alone do not matter.

        Args:
            folder: the prepared folder.
            same: whether the content of some files is what was decoded; asked for files that were touched.
        """
        try:
            with (folder / SOURCES).open(encoding="utf-8", newline="") as file:
                before = {name: tuple(map(int, state)) for name, *state in csv.reader(file)}
        except (OSError, ValueError):
            return True
        touched = {name for name, _ in before.items() ^ self.states.items()}
        if before.keys() != self.states.keys() or any(before[n][0] != self.states[n][0] for n in touched):
            return True
        if touched and not same(touched):
            return True
        if touched:
            self.write(folder)
        return False

    def write(self, folder: Path) -> None:
        """Write the states into a prepared folder."""

        def rows(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                rows = ((name, *state) for name, state in self.states.items())
                csv.writer(file, lineterminator="\n").writerows(rows)

        write_whole(folder / SOURCES, rows)

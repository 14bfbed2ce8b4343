"""Shared by the readers of downloads: finding files, reading tables, and errors that name the missing file.

Downloads differ in folder depth and in what a mirror left out, so a file is searched in the raw folder and two levels
below, and an error names what was found instead.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.data.prepare.images import foreign
from benchmark.data.prepare.raw import Access
from benchmark.data.prepared import LABEL_TEXTS, numbers_of
from benchmark.errors import DataError

_LEVELS = 2


@dataclass(frozen=True)
class RawFolder:
    """The raw folder of a dataset.

    Attributes:
        title: of the dataset, for messages.
        access: where its files come from.
        folder: what ``--raw`` names.
    """

    title: str
    access: Access
    folder: Path
    _subfolders: dict[Path, list[Path]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"--raw: '{self.folder}' is not a folder. {self._cure()}")

    def find(self, *names: str) -> Path | None:
        """Return the first of some files or folders that is there, also as ``.gz``; the first name is preferred."""
        for name in names:
            for folder in self.folders():
                for path in (folder / name, folder / f"{name}.gz"):
                    if path.exists():
                        return path
        return None

    def folders(self) -> Iterator[Path]:
        """Yield the raw folder, then those one and two levels below."""
        level = [self.folder]
        yield self.folder
        for _ in range(_LEVELS):
            level = [below for folder in level for below in self._inside(folder)]
            yield from level

    def need(self, *names: str, why: str = "") -> Path:
        """Return the first of some files or folders that is there.

        Args:
            names: other spellings of the same thing, preferred first.
            why: added to the message when none is there.

        Raises:
            DataError: none is there; the message says what was found instead.
        """
        path = self.find(*names)
        if path is None:
            raise self.error(f"{' or '.join(names)} is missing", why)
        return path

    def error(self, problem: str, hint: str = "") -> DataError:
        """Return the error of an incomplete or foreign folder: the problem, what is there, where to get the rest."""
        hint = f" {hint}." if hint else ""
        return DataError(
            f"{self.title}: {problem}; {self.folder} holds {self.contents()}.{hint} {self._cure()}"
        )

    def contents(self) -> str:
        """Return a few names of what the folder holds."""
        with os.scandir(self.folder) as entries:
            names = sorted(entry.name + "/" * entry.is_dir() for entry in entries if entry.name[0] != ".")
        if names == ["index.html"]:
            return (
                "only index.html (wget saved the page of the folder: log in with --user and --ask-password)"
            )
        more = f" and {len(names) - 6:,} more" if len(names) > 6 else ""
        return (", ".join(names[:6]) + more) or "nothing"

    def relative(self, path: Path) -> str:
        """Return a path as the manifest holds it."""
        return path.relative_to(self.folder).as_posix()

    def files(self, suffixes: Sequence[str], below: Path | None = None) -> dict[str, str]:
        """Return file name -> path relative to the raw folder, of all files with one of some endings.

        Of two files of one name the first in the order of their paths is kept.
        """
        found: dict[str, str] = {}
        for path in _walk(below or self.folder):
            if path.lower().endswith(tuple(suffixes)):
                relative = Path(path).relative_to(self.folder).as_posix()
                name = os.path.basename(path)
                found[name] = min(relative, found.get(name, relative))
        return found

    def located(
        self, ids: Sequence[str], files: Mapping[str, str], expected: Callable[[str], str], hint: str = ""
    ) -> list[str]:
        """Return the file of every id; of a single one that is missing, where it should be.

        Args:
            ids: of the images.
            files: id -> path relative to the raw folder.
            expected: where the image of an id should be.
            hint: what a folder of this kind lacks as a whole; then any missing image is an error here.

        Raises:
            DataError: no image is there, or a known part of the dataset is missing.
        """
        missing = [item for item in ids if item not in files]
        if missing and (hint or len(missing) == len(ids)):
            count = "none" if len(missing) == len(ids) else f"only {len(ids) - len(missing):,}"
            where = expected(missing[0])
            raise self.error(f"{count} of {len(ids):,} images are there (expected for example {where})", hint)
        return [files.get(item) or expected(item) for item in ids]

    def table(self, path: Path, columns: Sequence[str], optional: Sequence[str] | None = ()) -> pd.DataFrame:
        """Read columns of a CSV file by name, as text without blanks around headers and values.

        Args:
            path: ``.csv`` or ``.csv.gz``.
            columns: must be there.
            optional: left out where they are not; None takes all others.

        Raises:
            DataError: not a CSV file, or a column is missing.
        """
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        frame: pd.DataFrame = _parsed(path, "CSV", lambda data: pd.read_csv(io.BytesIO(data), **options))
        frame.columns = pd.Index([str(name).strip() for name in frame.columns])
        missing = [name for name in columns if name not in frame]
        if missing:
            raise DataError(
                f"{path}: column {', '.join(missing)} is missing; it has {', '.join(frame.columns)}. "
                f"Is it the file of {self.title}?"
            )
        others = list(frame.columns) if optional is None else [name for name in optional if name in frame]
        kept = frame[[*columns, *(name for name in others if name not in columns)]]
        return kept.apply(lambda values: values.str.strip())

    def _inside(self, folder: Path) -> list[Path]:
        """Return the folders in a folder, in order; listed once, a folder may hold a million files."""
        if folder not in self._subfolders:
            names: list[str] = []
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
            self._subfolders[folder] = [folder / name for name in names]
        return self._subfolders[folder]

    def _cure(self) -> str:
        return f"Get it at {self.access.url} ({self.access.kind} access): {self.access.how}"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it cannot be read.
    """
    return _parsed(path, "JSON", lambda data: json.loads(data.decode("utf-8-sig")))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without blanks around them; empty lines are left out.

    Raises:
        DataError: it cannot be read.
    """
    lines: list[str] = _parsed(path, "text", lambda data: data.decode("utf-8-sig").splitlines())
    return [line.strip() for line in lines if line.strip()]


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise DataError if the first bytes of a file show that it is a web page or a pointer."""
    if meaning := foreign(start):
        raise DataError(f"{path} is {meaning}")


def hold_out(ids: Sequence[str], share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return (rest, held out) as scikit-learn's ``train_test_split(ids, test_size=share, random_state=seed)`` does.

    Written out because the published splits hang on it: NumPy guarantees the stream of RandomState for good.
    """
    order = np.random.RandomState(seed).permutation(len(ids))
    count = int(np.ceil(share * len(ids)))
    return [ids[row] for row in order[count:]], [ids[row] for row in order[:count]]


def sample_rows(total: int, count: int, seed: int) -> list[int]:
    """Return the rows that pandas' ``DataFrame.sample(n=count, random_state=seed)`` takes, in its order."""
    return [int(row) for row in np.random.RandomState(seed).choice(total, size=count, replace=False)]


def parts(ids: Iterable[str], **lists: Iterable[str]) -> list[str]:
    """Return the part of every id: the name of the list that holds it, or empty."""
    part = {item: name for name, members in lists.items() for item in members}
    return [part.get(item, "") for item in ids]


def label_values(path: Path, values: pd.Series[str]) -> pd.Series[str]:
    """Return CheXpert-style labels as 1, 0, -1 (uncertain) and empty (not mentioned).

    Raises:
        DataError: another value.
    """
    numbers, row = numbers_of(values)
    if row is not None:
        raise DataError(f"{path}: {values.name}: expected 1, 0, -1 or empty, got '{values.iloc[row]}'")
    return numbers.map(LABEL_TEXTS).fillna("")


def _parsed(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # by content: browsers unpack a .gz and keep its name
            content = gzip.decompress(content)
        refuse_foreign(path, content[:512])
        return parse(content)
    except DataError:
        raise
    except Exception as error:  # damaged archives raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: cannot be read as {kind} ({reason}); download it again") from error


def _walk(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, links to folders followed once."""
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (os.path.join(root, name) for name in files if not name.startswith("."))

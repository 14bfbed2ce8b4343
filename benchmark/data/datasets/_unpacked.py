"""Datasets that come packed: their images are taken out once, and then read as a CSV file of one's own."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets.own_csv import CsvOptions, OwnCsv
from benchmark.data.prepared import NotMadeError, Prepared
from benchmark.errors import DataError
from benchmark.files import file_lock, file_sha256, temporary_beside
from benchmark.settings import setting

_TABLE = "rows.csv"
_ENDINGS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}

Rows = Iterator[tuple[bytes, dict[str, Any]]]
"""The bytes of an image file, and its other columns."""


@dataclass(frozen=True)
class Unpacked(CsvOptions):
    """Keys of ``csv`` that a packed dataset takes too; ``file``, ``images`` and ``path_column`` it knows itself."""

    file: str = setting("", "known by itself")


def unpacked_options(options: Unpacked) -> dict[str, Any]:
    """Return the values of the keys that are those of ``csv``."""
    own = {item.name for item in dataclasses.fields(CsvOptions)} - {"file", "images", "path_column"}
    return {name: getattr(options, name) for name in own}


@dataclass(frozen=True)
class Unpacker:
    """Takes a packed dataset out.

    Attributes:
        kind: folder below the data root. source: file, folder or pattern. rows: reads it.
    """

    kind: str
    source: Path
    rows: Callable[[], Rows]

    def load(self, options: Mapping[str, Any], request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part.

        Raises:
            NotMadeError: it has to be taken out, and is not to be.
            DataError: it cannot be read, or has no samples.
        """
        folder = request.data_root / self.kind / f"{self.source.stem or 'data'}-{self._digest()}"
        if not (folder / _TABLE).is_file():
            if not request.make:
                raise NotMadeError(f"{folder}: not taken out of {self.source} yet")
            folder.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(folder.with_suffix(".lock"), wait=True):
                if not (folder / _TABLE).is_file():
                    self._take_out(folder, request)
        own = CsvOptions(file=str(folder / _TABLE), **options)
        return OwnCsv().load(own, request)

    def _digest(self) -> str:
        """Return a hash of the packed files: other files are other data."""
        if self.source.is_dir():
            files = sorted(path for path in self.source.rglob("*") if path.is_file())
        elif self.source.is_file():
            files = [self.source]
        else:
            files = sorted(self.source.parent.glob("*.tar")) if self.source.suffix == ".tar" else []
        if not files:
            raise DataError(f"{self.source}: no such file or folder; relative paths begin at '{Path.cwd()}'")
        known = [str(self.source.resolve()), *(file_sha256(path) for path in files)]
        return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]

    def _take_out(self, folder: Path, request: LoadRequest) -> None:
        request.reporter.start(f"taking images out of {self.source.name}", 0)
        with temporary_beside(folder, folder=True) as temporary:
            table: list[dict[str, Any]] = []
            for number, (image, row) in enumerate(self.rows()):
                ending = next((end for start, end in _ENDINGS.items() if image.startswith(start)), ".dcm")
                name = f"{number:08d}{ending}"
                (temporary / name).write_bytes(image)
                table.append({**{str(key): _cell(value) for key, value in row.items()}, "path": name})
                request.reporter.advance()
            if not table:
                raise DataError(f"{self.source}: has no samples")
            columns = dict.fromkeys(key for row in table for key in row)
            text = io.StringIO()
            writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
            (temporary / _TABLE).write_text(text.getvalue(), encoding="utf-8")
            temporary.chmod(folder.parent.stat().st_mode & 0o777)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value)

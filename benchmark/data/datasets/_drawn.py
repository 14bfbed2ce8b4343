"""Drawn parts on disk: a part is drawn when it is first asked for and kept in ``<data-root>/<dataset>/``."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pandas as pd

from benchmark.data.prepared import NotMadeError, Prepared, check_writable, load_prepared, write_prepared
from benchmark.errors import DataError, unknown
from benchmark.phantom.chest.studies import BLOCK
from benchmark.phantom.shapes import Array

if TYPE_CHECKING:
    from benchmark.console import Reporter


class Sized(Protocol):
    """A part that knows how many images it has when nothing else is asked for."""

    @property
    def count(self) -> int:
        """Number of images."""


class Drawn(NamedTuple):
    """What is kept of a part: images [n, S, S] or [n, S, S, 3] uint8, n rows, and masks [n, S, S] bool or None."""

    images: Array
    manifest: pd.DataFrame
    masks: Array | None = None


@dataclass(frozen=True)
class Generator:
    """A dataset that is drawn by the project itself.

    Attributes:
        name: of the dataset.
        parts: its parts by name.
        describe: (part, images, seed) -> everything that decides what the part looks like, as JSON.
        draw: (part, images, seed, told the images of each block) -> the part. A smaller part is a prefix of a
            larger one.
    """

    name: str
    parts: Mapping[str, Sized]
    describe: Callable[[str, int, int], dict[str, Any]]
    draw: Callable[[str, int, int, Callable[[int], None] | None], Drawn]

    def load(
        self,
        data_root: Path,
        part: str,
        n: int | None,
        seed: int,
        reporter: Reporter | None,
        *,
        make: bool = True,
    ) -> Prepared:
        """Open a part, drawing it first when it is not in the cache or is damaged there.

        Raises:
            NotMadeError: it has to be drawn, but ``make`` is False.
            DataError: no such part, a count below 1, or a folder that cannot be written.
        """
        if part not in self.parts:
            raise DataError(unknown(f"part of dataset {self.name}", part, self.parts))
        count = self.parts[part].count if n is None else n
        for key, value, least in (("n", count, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(
                    f"{self.name} part '{part}': {key}: expected a whole number of at least {least}, got {value!r}"
                )
        recipe = self.describe(part, count, seed)
        folder = self._folder(Path(data_root), recipe)
        if folder.exists():
            try:
                return load_prepared(folder, verify=True)
            except DataError as error:
                # It can be drawn again, so a damaged copy is no reason to stop.
                if make and reporter is not None:
                    reporter.log(f"{error} Drawing it again.")
                if make:
                    shutil.rmtree(folder, ignore_errors=True)
        if not make:
            raise NotMadeError(f"{folder}: not drawn yet")
        check_writable(folder)
        if reporter is not None:
            reporter.start(f"drawing {self.name}/{part}", -(-count // BLOCK) * BLOCK)
        images, manifest, masks = self.draw(part, count, seed, None if reporter is None else reporter.advance)
        info = {**recipe, "counts": _counts(manifest)}
        return write_prepared(
            folder, name=f"{self.name}/{part}", pixels=images, manifest=manifest, masks=masks, info=info
        )

    def _folder(self, data_root: Path, recipe: dict[str, Any]) -> Path:
        """Return where a part with these parameters is kept: its name and a hash of all of them."""
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
        return data_root / self.name / f"{recipe['part']}-{digest}"


def _counts(manifest: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count positive, negative, uncertain and blank values of every label."""
    counts = {}
    for column in manifest.columns:
        if column.startswith("label_"):
            values = manifest[column]
            found = {word: int((values == value).sum()) for word, value in (("1", 1), ("0", 0), ("-1", -1))}
            counts[column.removeprefix("label_")] = {**found, "blank": int(values.isna().sum())}
    return counts

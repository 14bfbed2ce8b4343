"""Drawn parts on disk: a part is drawn when it is first asked for and kept in ``<data-root>/<dataset>/``."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmark.data.dataset import LoadRequest
from benchmark.data.prepared import NotMadeError, Prepared, check_writable, load_prepared, write_prepared
from benchmark.errors import DataError, unknown
from benchmark.phantom.chest.studies import BLOCK
from benchmark.settings import setting

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DrawnOptions:
    """The keys of a data entry. A smaller part is a prefix of a larger one."""

    part: str = setting(MISSING, "name of the part")
    n: int | None = setting(None, "images; default: the number of the part", low=1)
    seed: int = setting(0, "of the whole suite", low=0)


@dataclass(frozen=True)
class DrawnDataset:
    """A dataset that the project draws itself.

    Attributes:
        name: of the dataset.
        parts: its parts by name; each has the number of its images (``count``), and ``masks`` where they are kept.
        describe: (part, images, seed) -> everything that decides what the part looks like, as JSON.
        draw: (part, images, seed, told the images of each block) -> images, manifest and masks.
    """

    name: str
    parts: Mapping[str, Any]
    describe: Callable[[str, int, int], dict[str, Any]]
    draw: Callable[[str, int, int, Callable[[int], None]], Any]
    Options: ClassVar[type[DrawnOptions]] = DrawnOptions

    def load(self, options: DrawnOptions, request: LoadRequest) -> Prepared:
        """Open a part, drawing it first if it is missing or damaged.

        Raises:
            NotMadeError: it has to be drawn, but is not to be.
            DataError: no such part, or a folder that cannot be written.
        """
        part, seed = options.part, options.seed
        if part not in self.parts:
            raise DataError(unknown(f"part of dataset {self.name}", part, self.parts))
        count = self.parts[part].count if options.n is None else options.n
        recipe = self.describe(part, count, seed)
        folder = self._folder(request.data_root, recipe)
        if folder.exists():
            try:
                return load_prepared(folder, verify=True)
            except DataError as error:
                # It can be drawn again, so a damaged copy is no reason to stop.
                if request.make:
                    request.reporter.log(f"{error} Drawing it again.")
                    shutil.rmtree(folder, ignore_errors=True)
        if not request.make:
            raise NotMadeError(f"{folder}: not drawn yet")
        check_writable(folder)
        request.reporter.start(f"drawing {self.name}/{part}", -(-count // BLOCK) * BLOCK)
        drawn = self.draw(part, count, seed, request.reporter.advance)
        return write_prepared(
            folder,
            name=f"{self.name}/{part}",
            pixels=drawn.images,
            manifest=drawn.manifest,
            masks=drawn.masks if self.parts[part].masks else None,
            info={**recipe, "counts": _counts(drawn.manifest)},
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

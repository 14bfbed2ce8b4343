"""The embedded dataset ``phantom``: drawn when it is first asked for, kept in ``<data-root>/phantom/``.

Parts: ``mimic`` (pairs of film and report), ``nih`` (validation), ``chexpert_5x200``, ``rsna``, ``siim``
(evaluation).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.data.phantom.parts import PARTS, PartData, describe, draw_part
from benchmark.data.phantom.studies import BLOCK
from benchmark.data.prepared import Prepared, load_prepared, write_prepared
from benchmark.errors import DataError, unknown
from benchmark.registry import register_dataset

if TYPE_CHECKING:
    from benchmark.console import Reporter


@register_dataset("phantom")
def load(
    data_root: Path, *, part: str, n: int | None = None, seed: int = 0, reporter: Reporter | None = None
) -> Prepared:
    """Open a part of the phantom suite, drawing it first when it is not in the cache or is damaged there.

    Args:
        data_root: folder of all datasets.
        part: one of the names above.
        n: number of studies; the part's own when None. A smaller part is a prefix of a larger one.
        seed: of the whole suite.
        reporter: told about progress.

    Returns:
        The prepared part.

    Raises:
        DataError: no such part, a count below 1, or a folder that cannot be written.
    """
    if part not in PARTS:
        raise DataError(unknown("part of dataset phantom", part, PARTS))
    count = PARTS[part].count if n is None else n
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"phantom part '{part}': n: expected a whole number of at least 1, got {count!r}")
    recipe = describe(part, count, seed)
    folder = cache_folder(Path(data_root), recipe)
    if folder.exists():
        try:
            return load_prepared(folder, verify=True)
        except DataError as error:
            # It can be drawn again, so a damaged copy is no reason to stop.
            if reporter is not None:
                reporter.log(f"{error} Drawing it again.")
            shutil.rmtree(folder, ignore_errors=True)
    drawn = _draw(part, count, seed, reporter)
    masks = drawn.masks if PARTS[part].masks else None
    info = {**recipe, "counts": _counts(drawn)}
    return write_prepared(
        folder, name=f"phantom/{part}", pixels=drawn.images, manifest=drawn.manifest, masks=masks, info=info
    )


def cache_folder(data_root: Path, recipe: dict[str, Any]) -> Path:
    """Return where a part with these generator parameters is kept: its name and a hash of all of them."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return data_root / "phantom" / f"{recipe['part']}-{digest}"


def _draw(part: str, count: int, seed: int, reporter: Reporter | None) -> PartData:
    if reporter is None:
        return draw_part(part, count, seed)
    reporter.start(f"drawing phantom/{part}", -(-count // BLOCK) * BLOCK)
    return draw_part(part, count, seed, reporter.advance)


def _counts(drawn: PartData) -> dict[str, dict[str, int]]:
    """Count positive, negative, uncertain and blank values of every label."""
    counts = {}
    for column in drawn.manifest.columns:
        if column.startswith("label_"):
            values = drawn.manifest[column]
            found = {word: int((values == value).sum()) for word, value in (("1", 1), ("0", 0), ("-1", -1))}
            counts[column.removeprefix("label_")] = {**found, "blank": int(values.isna().sum())}
    return counts

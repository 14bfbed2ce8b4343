"""The embedded dataset ``phantom``: drawn when it is first asked for, kept in ``<data-root>/phantom/``.

Parts: ``mimic`` (pairs of film and report), ``nih`` (validation), ``chexpert_5x200``, ``rsna``, ``rsna_boxes``,
``siim`` (evaluation).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.data.datasets._drawn import Drawn, Generator
from benchmark.data.prepared import Prepared
from benchmark.phantom.chest.parts import PARTS, describe, draw_part
from benchmark.registry import register_dataset

if TYPE_CHECKING:
    from benchmark.console import Reporter


@register_dataset("phantom")
def load(
    data_root: Path,
    *,
    part: str,
    n: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
    make: bool = True,
) -> Prepared:
    """Open a part of the phantom suite, drawing it first when it is not in the cache or is damaged there.

    Args:
        data_root: folder of all datasets.
        part: one of the names above.
        n: number of studies; the part's own when None. A smaller part is a prefix of a larger one.
        seed: of the whole suite.
        reporter: told about progress.
        make: draw what is not there; else NotMadeError is raised.

    Returns:
        The prepared part.

    Raises:
        DataError: no such part, a count below 1, or a folder that cannot be written.
    """
    return _GENERATOR.load(data_root, part, n, seed, reporter, make=make)


def _draw(part: str, count: int, seed: int, advance: Callable[[int], None] | None) -> Drawn:
    drawn = draw_part(part, count, seed, advance)
    return Drawn(drawn.images, drawn.manifest, drawn.masks if PARTS[part].masks else None)


_GENERATOR = Generator("phantom", PARTS, describe, _draw)

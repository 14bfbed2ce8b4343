"""Figures of the report, one file per kind; each as PNG and PDF with a title and a caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.report.collect import Block
from benchmark.report.experiment_tables import experiment_blocks
from benchmark.report.figures import (
    confusion,
    efficiency,
    forest,
    maps,
    panels,
    ranks,
    reliability,
    sweeps,
    training,
)
from benchmark.report.figures.stored import Stored, results
from benchmark.report.figures.style import Drawing, Picture, write

__all__ = ["Picture", "write_figures"]

_OF_BLOCK = (efficiency.draw, forest.draw, ranks.draw, training.draw)
_OF_DATASET = (maps.draw, panels.draw, confusion.draw, reliability.draw)


def write_figures(blocks: Sequence[Block], folder: Path) -> list[Picture]:
    """Write all figures of main blocks, and the curves of experiments, as ``figure_<name>.png`` and ``.pdf``.

    Names of the first block's suite and backbone have no suffix. What has nothing to show is not written.

    Args:
        blocks: of ``collect_blocks``.
        folder: where the files go.

    Returns:
        What was written, in the order of a page.
    """
    written: list[Picture] = []
    for block in blocks:
        written += write(_drawings(block), block, folder, _suffix(block, blocks[0]))
    for block in experiment_blocks(blocks, ("curve",)):
        written += write(sweeps.draw(block), block, folder, _suffix(block, blocks[0]))
    return written


def _drawings(block: Block) -> Iterator[Drawing]:
    for draw in _OF_BLOCK:
        yield from draw(block)
    for task, dataset in results(block):
        stored = Stored.read(block, task, dataset)
        for draw_stored in _OF_DATASET:
            yield from draw_stored(stored)


def _suffix(block: Block, first: Block) -> str:
    own = (block.suite, block.backbone)
    return "" if own == (first.suite, first.backbone) else f"_{block.suite}_{block.backbone}"

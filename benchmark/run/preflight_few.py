"""What `validate` says of few-shot protocols: how many images are drawn, and how many cells and steps that makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmark.config.fewshot import shares
from benchmark.config.run_config import RunConfig
from benchmark.console import NullReporter
from benchmark.data import fewshot
from benchmark.data.entries import load_dataset
from benchmark.data.prepared import Prepared
from benchmark.data.samples import LabelledImages, labelled_images
from benchmark.errors import BenchmarkError
from benchmark.registry import METHODS, is_deterministic

Line = tuple[str, Literal["ok", "note", "missing"], str]
"""Name, state, what is found."""


@dataclass(frozen=True)
class Supports:
    """What cells draw from one dataset.

    Attributes:
        pool: images of each class, by name; of the base classes alone where the others are to be new.
        classes: of the dataset, base and new.
        drawn: number of shots -> labels to learn from, and labels for validation.
    """

    pool: Mapping[str, int]
    classes: int
    drawn: Mapping[int, tuple[int, int]]

    def line(self) -> str:
        """Say all of it."""
        base = f", {len(self.pool)} of them base" if len(self.pool) < self.classes else ""
        draws = [
            f"{_count(shots, 'shot')}: {_count(train, 'label')}" + f" and {more} for validation" * bool(more)
            for shots, (train, more) in self.drawn.items()
        ]
        return (
            f"{sum(self.pool.values()):,} labelled images of {self.classes} classes{base}; {'; '.join(draws)}"
        )

    def short(self) -> str:
        """Say which classes have fewer images than are asked for; empty where none has."""
        most = max(self.drawn, default=0)
        few = [f"{name} ({count})" for name, count in self.pool.items() if count < most]
        return f"; fewer than {most} images, so that all are drawn: {', '.join(few)}" if few else ""


def supports(config: RunConfig) -> tuple[dict[str, Supports], list[Line]]:
    """Return dataset -> what is drawn from it, as far as its labels are here, and a line on each.

    No image is opened.
    """
    found: dict[str, Supports] = {}
    lines: list[Line] = []
    for dataset, pool in config.pools.items():
        name = f"supports of {dataset}"
        try:
            opened = {
                part: load_dataset(entry, config.data_root, NullReporter()) for part, entry in pool.items()
            }
        except BenchmarkError:  # told with the data
            lines.append((name, "note", "not counted: its data are not here, or cannot be read"))
            continue
        try:
            images = {part: _images(config, dataset, pool[part], data) for part, data in opened.items()}
        except BenchmarkError as error:
            lines.append((name, "missing", str(error)))
            continue
        found[dataset] = one = _supports(config, images["train"], images.get("val"))
        short = one.short() if config.sampling == "standard" else ""
        lines.append((name, "note" if short else "ok", one.line() + short))
    return found, lines


def _images(config: RunConfig, dataset: str, entry: Mapping[str, Any], data: Prepared) -> LabelledImages:
    limits = [most for most in (entry.get("limit"), config.limit) if most is not None]
    return labelled_images(dataset, data, dict(entry), limit=min(limits, default=None))


def _supports(config: RunConfig, train: LabelledImages, more: LabelledImages | None) -> Supports:
    which: fewshot.Half = "base" if config.protocol == "base_to_new" else "all"
    drawn = {}
    for shots in config.shots:
        rows = fewshot.draw(
            train.targets.tolist(), [] if more is None else more.targets.tolist(), shots=shots, seed=0,
            sampling=config.sampling, selection=config.selection, groups=train.clusters,
        )  # fmt: skip
        kept = [
            len(images.chosen(own).of_half(which)) if images is not None else 0
            for images, own in zip((train, more), rows, strict=True)
        ]
        drawn[shots] = kept[0], kept[1]
    mine = train.of_half(which)
    counts = np.bincount(mine.targets, minlength=len(mine.classes)).tolist()
    return Supports(dict(zip(mine.classes, counts, strict=True)), len(train.classes), drawn)


def costs(config: RunConfig, counted: Mapping[str, Supports]) -> Iterator[Line]:
    """Yield a line per method: its cells, and the steps of a training."""
    for name in config.methods:
        own = list(shares(config, name))
        cells = sum(len(share.seeds) for share in own)
        shots = {share.suite["support"]["shots"] for share in own} - {0}
        factors = [_count(len(config.pools), "dataset")]
        if shots:
            factors += [_count(len(shots), "number", " of shots"), _count(len(own[0].seeds), "seed")]
        yield name, "ok", f"{_count(cells, 'cell')} ({' x '.join(factors)}); {_work(config, name, counted)}"


def _work(config: RunConfig, name: str, counted: Mapping[str, Supports]) -> str:
    if is_deterministic(name):
        return "nothing is learnt"
    if getattr(METHODS.get(name), "fits", False):
        return "fitted to frozen features, without training"
    steps = [_steps(config, name, labels) for one in counted.values() for labels, _ in one.drawn.values()]
    return f"{_span(steps)} steps each" if steps else f"{config.recipes[name].epochs} passes over the images"


def _steps(config: RunConfig, name: str, images: int) -> int:
    recipe = config.recipes[name]
    planned = recipe.epochs * (images // min(images, recipe.batch_size)) if images else 0
    return planned if recipe.max_steps is None else min(planned, recipe.max_steps)


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _count(number: int, what: str, rest: str = "") -> str:
    return f"{number:,} {what}{'s' * (number != 1)}{rest}"

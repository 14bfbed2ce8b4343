"""Reads the arrays that cells store with their results, and finds methods that stored the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.errors import StoreError
from benchmark.report.model import Block, Row
from benchmark.report.significance.comparisons import is_transductive
from benchmark.report.significance.evidence import predictions_path, read_predictions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shown:
    """What several methods found: those with the same arrays stand together.

    Attributes:
        titles: of the methods.
        number: that of the first of them, which gives the look.
        runs: arrays of all its runs. scales: logit scale of each of them.
    """

    titles: list[str]
    number: int
    runs: Sequence[Mapping[str, Array]]
    scales: Sequence[float]

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Those of the first run."""
        return self.runs[0]

    @property
    def title(self) -> str:
        """One title for all, short enough for a column."""
        return self.titles[0] + (f" and {len(self.titles) - 1} more" if len(self.titles) > 1 else "")


@dataclass(frozen=True)
class Stored:
    """What the methods of a block have stored for one dataset of a task; read once for all figures."""

    block: Block
    task: str
    dataset: str

    @property
    def name(self) -> str:
        """Title of the dataset."""
        return self.block.dataset_title(self.dataset, self.task)

    def files(self) -> list[Path]:
        """Files with arrays of its runs, as far as they are there."""
        runs = [run for row in self.block.rows for run in row.runs_at(self.task, self.dataset)]
        paths = (predictions_path(run, self.task, self.dataset) for run in runs)
        return [path for path in paths if path.is_file()]

    def shown(self, keys: Sequence[str]) -> list[Shown]:
        """Return the methods that have stored these arrays, in the order of the block."""
        found: list[Shown] = []
        for number, title, stored in self._rows:
            having = [(arrays, scale) for arrays, scale in stored if set(keys) <= set(arrays)]
            if not having:
                continue
            runs, scales = zip(*having, strict=True)
            twin = next((one for one in found if _equal(one.arrays, runs[0], keys)), None)
            if twin is not None:
                twin.titles.append(title)
            else:
                found.append(Shown([title], number, runs, scales))
        return found

    @cached_property
    def _rows(self) -> list[tuple[int, str, list[tuple[Mapping[str, Array], float]]]]:
        """Number and title of each row, with arrays and logit scale of each run."""
        rows = self.block.rows
        return [(row.number, row.title, list(_arrays(row, self.task, self.dataset))) for row in rows]


def results(block: Block) -> list[tuple[str, str]]:
    """Return every (task, dataset) that some run of a block has results of."""
    tasks = [item for row in block.rows for run in row.runs for item in run.tasks.items()]
    return list(
        dict.fromkeys((task, name) for task, result in tasks for name in result.get("datasets") or {})
    )


def shared_columns(methods: Sequence[Shown]) -> str:
    """Return a sentence for each group of methods that stored the same arrays, starting with a space; or nothing."""
    groups = [method.titles for method in methods if len(method.titles) > 1]
    return "".join(f" The same results, shown once: {', '.join(titles)}." for titles in groups)


def _arrays(row: Row, task: str, dataset: str) -> Iterator[tuple[Mapping[str, Array], float]]:
    for run in row.runs_at(task, dataset):
        # a missing or damaged file costs its picture, not the report
        with contextlib.suppress(StoreError):
            arrays, protocol = read_predictions(run, task, dataset)
            yield arrays, protocol.scale


def _equal(ones: Mapping[str, Array], others: Mapping[str, Array], keys: Sequence[str]) -> bool:
    return all(np.array_equal(ones[key], others[key]) for key in keys)


@dataclass(frozen=True)
class Answers:
    """What the methods of a block answered on one dataset, where each image has one class.

    Attributes:
        classes: names of the classes. target: true class of each image, [N].
        methods: those that answered these images, with ``similarity`` [N, C] and ``target`` [N] in their arrays.
    """

    classes: Sequence[str]
    target: Array
    methods: list[Shown]


def answers(stored: Stored) -> Answers | None:
    """Return the answers where an image has one class; transductive answers are no one model's."""
    block, task, dataset = stored.block, stored.task, stored.dataset
    methods = [
        one
        for one in stored.shown(("similarity", "target"))
        if one.arrays["target"].ndim == 1 and one.arrays["similarity"].ndim == 2
    ]
    if not methods or is_transductive(block, (task, dataset, "")):
        return None
    shape = methods[0].arrays["similarity"].shape
    methods = [one for one in methods if all(run["similarity"].shape == shape for run in one.runs)]
    named = next((info["classes"] for info in block.facts(dataset, task) if info.get("classes")), ())
    classes = named if len(named) == shape[1] else range(shape[1])
    return Answers([str(name) for name in classes], methods[0].arrays["target"], methods)

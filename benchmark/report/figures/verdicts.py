"""Stored answers of classification: cosines with one true class per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.report.figures.stored import Array, Shown, Stored
from benchmark.report.significance import is_transductive


@dataclass(frozen=True)
class Verdicts:
    """What the methods of a block answered on one dataset.

    Attributes:
        classes: names of the classes. target: true class of each image, [N].
        methods: those that answered these images, with ``similarity`` [N, C] and ``target`` [N] in their arrays.
    """

    classes: Sequence[str]
    target: Array
    methods: list[Shown]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.target)


def verdicts(stored: Stored) -> Verdicts | None:
    """Return the answers where an image has one class; transductive answers are no one model's."""
    block, task, dataset = stored.block, stored.task, stored.dataset
    methods = [one for one in stored.shown(("similarity", "target")) if _is_plain(one)]
    if not methods or is_transductive(block, (task, dataset, "")):
        return None
    first = methods[0].arrays
    shape = first["similarity"].shape
    methods = [one for one in methods if all(run["similarity"].shape == shape for run in one.runs)]
    named = next((info["classes"] for info in block.facts(dataset, task) if info.get("classes")), ())
    classes = named if len(named) == shape[1] else range(shape[1])
    return Verdicts([str(name) for name in classes], first["target"], methods)


def _is_plain(one: Shown) -> bool:
    return one.arrays["target"].ndim == 1 and one.arrays["similarity"].ndim == 2

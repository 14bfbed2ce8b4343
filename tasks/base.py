"""What a task is: a protocol that turns an adapted method and labelled datasets into numbers.

A task never touches an optimiser of the method, and it sees test data only after adaptation has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmark.console import Reporter
from benchmark.data.features import FrozenFeatures
from methods.base import Method


@dataclass(frozen=True)
class NoOptions:
    """Options of a task that has none."""


@dataclass(frozen=True)
class TaskContext:
    """What surrounds an evaluation.

    Attributes:
        templates: prompt templates of the suite, each with one ``{}``.
        data_root: folder of prepared data. limit: rows per dataset, or None.
        device: of the method. batch_size: images per forward pass. precision: as in the recipe.
        frozen: features of towers that the method leaves alone. reporter: told about progress.
        seed: of the cell, for tasks that train something of their own.
        image_size: (h, w) of the images that the backbone takes; None: whatever the data have.
    """

    templates: tuple[str, ...]
    data_root: Path
    limit: int | None
    device: torch.device
    batch_size: int
    precision: str
    frozen: FrozenFeatures
    reporter: Reporter
    seed: int = 0
    image_size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DatasetResult:
    """Numbers of one dataset.

    Attributes:
        n: samples. kind: multiclass, binary, multilabel, ...
        metrics: name -> {"value", "ci_low", "ci_high", "n"}, fractions.
        predictions: per-sample arrays that are stored beside the result, ids included.
        info: whatever else identifies the protocol (classes, templates, scale).
    """

    n: int
    kind: str
    metrics: dict[str, dict[str, float | int | None]]
    predictions: dict[str, np.ndarray]
    info: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """Base of all tasks.

    Class attributes:
        title: name in tables. Options: frozen dataclass of the task's own keys. headline: metrics shown on the screen.
        image_only: the result depends on nothing but the adapted image tower and the seed, so that all methods which
            leave that tower alone share one result; with an option ``untrained`` that is on, the same is measured on
            an untrained tower and stands beside the first headline metric.
        draws: whether the task itself draws with the run's seed, for example the start of a head. A method that trains
            nothing then runs with every seed, else with the first one alone.
    """

    title: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    headline: ClassVar[tuple[str, ...]] = ()
    image_only: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __init__(self, options: Any = None) -> None:
        self.options = options if options is not None else self.Options()

    @abstractmethod
    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Evaluate an adapted method on the dataset of one entry of the suite.

        Args:
            method: in eval mode.
            entry: the suite's data entry.
            name: the dataset's name in results.
            context: surroundings.
        """

    def validator(
        self, entry: Mapping[str, Any], context: TaskContext
    ) -> Callable[[Method], dict[str, float]]:
        """Return a function that scores a method on the validation entry during adaptation.

        Raises:
            NotImplementedError: if this task cannot validate.
        """
        raise NotImplementedError(f"task '{self.title}' cannot be used for validation")

"""The contract of tasks: a protocol that measures an adapted method on labelled datasets.

A task never trains the method, and it sees test data only after adaptation.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmark.console import Reporter
from benchmark.data.features import FrozenFeatures
from benchmark.data.prepared import Prepared
from benchmark.errors import unknown
from benchmark.metrics.bootstrap import metrics_report
from benchmark.metrics.classification import Metric, WeightedMetric
from benchmark.preprocess import Fitting, Preprocess
from benchmark.settings import setting
from methods.base import Method


@dataclass(frozen=True)
class NoOptions:
    """Options of a task that has none."""


@dataclass(frozen=True)
class IntervalOptions:
    """Options of a task whose metrics have bootstrap intervals."""

    bootstrap: int = setting(1000, "resamples behind every interval", low=1, high=100_000)
    bootstrap_seed: int = setting(0, "seed of the resamples, the same for all methods", low=0)


@dataclass(frozen=True)
class TaskContext:
    """What an evaluation is given beside the method and the dataset.

    Attributes:
        templates: prompt templates of the suite, each with one ``{}``.
        data_root: folder of prepared data. limit: rows per dataset, or None.
        device: of the method. batch_size: images per forward pass. precision: as in the recipe.
        frozen: features of towers that the method leaves alone. reporter: shows progress.
        seed: of the cell, for tasks that train something of their own.
        preprocess: how images become the backbone's input; None: whatever the data have.
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
    preprocess: Preprocess | None = None

    @property
    def fitting(self) -> Fitting | None:
        """How datasets fit their images to the backbone."""
        return None if self.preprocess is None else self.preprocess.fitting


@dataclass(frozen=True)
class DatasetResult:
    """Results on one dataset.

    Attributes:
        n: samples. kind: multiclass, binary, multilabel, ...
        metrics: name -> {"value", "ci_low", "ci_high", "n"}, fractions.
        predictions: arrays of the samples that are stored beside the result, ids included.
        info: what else identifies the protocol (classes, templates, scale).
        of_some: returns the metrics of some of the samples, bool ``[N]``; None where results come from disk.
    """

    n: int
    kind: str
    metrics: dict[str, dict[str, float | int | None]]
    predictions: dict[str, np.ndarray]
    info: dict[str, Any] = field(default_factory=dict)
    of_some: Callable[[np.ndarray], dict[str, dict[str, float | int | None]]] | None = field(
        default=None, repr=False
    )

    @classmethod
    def of(
        cls,
        kind: str,
        formulas: Mapping[str, WeightedMetric],
        data: Any,
        predictions: Mapping[str, np.ndarray],
        info: Mapping[str, Any],
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> DatasetResult:
        """Measure on samples: values with intervals (``benchmark.metrics.bootstrap.metrics_report``), and ids.

        Args:
            kind: as above.
            formulas: name -> metric of the samples.
            data: has N ``ids`` and N patient ids, ``clusters`` (None: every sample is its own patient).
            predictions: what else is stored of each sample.
            info: as above.
            resamples: behind every interval.
            seed: of the resamples.
        """
        patients = data.ids if data.clusters is None else data.clusters
        report = functools.partial(
            metrics_report, formulas, len(data.ids), data.clusters, resamples=resamples, seed=seed
        )
        return cls(
            n=len(data.ids),
            kind=kind,
            metrics=report(),
            predictions={"image_id": np.array(data.ids), "patient_id": np.array(patients), **predictions},
            info=dict(info),
            of_some=lambda kept: report(kept=kept),
        )

    def without(self, leaked: Collection[str], metrics: Sequence[Metric]) -> DatasetResult:
        """Return the result with the scores of the clean test beside those of the whole: without images that were seen.

        Args:
            leaked: ids of images that the model has seen, or near copies or other images of the same patients.
            metrics: of the task; those that have columns are measured again.
        """
        leak: np.ndarray = np.isin(self.predictions.get("image_id", np.empty(0)), sorted(leaked))
        if self.of_some is None or not leak.any():
            return self
        again = self.of_some(~leak)
        clean = {one.clean().name: again[one.name] for one in metrics if one.head and one.name in again}
        return replace(
            self,
            metrics=self.metrics | clean,
            predictions={**self.predictions, "leak": leak},
            info={**self.info, "clean": {"n": int((~leak).sum()), "left_out": int(leak.sum())}},
        )


def measured_metrics(metrics: Sequence[Metric], results: Iterable[DatasetResult]) -> list[Metric]:
    """Return the metrics of a task, behind them those of the clean test that some result has."""
    found = {name for result in results for name in result.metrics}
    return [*metrics, *(clean for metric in metrics if (clean := metric.clean()).name in found)]


class Task(ABC):
    """Base of all tasks.

    Class attributes:
        title: name in tables. Options: frozen dataclass of the task's own keys.
        metrics: its metrics as tables and tests show them, in the order of their columns.
        image_only: the result depends on nothing but the adapted image tower and the seed: all methods that leave
            that tower alone share one result. With its option ``untrained`` on, the task is also run on an untrained
            tower, whose first metric is stored as ``<metric>_untrained``.
        draws: whether the task draws with the run's seed, for example the start of a head. A method that trains
            nothing then runs with every seed, otherwise with the first one alone.
        needs: keys that every data entry of the task must have.
        few_labels: whether it scores images against classes, so that few-shot protocols evaluate it.
        validates: metrics of its validator; empty where it has none, None where it does not say.
    """

    title: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    metrics: ClassVar[tuple[Metric, ...]] = ()
    image_only: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    few_labels: ClassVar[bool] = False
    validates: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, options: Any = None) -> None:
        self.options = options if options is not None else self.Options()

    def check(self, method: type[Method], backbone: str, rules: Sequence[str]) -> None:  # noqa: B027
        """Refuse a method that this task cannot evaluate, before any data are prepared. By default none is refused.

        Args:
            method: the class.
            backbone: its name.
            rules: names of the score rules that it offers.

        Raises:
            ConfigError: says in one line what does not go together.
        """

    @classmethod
    def check_entry(cls, entry: Mapping[str, Any], *, validation: bool = False) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong with it) of a data entry, before anything is opened.

        Args:
            entry: of the suite.
            validation: whether it is the suite's validation entry.
        """
        for key in cls.needs:
            if entry.get(key) is None:
                yield key, f"the key '{key}' is missing"
        if validation and cls.validates == ():
            yield "task", f"task '{cls.title}' cannot be used for validation"
        elif validation and cls.validates and entry.get("metric", cls.validates[0]) not in cls.validates:
            yield "metric", unknown("metric", entry["metric"], cls.validates)

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Refuse a dataset that contradicts its entry, before any work begins.

        Args:
            entry: of the suite; its ``limit`` is that of the run, where that is lower.
            data: the dataset.

        Returns:
            A line that users should know of the data, or None.

        Raises:
            DataError: labels are missing or contradict the entry.
        """
        del entry, data
        return None

    @abstractmethod
    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Evaluate an adapted method on the dataset of one entry of the suite.

        Args:
            method: in eval mode.
            entry: the suite's data entry.
            name: the dataset's name in results.
            context: data root, device, templates and so on.
        """

    def validator(
        self, entry: Mapping[str, Any], context: TaskContext
    ) -> Callable[[Method], dict[str, float]]:
        """Return a function that scores a method on the validation entry during adaptation.

        Raises:
            NotImplementedError: if this task cannot validate.
        """
        raise NotImplementedError(f"task '{self.title}' cannot be used for validation")


def fill(templates: Sequence[str], name: str) -> list[str]:
    """Return every template with its ``{}`` replaced by a class text.

    Raises:
        ValueError: if a template has not exactly one ``{}``.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template '{template}' must hold exactly one {{}}")
    return [template.replace("{}", name) for template in templates]


def prompt_ids(method: Method, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return the token ids ``[C, T, L]`` of the T prompts of each of C classes."""
    ids = method.backbone.tokenize([text for prompts in texts for text in prompts]).long()
    if method.text_padding == "longest":
        ids = method.backbone.trim(ids)
    return ids.unflatten(0, (len(texts), len(texts[0])))

"""Findings by pairs of prompts: is a finding present or not, for several findings of each image.

Protocol of CT-CLIP and MedCT-VLM (arXiv 2403.17834, 2512.00597): the score of a finding is sigmoid(s (c+ - c-)), of the
cosines with "... is present" and "... is not present". What the published evaluations do on the test data themselves
(thresholds) stands in columns of its own; here thresholds come from other patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.towers.precision import autocast
from benchmark.data.entries import part_entry
from benchmark.data.prepared import Prepared
from benchmark.data.samples import LabelledImages, labelled_images
from benchmark.errors import ConfigError
from benchmark.metrics.classification import (
    MeanArea,
    Metric,
    WeightedMetric,
    plain_value,
    scored_classes,
    stored_form,
)
from benchmark.metrics.findings import (
    CORNER_STEPS,
    answer_metrics,
    constant_metrics,
    named,
    pair_metrics,
    thresholds,
)
from benchmark.registry import register_task
from benchmark.settings import setting
from methods.base import Method
from methods.supervision import ABSENT, PRESENT
from tasks.base import DatasetResult, IntervalOptions, Task, TaskContext, fill, prompt_ids
from tasks.zeroshot import image_batches, read_images

CORNER, ARGMAX = "_corner_on_test", "_argmax"
"""End the names of metrics by the published rules for thresholds."""


@dataclass(frozen=True)
class FindingsOptions(IntervalOptions):
    """Options of the task.

    Raises:
        ConfigError: a template without exactly one ``{}``.
    """

    absent: Sequence[str] = setting(
        (ABSENT,), "templates that deny a finding, as many as the suite's own that affirm it"
    )
    min_positives: int = setting(20, "positives that a finding needs to be counted", low=1)

    def __post_init__(self) -> None:
        try:
            fill(self.absent, "")
        except ValueError as error:
            raise ConfigError(f"absent: {error}") from error


@register_task("findings")
class FindingsTask(Task):
    """Mean AUROC and average precision over findings, and accuracy and F1 at thresholds of other patients."""

    title = "Findings by pairs of prompts"
    Options = FindingsOptions
    metrics = (
        Metric("auroc", "AUROC", headline=True, chance=0.5),
        Metric("ap", "AP", headline=True, references={"prevalence": "Guessing"}),
        Metric("acc", "ACC", references={"acc_all_negative": "Always negative"}),
        Metric("balanced_acc", "bal. ACC", chance=0.5),
        Metric("f1", "F1", references={"f1_all_positive": "Always positive"}),
        Metric(f"acc{CORNER}", "ACC, corner on test", references={"acc_all_negative": "Always negative"}),
        Metric(f"f1_weighted{CORNER}", "weighted F1, corner on test"),
        Metric(f"acc{ARGMAX}", "ACC, argmax", references={"acc_all_negative": "Always negative"}),
        Metric(f"f1{ARGMAX}", "F1, argmax", references={"f1_all_positive": "Always positive"}),
    )
    needs = ("classes",)
    validates = ("auroc",)
    options: FindingsOptions

    @classmethod
    def check_entry(cls, entry: Mapping[str, Any], *, validation: bool = False) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with an entry; see :meth:`Task.check_entry`."""
        yield from super().check_entry(entry, validation=validation)
        if entry.get("kind", "multilabel") != "multilabel":
            yield "kind", f"every finding is asked for by itself: expected multilabel, got '{entry['kind']}'"
        if not validation and "val" in entry and "test" not in entry:
            yield "test", "the key 'test' is missing, beside 'val'"

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Read the labels of a dataset; see :meth:`Task.check_data`."""
        labelled_images("", data, {**entry, "kind": "multilabel"}, limit=entry.get("limit"))
        return None

    def check(self, method: type[Method], backbone: str, rules: Sequence[str]) -> None:
        """Refuse a method that answers with one class of a list."""
        if method.needs_classes or method.class_bound:
            raise ConfigError(
                f"{method.card.title} chooses one class of a list, and findings are asked for by pairs of prompts: "
                "take a method that learns from pairs of image and report"
            )

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Score every image with the pair of prompts of every finding."""
        self._check_templates(context)
        data = _read(part_entry(entry, "test") if "test" in entry else entry, name, context)
        counted, least = _counted(data, self.options.min_positives)
        difference = self.differences(method, data, context, f"findings {data.title}")
        scale = float(method.logit_scale().detach())
        shown, truth = difference[:, counted], data.targets[:, counted] == 1
        score = _sigmoid(scale * shown)
        names = [one for one, enough in zip(data.classes, counted, strict=True) if enough]
        # differences rank as probabilities do, without their saturation
        formulas = pair_metrics(shown, truth) | constant_metrics(truth)
        facts: dict[str, Any] = {}
        if "val" in entry:
            chosen, facts = self._thresholds(method, entry, data, counted, context)
            formulas |= answer_metrics(shown >= chosen, truth)
            facts["thresholds"] = named(names, _sigmoid(scale * chosen))
        formulas |= answer_metrics(score >= thresholds(score, truth, steps=CORNER_STEPS), truth, CORNER)
        formulas |= answer_metrics(score > 0.5, truth, ARGMAX)
        return DatasetResult.of(
            "multilabel",
            formulas,
            data,
            predictions={
                "difference": difference.astype(np.float32),
                "target": data.targets,
                **_stored(formulas),
            },
            info={
                "title": data.title,
                "classes": list(data.classes),
                "templates": list(context.templates),
                "absent": list(self.options.absent),
                "logit_scale": scale,
                **facts,
                **(context.preprocess.facts() if context.preprocess else {}),
                "data": data.digest,
                **data.facts,
                **_left_out(data, counted, least),
            },
            resamples=self.options.bootstrap,
            seed=self.options.bootstrap_seed,
        )

    def validator(
        self, entry: Mapping[str, Any], context: TaskContext
    ) -> Callable[[Method], dict[str, float]]:
        """Return the mean AUROC over findings with enough positives, asked for with the usual pair of prompts."""
        context = replace(context, templates=(PRESENT,))
        data = _read(entry, "validation", context)
        counted = scored_classes(data.targets, min_positives=int(entry.get("min_positives", 1)))
        if not counted.any():
            raise ConfigError("suite:validation: no finding has enough positives and a negative")

        def validate(method: Method) -> dict[str, float]:
            scores = self.differences(method, data, context, "validate")
            area = MeanArea(scores[:, counted], data.targets[:, counted] == 1)
            return {"auroc": plain_value(area, len(data))}

        return validate

    @torch.no_grad()
    def differences(
        self, method: Method, data: LabelledImages, context: TaskContext, stage: str
    ) -> np.ndarray:
        """Return the difference of both cosines ``[N, C]`` (float64); prompts are encoded once, images once."""
        parts: list[Tensor] = []
        texts = [
            fill(templates, name)
            for templates in (context.templates, self.options.absent)
            for name in data.classes
        ]
        ids = prompt_ids(method, texts).to(context.device)
        batches = image_batches(method, data, context, stage)
        with autocast(context.precision, context.device):
            prompts = method.prepare_classes(ids)
            for batch in batches:
                parts.append(method.classify(batch, prompts).float())
        cosines = torch.cat(parts).cpu().numpy().astype(np.float64)
        return cosines[:, : len(data.classes)] - cosines[:, len(data.classes) :]

    def _thresholds(
        self,
        method: Method,
        entry: Mapping[str, Any],
        test: LabelledImages,
        counted: np.ndarray,
        context: TaskContext,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return thresholds of differences from the part ``val``, without patients of the test part."""
        data = _read(part_entry(entry, "val"), "val", context)
        patients = set(test.clusters or test.ids)
        apart = np.array([one not in patients for one in data.clusters or data.ids])
        if not apart.any():
            raise ConfigError("findings: no patient of the part 'val' is left whom the part 'test' has not")
        difference = self.differences(method, data, context, f"thresholds {data.title}")[apart][:, counted]
        truth = data.targets[apart][:, counted] == 1
        facts = {"thresholds_from": int(apart.sum()), "thresholds_left_out": int((~apart).sum())}
        return thresholds(difference, truth), {**facts, "thresholds_data": data.digest}

    def _check_templates(self, context: TaskContext) -> None:
        if len(context.templates) != len(self.options.absent):
            raise ConfigError(
                f"findings.absent: {len(self.options.absent)} templates deny a finding and {len(context.templates)} of "
                "the suite affirm it: give as many of both"
            )


def _counted(data: LabelledImages, least: int) -> tuple[np.ndarray, int]:
    """Return which findings are counted, bool ``[C]``, and how many positives that needs.

    Where no finding has as many as asked for, those with half as many as the most frequent one are counted.

    Raises:
        ConfigError: no finding has a positive and a negative.
    """
    counted = scored_classes(data.targets, min_positives=least)
    mixed = scored_classes(data.targets)
    if not mixed.any():
        raise ConfigError(f"findings: '{data.name}' has no finding with a positive and a negative")
    if counted.any():
        return counted, least
    fewer = max(1, int((data.targets == 1).sum(axis=0)[mixed].max()) // 2)
    return scored_classes(data.targets, min_positives=fewer), fewer


def _left_out(data: LabelledImages, counted: np.ndarray, least: int) -> dict[str, Any]:
    """Return the ``info`` entry on findings that are too rare to be counted, or nothing."""
    if counted.all():
        return {}
    positives = (data.targets == 1).sum(axis=0)
    rare = {
        name: f"{count} positives of {len(data)}"
        for name, count, enough in zip(data.classes, positives, counted, strict=True)
        if not enough
    }
    said = ", ".join(f"{name}: {reason}" for name, reason in rare.items())
    note = f"means over {counted.sum()} of {len(counted)} findings ({said}; {least} are needed)"
    return {"unscored_classes": rare, "data_notes": [*(data.facts.get("data_notes") or ()), note]}


def _read(entry: Mapping[str, Any], name: str, context: TaskContext) -> LabelledImages:
    return read_images({**entry, "kind": "multilabel"}, name, context)


def _stored(formulas: Mapping[str, WeightedMetric]) -> dict[str, np.ndarray]:
    """Return what paired tests of the main metrics need, in single precision where that suffices."""
    main = {name: formulas[name] for name in ("auroc", "ap", "acc") if name in formulas}
    return {name: array for name, array in stored_form(main).items()}


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))

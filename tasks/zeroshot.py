"""Zero-shot classification: images against class prompts, never trained on the classes.

Protocol of the ACE-LoRA paper's Tables 1-3: two templates per class, features averaged by the method's own rule,
softmax over scaled cosines (one dataset at a time), AUROC as in ``benchmark/metrics/classification.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.backbone import cut_texts, to_device
from benchmark.backbones.towers.precision import autocast
from benchmark.data.entries import load_dataset
from benchmark.data.prepared import Prepared
from benchmark.data.samples import Batch, LabelledImages, labelled_images
from benchmark.errors import ConfigError
from benchmark.metrics.classification import (
    MeanArea,
    Metric,
    log_odds,
    plain_value,
    scored_classes,
    unscored_classes,
    zero_shot_metrics,
)
from benchmark.registry import register_task
from benchmark.settings import setting
from methods.base import Method
from tasks.base import DatasetResult, IntervalOptions, Task, TaskContext, fill, prompt_ids
from tasks.score_rules import GLOBAL, Prompts, ScoreRule, check_rule, parse_rule


@dataclass(frozen=True)
class ZeroShotOptions(IntervalOptions):
    """Options of the task; the rules are in tasks/score_rules.py.

    Raises:
        ConfigError: there is no such rule.
    """

    rule: str = setting(GLOBAL, "score rule: global, or a model's published one", hashed="unless default")

    def __post_init__(self) -> None:
        rule = parse_rule(self.rule)
        object.__setattr__(self, "rule", GLOBAL if rule is None else rule.text)  # one spelling for one rule


CLASSIFICATION = (
    Metric(
        "acc",
        "ACC",
        headline=True,
        chance="classes",
        references={"majority_acc": "Always the most frequent class"},
    ),
    Metric("balanced_acc", "bal. ACC"),
    Metric("auroc", "AUROC", headline=True, chance=0.5),
)
"""Metrics of :func:`scored` that have a column."""


class ClassificationTask(Task):
    """Base of tasks that score images against classes."""

    metrics = CLASSIFICATION
    needs = ("kind", "classes")

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Read the labels of a dataset; see :meth:`Task.check_data`."""
        labelled_images("", data, dict(entry), limit=entry.get("limit"))
        return None


@register_task("zeroshot")
class ZeroShotTask(ClassificationTask):
    """Accuracy, balanced and majority accuracy, AUROC, each with a bootstrap interval clustered by patient."""

    title = "Zero-shot classification"
    Options = ZeroShotOptions
    validates = ("auroc",)
    few_labels = True

    @classmethod
    def check_entry(cls, entry: Mapping[str, Any], *, validation: bool = False) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with an entry; see :meth:`Task.check_entry`."""
        yield from super().check_entry(entry, validation=validation)
        if validation and entry.get("kind") == "binary":
            yield "kind", "expected multiclass or multilabel, got 'binary'"

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Read the labels of a dataset; of a validation set also whether they can be scored, and how."""
        labelled = labelled_images("", data, dict(entry), limit=entry.get("limit"))
        return _counted(labelled, entry)[1] if entry.get("metric") else None

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Score every image against every class, by the rule that the options name."""
        rule = parse_rule(self.options.rule)
        data = read_images(entry, name, context)
        stage, scale = f"zero-shot {data.title}", float(method.logit_scale().detach())
        if rule is None:
            similarity = similarities(method, data, context, stage)
            cut = cut_prompts(method, data.classes, context)
            return scored(data, similarity, scale, context, self.options, rule=GLOBAL, **cut)
        check_rule(rule, type(method), method.backbone.name, method.backbone.rules)
        prompts = prompts_of(method, data.classes, context)
        scores = rule_scores(rule, method, data, prompts, context, stage)
        facts = {"rule": rule.text, **rule.facts(method.backbone, prompts)}
        # final scores are not multiplied by anything
        return scored(
            data, scores, 1.0 if rule.final else scale, context, self.options, final=rule.final, **facts
        )

    def check(self, method: type[Method], backbone: str, rules: Sequence[str]) -> None:
        """Refuse a rule that the backbone does not offer, or that does not apply to the method."""
        rule = parse_rule(self.options.rule)
        if rule is not None:
            check_rule(rule, method, backbone, rules)

    def validator(
        self, entry: Mapping[str, Any], context: TaskContext
    ) -> Callable[[Method], dict[str, float]]:
        """Return the macro AUROC over classes with enough positives, scored as the test sets of its kind are.

        Multiclass: one-vs-rest on softmax probabilities at the method's own scale; multilabel: on plain cosines.
        """
        if entry["kind"] not in ("multiclass", "multilabel"):
            raise ConfigError(
                f"suite:validation.kind: expected multiclass or multilabel, got '{entry['kind']}'"
            )
        data = read_images(entry, "validation", context)
        multilabel = data.kind == "multilabel"
        targets = _indicators(data)
        counted, _ = _counted(data, {**entry, "limit": context.limit or entry.get("limit")})
        if not counted.all():
            left = [name for name, enough in zip(data.classes, counted, strict=True) if not enough]
            context.reporter.log(
                f"validation: mean over {counted.sum()} of {len(counted)} classes, as {', '.join(left)} "
                f"{'has' if len(left) == 1 else 'have'} too few positives or no negative"
            )

        def validate(method: Method) -> dict[str, float]:
            scores = similarities(method, data, context, "validate")
            if not multilabel:
                scores = log_odds(float(method.logit_scale().detach()) * scores)
            area = MeanArea(scores[:, counted], targets[:, counted] == 1)
            return {"auroc": plain_value(area, len(data))}

        return validate


def _indicators(data: LabelledImages) -> np.ndarray:
    """Return 0 or 1 for every image and class, ``[N, C]``."""
    return (
        data.targets if data.kind == "multilabel" else np.eye(len(data.classes), dtype=np.int64)[data.targets]
    )


def _counted(data: LabelledImages, entry: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """Return which classes of a validation set are scored, and a line where that needs fewer positives than asked for.

    Only a set that is cut by a limit is scored with fewer.

    Raises:
        ConfigError: no class can be scored.
    """
    targets, least = _indicators(data), int(entry.get("min_positives", 1))
    counted = scored_classes(targets, min_positives=least)
    if counted.any():
        return counted, ""
    mixed = scored_classes(targets, min_positives=1)
    if not mixed.any() or entry.get("limit") is None:
        raise ConfigError(
            f"suite:validation: no class has {least} positives and a negative; lower min_positives or raise --limit"
        )
    most = int(targets[:, mixed].sum(axis=0).max())
    fewer = max(1, most // 2)
    line = f"validation: of {len(data)} images no class has {least} positives: min_positives is lowered to {fewer}"
    return scored_classes(targets, min_positives=fewer), line


def scored(
    data: LabelledImages,
    similarity: np.ndarray,
    scale: float,
    context: TaskContext,
    options: IntervalOptions,
    *,
    final: bool = False,
    **facts: Any,
) -> DatasetResult:
    """Return the result of classes scored for every image.

    Args:
        data: what was scored.
        similarity: ``[N, C]``, or scores of another kind.
        scale: what multiplies it before softmax.
        context: of the evaluation.
        options: of the task.
        final: whether AUROC ranks the scores of a class as they are, without softmax over classes.
        **facts: what else identifies the protocol.
    """
    return DatasetResult.of(
        data.kind,
        zero_shot_metrics(data.kind, similarity, scale, data.targets, final=final),
        data,
        predictions={"similarity": similarity.astype(np.float32), "target": data.targets},
        info={
            "title": data.title,
            "classes": list(data.classes),
            "templates": list(context.templates),
            "logit_scale": scale,
            "final": final,
            **facts,
            **(context.preprocess.facts() if context.preprocess else {}),
            "data": data.digest,
            **data.facts,
            **_left_out(data),
        },
        resamples=options.bootstrap,
        seed=options.bootstrap_seed,
    )


def _left_out(data: LabelledImages) -> dict[str, Any]:
    """Return the ``info`` entry on classes that the samples cannot score, or nothing."""
    reasons = unscored_classes(data.kind, data.targets, data.classes)
    if not reasons:
        return {}
    asked = 1 if data.kind == "binary" else len(data.classes)
    named = ", ".join(f"{name}: {reason}" for name, reason in reasons.items())
    note = f"AUROC over {asked - len(reasons)} of {asked} classes ({named})"
    return {"unscored_classes": reasons, "data_notes": [*(data.facts.get("data_notes") or ()), note]}


def read_images(entry: Mapping[str, Any], name: str, context: TaskContext) -> LabelledImages:
    """Open the dataset of an entry of the suite, cut to the rows that its ``limit`` and the run's allow."""
    prepared = load_dataset(entry, context.data_root, context.reporter, context.fitting)
    limits = [limit for limit in (entry.get("limit"), context.limit) if limit is not None]
    return labelled_images(name, prepared, dict(entry), limit=min(limits, default=None))


@torch.no_grad()
def similarities(method: Method, data: LabelledImages, context: TaskContext, stage: str) -> np.ndarray:
    """Return cosines ``[N, C]`` (float64) of all images of a dataset with its classes.

    Prompts are encoded once; images go through in batches, or bring cached features where the method leaves the image
    tower alone.
    """
    parts: list[Tensor] = []
    batches = image_batches(method, data, context, stage)
    with autocast(context.precision, context.device):
        classes = method.prepare_classes(class_tokens(method, data.classes, context))
        for batch in batches:
            parts.append(method.classify(batch, classes).float())
    return torch.cat(parts).cpu().numpy().astype(np.float64)


@torch.no_grad()
def rule_scores(
    rule: ScoreRule, method: Method, data: LabelledImages, prompts: Prompts, context: TaskContext, stage: str
) -> np.ndarray:
    """Return scores ``[N, C]`` (float64) of all images of a dataset by a rule of the backbone's own."""
    model, parts = method.backbone, []
    batches = image_batches(method, data, context, stage, pixels=rule.cells)
    with autocast(context.precision, context.device):
        classes = rule.prepare(model, prompts)
        for batch in batches:
            parts.append(rule.scores(model, batch, classes).float().cpu())
    return rule.finish(torch.cat(parts).double()).numpy()


def image_batches(
    method: Method, data: LabelledImages, context: TaskContext, stage: str, *, pixels: bool = False
) -> Iterator[Batch]:
    """Return all images of a dataset in order, in batches.

    Where the method leaves the image tower alone they bring cached features, and images themselves only if ``pixels``
    are asked for.
    """
    constant = "image" not in method.adapts
    features = context.frozen.of_labelled(data) if constant else None
    context.reporter.start(stage, len(data))

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), context.batch_size):
            rows = slice(start, min(len(data), start + context.batch_size))
            batch = Batch()
            if features is not None:
                batch.image_features = to_device(features[rows], context.device)
            if features is None or pixels:
                batch.images = method.backbone.input_spec.to_input(data.pixels[rows], context.device)
            yield batch
            context.reporter.advance(rows.stop - rows.start)

    return batches()


def class_tokens(method: Method, classes: tuple[str, ...], context: TaskContext) -> Tensor:
    """Return the token ids ``[C, T, L]`` of all templates filled with all classes."""
    return prompts_of(method, classes, context).ids


def cut_prompts(method: Method, classes: tuple[str, ...], context: TaskContext) -> dict[str, Any]:
    """Return how many prompts fill the model's context, what lies beyond being cut off; empty when none does."""
    texts = [text for name in classes for text in fill(context.templates, name)]
    cut = cut_texts(method.backbone, method.backbone.tokenize(texts))
    return {"cut_prompts": cut} if cut else {}


def prompts_of(method: Method, classes: tuple[str, ...], context: TaskContext) -> Prompts:
    """Return all templates filled with all classes, as texts and as token ids."""
    texts = tuple(tuple(fill(context.templates, name)) for name in classes)
    return Prompts(classes, texts, prompt_ids(method, texts).to(context.device))

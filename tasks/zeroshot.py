"""Zero-shot classification: images against class prompts, never trained on the classes.

Protocol of the ACE-LoRA paper's Tables 1-3: two templates per class, features averaged by the method's own rule,
softmax over scaled cosines (one dataset at a time), AUROC as in ``benchmark/metrics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.data.load import load_dataset
from benchmark.data.samples import Batch, LabelledImages, labelled_images
from benchmark.errors import ConfigError
from benchmark.metrics import auroc_multilabel, log_odds
from benchmark.registry import register_task
from benchmark.statistics import zero_shot_report
from benchmark.trainer import autocast
from methods.base import Method
from tasks.base import DatasetResult, Task, TaskContext
from tasks.prompts import fill


@dataclass(frozen=True)
class ZeroShotOptions:
    """Options of the task.

    Attributes:
        bootstrap: resamples behind every interval. bootstrap_seed: their seed, the same for all methods, so that
            intervals of two methods rest on the same resampled patients.
    """

    bootstrap: int = 1000
    bootstrap_seed: int = 0

    def __post_init__(self) -> None:
        """Check the number of resamples.

        Raises:
            ConfigError: if it is not positive.
        """
        if self.bootstrap < 1:
            raise ConfigError(f"bootstrap: expected a positive integer, got {self.bootstrap!r}")


@register_task("zeroshot")
class ZeroShotTask(Task):
    """Accuracy, balanced and majority accuracy, AUROC, each with a bootstrap interval clustered by patient."""

    title = "Zero-shot classification"
    Options = ZeroShotOptions
    headline = ("acc", "auroc")

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Score every image against every class."""
        data = read_images(entry, name, context)
        similarity = similarities(method, data, context, f"zero-shot {data.title}")
        scale = float(method.logit_scale().detach())
        return scored(data, similarity, scale, context, self.options)

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
        targets = data.targets if multilabel else np.eye(len(data.classes), dtype=np.int64)[data.targets]
        least = int(entry.get("min_positives", 1))
        if not (targets.sum(axis=0) >= least).any():
            raise ConfigError(
                f"suite:validation: no class has {least} positives; lower min_positives or raise --limit"
            )

        def validate(method: Method) -> dict[str, float]:
            scores = similarities(method, data, context, "validate")
            if not multilabel:
                scores = log_odds(float(method.logit_scale().detach()) * scores)
            return {"auroc": float(auroc_multilabel(scores, targets, min_positives=least))}

        return validate


def scored(
    data: LabelledImages,
    similarity: np.ndarray,
    scale: float,
    context: TaskContext,
    options: Any,  # Any: whatever has bootstrap and bootstrap_seed
    **facts: Any,
) -> DatasetResult:
    """Return the result of classes scored for every image.

    Args:
        data: what was scored.
        similarity: ``[N, C]``.
        scale: what multiplies it before softmax.
        context: surroundings.
        options: of the task, with ``bootstrap`` and ``bootstrap_seed``.
        **facts: what else identifies the protocol.
    """
    metrics = zero_shot_report(
        data.kind, similarity, scale, data.targets, data.clusters,
        resamples=options.bootstrap, seed=options.bootstrap_seed,
    )  # fmt: skip
    return DatasetResult(
        n=len(data),
        kind=data.kind,
        metrics=metrics,
        predictions={
            "image_id": np.array(data.ids),
            "patient_id": np.array(data.clusters if data.clusters is not None else data.ids),
            "similarity": similarity.astype(np.float32),
            "target": data.targets,
        },
        info={
            "title": data.title,
            "classes": list(data.classes),
            "templates": list(context.templates),
            "logit_scale": scale,
            **facts,
            "data": data.digest,
            **data.facts,
        },
    )


def read_images(entry: Mapping[str, Any], name: str, context: TaskContext) -> LabelledImages:
    """Open the dataset of an entry of the suite, cut to the rows that its ``limit`` and the run's allow."""
    prepared = load_dataset(entry, context.data_root, context.reporter, context.image_size)
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


def image_batches(method: Method, data: LabelledImages, context: TaskContext, stage: str) -> Iterator[Batch]:
    """Return all images of a dataset in order, in batches.

    Where the method leaves the image tower alone they bring cached features. These are looked up at once, so call this
    outside of autocast.
    """
    constant = "image" not in method.adapts
    features = context.frozen.of_images(data.pixels, data.digest) if constant else None
    context.reporter.start(stage, len(data))

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), context.batch_size):
            rows = slice(start, min(len(data), start + context.batch_size))
            batch = Batch()
            if features is not None:
                batch.image_features = features[rows].to(context.device)
            else:
                batch.images = method.backbone.input_spec.to_input(data.pixels[rows], context.device)
            yield batch
            context.reporter.advance(rows.stop - rows.start)

    return batches()


def class_tokens(method: Method, classes: tuple[str, ...], context: TaskContext) -> Tensor:
    """Return the token ids ``[C, T, L]`` of all templates filled with all classes."""
    prompts = [text for name in classes for text in fill(context.templates, name)]
    ids = method.backbone.tokenize(prompts).long()
    if method.text_padding == "longest":
        ids = method.backbone.trim(ids)
    return ids.unflatten(0, (len(classes), len(context.templates))).to(context.device)

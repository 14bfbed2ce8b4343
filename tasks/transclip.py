"""TransCLIP: transductive zero-shot classification, on top of any method (Zanella et al., NeurIPS 2024, 2406.01837).

All test images of a dataset are answered together: an image's answer depends on the others, so these numbers stand
apart from those of a model that sees one image at a time. Nothing is trained and no label is used. Of unit-norm image
features f_i and the method's own class probabilities y_i = softmax(scale cos_i), assignments z_i are made that maximise

    sum_i z_i . log p_i / 50 + sum_ij w_ij z_i . z_j / 3 - sum_i KL(z_i || y_i),

p_ik a Gaussian with mean mu_k and one diagonal covariance for all classes, w_ij the cosine where j is one of the three
nearest neighbours of i. Block by block: five sweeps of z, then mu (unit norm) and the covariance, ten rounds in all.
Written from the equations of the paper; several classes, one of which holds (no multilabel sets).

Departures from the released code: y is kept apart from z wherever it comes from (passing probabilities there
overwrites them), classes are those of the dataset and not the distinct test labels, templates are averaged by the
method's own rule, an exact copy of an image is a neighbour of it, and powers and products are taken in logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones.towers.precision import autocast
from benchmark.data.samples import LabelledImages
from benchmark.errors import ConfigError
from benchmark.registry import register_task
from benchmark.settings import setting
from methods.base import Method
from tasks.base import DatasetResult, IntervalOptions, TaskContext
from tasks.zeroshot import ClassificationTask, image_batches, read_images, scored, similarities

NEIGHBOURS = 3
PROTOTYPES = 8
"""Images behind the first mean of a class: those most sure of it."""
ROUNDS = 10
SWEEPS = 5
LIKELIHOOD_WEIGHT = 1 / 50
PAPER_SCALE = 100.0
_GRAPH_ROWS = 2048
"""Rows of the N x N cosines in memory at a time."""
_TINY = 1e-300
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class TransClipOptions(IntervalOptions):
    """Options of the task."""

    scale: Literal["model", "100"] = setting(
        "100", "what multiplies the cosines in y: 100 as in TransCLIP's paper, or the model's own logit scale"
    )
    text_weight: float = setting(1.0, "lambda, the weight of y", low=0)


@register_task("transclip", in_all=False)
class TransClipTask(ClassificationTask):
    """The metrics of zero-shot classification on assignments made for all test images together."""

    title = "Zero-shot classification with TransCLIP (transductive)"
    Options = TransClipOptions
    validates = ()
    options: TransClipOptions

    @classmethod
    def check_entry(cls, entry: Mapping[str, Any], *, validation: bool = False) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with an entry; see :meth:`Task.check_entry`."""
        yield from super().check_entry(entry, validation=validation)
        if not validation and entry.get("kind") == "multilabel":
            yield (
                "kind",
                "several labels per image, and TransCLIP assigns one class to each. Leave the set out here",
            )

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Assign all images of a dataset to its classes.

        Raises:
            ConfigError: the dataset has several labels per image.
        """
        data = read_images(entry, name, context)
        if data.kind == "multilabel":
            raise ConfigError(
                f"transclip: '{name}' has several labels per image, and TransCLIP assigns one class to each. "
                "Leave it out of this task"
            )
        similarity = similarities(method, data, context, f"zero-shot {data.title}")
        own_scale = float(method.logit_scale().detach())
        scale = own_scale if self.options.scale == "model" else PAPER_SCALE
        log_y = torch.from_numpy(scale * similarity).to(context.device).log_softmax(dim=1)
        features = image_features(method, data, context, f"features {data.title}")
        log_z = assign(features, log_y, text_weight=self.options.text_weight).cpu().numpy()
        shares = {"before": _shares(log_y.cpu().numpy()), "after": _shares(log_z)}
        facts: dict[str, Any] = {"transductive": True, "text_scale": scale, "class_shares": shares}
        # log z is a score already, so nothing multiplies it
        return scored(data, log_z, 1.0, context, self.options, **facts)


@torch.no_grad()
def image_features(method: Method, data: LabelledImages, context: TaskContext, stage: str) -> Tensor:
    """Return the adapted, unit-norm features ``[N, E]`` (float64) of all images."""
    parts: list[Tensor] = []
    batches = image_batches(method, data, context, stage)
    with autocast(context.precision, context.device):
        for batch in batches:
            parts.append(method.embed_images(batch).float())
    return functional.normalize(torch.cat(parts).double(), dim=1)


@torch.no_grad()
def assign(
    features: Tensor,
    log_y: Tensor,
    *,
    text_weight: float = 1.0,
    likelihood_weight: float = LIKELIHOOD_WEIGHT,
    neighbours: int = NEIGHBOURS,
    rounds: int = ROUNDS,
) -> Tensor:
    """Return log assignments ``[N, K]``; the inputs are left as they are.

    Args:
        features: unit norm, ``[N, E]``.
        log_y: log probabilities of the classes from text, ``[N, K]``.
        text_weight: lambda.
        likelihood_weight: of the Gaussians against the other terms.
        neighbours: of each image in the graph; 0 for no graph.
        rounds: updates of means and covariance between the sweeps.
    """
    graph = neighbour_graph(features, neighbours)
    log_z, z = log_y, log_y.exp()
    means = _first_means(features, z)
    variances = torch.full_like(features[0], 1 / features.shape[1])
    for step in range(rounds + 1):
        fixed = text_weight * log_y + likelihood_weight * log_likelihood(features, means, variances)
        for _ in range(SWEEPS):
            log_z = (fixed + graph @ z).log_softmax(dim=1)
            z = log_z.exp()
        if step < rounds:
            weights = (z / z.sum(dim=0).clamp_min(_TINY)).T
            means = functional.normalize(weights @ features, dim=1)
            variances = _variances(features, z, means)
    return log_z


def neighbour_graph(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return (W + W^T) / (2 k), sparse ``[N, N]``: w_ij is the cosine, at least 0, where j is one of i's k nearest.

    An image is no neighbour of itself, also where another one is its exact copy. A set of fewer images has a smaller k.
    """
    count = len(features)
    nearest = min(neighbours, count - 1)
    if nearest < 1:
        return features.new_zeros(count, count)
    weights, others = [], []
    for start in range(0, count, _GRAPH_ROWS):
        cosines = features[start : start + _GRAPH_ROWS] @ features.T
        cosines.diagonal(start).fill_(-torch.inf)
        top = cosines.topk(nearest, dim=1)
        weights.append(top.values.clamp_min(0))
        others.append(top.indices)
    sources = torch.arange(count, device=features.device).repeat_interleave(nearest)
    targets, values = torch.cat(others).flatten(), torch.cat(weights).flatten() / (2 * nearest)
    both = torch.stack([torch.cat([sources, targets]), torch.cat([targets, sources])])
    weights_both = torch.cat([values, values])
    return torch.sparse_coo_tensor(both, weights_both, (count, count), check_invariants=True).coalesce()


def log_likelihood(features: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return -1/2 sum_d (f_id - mu_kd)^2 / sigma_d, ``[N, K]``; the determinant is the same for all classes."""
    return -torch.stack([(features - mean) ** 2 @ (0.5 / variances) for mean in means], dim=1)


def _first_means(features: Tensor, z: Tensor) -> Tensor:
    """Return unit-norm means ``[K, E]`` of the images most sure of each class, weighted by how sure they are."""
    top = z.topk(min(PROTOTYPES, len(z)), dim=0)
    weighted = top.values.T[..., None] * features[top.indices.T]
    return functional.normalize(weighted.mean(dim=1), dim=1)


def _variances(features: Tensor, z: Tensor, means: Tensor) -> Tensor:
    """Return the diagonal of the covariance that all classes share, ``[E]``."""
    squares = sum(
        (weight @ (features - mean) ** 2 for weight, mean in zip(z.T, means, strict=True)), z.new_zeros(1)
    )
    return (squares / z.sum()).clamp_min(_LEAST_VARIANCE)


def _shares(scores: np.ndarray) -> list[float]:
    """Return the share of images that each class is the answer for."""
    answers = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    return [float(share) for share in answers / len(scores)]

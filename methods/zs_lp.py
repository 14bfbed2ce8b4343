"""ZS-LP: a linear probe on cosines that starts from the class prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import FeatureSpace, one_hot
from methods.supervision import Support


@dataclass(frozen=True)
class ProbeOptions:
    """Options in the authors' spelling."""

    lr: float = setting(0.1, "learning rate of SGD with momentum 0.9, cosine to 0", above=0)
    steps: int = setting(300, "full-batch steps", low=1)
    warmup: bool = setting(True, "make the first step at 1e-5, as CLAP's code; SS-Text's starts at lr")


@dataclass(frozen=True)
class Probe:
    """How weights are fitted.

    Attributes:
        scale: that multiplies cosines. rates: one learning rate per step.
    """

    scale: float
    rates: tuple[float, ...]


def probe_of(options: ProbeOptions, scale: float) -> Probe:
    """Return the settings of a fit."""
    first = (1e-5,) if options.warmup else ()
    left = options.steps - len(first)
    cosine = (options.lr / 2 * (1 + math.cos(math.pi * step / options.steps)) for step in range(left))
    return Probe(scale, (*first, *cosine))


def loss_of(
    weights: Tensor, start: Tensor, features: Tensor, labels: Tensor, scale: float, pull: Tensor | None
) -> Tensor:
    """Return cross-entropy of scaled cosines, plus the mean over classes of ``pull_c |w_c - t_c|^2``.

    Args:
        weights: ``[C, E]``.
        start: ``[C, E]``.
        features: unit norm ``[N, E]``.
        labels: ``[N]``.
        scale: of the model.
        pull: ``[C]`` or None.
    """
    logits = scale * features @ functional.normalize(weights, dim=-1).T
    loss = functional.cross_entropy(logits, labels)
    return loss if pull is None else loss + (pull * (weights - start).square().sum(dim=1)).mean()


class Step(NamedTuple):
    """One step: the loss and its gradient before, the weights after it."""

    loss: Tensor
    gradient: Tensor
    weights: Tensor


def path(
    start: Tensor, features: Tensor, labels: Tensor, probe: Probe, pull: Tensor | None = None,
    batches: Tensor | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Yield one step of SGD (momentum 0.9) per rate.

    Args:
        start: ``[C, E]``.
        features: unit norm ``[N, E]``.
        labels: ``[N]``.
        probe: how.
        pull: see :func:`loss_of`.
        batches: rows of each step ``[steps, B]``; None takes all in every step.
    """
    weights, velocity = start.clone().requires_grad_(), torch.zeros_like(start)
    for step, rate in enumerate(probe.rates):
        rows = slice(None) if batches is None else batches[step]
        with torch.enable_grad():
            loss = loss_of(weights, start, features[rows], labels[rows], probe.scale, pull)
            (gradient,) = torch.autograd.grad(loss, weights)
        velocity = 0.9 * velocity + gradient
        weights = (weights - rate * velocity).detach().requires_grad_()
        yield Step(loss.detach(), gradient, weights.detach())


def multipliers(features: Tensor, labels: Tensor, text: Tensor, scale: float) -> Tensor:
    """Return, per class ``[C]``, the mean zero-shot probability of its own images; without images, that of the others.

    (`CLAP: trainers/adapters.py`, where a class without images gives no number; `SS-Text-U: libs/solvers/gd.py`)
    """
    own = (scale * features @ functional.normalize(text, dim=-1).T).softmax(dim=1) * one_hot(
        labels, len(text)
    )
    count = one_hot(labels, len(text)).sum(dim=0)
    mean = own.sum(dim=0) / count.clamp(min=1)
    return torch.where(count > 0, mean, mean.sum() / (count > 0).sum())


@register_method("zs_lp", in_all=False, groups=("fewshot",))
class ZeroShotProbe(FeatureSpace):
    """Cosine classifier, started from the mean of the raw template features, without validation."""

    card = MethodCard(
        title="ZS-LP",
        paper="Silva-Rodriguez et al., CVPR 2024",
        arxiv="2312.12730",
        repository="jusiro/CLAP",
        equation="min_w CE(s cos(f, w_c)), w_c from t_c, the mean of raw template features",
        trains="w [C, E]",
        count="C E",
        deviations=(
            "all images in every step, not augmented (the code draws 256 of 20 augmented passes)",
            "the last step is kept, as in the code",
        ),
    )
    Options = ProbeOptions
    penalised = False

    def fit(self, support: Support) -> None:
        """Fit the weights."""
        text, images, labels = support.text, support.images, support.labels
        pull = multipliers(images, labels, text, self.model_scale) if self.penalised else None
        *_, last = path(text, images, labels, probe_of(self.options, self.model_scale), pull)
        self.keep(weights=last.weights)

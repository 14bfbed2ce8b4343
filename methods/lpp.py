"""LP++: a linear probe with class-wise blending of the prompts, its step sizes derived from the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import Affine, one_hot
from methods.supervision import Support

_EVERY = 10


@dataclass(frozen=True)
class LPPOptions:
    """Options in the authors' spelling."""

    epochs: int = setting(300, "full-batch steps", low=1)
    alpha: float = setting(250.0, "factor of the start of the blending", above=0)


class State(NamedTuple):
    """What is learnt: weights ``[C, E]``, bias ``[C]``, blending ``[C]``; and the sum of the blending's gradients."""

    weights: Tensor
    bias: Tensor
    alpha: Tensor
    gradient: Tensor

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Return ``f w_c + b_c + alpha_c f t_c``, ``[N, C]``."""
        return features @ self.weights.T + self.bias + self.alpha * (features @ text.T)


@dataclass(frozen=True)
class Steps:
    """Start and step sizes (LP++, Sec. 3): from the largest curvature of each block of variables.

    Attributes:
        start: state before the first step. weights, alpha: learning rates.
    """

    start: State
    weights: float
    alpha: float


def steps_of(features: Tensor, labels: Tensor, text: Tensor, bias: Tensor, alpha: float = 250.0) -> Steps:
    """Return start and step sizes.

    Args:
        features: unit norm ``[N, E]``.
        labels: ``[N]``.
        text: unit norm ``[C, E]``.
        bias: where it starts ``[C]``.
        alpha: factor of the start of the blending.
    """
    labelled, cosines = one_hot(labels, len(text)).to(features), features @ text.T
    of_class = (labelled * cosines).sum(dim=0) / labelled.sum(dim=0).clamp(min=1)  # 0 without images
    start = State(
        labelled.T @ features, bias, (alpha * of_class.mean()).expand(len(text)), torch.zeros_like(bias)
    )
    curvature = float(torch.linalg.eigvalsh(features.T @ features)[-1])
    return Steps(
        start, 4 * len(features) / curvature, len(features) / (4 * float(cosines.square().sum(dim=0).max()))
    )


class Gradients(NamedTuple):
    """Gradients of the mean cross-entropy by weights, bias and blending."""

    weights: Tensor
    bias: Tensor
    alpha: Tensor


def gradients(state: State, features: Tensor, labels: Tensor, text: Tensor) -> Gradients:
    """Return the gradients at a state, on all images."""
    error = (state.logits(features, text).softmax(dim=1) - one_hot(labels, len(text))) / len(features)
    return Gradients(error.T @ features, error.sum(dim=0), (error * (features @ text.T)).sum(dim=0))


def epochs(features: Tensor, labels: Tensor, text: Tensor, steps: Steps, count: int) -> Iterator[State]:
    """Yield the state after each full-batch epoch.

    Weights and bias move by SGD with momentum 0.9. The blending moves in every tenth epoch, along the sum of all its
    gradients so far, as in all copies of the code.
    """
    state = steps.start
    speed_w, speed_b = torch.zeros_like(state.weights), torch.zeros_like(state.bias)
    for number in range(1, count + 1):
        found = gradients(state, features, labels, text)
        speed_w, speed_b = 0.9 * speed_w + found.weights, 0.9 * speed_b + found.bias
        gradient = state.gradient + found.alpha
        state = State(
            state.weights - steps.weights * speed_w,
            state.bias - steps.weights * speed_b,
            state.alpha - (steps.alpha * gradient if number % _EVERY == 0 else 0.0),
            gradient,
        )
        yield state


@register_method("lpp", in_all=False, groups=("fewshot",))
class LPP(Affine):
    """Logits without temperature; what is kept is one linear map."""

    card = MethodCard(
        title="LP++",
        paper="Huang et al., CVPR 2024",
        arxiv="2404.02285",
        repository="FereshteShakeri/FewShot-CLIP-Strong-Baseline",
        equation="min CE(f w_c + b_c + alpha_c f t_c)",
        trains="w [C, E], b [C], alpha [C]; stored as W_c = w_c + alpha_c t_c and b",
        count="C (E + 1)",
        deviations=(
            "the last epoch is kept unless validation images are used; the code keeps the best on them",
            "classes are counted from the prompts (the code divides and loses one for some numbers)",
            "a class without images counts as 0 in the start of alpha, as in SS-Text-U's copy",
        ),
    )
    Options = LPPOptions

    def fit(self, support: Support) -> None:
        """Fit the blend."""
        text, images = support.classes.frozen(), support.images
        width = images.shape[1] ** -0.5
        bias = torch.empty(self.classes, device=images.device).uniform_(
            -width, width
        )  # of a fresh linear layer
        with torch.no_grad():
            steps = steps_of(images, support.labels, text, bias, self.options.alpha)
            found = best_of(
                epochs(images, support.labels, text, steps, self.options.epochs), text, support.validation
            )
        self.keep(weights=found.weights + found.alpha[:, None] * text, bias=found.bias)


def best_of(states: Iterator[State], text: Tensor, validation: tuple[Tensor, Tensor] | None) -> State:
    """Return the last state; with validation images the last that ties or beats the best accuracy on them."""
    kept, best = None, -1.0
    for state in states:
        score = best if validation is None else accuracy(state.logits(validation[0], text), validation[1])
        if score >= best:
            kept, best = state, score
    assert kept is not None
    return kept


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers, in per cent."""
    return 100 * float((logits.argmax(dim=1) == labels).double().mean())

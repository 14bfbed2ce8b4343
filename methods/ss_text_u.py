"""SS-Text-U: SS-Text that also assigns images without labels to the classes, by optimal transport."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import FeatureSpace, one_hot
from methods.supervision import Support

_SWEEPS = 10


@dataclass(frozen=True)
class SSTextUOptions:
    """Options in the authors' spelling."""

    rounds: int = setting(3, "rounds of assignment and weights", low=0)


def marginal_of(labels: Tensor, classes: int) -> Tensor:
    """Return the shares of classes ``[C]``; a missing one gets a quarter of the smallest, then all sum to 1."""
    share = one_hot(labels, classes).mean(dim=0)
    if bool((share == 0).any()):
        share = torch.where(share > 0, share, share[share > 0].min() / 4)
        share = share / share.sum()
    return share


def assign(logits: Tensor, marginal: Tensor) -> Tensor:
    """Return assignments ``[M, C]`` whose rows sum to 1 and whose columns follow the marginal as far as ten sweeps get.

    In logarithms: the authors' exponentials overflow at a scale of 100.
    """
    code = logits - logits.logsumexp(dim=(0, 1))
    rows = torch.log(torch.tensor(float(len(logits))))
    for _ in range(_SWEEPS):
        code = code - code.logsumexp(dim=0) + marginal.log()
        code = code - code.logsumexp(dim=1, keepdim=True) - rows
    return (code + rows).exp()


@dataclass(frozen=True)
class Transduced:
    """Weights ``[C, E]``, and the assignments ``[M, C]`` of each round."""

    weights: Tensor
    codes: tuple[Tensor, ...]


def solve(
    text: Tensor, features: Tensor, labels: Tensor, unlabelled: Tensor, scale: float, *,
    rounds: int = 3, marginal: Tensor | None = None,
) -> Transduced:  # fmt: skip
    """Return weights from labelled and unlabelled images.

    Args:
        text: raw mean template features ``[C, E]``.
        features: unit norm ``[N, E]``.
        labels: ``[N]``.
        unlabelled: unit norm ``[M, E]``.
        scale: of the model.
        rounds: of assignment and weights.
        marginal: shares of classes among the unlabelled; None takes those of the labelled.
    """
    labelled = one_hot(labels, len(text))
    own = text + scale / 2 * labelled.mean(dim=0)[:, None] * (labelled.T @ features)
    marginal = marginal_of(labels, len(text)) if marginal is None else marginal
    weights, codes = (own if rounds == 0 else text), []
    for _ in range(rounds):
        code = assign(scale * unlabelled @ functional.normalize(weights, dim=-1).T, marginal)
        codes.append(code)
        weights = own + scale / len(unlabelled) * code.T @ unlabelled
    return Transduced(weights, tuple(codes))


@register_method("ss_text_u", in_all=False, groups=("fewshot",))
class SSTextU(FeatureSpace):
    """Needs images without labels from where it will be used; never the test images."""

    card = MethodCard(
        title="SS-Text-U",
        paper="Silva-Rodriguez et al., 2026",
        arxiv="2603.02959",
        repository="jusiro/SS-Text-U",
        equation="w_c = t_c + (s / 2) (n_c / N) F_c + (s / M) sum_j A_jc u_j, A: transport to the shares n_c / N",
        trains="w [C, E]",
        count="C E",
        deviations=(
            "transport in logarithms: the code's exponentials overflow at a scale of 100",
            "without unlabelled images the labelled ones are assigned",
        ),
    )
    Options = SSTextUOptions

    def fit(self, support: Support) -> None:
        """Fit the weights."""
        pool = support.images if support.unlabelled is None else support.unlabelled
        with torch.no_grad():
            found = solve(
                support.text,
                support.images,
                support.labels,
                pool,
                self.model_scale,
                rounds=self.options.rounds,
            )
        self.keep(weights=found.weights)

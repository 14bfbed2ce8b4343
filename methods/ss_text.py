"""SS-Text+: class prompts moved by the support's features, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import FeatureSpace, one_hot
from methods.supervision import Support


@dataclass(frozen=True)
class SSTextOptions:
    """Options of the closed form."""

    form: Literal["plus", "plain"] = setting(
        "plus", "plus: shares of classes and a push away from the mean class; plain: t_c + s F_c"
    )


def plain_form(text: Tensor, features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return SS-Text's weights ``t_c + s F_c`` ``[C, E]``, F_c the sum of class c's features."""
    return text + scale * one_hot(labels, len(text)).T @ features


def plus_form(text: Tensor, features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return SS-Text+'s weights ``[C, E]``: ``t_c + s (n_c / N) F_c``, less the direction of ``2 w_c - mean w``."""
    labelled = one_hot(labels, len(text))
    share = labelled.mean(dim=0)[:, None]
    weights = text + scale * share * (labelled.T @ features)
    return weights - functional.normalize(2 * weights - weights.mean(dim=0), dim=-1)


@register_method("ss_text", in_all=False, groups=("fewshot",))
class SSText(FeatureSpace):
    """No solver and nothing to tune; a class without images keeps its prompt."""

    card = MethodCard(
        title="SS-Text+",
        paper="Silva-Rodriguez et al., IPMI 2025",
        arxiv="2506.17500",
        repository="jusiro/SS-Text-U",
        equation="w_c = t_c + s (n_c / N) F_c; w_c -= unit(2 w_c - mean w); form=plain: w_c = t_c + s F_c",
        trains="w [C, E]",
        count="C E",
    )
    Options = SSTextOptions

    def fit(self, support: Support) -> None:
        """Fit the weights."""
        form = plus_form if self.options.form == "plus" else plain_form
        with torch.no_grad():
            self.keep(weights=form(support.text, support.images, support.labels, self.model_scale))

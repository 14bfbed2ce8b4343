"""Linear probe: logistic regression on frozen image features; prompts play no part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmark.errors import DataError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import Affine
from methods.supervision import Support

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_STRENGTHS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
_ROUNDS = 8


@dataclass(frozen=True)
class LinearProbeOptions:
    """Options in scikit-learn's spelling."""

    C: float = setting(
        1.0, "weight of the data against |W|^2 / 2; searched where there are validation images", above=0
    )


def regression(features: Tensor, labels: Tensor, strength: float) -> LogisticRegression:
    """Return a fitted multinomial logistic regression (lbfgs, at most 1000 iterations)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000)
    return model.fit(features.cpu().numpy(), labels.cpu().numpy())


@dataclass
class Search:
    """The published search: a coarse grid by validation accuracy, then eight halvings around its best.

    Attributes:
        strengths, accuracies: of all fits, in order. strength: of the one that is taken.
    """

    features: Tensor
    labels: Tensor
    validation: tuple[Tensor, Tensor]
    strengths: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    strength: float = 1.0

    def _fit(self, strength: float) -> tuple[float, LogisticRegression]:
        """Return the validation accuracy in per cent, and the regression."""
        model = regression(self.features, self.labels, strength)
        accuracy = 100 * float(model.score(*(part.cpu().numpy() for part in self.validation)))
        self.strengths.append(strength)
        self.accuracies.append(accuracy)
        return accuracy, model

    def run(self) -> LogisticRegression:
        """Return the better regression of the last round; of equal ones that of the smaller C."""
        best = _STRENGTHS[int(np.argmax([self._fit(strength)[0] for strength in _STRENGTHS]))]
        left, right = 1e-1 * best, 1e1 * best
        for _ in range(_ROUNDS):
            lower, upper = self._fit(left), self._fit(right)
            middle = float(10 ** (0.5 * (np.log10(left) + np.log10(right))))
            self.strength, model = (right, upper[1]) if lower[0] < upper[0] else (left, lower[1])
            left, right = (middle, right) if lower[0] < upper[0] else (left, middle)
        return model


@register_method("linear_probe", in_all=False, groups=("fewshot",))
class LinearProbe(Affine):
    """Needs an image of every class: one without images gets the lowest score."""

    card = MethodCard(
        title="Linear probe",
        paper="Radford et al., ICML 2021 (CLIP)",
        arxiv="2103.00020",
        repository="HealthX-Lab/BiomedCoOp",
        equation="min C sum_i CE(W f_i + b) + |W|^2 / 2",
        trains="W [C, E] and b [C]",
        count="C (E + 1)",
        deviations=(
            "one C for all datasets and shots where no validation images are used; the codes search it",
        ),
    )
    Options = LinearProbeOptions

    def fit(self, support: Support) -> None:
        """Fit the regression, with C searched on validation images where they are given.

        Raises:
            DataError: all images are of one class.
        """
        present = support.labels.unique()
        if len(present) < 2:
            raise DataError("linear_probe: all images of the support are of one class; raise --shots")
        if support.validation is None:
            model = regression(support.images, support.labels, self.options.C)
        else:
            model = Search(support.images, support.labels, support.validation).run()
        weights = support.images.new_zeros(self.classes, support.images.shape[1])
        bias = support.images.new_full((self.classes,), -1e4)  # a class without images is never chosen
        rows = torch.from_numpy(model.coef_).to(weights), torch.from_numpy(model.intercept_).to(bias)
        if len(present) == 2:  # one row tells two classes apart
            rows = torch.cat([-rows[0], rows[0]]) / 2, torch.cat([-rows[1], rows[1]]) / 2
        weights[present], bias[present] = rows
        self.keep(weights=weights, bias=bias)

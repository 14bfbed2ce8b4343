"""Tip-Adapter: labelled images as a cache of keys and values beside the zero-shot scores, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmark.backbones.towers.precision import full_precision, similarity
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.feature_space import FeatureSpace, one_hot
from methods.lpp import accuracy
from methods.supervision import Support


@dataclass(frozen=True)
class TipOptions:
    """Options in the authors' spelling; both are searched where there are validation images."""

    alpha: float = setting(1.0, "weight of the cache", low=0)
    beta: float = setting(1.0, "sharpness of the cache", above=0)
    search_step: int = setting(200, "values of alpha and of beta that are searched", low=1)
    search_scale: float = setting(50.0, "largest alpha and beta that are searched", above=0.1)


@dataclass(frozen=True)
class Cache:
    """Keys ``[N, E]``, values ``[N, C]`` and how they act: scores of unit-norm features ``[..., E]``."""

    keys: Tensor
    values: Tensor
    alpha: float
    beta: float

    def scores(self, features: Tensor) -> Tensor:
        """Return ``alpha exp(-beta (1 - f K)) V``, ``[..., C]``."""
        with full_precision(features.device):
            return self.alpha * (-self.beta * (1 - similarity(features, self.keys))).exp() @ self.values


def searched(
    cache: Cache, zero_shot: Tensor, support: tuple[Tensor, Tensor], step: int, scale: float
) -> Cache:
    """Return the cache with alpha and beta of the best validation accuracy: beta outside, the first best wins.

    Args:
        cache: keys and values.
        zero_shot: logits of the validation images.
        support: these images and their labels.
        step: values of each.
        scale: their largest.
    """
    values = [index * (scale - 0.1) / step + 0.1 for index in range(step)]
    near, best, found = similarity(support[0], cache.keys), -1.0, cache
    for beta in values:
        near_classes = (-beta * (1 - near)).exp() @ cache.values
        for alpha in values:
            score = accuracy(zero_shot + alpha * near_classes, support[1])
            if score > best:
                best, found = score, Cache(cache.keys, cache.values, alpha, beta)
    return found


@register_method("tip_adapter", in_all=False, groups=("fewshot",))
class TipAdapter(FeatureSpace):
    """One key per image; a class without images has its prompt alone."""

    card = MethodCard(
        title="Tip-Adapter",
        paper="Zhang et al., ECCV 2022",
        arxiv="2111.03930",
        repository="gaopengcuhk/Tip-Adapter",
        equation="logits = s f t + alpha exp(-beta (1 - f K)) Y, K the support's features, Y one-hot",
        trains="nothing; keeps K [N, E], Y [N, C] and alpha, beta",
        count="N (E + C) + 2, all of them kept, none trained",
        deviations=(
            "alpha = beta = 1 unless validation images are used; the codes search 200 x 200 values on them",
            "s is the model's own (the code has a constant), keys are features of images that are not augmented",
        ),
    )
    Options = TipOptions
    learnt = ("cache_keys", "cache_values", "alpha_beta")
    cosines: ClassVar[bool] = False

    def fit(self, support: Support) -> None:
        """Fill the cache."""
        cache = self.cache_of(support)
        if support.validation is not None:
            images, labels = support.validation
            zero_shot = self.model_scale * similarity(images, support.classes.frozen())
            with torch.no_grad():
                cache = searched(
                    cache, zero_shot, (images, labels), self.options.search_step, self.options.search_scale
                )
        self.store(cache)

    def cache_of(self, support: Support) -> Cache:
        """Return the cache of a support."""
        values = one_hot(support.labels, self.classes)
        return Cache(support.images, values, self.options.alpha, self.options.beta)

    def store(self, cache: Cache) -> None:
        """Keep a cache."""
        how = torch.tensor([cache.alpha, cache.beta], device=cache.keys.device)
        self.keep(cache_keys=cache.keys, cache_values=cache.values, alpha_beta=how)

    def classifier(self) -> Tensor:
        """Return the frozen model's class features ``[C, E]``."""
        return self.text

    def scores(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return logits ``[..., C]``."""
        alpha, beta = self.fitted["alpha_beta"]
        with full_precision(features.device):
            near = (-beta * (1 - similarity(features, self.fitted["cache_keys"]))).exp()
            return similarity(self.model_scale * features, classes) + alpha * similarity(
                near, self.fitted["cache_values"].T
            )

    def expected_parameters(self) -> int:
        """Return N (E + C) + 2."""
        images = len(self.fitted["cache_keys"]) if "cache_keys" in self.fitted else 0
        return images * (self.backbone.embed_dim + self.classes) + 2 * bool(images)

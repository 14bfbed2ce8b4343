"""Tip-Adapter-F: the keys of Tip-Adapter's cache, trained for a few epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones.towers.precision import similarity
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.lpp import accuracy
from methods.supervision import Support
from methods.tip_adapter import Cache, TipAdapter, TipOptions, searched


@dataclass(frozen=True)
class TipFOptions(TipOptions):
    """Options in the authors' spelling."""

    lr: float = setting(1e-3, "learning rate of AdamW, cosine to 0", above=0)
    epochs: int = setting(20, "passes over the support", low=1)
    eps: float = setting(1e-4, "AdamW's epsilon", above=0)
    weight_decay: float = setting(1e-2, "AdamW's weight decay", low=0)


def rates(options: TipFOptions) -> list[float]:
    """Return the learning rate of each epoch: cosine to 0."""
    return [
        options.lr / 2 * (1 + math.cos(math.pi * epoch / options.epochs)) for epoch in range(options.epochs)
    ]


def loss_of(cache: Cache, zero_shot: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of images ``[N, E]``; ``zero_shot`` are their logits ``[N, C]``."""
    return functional.cross_entropy(zero_shot + cache.scores(images), labels)


def trained(
    cache: Cache, zero_shot: Tensor, images: Tensor, labels: Tensor, options: TipFOptions
) -> Iterator[Cache]:
    """Yield the cache after each epoch, all images being one batch.

    Args:
        cache: where it starts.
        zero_shot: logits ``[N, C]`` of the images.
        images: unit norm ``[N, E]``.
        labels: ``[N]``.
        options: how.
    """
    keys = cache.keys.clone().requires_grad_()
    optimiser = torch.optim.AdamW([keys], eps=options.eps, weight_decay=options.weight_decay)
    for rate in rates(options):
        with torch.enable_grad():
            loss = loss_of(dataclasses.replace(cache, keys=keys), zero_shot, images, labels)
            (keys.grad,) = torch.autograd.grad(loss, keys)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        yield dataclasses.replace(cache, keys=keys.detach().clone())


@register_method("tip_adapter_f", in_all=False, groups=("fewshot",))
class TipAdapterF(TipAdapter):
    """Keys are not normalised again while they train."""

    card = MethodCard(
        title="Tip-Adapter-F",
        paper="Zhang et al., ECCV 2022",
        arxiv="2111.03930",
        repository="gaopengcuhk/Tip-Adapter",
        equation="logits = s f t + alpha exp(-beta (1 - f K)) Y, K trained",
        trains="K [N, E]; keeps Y [N, C] and alpha, beta",
        count="N (E + C) + 2, of which N E trained",
        deviations=(
            "the last epoch, alpha = beta = 1; with validation images the best epoch on them and a search",
            "the first code keeps the best epoch of the TEST images; copies that search before training train nothing",
            "the support is one batch and not augmented",
        ),
    )
    Options = TipFOptions

    def fit(self, support: Support) -> None:
        """Train the keys; with validation images keep the first best epoch, then search alpha and beta."""
        cache, text = self.cache_of(support), support.classes.frozen()
        zero_shot = self.model_scale * similarity(support.images, text)
        epochs = list(trained(cache, zero_shot, support.images, support.labels, self.options))
        kept = epochs[-1]
        if support.validation is not None:
            images, labels = support.validation
            plain = self.model_scale * similarity(images, text)
            with torch.no_grad():
                kept = max(epochs, key=lambda item: accuracy(plain + item.scores(images), labels))
                kept = searched(
                    kept, plain, (images, labels), self.options.search_step, self.options.search_scale
                )
        self.store(kept)

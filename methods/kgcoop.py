"""KgCoOp: CoOp whose text features are held near those of the frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Embeddings, MethodCard
from methods.layers.prompts import ContextMethod, ContextOptions
from methods.supervision import Classes


@dataclass(frozen=True)
class KgCoOpOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's."""

    w: float = setting(8.0, "weight of the distance", low=0)


def distance(text: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean of ``1 - cos`` of unit-norm features ``[N, E]``, a scalar."""
    return (1 - (text * frozen).sum(dim=-1)).mean()


@register_method("kgcoop", in_all=False, groups=("fewshot",))
class KgCoOp(ContextMethod):
    """One shared context; the distance is taken between classes, or between reports."""

    card = MethodCard(
        title="KgCoOp",
        paper="Yao et al., CVPR 2023",
        arxiv="2303.13283",
        repository="htyao89/KgCoOp",
        equation="L + w mean_c(1 - cos(t_c, t0_c)), t0 of the frozen model",
        trains="ctx [n_ctx, text width]",
        count="n_ctx * text width",
        deviations=(
            "t0 comes from the same prompts as t, without the context (the authors write one for each dataset)",
            "one w for all datasets (the tables for BiomedCLIP take 1 to 10 by dataset)",
        ),
    )
    Options = KgCoOpOptions
    frozen_targets = frozenset({"text"})
    cost_hint = 0.5

    def embed(self, batch: Any) -> Embeddings:
        """Return the pairs' features, and the frozen ones of the texts."""
        return {**super().embed(batch), "frozen": self.frozen_features(batch, "text")}

    def loss_of(self, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the card's loss of pairs."""
        moved = distance(embeddings["text"], embeddings["frozen"])
        return super().loss_of(embeddings, labels) + self.options.w * moved

    def embed_classes(self, batch: Any, classes: Classes) -> Embeddings:
        """Return the cosines with the classes, and how far these have moved."""
        text = classes.prepared(self)
        cosines = self.classify(batch, text)
        return {"cosines": cosines, "moved": distance(text, classes.frozen()).expand(len(cosines))}

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return the card's loss of labelled images."""
        return super().loss_of_classes(embeddings, labels) + self.options.w * embeddings["moved"].mean()

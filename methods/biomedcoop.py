"""BiomedCoOp: CoOp guided by sentences about each class: their mean, and a teacher of those without outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones.towers.precision import at_least_fp32, similarity
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Embeddings, MethodCard
from methods.layers.prompts import ContextMethod, ContextOptions
from methods.supervision import Classes


@dataclass(frozen=True)
class BiomedCoOpOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's."""

    sccm_lambda: float = setting(0.5, "weight of the distance to the sentences' mean", low=0)
    kdsp_lambda: float = setting(0.25, "weight of the distillation", low=0)
    tau: float = setting(1.5, "largest |z| of a sentence that teaches", low=1)


@dataclass(frozen=True)
class Selection:
    """Which sentences teach in a batch.

    Attributes:
        scores, z: ``[P]``. kept: bool ``[P]``.
    """

    scores: Tensor
    z: Tensor
    kept: Tensor


def select(images: Tensor, sentences: Tensor, scale: float | Tensor, tau: float) -> Selection:
    """Return the sentences without outliers, by the mean over images of the largest logit of a class.

    Args:
        images: unit norm ``[B, E]``.
        sentences: unit norm ``[C, P, E]``.
        scale: of logits.
        tau: largest |z| that is kept.
    """
    logits = scale * torch.einsum("be,cpe->bcp", images, sentences)
    scores = logits.amax(dim=1).mean(dim=0)
    z = (scores - scores.mean()) / scores.std() if len(scores) > 1 else torch.zeros_like(scores)
    return Selection(scores, z, ~(z.abs() > tau))


def mean_of(sentences: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return unit-norm means ``[C, E]`` of sentences ``[C, P, E]``, or of those that are kept, bool ``[P]``."""
    # as a product: choosing rows by a mask would make a GPU wait
    weighted = sentences if kept is None else sentences * kept[:, None]
    return functional.normalize(weighted.sum(dim=1), dim=-1)


def to_mean(text: Tensor, mean: Tensor) -> Tensor:
    """Return the mean squared difference of unit-norm class features ``[C, E]``."""
    return functional.mse_loss(text, mean)


def taught(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of rows of logits ``[B, C]``, summed and divided by B C."""
    return functional.kl_div(
        student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True
    ) / (student.numel())


@register_method("biomedcoop", in_all=False, groups=("fewshot",))
class BiomedCoOp(ContextMethod):
    """Needs a file of sentences about each class: the key ``descriptions`` of the data entry."""

    card = MethodCard(
        title="BiomedCoOp",
        paper="Koleilat et al., CVPR 2025",
        arxiv="2411.15232",
        repository="HealthX-Lab/BiomedCoOp",
        equation="CE + l1 MSE(t, mean of sentences) + l2 KL(teacher, student) / C, teacher: sentences with |z| <= tau",
        trains="ctx [n_ctx, text width]",
        count="n_ctx * text width",
        deviations=(
            "l1, l2 and tau are the same for all datasets (the authors tune them for each)",
            "the median step before the z-score is left out: it changes nothing",
        ),
    )
    Options = BiomedCoOpOptions
    needs_classes = True
    needs_descriptions = True
    splits = False
    cost_hint = 0.6

    def embed_classes(self, batch: Any, classes: Classes) -> Embeddings:
        """Return the cosines with the classes, those of the teacher, and the distance to the sentences' mean.

        Raises:
            ConfigError: there are no sentences.
        """
        if classes.descriptions is None:
            raise ConfigError(
                "biomedcoop: no sentences about the classes. Name a JSON file {class: [sentence, ...]} as "
                "'descriptions' of the data entry"
            )
        sentences = functional.normalize(at_least_fp32(classes.descriptions), dim=-1)
        image, text = self.embed_images(batch), classes.prepared(self)  # the image tower is frozen
        with torch.no_grad():
            scale = self.logit_scale()
            kept = select(image, sentences.to(image), scale, self.options.tau).kept
            teacher = similarity(image, mean_of(sentences, kept))
        cosines = self.classify(batch, text)
        apart = to_mean(text, mean_of(sentences).to(text)).expand(len(cosines))
        return {"cosines": cosines, "teacher": teacher, "apart": apart}

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return the card's loss."""
        student = self.logit_scale() * embeddings["cosines"]
        teacher = self.logit_scale().detach() * embeddings["teacher"]
        loss = functional.cross_entropy(student, labels)
        loss = loss + self.options.sccm_lambda * embeddings["apart"].mean()
        return loss + self.options.kdsp_lambda * taught(student, teacher)

"""ProGrad: CoOp whose gradient never points against what the frozen model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones.towers.precision import similarity
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Embeddings, MethodCard
from methods.layers.prompts import ContextMethod, ContextOptions
from methods.supervision import Classes


@dataclass(frozen=True)
class ProGradOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's."""

    lambda_: float = setting(1.0, "share of the conflicting part that is taken away", low=0)
    T: float = setting(1.0, "temperature of the distillation", above=0)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of softened rows of logits ``[N, C]``, times T^2."""
    target = (teacher / temperature).softmax(dim=-1)
    return -(target * (student / temperature).log_softmax(dim=-1)).sum(dim=-1).mean() * temperature**2


def combined(task: Tensor, general: Tensor, share: float) -> Tensor:
    """Return the task's gradient without ``share`` of its part against the general gradient; one tensor's."""
    product = (task * general).sum()
    against = task - share * product / general.square().sum() * general
    return torch.where(product < 0, against, task)


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return a scalar whose value and whose gradients are the given ones."""
    pairs = zip(parameters, gradients, strict=True)
    linear = sum((one * grad.detach()).sum() for one, grad in pairs if grad is not None)
    return value.detach() + (linear - linear.detach()) if isinstance(linear, Tensor) else value.detach()


@register_method("prograd", in_all=False, groups=("fewshot",))
class ProGrad(ContextMethod):
    """The loss is cross-entropy by value; its gradient is combined with that of distilling the frozen model."""

    card = MethodCard(
        title="ProGrad",
        paper="Zhu et al., ICCV 2023",
        arxiv="2205.14865",
        repository="BeierZhu/Prompt-align",
        equation="g = g_ce - lambda <g_ce, g_kl> / |g_kl|^2 g_kl where <g_ce, g_kl> < 0, tensor by tensor; else g_ce",
        trains="ctx [n_ctx, text width]",
        count="n_ctx * text width",
        deviations=(
            "the teacher is the frozen model on the same prompts (BiomedCoOp's copy distils the student into itself)",
            "pairs: the distillation compares rows of the matrix of logits, images with texts",
        ),
    )
    Options = ProGradOptions
    frozen_targets = frozenset({"image", "text"})
    splits = False
    cost_hint = 0.8

    def embed(self, batch: Any) -> Embeddings:
        """Return the pairs' features, and the frozen ones."""
        frozen = {f"frozen_{kind}": self.frozen_features(batch, kind) for kind in ("image", "text")}
        return {**super().embed(batch), **frozen}

    def loss_of(self, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the contrastive loss with the combined gradient."""
        student = self.logits(embeddings["image"], embeddings["text"])
        teacher = self.logits(embeddings["frozen_image"], embeddings["frozen_text"]).detach()
        return self._joined(self.objective(student, labels), distillation(student, teacher, self.options.T))

    def embed_classes(self, batch: Any, classes: Classes) -> Embeddings:
        """Return the cosines with the classes, and those of the frozen model."""
        image = self.embed_images(batch)  # the image tower is frozen
        return {
            "cosines": similarity(image, classes.prepared(self)),
            "teacher": similarity(image, classes.frozen()),
        }

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return cross-entropy with the combined gradient."""
        student, scale = self.logit_scale() * embeddings["cosines"], self.logit_scale().detach()
        task = functional.cross_entropy(student, labels)
        return self._joined(task, distillation(student, scale * embeddings["teacher"], self.options.T))

    def _joined(self, task: Tensor, general: Tensor) -> Tensor:
        if not task.requires_grad:
            return task
        parameters = list(self.trainable_parameters().values())
        first, second = (
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for loss in (task, general)
        )
        gradients = [
            one if one is None or other is None else combined(one, other, self.options.lambda_)
            for one, other in zip(first, second, strict=True)
        ]
        return with_gradients(task, parameters, gradients)

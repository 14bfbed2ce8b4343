"""What a batch supervises with: the pairing of images and reports, class labels, or findings.

A method is told neither. It says how a batch is embedded and what the loss of that is, once for pairs
(:meth:`Method.embed`, :meth:`Method.loss_of`) and once for classes (:meth:`Method.embed_classes`,
:meth:`Method.loss_of_classes`), and inherits both; the object that a batch carries asks for its own. Embeddings have
the batch in front in both worlds, so that parts of a batch and shares of several processes are joined alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.nn import functional

from benchmark.backbones.towers.precision import at_least_fp32
from benchmark.world import ALONE, World
from methods.losses import focal_loss

if TYPE_CHECKING:
    from methods.base import Embeddings, Method


class Supervision(Protocol):
    """Turns a method's embeddings of a batch into the loss."""

    def embed(self, method: Method, batch: Any) -> Embeddings:
        """Return all that :meth:`loss_of` needs of a batch or a part of one, with the batch in front."""

    def loss_of(self, method: Method, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the scalar loss of an embedded batch."""

    def loss(self, method: Method, batch: Any, world: World = ALONE) -> Tensor:
        """Return the scalar loss of a whole batch, which several processes may hold alike."""


class Pairs:
    """Each image belongs to its report: a contrastive loss over the batch; labels are findings ``[B, K]`` or None."""

    def embed(self, method: Method, batch: Any) -> Embeddings:
        """Return the method's embeddings of pairs."""
        return method.embed(batch)

    def loss_of(self, method: Method, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the method's loss of embedded pairs."""
        return method.loss_of(embeddings, labels)

    def loss(self, method: Method, batch: Any, world: World = ALONE) -> Tensor:
        """Return the method's loss of pairs."""
        return method.loss_together(batch, world)


PAIRS = Pairs()


@dataclass(frozen=True, eq=False)
class Classes:
    """Each image belongs to one of C classes: cross-entropy over their prompts; labels are class indices ``[B]``.

    Attributes:
        prompts: token ids ``[C, T, L]`` of T templates filled with each class.
        features: what the frozen text tower makes of them, not normalised, ``[C, T, E]``.
        descriptions: the same of P sentences about each class, ``[C, P, E]``; None where nobody gave any.
    """

    prompts: Tensor
    features: Tensor
    descriptions: Tensor | None = None

    def frozen(self) -> Tensor:
        """Return the frozen model's class features ``[C, E]``: normalise, mean over templates, normalise."""
        return functional.normalize(
            functional.normalize(at_least_fp32(self.features), dim=-1).mean(dim=1), dim=-1
        )

    @property
    def text(self) -> Tensor:
        """The mean over templates of the features as they are, ``[C, E]``: where several classifiers start."""
        return at_least_fp32(self.features).mean(dim=1)

    def prepared(self, method: Method) -> Any:
        """Return what :meth:`Method.classify` needs of the classes; a text tower that is not adapted need not work."""
        if "text" in method.adapts:
            return method.prepare_classes(self.prompts)
        return method.from_class_features(self.features)

    def embed(self, method: Method, batch: Any) -> Embeddings:
        """Return the method's embeddings of labelled images."""
        return method.embed_classes(batch, self)

    def loss_of(self, method: Method, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the method's loss of embedded, labelled images."""
        assert labels is not None  # a batch of this world has them
        return method.loss_of_classes(embeddings, labels)

    def loss(self, method: Method, batch: Any, world: World = ALONE) -> Tensor:
        """Return the method's loss of labelled images; every process computes the whole."""
        return self.loss_of(method, self.embed(method, batch), batch.labels)


PRESENT, ABSENT = "{} is present.", "{} is not present."
"""The pair of prompts of a finding (CT-CLIP, arXiv 2403.17834)."""


@dataclass(frozen=True, eq=False)
class Findings:
    """Each image shows some of K findings: focal loss of pairs of prompts; labels are findings ``[B, K]``.

    Attributes:
        prompts: 2 K prompts as classes, those that affirm all findings, then those that deny them.
        shares: of positives in the corpus, ``[K]``.
    """

    prompts: Classes
    shares: Tensor

    def embed(self, method: Method, batch: Any) -> Embeddings:
        """Return the cosines ``[B, 2 K]`` of images with all prompts."""
        return {"cosines": method.classify(batch, self.prompts.prepared(method))}

    def loss_of(self, method: Method, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the focal loss of the scaled differences of both cosines."""
        assert labels is not None  # a batch of this world has them
        present, absent = at_least_fp32(embeddings["cosines"]).chunk(2, dim=1)
        return focal_loss(method.logit_scale() * (present - absent), labels, self.shares)

    def loss(self, method: Method, batch: Any, world: World = ALONE) -> Tensor:
        """Return the focal loss of labelled images; every process computes the whole."""
        return self.loss_of(method, self.embed(method, batch), batch.labels)


@dataclass(frozen=True, eq=False)
class Support:
    """What a classifier in feature space is fitted to; all features are the frozen tower's, of length 1.

    Attributes:
        images: ``[N, E]``. labels: class indices ``[N]``. classes: to which they refer.
        validation: more of both, to choose settings by; None where nothing is to be chosen.
        unlabelled: images ``[M, E]`` whose classes are not told; None without.
    """

    images: Tensor
    labels: Tensor
    classes: Classes
    validation: tuple[Tensor, Tensor] | None = None
    unlabelled: Tensor | None = None

    @property
    def text(self) -> Tensor:
        """See :attr:`Classes.text`."""
        return self.classes.text

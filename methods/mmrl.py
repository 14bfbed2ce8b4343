"""MMRL: tokens of one shared representation space in the upper blocks of both towers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Intervention, Tower
from benchmark.backbones.towers.precision import at_least_fp32, full_precision, similarity
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Embeddings, Method, MethodCard
from methods.layers.official import OfficialTensors
from methods.layers.prompts import BlockTokens
from methods.supervision import Classes


@dataclass(frozen=True)
class MMRLOptions:
    """Options in the authors' spelling.

    Raises:
        ConfigError: no layer gets tokens.
    """

    n_rep_tokens: int = setting(5, "tokens K", low=1)
    rep_layers: tuple[int, ...] | None = setting(
        None,
        "layers that get them, counted from 1 on the shallower tower (a deeper one is aligned at the top); none takes "
        "the upper half and the layer below it (the authors' 6..12)",
    )
    rep_dim: int = setting(512, "width of the representation space", low=1)
    alpha: float = setting(0.7, "weight of the class feature in the loss", low=0, high=1)
    reg_weight: float = setting(0.2, "weight of the distance to the frozen features", low=0)

    def __post_init__(self) -> None:
        if self.rep_layers is not None and not self.rep_layers:
            raise ConfigError("rep_layers: expected at least one layer")


@register_method("mmrl")
class MMRL(Method):
    """Class feature and representation feature train together; unseen classes are scored by the class feature alone."""

    card = MethodCard(
        title="MMRL",
        paper="Guo and Gu, CVPR 2025",
        arxiv="2503.08497",
        repository="yunncheng/MMRL",
        equation="L = a NCE(f_c, w) + (1 - a) NCE(f_r, w) + l mean(1 - <f_c, f_0>) + l mean(1 - <w, w_0>)",
        trains="R [K, d], one aligner d -> width per layer and tower, P_r [image width, E]",
        count="K d + L (d v + v) + L (d w + w) + v E: 5,911,552 at BiomedCLIP's size",
        deviations=("l = 0.2, the authors' value for training on one source and testing elsewhere",),
    )
    Options = MMRLOptions
    adapts = frozenset({"image", "text"})
    frozen_targets = frozenset({"image", "text"})
    cost_hint = 1.0

    def setup(self) -> None:
        """Create tokens, aligners and the projection of the representation feature."""
        image, text, dim = self.backbone.image, self.backbone.text, self.options.rep_dim
        shallower = min(image.depth, text.depth)
        self.layers = self.options.rep_layers or tuple(range(max(1, shallower // 2), shallower + 1))
        if not all(1 <= layer <= shallower for layer in self.layers):
            raise ConfigError(f"rep_layers: expected layers from 1 to {shallower}, got {self.layers}")
        self.tokens = nn.Parameter(torch.randn(self.options.n_rep_tokens, dim) * 0.02)
        self.aligners = nn.ModuleDict()
        for tower in (image, text):
            source = nn.Linear(dim, tower.width)
            self.aligners[tower.kind] = nn.ModuleList(copy.deepcopy(source) for _ in self.layers)
        projection = torch.randn(image.width, self.backbone.embed_dim) * image.width**-0.5
        self.projections = nn.ParameterDict({"image": nn.Parameter(projection)})

    def block_tokens(self, tower: Tower) -> dict[int, Tensor]:
        """Return block index -> aligned tokens ``[K, width]``."""
        offset = tower.depth - min(self.backbone.image.depth, self.backbone.text.depth) - 1
        aligners: Any = self.aligners[tower.kind]
        return {
            layer + offset: align(self.tokens) for layer, align in zip(self.layers, aligners, strict=True)
        }

    def image_interventions(self) -> Iterable[Intervention]:
        """Insert the image tokens at the first layer, replace them at the others."""
        return (BlockTokens(self.block_tokens(self.backbone.image)),)

    def text_interventions(self) -> Iterable[Intervention]:
        """Insert the text tokens at the first layer, replace them at the others."""
        return (BlockTokens(self.block_tokens(self.backbone.text)),)

    def encode_both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit-norm class features f_c and representation features f_r, ``[B, E]`` each."""
        tower = self.backbone.image
        sequence = tower.forward(images, interventions=self.image_interventions()).sequence
        mean = at_least_fp32(sequence.tokens[:, 1 : 1 + self.options.n_rep_tokens]).mean(dim=1)
        with full_precision(mean.device):
            representation = mean @ self.projections["image"]
        plain = self.from_image_features(tower.project(tower.head_norm(tower.pool(sequence))))
        return plain, functional.normalize(representation, dim=-1)

    def embed(self, batch: Any) -> Embeddings:
        """Return class, representation, text and frozen features of a batch."""
        plain, representation = self.encode_both(batch.images)
        return {
            "image": plain,
            "representation": representation,
            "text": self.encode_text(batch.token_ids),
            **{f"frozen_{kind}": self.frozen_features(batch, kind) for kind in ("image", "text")},
        }

    def loss_of(self, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the card's loss."""
        alpha, weight, text = self.options.alpha, self.options.reg_weight, embeddings["text"]
        contrastive = alpha * self.objective(self.logits(embeddings["image"], text), labels)
        representation = self.logits(embeddings["representation"], text)
        contrastive = contrastive + (1 - alpha) * self.objective(representation, labels)
        moved = (1 - (embeddings["image"] * embeddings["frozen_image"]).sum(dim=-1)).mean()
        moved = moved + (1 - (text * embeddings["frozen_text"]).sum(dim=-1)).mean()
        return contrastive + weight * moved

    def embed_classes(self, batch: Any, classes: Classes) -> Embeddings:
        """Return the cosines of both image features with the classes, and how far images and classes have moved."""
        plain, representation = self.encode_both(batch.images)
        text = self.class_features(classes.prompts)
        frozen = self.frozen_features(batch, "image")
        moved = (1 - (plain * frozen).sum(dim=-1)) + (1 - (text * classes.frozen()).sum(dim=-1)).mean()
        cosines, represented = similarity(plain, text), similarity(representation, text)
        return {"cosines": cosines, "representation": represented, "moved": moved}

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return the card's loss with cross-entropy over classes in the place of NCE."""
        alpha, scale = self.options.alpha, self.logit_scale()
        loss = alpha * functional.cross_entropy(scale * embeddings["cosines"], labels)
        loss = loss + (1 - alpha) * functional.cross_entropy(scale * embeddings["representation"], labels)
        return loss + self.options.reg_weight * embeddings["moved"].mean()

    def expected_parameters(self) -> int:
        """Return K d + L (d v + v) + L (d w + w) + v E."""
        dim, layers = self.options.rep_dim, len(self.layers)
        image, text = self.backbone.image.width, self.backbone.text.width
        aligners = layers * (dim * image + image + dim * text + text)
        return int(self.options.n_rep_tokens) * dim + aligners + image * self.backbone.embed_dim


def load_official(method: MMRL, state: Mapping[str, Any]) -> None:
    """Load ``representation_learner.compound_rep_tokens*`` and ``image_encoder.proj_rep``.

    Raises:
        StoreError: if a tensor is missing or of another shape.
    """
    tensors, prefix = OfficialTensors(method, state), "representation_learner.compound_rep_tokens"
    tensors.copy(prefix, method.tokens)
    tensors.copy("image_encoder.proj_rep", method.projections["image"])
    for kind, official in (("image", "r2vproj"), ("text", "r2tproj")):
        aligners: Any = method.aligners[kind]
        for index, aligner in enumerate(aligners):
            tensors.copy_all(f"{prefix}_{official}.{index}", aligner)

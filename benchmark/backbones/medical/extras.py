"""Frozen modules that only a model's own score rule needs.

Shape letters: B batch, N cells, L pieces of text, S sentences, Q queries, T texts, C width, E shared width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.records import WORD_TABLE
from benchmark.backbones.medical.text import BertTower, SentenceTower
from benchmark.backbones.medical.visual import Visual

_QUERY_HEADS = 4
"""Attention heads of KAD's decoder; shapes do not tell it."""


class _Part(nn.Module):
    """Base of the parts: knows the image encoder, the text tower and the sizes of all tensors."""

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__()
        self._beside = (visual, tower)  # in a tuple, so that their tensors are not registered here again


class Cells(_Part):
    """The projected cells ``[B, N, E]`` of images: those whose mean is the image's feature (KAD)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the cells, row by row, not normalised."""
        return self._beside[0].cell_features(images)


class Regions(_Part):
    """GLoRIA's regions ``[B, N, E]``: cells of the third stage through a map of their own."""

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__(visual, tower, shapes)
        outputs, inputs = shapes["extras.image_tokens.embedder.weight"]
        self.embedder = nn.Linear(inputs, outputs, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the regions, row by row, not normalised."""
        return self.embedder(self._beside[0].last_map(images, stages=3).flatten(2).transpose(1, 2))


class MixedCells(_Part):
    """PRIOR's local image features ``[B, N, E]``, with its reshape of the last map.

    The published code reads ``[B, C, h, w]`` as ``[B, h w, C]`` without turning it, which mixes channels and places. It
    is kept for the published score alone.
    """

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__(visual, tower, shapes)
        outputs, inputs = shapes["extras.image_tokens.projection.weight"]
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, not normalised."""
        features = self._beside[0].last_map(images)
        return self.projection(features.reshape(len(features), -1, features.shape[1]))


class Pieces(_Part):
    """What a text tower pools: pieces ``[B, L, C]`` and bool ``[B, L]``, or PRIOR's prototypes ``[B, S, E]``."""

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and which of them are real, of ids ``[B, L]``."""
        tower = self._beside[1]
        pooled_from = tower.prototypes if isinstance(tower, SentenceTower) else tower.piece_features
        return pooled_from(token_ids)


class Continues(_Part):
    """Whether a piece goes on with the word before it: ids ``[B, L]`` -> bool ``[B, L]``.

    Attributes:
        table: bool ``[words]``; filled when the words are known.
    """

    table: Tensor

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__(visual, tower, shapes)
        self.register_buffer("table", torch.zeros(shapes[WORD_TABLE][0], dtype=torch.bool), persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look the pieces up."""
        return self.table[token_ids]


class LocalAttention(_Part):
    """PRIOR's sigmoid attention between cells and texts, in both directions."""

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__(visual, tower, shapes)
        width = shapes["extras.local_attention.query1.weight"][0]
        for side in (1, 2):  # images, texts; values serve its training alone
            for part in ("query", "key", "value"):
                self.add_module(f"{part}{side}", nn.Linear(width, width))

    def forward(self, image_tokens: Tensor, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return how cells ``[B, N, E]`` look at texts ``[T, E]``, ``[B, N, T]``, and texts at cells, ``[B, T, N]``."""
        parts: Any = self
        root = image_tokens.shape[-1] ** 0.5
        by_image = parts.query1(image_tokens) @ parts.key2(text_tokens).T / root
        by_text = parts.query2(text_tokens) @ parts.key1(image_tokens).transpose(1, 2) / root
        return by_image.sigmoid(), by_text.sigmoid()


class Queries(_Part):
    """KAD's query network: class names ask the cells of an image, pre-norm, four layers.

    One norm serves both inputs and the output. Queries attend to one another: the score of a class depends on the list.
    """

    def __init__(self, visual: Visual, tower: BertTower, shapes: Shapes) -> None:
        super().__init__(visual, tower, shapes)
        classes, width = shapes["extras.tqn.head.weight"]
        hidden = shapes["extras.tqn.decoder.layers.0.linear1.weight"][0]
        layer = nn.TransformerDecoderLayer(
            width, _QUERY_HEADS, hidden, activation="relu", batch_first=True, norm_first=True
        )
        count = shapes.count("extras.tqn.decoder.layers")
        self.decoder = nn.TransformerDecoder(layer, count, nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, image_tokens: Tensor, queries: Tensor) -> Tensor:
        """Return logits ``[B, Q, 2]`` (absent, present) of cells ``[B, N, E]`` and queries ``[Q, E]``, as they are."""
        norm: Any = self.decoder.norm
        asked = norm(queries).expand(len(image_tokens), -1, -1)
        return self.head(self.decoder(asked, norm(image_tokens)))


KINDS: dict[str, type[_Part]] = {
    "cells": Cells,
    "regions": Regions,
    "mixed_cells": MixedCells,
    "pieces": Pieces,
    "continues": Continues,
    "local_attention": LocalAttention,
    "queries": Queries,
}


def build_extras(kinds: Mapping[str, str], visual: Any, tower: Any, shapes: Shapes) -> nn.ModuleDict:
    """Build the parts of a record, with random weights.

    Args:
        kinds: name -> kind of each part.
        visual: the image encoder.
        tower: the view of the text encoder.
        shapes: of all tensors.

    Raises:
        MissingTensor: a tensor that tells a size is not there.
    """
    return nn.ModuleDict({name: KINDS[kind](visual, tower, shapes) for name, kind in kinds.items()})

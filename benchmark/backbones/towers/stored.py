"""In the place of an image tower: features that were computed before. There is nothing in it to change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.backbone import InputSpec
from benchmark.backbones.towers.base import ImageTower, Intervention, TokenSequence, TowerOutput
from benchmark.errors import BenchmarkError


class FeatureSpec(InputSpec):
    """What is taken: stored features of ``size``, as they are."""

    def to_input(self, pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return features ``[B, *size]`` as float32 ``[B, 1, *size]``; BenchmarkError for pixels."""
        raw = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
        if raw.ndim != len(self.size) + 1:
            raise BenchmarkError("this backbone takes stored features, and the dataset has images")
        return raw.to(device, non_blocking=True).float().unsqueeze(1)


class FeatureTower(ImageTower):
    """Hands stored features on; tokens pass the source's pooling and projection.

    Args:
        source: the tower that made them.
        tokens: whether they are tokens, which pass its pooling and projection.
    """

    def __init__(self, source: ImageTower, *, tokens: bool) -> None:
        super().__init__()
        self._source = source if tokens else None
        self.blocks, self.num_heads = [], source.num_heads
        self.width, self.embed_dim = source.width, source.embed_dim
        self.grid, self.image_size = (), (source.embed_dim,)

    def check_changeable(self) -> NoReturn:
        """Refuse."""
        refuse_change()

    def features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return features ``[B, E]`` of inputs ``[B, 1, E]`` or tokens ``[B, 1, N, D]``.

        Raises:
            BenchmarkError: something is to act inside of the tower.
        """
        if tuple(interventions):
            refuse_change()
        if self._source is None:
            return inputs[:, 0]
        sequence = TokenSequence(inputs[:, 0], None, pooled_at=0, content_at=0)
        return self._source.project(self._source.head_norm(self._source.pool(sequence)))

    def forward(self, inputs: Tensor, **wanted: Any) -> TowerOutput:
        """Refuse: there are no blocks."""
        refuse_change()

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Refuse."""
        refuse_change()

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Refuse."""
        refuse_change()

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Refuse."""
        refuse_change()

    def project(self, tokens: Tensor) -> Tensor:
        """Refuse."""
        refuse_change()

    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Refuse."""
        refuse_change()

    def linears(self, index: int) -> NoReturn:
        """Refuse."""
        refuse_change()


def refuse_change() -> NoReturn:
    """Raise BenchmarkError: the method changes the image tower, or looks into it."""
    raise BenchmarkError(
        "image features come from a file here, so nothing can change or look into the image tower. Take a method that "
        "leaves it alone: CoOp, CoCoOp, TaskRes, CLIP-Adapter, LoRA with encoder=text, or one in feature space"
    )

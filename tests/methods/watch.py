"""Looking at what passes through a tower while a method acts on it, on the two small random models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from benchmark.backbones import Intervention, TokenSequence, Tower
from benchmark.conformance.small_models import FAMILIES, small_backbone, small_batch
from methods.base import Method

both_families = pytest.mark.parametrize("family", FAMILIES)
both_towers = pytest.mark.parametrize("kind", ["image", "text"])
END = 79
"""Id of the end token of the small models' texts."""


class Watcher(Intervention):
    """Keep every sequence that enters and leaves a block, after all other interventions; change nothing."""

    def __init__(self) -> None:
        self.embedded: Any = None
        self.before: list[TokenSequence] = []
        self.after: list[TokenSequence] = []

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        self.embedded = sequence
        return sequence

    def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        self.before.append(sequence)
        return sequence

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        self.after.append(after)
        return after

    @classmethod
    def of(cls, method: Method, kind: str, given: Tensor) -> Watcher:
        """Run one tower of a method and return what was seen."""
        watcher, tower = cls(), getattr(method.backbone, kind)
        given = method.text_ids(given) if kind == "text" else given
        tower.forward(given, interventions=(*getattr(method, f"{kind}_interventions")(), watcher))
        return watcher

    @property
    def lengths(self) -> list[int]:
        """Number of tokens that enter each block."""
        return [sequence.tokens.shape[1] for sequence in self.before]


def build(name: str, family: str, *, seed: int = 0, **options: Any) -> Method:
    """Build a method on a fresh small model, in eval mode."""
    torch.manual_seed(seed)
    return methods.build(name, small_backbone(family), **options).eval()


def inputs(family: str, pairs: int = 6) -> Any:
    """Return random pairs for a family."""
    return small_batch(small_backbone(family), pairs)


def frozen(family: str) -> Method:
    """Return the model with nothing added."""
    return build("zero_shot", family)


@torch.no_grad()
def move(method: Method, keep: Callable[[str], bool] = lambda _: True, size: float = 0.05) -> Method:
    """Move the trained tensors whose name passes away from where they are."""
    generator = torch.Generator().manual_seed(7)
    for name, value in method.trainable_parameters().items():
        if keep(name) and not name.startswith("logit_scale"):
            value.add_(size * torch.randn(value.shape, generator=generator))
    return method


def given(batch: Any, kind: str) -> Tensor:
    """Return the inputs of one tower."""
    return batch.images if kind == "image" else batch.token_ids


def one_step(method: Method, batch: Any) -> None:
    """Take one optimiser step."""
    optimiser = torch.optim.AdamW(method.trainable_parameters().values(), lr=1e-2)
    optimiser.zero_grad()
    method.loss(batch).backward()
    optimiser.step()

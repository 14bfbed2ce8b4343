"""A small corpus on the embedded backbone, for tests of training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import methods
from benchmark.backbones import Backbone, Tower, load_backbone
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data.batches import PairBatches
from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import LabelledImages, PairData
from methods.base import Method
from tasks.base import TaskContext

CPU = torch.device("cpu")
FINDINGS = ("edema", "pneumonia", "pneumothorax", "consolidation")


def whole_features(tower: Tower, inputs: Tensor, **how: Any) -> Tensor:
    """Return a tower's features ``[B, E]`` with the last block computed for all tokens, as libraries do it."""
    sequence = tower.forward(inputs, **how).sequence
    return tower.project(tower.head_norm(tower.pool(sequence)))


def corpus(count: int = 40, seed: int = 0) -> PairData:
    """Return pairs whose texts and labels tell their row: row i has finding i % 4 and is named "row i"."""
    generator = np.random.default_rng(seed)
    labels = np.eye(4, dtype=np.float32)[np.arange(count) % 4]
    return PairData(
        name="small",
        pixels=generator.integers(0, 256, (count, 64, 64), dtype=np.uint8),
        texts=[f"{FINDINGS[i % 4]} of case {i}." + " stable." * (i % 5) for i in range(count)],
        labels=labels,
        label_names=FINDINGS,
        ids=[f"row-{i}" for i in range(count)],
        digest=f"small-{count}-{seed}",
    )


def images(kind: str = "multiclass", count: int = 24) -> LabelledImages:
    """Return random images with classes."""
    generator = np.random.default_rng(1)
    targets = np.arange(count) % 3
    return LabelledImages(
        name="small",
        title="Small",
        kind=kind,
        pixels=generator.integers(0, 256, (count, 64, 64), dtype=np.uint8),
        targets=targets if kind == "multiclass" else np.eye(3, dtype=np.int64)[targets],
        classes=FINDINGS[:3],
        ids=[f"image-{i}" for i in range(count)],
        clusters=[f"patient-{i // 2}" for i in range(count)],
        digest=f"images-{kind}-{count}",
    )


def frozen(backbone: Backbone, folder: Path | None = None, precision: str = "fp32") -> FrozenFeatures:
    """Return a feature cache."""
    return FrozenFeatures(backbone, folder, precision=precision, batch_size=16, reporter=NullReporter())


def context(
    backbone: Backbone, data_root: Path, *, batch_size: int = 16, limit: int | None = None
) -> TaskContext:
    """Return the surroundings of an evaluation."""
    return TaskContext(
        templates=("a chest X-ray image of {}.", "Findings suggesting {}."),
        data_root=data_root,
        limit=limit,
        device=CPU,
        batch_size=batch_size,
        precision="fp32",
        frozen=frozen(backbone),
        reporter=NullReporter(),
    )


def method(name: str, *, seed: int = 0, **options: object) -> Method:
    """Return a method on a fresh tiny backbone."""
    torch.manual_seed(seed)
    return methods.build(name, load_backbone("tiny"), **options)


def batches(wrapped: Method, data: PairData | None = None, *, seed: int = 0, size: int = 16) -> PairBatches:
    """Return the batches of a small corpus for a method."""
    data = corpus() if data is None else data
    return PairBatches(wrapped, data, frozen(wrapped.backbone), batch_size=size, seed=seed, device=CPU)


RECIPE = Recipe(epochs=3, batch_size=16, lr=1e-2, warmup_epochs=0.5, log_every=1)

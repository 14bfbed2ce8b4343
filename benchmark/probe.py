"""How long a method's training step takes here: a few real steps on made-up images and the corpus's own texts."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.checkpoint import Checkpoint
from benchmark.config import RunConfig
from benchmark.console import NullReporter
from benchmark.data.batches import PairBatches
from benchmark.data.features import FrozenFeatures
from benchmark.data.load import load_dataset
from benchmark.data.samples import PairData, pairs
from benchmark.efficiency import parameter_counts
from benchmark.trainer import Trainer

STEPS = 20
_WARM_UP = 3
_METRIC = "none"


@dataclass(frozen=True)
class Timing:
    """What the steps of one method cost.

    Attributes:
        step_seconds: median duration. trained: trained values, the logit scale counted.
        peak_bytes: most memory that torch allocated on the GPU; None on a CPU.
    """

    step_seconds: float
    trained: int
    peak_bytes: int | None


class _Nowhere(Checkpoint):
    """Keeps nothing."""

    def load(self, say: object = None) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def prober(config: RunConfig, device: str, steps: int) -> Iterator[Callable[[str], Timing]]:
    """Load the backbone and give a function that times a method.

    Args:
        config: of the run; its corpus must be prepared.
        device: one device.
        steps: timed steps, those of the warm-up included.
    """
    backbone = load_backbone(config.backbone, pretrained=config.pretrained)
    entry = config.suite["corpus"]
    corpus = pairs(str(entry["dataset"]), load_dataset(entry, config.data_root, NullReporter()))
    with tempfile.TemporaryDirectory() as folder:
        shown = copy.deepcopy(backbone).to(device)
        frozen = FrozenFeatures(shown, Path(folder), precision="auto", batch_size=64, reporter=NullReporter())

        def time(method: str) -> Timing:
            return _timed(
                config, method, copy.deepcopy(backbone), corpus, frozen, torch.device(device), steps
            )

        yield time


def _timed(
    config: RunConfig,
    name: str,
    backbone: Backbone,
    corpus: PairData,
    frozen: FrozenFeatures,
    device: torch.device,
    steps: int,
) -> Timing:
    recipe = config.recipes[name]
    sample = _sample(corpus, steps * recipe.batch_size, backbone.input_spec.size)
    common = {"logit_scale": recipe.logit_scale, "loss": recipe.loss, "label_match": recipe.label_match}
    method = methods.build(name, backbone.to(device), **config.options[name], **common).to(device)
    batches = PairBatches(method, sample, frozen, batch_size=recipe.batch_size, seed=0, device=device)
    short = dataclasses.replace(
        recipe, max_steps=steps, epochs=math.ceil(steps / batches.steps), log_every=1, select="last"
    )
    trainer = Trainer(
        method, batches, short, validate=lambda _: {_METRIC: 0.0}, metric=_METRIC,
        checkpoint=_Nowhere(Path("unused"), ""), device=device, reporter=NullReporter(),
    )  # fmt: skip
    outcome = trainer.run()
    seconds = outcome.step_seconds[min(_WARM_UP, steps - 1) :]
    peak = outcome.peak_memory if device.type == "cuda" else None
    return Timing(float(np.median(seconds)), parameter_counts(method)["trainable"], peak)


def _sample(corpus: PairData, wanted: int, size: tuple[int, ...]) -> PairData:
    """Return the first pairs with noise for images: nothing is read, and time does not depend on what they show."""
    count = min(wanted, len(corpus.texts))
    channels = corpus.pixels.shape[len(size) + 1 :]
    noise = np.random.default_rng(0).integers(0, 256, (count, *size, *channels), dtype=np.uint8)
    return dataclasses.replace(
        corpus,
        pixels=noise,
        texts=corpus.texts[:count],
        labels=None if corpus.labels is None else corpus.labels[:count],
        ids=corpus.ids[:count],
        digest=f"noise-{count}",
    )

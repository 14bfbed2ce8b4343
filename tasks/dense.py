"""Shared by segmentation and detection: a small head trained on the frozen image tower of an adapted method.

The tower only gives feature maps (``tasks/heads/taps.py``): it runs in eval mode, without gradients, and nothing of it
changes. A task adds its head with the loss, its scores, and the arrays for pictures.

The head is trained on the part ``train``, selected on ``val``, and the part ``test`` is opened afterwards, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.backbones.towers.precision import autocast
from benchmark.data.entries import PARTS
from benchmark.data.prepared import Prepared
from benchmark.metrics.classification import UNTRAINED, WeightedMetric
from methods.base import Method
from tasks.base import DatasetResult, Task, TaskContext
from tasks.heads.images import DenseImages, DenseOptions, check_apart, check_truth, panel_rows, read_part
from tasks.heads.taps import DenseBatch, TapBatches, Taps
from tasks.heads.training import HeadFit, fit_head, seeded

CONSTANT_ANSWER = "One answer for every image"
"""Title of the reference row whose answer looks at no image."""


Prediction = TypeVar("Prediction")  # what a head finds in a part: masks, boxes


def references(metric: str) -> dict[str, str]:
    """Return what a dense task's first metric is held against; see :class:`benchmark.metrics.classification.Metric`."""
    return {f"{metric}_trivial": CONSTANT_ANSWER, f"{metric}{UNTRAINED}": "Untrained image tower"}


class DenseHead(ABC, Generic[Prediction]):
    """A network on frozen feature maps, its loss, and what its outputs mean.

    Attributes:
        head: the network, on the device.
    """

    head: nn.Module

    @abstractmethod
    def loss(self, batch: DenseBatch, images: DenseImages) -> Tensor:
        """Return the mean loss of a batch, in fp32; the truth is flipped and turned as its images are."""

    @abstractmethod
    def predict(self, batches: TapBatches, batch_size: int) -> Prediction:
        """Return the head's predictions for all images of a part; it is in eval mode, without gradients."""


class DenseTask(Task, Generic[Prediction]):
    """A task that trains a head on taps of the image tower.

    Class attributes:
        kind: of its results. truth: what images must bring.
    """

    image_only = True
    draws = True
    needs = PARTS
    validates = ()
    Options: ClassVar[type] = DenseOptions
    kind: ClassVar[str]
    truth: ClassVar[Literal["masks", "boxes"]]

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Refuse a part without masks or boxes."""
        del entry
        check_truth(data, cls.truth)
        return None

    @abstractmethod
    def new_head(self, taps: Taps, train: DenseImages, device: torch.device) -> DenseHead[Prediction]:
        """Return an untrained head for these taps; torch's generator is seeded."""

    @abstractmethod
    def score(self, found: Prediction, images: DenseImages) -> float:
        """Return the number that selects the head's weights on the validation part; larger is better."""

    @abstractmethod
    def constant(self, train: DenseImages, val: DenseImages) -> np.ndarray:
        """Return the best answer that is given for every image, whatever it shows."""

    @abstractmethod
    def formulas(
        self, found: Prediction, constant: np.ndarray, test: DenseImages
    ) -> dict[str, WeightedMetric]:
        """Return all metrics, that of the constant answer among them."""

    @abstractmethod
    def samples(self, found: Prediction, test: DenseImages, shown: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is stored of each image, and more of the rows ``shown``."""

    def notes(self, dense_head: Any, constant: np.ndarray) -> dict[str, Any]:
        """Return what else identifies the protocol of a result; ``dense_head`` is of :meth:`new_head`."""
        del dense_head, constant
        return {}

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Train a head on ``train``, select on ``val``, then open ``test`` and measure there, once."""
        options = self.options
        taps = Taps(method, options.taps, context, options.final_norm)
        parts = {part: self.part(entry, part, taps, context) for part in ("train", "val")}
        with seeded(context.seed, context.device):
            dense_head = self.new_head(taps, parts["train"], context.device)
        val = TapBatches(taps, parts["val"], context)

        def predict(batches: TapBatches) -> Prediction:
            with autocast(context.precision, context.device):
                return dense_head.predict(batches, context.batch_size)

        fit = fit_head(
            dense_head.head,
            TapBatches(taps, parts["train"], context, options.augment()),
            loss=lambda batch: dense_head.loss(batch, parts["train"]),
            validate=lambda: self.score(predict(val), parts["val"]),
            options=options,
            context=context,
            stage=f"train {self.kind} head {parts['train'].title}",
        )
        constant = self.constant(parts["train"], parts["val"])
        parts["test"] = test = self.part(entry, "test", taps, context)
        found = predict(TapBatches(taps, test, context))
        return DatasetResult.of(
            self.kind,
            self.formulas(found, constant, test),
            test,
            predictions=self.predictions(found, test),
            info=self.facts(parts, taps, dense_head.head, fit) | self.notes(dense_head, constant),
            resamples=options.bootstrap,
            seed=options.bootstrap_seed,
        )

    def part(self, entry: Mapping[str, Any], part: str, taps: Taps, context: TaskContext) -> DenseImages:
        """Open a part as the options require."""
        return read_part(
            entry,
            part,
            self.truth,
            context,
            taps.preprocess.fitting,
            positives_only=self.options.positives_only,
        )

    def predictions(self, found: Prediction, test: DenseImages) -> dict[str, np.ndarray]:
        """Return what is stored of the test part: results per image, and the images that are shown."""
        shown = panel_rows(test.ids, self.options.panels)
        return {
            "panel_id": np.array(test.ids)[shown],
            "panel_pixels": np.stack([test.pixels(row) for row in shown]) if len(shown) else np.empty(0),
            **self.samples(found, test, shown),
        }

    def facts(
        self, parts: Mapping[str, DenseImages], taps: Taps, head: nn.Module, fit: HeadFit
    ) -> dict[str, Any]:
        """Return what identifies the protocol of a result, for its ``info``."""
        store = parts["test"].store
        known = {key: store.info[key] for key in ("transform", "notes") if store.info.get(key)}
        return {
            "title": parts["test"].title,
            **{f"data_{key}": value for key, value in known.items()},
            **taps.preprocess.facts(),
            "images": {name: len(part) for name, part in parts.items()},
            "data": {name: part.digest for name, part in parts.items()},
            "shared_patients": check_apart(parts),
            "taps": list(taps.shapes),
            "head_parameters": sum(value.numel() for value in head.parameters()),
            "epochs": len(fit.history),
            "best_epoch": fit.best_epoch,
            "validation_score": fit.best_score,
            "history": fit.history,
        }

"""What a few-shot cell is adapted on: images drawn by its seed from the labelled images of a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmark.config.run_config import Recipe
from benchmark.data import fewshot
from benchmark.data.batches import ClassBatches
from benchmark.data.descriptions import Descriptions, read_descriptions
from benchmark.data.entries import load_dataset
from benchmark.data.samples import LabelledImages, labelled_images
from benchmark.errors import DataError
from benchmark.plan import CellSpec
from methods.base import Method
from methods.supervision import Classes, Support
from tasks.base import TaskContext, fill, prompt_ids


@dataclass(frozen=True)
class FewLabels:
    """The labelled images of a cell.

    Attributes:
        spec: of the cell. context: of its evaluations.
    """

    spec: CellSpec
    context: TaskContext

    @property
    def how(self) -> Mapping[str, Any]:
        """Protocol, dataset, shots, sampling and selection."""
        found: Mapping[str, Any] = self.spec.suite["support"]
        return found

    @cached_property
    def pool(self) -> LabelledImages:
        """All labelled images of all classes."""
        return self._opened(self.spec.suite["corpus"])

    @cached_property
    def _validation(self) -> LabelledImages | None:
        entry = self.spec.suite.get("validation")
        return None if entry is None else self._opened(entry)

    def _opened(self, entry: Mapping[str, Any]) -> LabelledImages:
        context = self.context
        prepared = load_dataset(entry, context.data_root, context.reporter, context.fitting)
        limits = [most for most in (entry.get("limit"), context.limit) if most is not None]
        return labelled_images(self.how["dataset"], prepared, dict(entry), limit=min(limits, default=None))

    @cached_property
    def rows(self) -> fewshot.Draw:
        """The rows that are drawn, of the pool and of the validation images; of all classes.

        Raises:
            DataError: there are none.
        """
        how, more = self.how, self._validation
        found = fewshot.draw(
            self.pool.targets.tolist(),
            [] if more is None else more.targets.tolist(),
            shots=how["shots"], seed=self.spec.seed, sampling=how["sampling"], selection=how["selection"],
            groups=self.pool.clusters,
        )  # fmt: skip
        if not found.train:
            raise DataError(f"dataset '{how['dataset']}': no labelled image is drawn; raise --shots")
        return found

    @property
    def _half(self) -> fewshot.Half:
        return "base" if self.how["protocol"] == "base_to_new" else "all"

    @cached_property
    def support(self) -> LabelledImages:
        """The images to adapt on; of the base classes alone where the others are to be new."""
        return self.pool.chosen(self.rows.train).of_half(self._half)

    @cached_property
    def validation(self) -> LabelledImages | None:
        """The images to choose settings by."""
        if self._validation is None or not self.rows.validation:
            return None
        return self._validation.chosen(self.rows.validation).of_half(self._half)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.pool.classes[slice(*_ends(fewshot.half(len(self.pool.classes), self._half)))]

    @cached_property
    def descriptions(self) -> Descriptions | None:
        """What the user's file says of the classes."""
        file = self.spec.suite["corpus"].get("descriptions")
        return None if file is None else read_descriptions(file, self._names)

    def classes(self, method: Method) -> Classes:
        """Return the prompts of the classes, as evaluations use them, with their frozen features."""
        ids = prompt_ids(method, [fill(self.context.templates, name) for name in self._names])
        said = self.descriptions
        described = None if said is None else self._of_texts(prompt_ids(method, said.sentences))
        return Classes(ids.to(self.context.device), self._of_texts(ids), described)

    def _of_texts(self, ids: Tensor) -> Tensor:
        """Return frozen features ``[C, T, E]`` of token ids ``[C, T, L]``."""
        features = self.context.frozen.of_texts(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        return features.to(self.context.device)

    def batches(self, method: Method, *, rank: int = 0, size: int = 1) -> ClassBatches:
        """Return the batches of a training: one epoch holds all passes over the images."""
        recipe = self.spec.recipe
        return ClassBatches(
            method, self.support, self.context.frozen, classes=self.classes(method), passes=recipe.epochs,
            batch_size=recipe.batch_size, seed=self.spec.seed, device=self.context.device,
            num_workers=self.spec.num_workers, rank=rank, size=size,
        )  # fmt: skip

    def recipe(self) -> Recipe:
        """Return the recipe for these batches, whose epoch is the whole training."""
        own = self.spec.recipe
        return dataclasses.replace(own, epochs=1, warmup_epochs=own.warmup_epochs / own.epochs)

    def fit(self, method: Method) -> None:
        """Fit a method to the features of the images."""
        validation = self.validation
        rest = sorted(set(range(len(self.pool))) - set(self.rows.train))
        method.fit(
            Support(
                images=self._features(method, self.support),
                labels=self._labels(self.support),
                classes=self.classes(method),
                validation=None
                if validation is None
                else (self._features(method, validation), self._labels(validation)),
                unlabelled=self._features(method, self.pool.chosen(rest)) if rest else None,
            )
        )

    def _features(self, method: Method, images: LabelledImages) -> Tensor:
        features = self.context.frozen.of_labelled(images).to(self.context.device)
        return method.from_image_features(features)

    def _labels(self, images: LabelledImages) -> Tensor:
        return torch.from_numpy(images.targets).to(self.context.device)

    def facts(self) -> dict[str, Any]:
        """Return what adapt.json says of the images: how many labels were seen, and a digest of their ids."""
        validation = self.validation
        images = self.support
        counts = torch.bincount(torch.from_numpy(images.targets), minlength=len(images.classes)).tolist()
        return {
            **images.facts,
            **(self.descriptions.facts() if self.descriptions else {}),
            "labels": len(images) + (0 if validation is None else len(validation)),
            "labels_for_validation": 0 if validation is None else len(validation),
            "images_of_class": dict(zip(images.classes, counts, strict=True)),
            "support": ids_digest(images.ids),
        }


def ids_digest(ids: Sequence[str]) -> str:
    """Return a digest of a list of ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def _ends(wanted: range) -> tuple[int, int]:
    return wanted.start, wanted.stop

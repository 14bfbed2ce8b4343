"""Batches of image-report pairs, ready for a method: constant features instead of inputs where a tower is frozen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import Batch, PairData
from benchmark.errors import DataError
from methods.base import Method


class PairBatches:
    """Batches of a corpus for one method: towers that it leaves alone bring features instead of inputs.

    Args:
        method: decides which inputs are needed and how texts are padded.
        corpus: the pairs.
        frozen: source of constant features.
        batch_size: pairs per step; the last, smaller batch of an epoch is dropped.
        seed: order of the epochs.
        device: where batches go.

    Raises:
        DataError: if the corpus is smaller than a batch.
    """

    def __init__(
        self,
        method: Method,
        corpus: PairData,
        frozen: FrozenFeatures,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if len(corpus) < batch_size:
            raise DataError(
                f"corpus '{corpus.name}' has {len(corpus)} pairs, fewer than one batch of {batch_size}: "
                "lower --batch-size or raise --limit"
            )
        self._method, self._corpus = method, corpus
        self._batch_size, self._seed, self._device = batch_size, seed, device
        token_ids = method.backbone.tokenize(corpus.texts)
        constant = {"image", "text"} - method.adapts
        wanted = constant | method.frozen_targets
        self.constant = sorted(constant)
        self._images = frozen.of_images(corpus.pixels, corpus.digest) if "image" in wanted else None
        self._texts = frozen.of_texts(token_ids) if "text" in wanted else None
        self._token_ids = token_ids.int()
        self._labels = None if corpus.labels is None else torch.from_numpy(corpus.labels)

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self._corpus) // self._batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; their order depends on seed and number alone."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self._corpus))
        for step in range(self.steps):
            yield self.batch(order[step * self._batch_size : (step + 1) * self._batch_size])

    def batch(self, rows: np.ndarray, *, cached: bool = True) -> Batch:
        """Return the pairs of ``rows``; with ``cached=False`` inputs even where features are constant."""
        # ascending reads are much cheaper on a memory-mapped file; the order within a batch changes nothing
        rows = np.sort(rows)
        index = torch.from_numpy(rows)
        batch = Batch(labels=None if self._labels is None else self._labels[index].to(self._device))
        features = {
            kind: values[index].to(self._device)
            for kind, values in (("image", self._images), ("text", self._texts))
            if values is not None
        }
        batch.frozen_image, batch.frozen_text = (
            features.get(kind) if kind in self._method.frozen_targets else None for kind in ("image", "text")
        )
        if cached and "image" in self.constant:
            batch.image_features = features["image"]
        else:
            batch.images = self._method.backbone.input_spec.to_input(self._corpus.pixels[rows], self._device)
        if cached and "text" in self.constant:
            batch.text_features = features["text"]
        else:
            batch.token_ids = self._padded(self._token_ids[index].long()).to(self._device)
        return batch

    def _padded(self, token_ids: Tensor) -> Tensor:
        longest = self._method.text_padding == "longest"
        return self._method.backbone.trim(token_ids) if longest else token_ids

"""Batches of image-report pairs or of labelled images for a method: cached features where a tower is frozen."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark.backbones.backbone import to_device
from benchmark.data.batch_size import check_corpus
from benchmark.data.features import FrozenFeatures
from benchmark.data.prepared import Array, Rows
from benchmark.data.samples import Batch, LabelledImages, PairData
from benchmark.errors import CellError, ConfigError
from methods.base import Method
from methods.supervision import ABSENT, PRESENT, Classes, Findings

_STEP = 16
"""Texts of similar length are padded to a multiple of this, so that few shapes occur."""


_CHUNK = 4096


class Batches:
    """Batches of a training set for one method: a tower that it leaves alone brings features instead of inputs.

    Args:
        method: decides which inputs are needed.
        data: images to train on.
        frozen: source of constant features and of token ids.
        batch_size: samples per step of all processes together; the last, smaller batch of an epoch is dropped.
        seed: order of the epochs.
        device: where batches go.
        num_workers: processes that read images ahead; 0 reads in this one. Batches are the same, bit for bit.
        rank, size: which process of how many this is: all draw the same order, each takes its share of every batch.
        start_method: how processes are started; None is the system's way.

    Raises:
        ConfigError: if the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        method: Method,
        data: PairData | LabelledImages,
        frozen: FrozenFeatures,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        num_workers: int = 0,
        rank: int = 0,
        size: int = 1,
        start_method: str | None = None,
    ) -> None:
        _check_shares(batch_size, size)
        self._method, self._count = method, len(data)
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._share = slice(rank * batch_size // size, (rank + 1) * batch_size // size)
        constant = {"image", "text"} - method.adapts
        self._wanted = constant | method.frozen_targets
        self.constant = sorted(constant)
        self._images = frozen.of_labelled(data) if "image" in self._wanted else None
        self._pixels = PixelRows(data.pixels)
        self._loader: PixelLoader | None = None
        if num_workers and "image" not in constant:
            self._loader = PixelLoader(
                data.pixels, workers=num_workers, device=device, start_method=start_method
            )

    @property
    def pairs(self) -> int:
        """Samples of the training set."""
        return self._count

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self._count // self._batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch; their order depends on seed and number alone.

        Args:
            number: of the epoch.
            start: batches to leave out, for a run that goes on in the middle of an epoch.

        Raises:
            CellError: a process that reads images failed.
        """
        rows = [np.sort(batch)[self._share] for batch in self._order(number)[start:]]
        if self._loader is None:
            yield from map(self.batch, rows)
        else:
            for chosen, pixels in zip(rows, self._loader.batches(rows), strict=True):
                yield self._batch(chosen, pixels)

    def batch(self, rows: np.ndarray, *, cached: bool = True) -> Batch:
        """Return the samples of ``rows``; with ``cached=False`` inputs even where features are constant."""
        # ascending reads are much cheaper on a memory-mapped file; the order within a batch changes nothing
        rows = np.sort(rows)
        needed = not cached or "image" not in self.constant
        return self._batch(rows, self._pixels[rows] if needed else None, cached=cached)

    def _order(self, number: int) -> np.ndarray:
        """Return the rows of all batches of an epoch, ``[steps, batch_size]``; each occurs once at most."""
        rng = np.random.default_rng([self._seed, number])
        return self._arranged(rng.permutation(self._count)[: self.steps * self._batch_size], rng)

    def _arranged(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return drawn rows as batches."""
        return order.reshape(self.steps, -1)

    def _batch(self, rows: np.ndarray, pixels: Tensor | None, *, cached: bool = True) -> Batch:
        """Return a batch on the device from ascending rows and their pixels, where images are needed."""
        batch = Batch()
        features = (
            None if self._images is None else to_device(self._images[torch.from_numpy(rows)], self._device)
        )
        batch.frozen_image = features if "image" in self._method.frozen_targets else None
        if pixels is None:
            batch.image_features = features
        else:
            batch.images = self._method.backbone.input_spec.to_input(pixels, self._device)
        return batch


class PairBatches(Batches):
    """Batches of image-report pairs.

    Args:
        method: decides, beside what :class:`Batches` asks, how texts are padded.
        corpus: the pairs.
        frozen, how: see :class:`Batches`.
        length_bucket: within so many batches rows are sorted by text length, so that those of a batch are similar, and
            the batches of the epoch are shuffled; 0 leaves rows as they were drawn. Acts where the method trains on
            texts padded to the longest of a batch.

    Raises:
        DataError: if the corpus is smaller than a batch.
        ConfigError: if the processes cannot share a batch evenly, or the loss needs labels that the corpus has not.
    """

    def __init__(
        self, method: Method, corpus: PairData, frozen: FrozenFeatures, *, length_bucket: int = 0, **how: Any
    ) -> None:
        check_corpus(corpus.name, len(corpus), [how["batch_size"]])
        super().__init__(method, corpus, frozen, **how)
        self._token_ids = frozen.token_ids(corpus.texts)
        self._texts = frozen.of_texts(self._token_ids) if "text" in self._wanted else None
        self._labels = None if corpus.labels is None else torch.from_numpy(corpus.labels)
        sorts = length_bucket and method.text_padding == "longest" and "text" not in self.constant
        self._bucket = length_bucket if sorts else 0
        self._lengths = self._text_lengths() if sorts else np.empty(0)
        self._findings = self._pairs_of_prompts(corpus, frozen) if method.objective.name == "focal" else None

    def _arranged(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self._bucket:
            return super()._arranged(order, rng)
        window = self._bucket * self._batch_size
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        alike = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        return alike.reshape(self.steps, -1)[rng.permutation(self.steps)]

    def _batch(self, rows: np.ndarray, pixels: Tensor | None, *, cached: bool = True) -> Batch:
        batch, index = super()._batch(rows, pixels, cached=cached), torch.from_numpy(rows)
        batch.labels = None if self._labels is None else to_device(self._labels[index], self._device)
        batch.supervision = self._findings or batch.supervision
        features = None if self._texts is None else to_device(self._texts[index], self._device)
        batch.frozen_text = features if "text" in self._method.frozen_targets else None
        if cached and "text" in self.constant:
            batch.text_features = features
        else:
            batch.token_ids = to_device(
                self._padded(torch.from_numpy(self._token_ids[rows]).long()), self._device
            )
        return batch

    def _pairs_of_prompts(self, corpus: PairData, frozen: FrozenFeatures) -> Findings:
        """Return what asks for every label of the corpus."""
        if self._labels is None:
            raise ConfigError(
                f"loss=focal learns findings, and corpus '{corpus.name}' has no labels: take loss=clip"
            )
        texts = [template.format(name) for template in (PRESENT, ABSENT) for name in corpus.label_names]
        ids = torch.from_numpy(frozen.token_ids(texts)).long()
        prompts = self._padded(ids)[:, None].to(self._device)
        classes = Classes(prompts, frozen.of_texts(ids)[:, None].to(self._device))
        known = ~self._labels.isnan()
        shares = ((self._labels == 1) & known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
        return Findings(classes, shares.to(self._device))

    def _padded(self, token_ids: Tensor) -> Tensor:
        if self._method.text_padding != "longest":
            return token_ids
        width = self._method.backbone.trim(token_ids).shape[1]
        return token_ids[:, : _STEP * -(-width // _STEP)] if self._bucket else token_ids[:, :width]

    def _text_lengths(self) -> np.ndarray:
        lengths = self._method.backbone.text.lengths
        starts = range(0, len(self._token_ids), _CHUNK)
        parts = (
            torch.from_numpy(self._token_ids[start : start + _CHUNK].astype(np.int64)) for start in starts
        )
        return np.concatenate([lengths(part).numpy() for part in parts])


class ClassBatches(Batches):
    """Batches of images with one class each; where there are fewer images than a batch, all of them are one.

    Args:
        method: see :class:`Batches`.
        support: the images.
        frozen, how: see :class:`Batches`.
        classes: of the images.
        passes: over the images in one epoch.
    """

    def __init__(
        self,
        method: Method,
        support: LabelledImages,
        frozen: FrozenFeatures,
        *,
        classes: Classes,
        passes: int = 1,
        **how: Any,
    ) -> None:
        size = min(how["batch_size"], len(support))
        super().__init__(method, support, frozen, **{**how, "batch_size": size})
        self._targets, self.classes, self._passes = torch.from_numpy(support.targets), classes, passes

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self._passes * super().steps

    def _order(self, number: int) -> np.ndarray:
        rng, whole = np.random.default_rng([self._seed, number]), super().steps * self._batch_size
        order = [rng.permutation(self._count)[:whole] for _ in range(self._passes)]
        return self._arranged(np.concatenate(order), rng)

    def _batch(self, rows: np.ndarray, pixels: Tensor | None, *, cached: bool = True) -> Batch:
        batch = super()._batch(rows, pixels, cached=cached)
        batch.labels = to_device(self._targets[torch.from_numpy(rows)], self._device)
        batch.supervision = self.classes
        return batch


def _check_shares(batch_size: int, size: int) -> None:
    if batch_size % size:
        raise ConfigError(
            f"--batch-size {batch_size} is the batch of all {size} processes together and must be a multiple of {size}"
        )


_AHEAD = 4
"""Batches that each process reads ahead."""


class PixelRows(Dataset[Tensor]):
    """Some rows at a time of an array of pixels; sent to another process, an array on disk travels as its place there.

    Args:
        pixels: uint8 ``[N, ...]``.
    """

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Return uint8 ``[len(rows), ...]``, a copy."""
        return torch.from_numpy(np.asarray(self.pixels[rows]))

    def __getstate__(self) -> tuple[Any, ...]:
        whole, rows = (
            (self.pixels.array, self.pixels.rows) if isinstance(self.pixels, Rows) else (self.pixels, None)
        )
        return *_reference(whole), rows

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        make, arguments, rows = state
        self.pixels = make(*arguments) if rows is None else Rows(make(*arguments), rows)


def _reference(array: np.ndarray) -> tuple[Any, ...]:
    """Return how another process makes an array: from its place in its file, or from its values if it is scattered."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return np.asarray, (np.array(array),)
    whole: Any = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return np.memmap, (str(array.filename), array.dtype, "r", offset, array.shape)


class PixelLoader:
    """Reads batches of rows ahead.

    Args:
        pixels: uint8 ``[N, ...]``.
        workers: processes, at least one. They live as long as this object.
        device: where the pixels go; for a GPU they are handed over in pinned memory, from which it copies by itself.
        start_method: "fork", "spawn" or "forkserver"; None is the system's own.
    """

    def __init__(
        self, pixels: Array, *, workers: int, device: torch.device, start_method: str | None = None
    ) -> None:
        self._device = device
        self._rows: list[np.ndarray] = []
        self._loader: DataLoader[Tensor] = DataLoader(
            PixelRows(pixels),
            batch_size=None,
            sampler=self._rows,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            multiprocessing_context=start_method,
            worker_init_fn=_leave_interrupts,
            generator=torch.Generator(),  # else every epoch would draw from the one that the run draws from
        )

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield the pixels of each item, uint8, in order.

        Raises:
            CellError: a process ended or could not read.
        """
        self._rows[:] = rows
        # memory is pinned for the GPU that is current
        current = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        with _no_signal_handler(), current:
            batches = iter(self._loader)
        for _ in rows:
            yield _next(batches)


def _leave_interrupts(_: int) -> None:
    """Leave Ctrl-C to the run, which may want the batches that it has asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _next(batches: Iterator[Tensor]) -> Tensor:
    try:
        return next(batches)
    except Exception as error:  # a process that dies shows as one of many, as it leaves connections half open
        reason = f"{type(error).__name__}: {error}".strip(" :\n").splitlines()[-1]
        raise CellError(
            f"a process that loads images failed or died ({reason}): lower --num-workers (0 reads without such "
            "processes); often there was too little memory or shared memory (/dev/shm)"
        ) from error


@contextlib.contextmanager
def _no_signal_handler() -> Iterator[None]:
    """Keep torch from raising out of a signal handler when a process dies: reading from it will tell."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere torch sets none
            signal.signal(signal.SIGCHLD, before)

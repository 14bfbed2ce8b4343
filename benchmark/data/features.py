"""Features of a frozen backbone's towers and token ids, computed once and cached on disk.

All methods that do not change a tower, and all seeds, read the same file. Nothing is random: no augmentation, towers in
eval mode. The towers use the arithmetic of the run, so that all rows of a table have the same one; features are stored
in fp32. The key contains all that they depend on: weights, input normalisation, data, arithmetic, kind of device, and
the version of this file. Features of images have their ids beside them: the dataset ``features`` reads such a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.backbones import Backbone
from benchmark.backbones.towers.precision import autocast, resolve
from benchmark.console import Reporter
from benchmark.data.cache import cached
from benchmark.data.prepared import Array
from benchmark.data.samples import LabelledImages, PairData
from benchmark.data.tokens import TokenIds, token_ids

_VERSION = 3
_CHUNK = 4096


class FrozenFeatures:
    """Cache of one backbone's pooled, projected, un-normalised features.

    Args:
        backbone: the frozen model. Its fingerprint is taken here, before any method can change it.
        folder: where features are kept; None keeps nothing.
        precision: of the towers, as the run's recipe has it.
        batch_size: inputs per forward pass; may be lowered where memory does not suffice.
        reporter: told about passes over a dataset.
    """

    def __init__(
        self, backbone: Backbone, folder: Path | None, *, precision: str, batch_size: int, reporter: Reporter
    ) -> None:
        self._backbone, self._folder = backbone, folder
        self._precision, self.batch_size, self._reporter = precision, batch_size, reporter
        self._fingerprint = f"{_VERSION}|{backbone.fingerprint()}|{backbone.input_spec}"

    def token_ids(self, texts: Sequence[str]) -> TokenIds:
        """Return token ids ``[N, context_length]`` of texts, padded."""
        return token_ids(self._backbone, texts, self._folder, self._reporter)

    def of_images(self, pixels: Array, digest: str, ids: Sequence[str] | None = None) -> Tensor:
        """Return ``[N, E]`` features of uint8 images on the CPU; ``digest`` identifies the images."""

        def encode(start: int, stop: int) -> Tensor:
            inputs = self._backbone.input_spec.to_input(pixels[start:stop], self._device)
            return self._backbone.image.features(inputs)

        return self._cached(f"image|{digest}", len(pixels), encode, ids)

    def of_labelled(self, data: PairData | LabelledImages) -> Tensor:
        """Return ``[N, E]`` features of a dataset's images; those of a selection are taken from all of them."""
        if isinstance(data, LabelledImages) and data.among is not None:
            whole, rows = data.among
            return self.of_images(whole.pixels, whole.digest, whole.ids)[torch.from_numpy(rows)]
        return self.of_images(data.pixels, data.digest, data.ids)

    def of_texts(self, ids: Tensor | npt.NDArray[np.integer]) -> Tensor:
        """Return ``[N, E]`` features of token ids ``[N, L]`` on the CPU."""
        rows = np.asarray(ids)
        digest = hashlib.sha256()
        for start in range(0, len(rows), _CHUNK):  # the same key for every width of integers
            digest.update(rows[start : start + _CHUNK].astype(np.int64).tobytes())

        def encode(start: int, stop: int) -> Tensor:
            part = self._backbone.trim(torch.from_numpy(rows[start:stop].astype(np.int64)))
            return self._backbone.text.features(part.to(self._device))

        return self._cached(f"text|{digest.hexdigest()}", len(rows), encode)

    def keep(
        self,
        what: str,
        key: str,
        make: Callable[[], Mapping[str, Tensor]],
        ids: Sequence[str] | None = None,
    ) -> Mapping[str, Tensor]:
        """Return tensors that are computed once.

        Args:
            what: in words.
            key: all that they depend on.
            make: computes them, on the CPU.
            ids: of their rows, written beside them.
        """
        about = None if ids is None else {"ids": json.dumps(list(ids))}
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cached(
            None if self._folder is None else self._folder / f"{name}.safetensors",
            make=make,
            read=load_file,
            write=lambda path, tensors: save_file(dict(tensors), path, about),
            what=what,
            reporter=self._reporter,
        )

    @property
    def _device(self) -> torch.device:
        return next(self._backbone.parameters()).device

    def _cached(
        self,
        what: str,
        count: int,
        encode: Callable[[int, int], Tensor],
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        kind = f"frozen {what.partition('|')[0]} features"
        how = f"{resolve(self._precision, self._device)}|{self._device.type}"
        key = f"{self._fingerprint}|{how}|{what}"
        made = self.keep(kind, key, lambda: {"features": self._compute(kind, count, encode)}, ids)
        return made["features"]

    @torch.no_grad()
    def _compute(self, kind: str, count: int, encode: Callable[[int, int], Tensor]) -> Tensor:
        self._reporter.start(kind, count)
        parts = []
        for start in range(0, count, self.batch_size):
            stop = min(count, start + self.batch_size)
            with autocast(self._precision, self._device):
                parts.append(encode(start, stop).float().cpu())
            self._reporter.advance(stop - start)
        return torch.cat(parts)

"""Features of frozen towers, computed once and kept on disk for every method that leaves the tower alone.

Exact because nothing is random: no augmentation, towers in eval mode, fp32. The key holds all that the features
depend on: weights, input normalisation, data, and the version of this file's arithmetic.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.backbones import Backbone
from benchmark.console import Reporter
from benchmark.data.prepared import Array

_VERSION = 1


class FrozenFeatures:
    """Cache of one backbone's pooled, projected, un-normalised features.

    Args:
        backbone: the frozen model. Its fingerprint is taken here, before any method can change it.
        folder: where features are kept; None keeps nothing.
        batch_size: inputs per forward pass.
        reporter: told about passes over a dataset.
    """

    def __init__(
        self, backbone: Backbone, folder: Path | None, *, batch_size: int, reporter: Reporter
    ) -> None:
        self._backbone, self._folder = backbone, folder
        self._batch_size, self._reporter = batch_size, reporter
        self._fingerprint = f"{_VERSION}|{backbone.fingerprint()}|{backbone.input_spec}"

    def of_images(self, pixels: Array, digest: str) -> Tensor:
        """Return ``[N, E]`` features of uint8 images on the CPU; ``digest`` identifies the images."""

        def encode(start: int, stop: int) -> Tensor:
            inputs = self._backbone.input_spec.to_input(pixels[start:stop], self._device)
            return self._backbone.image.features(inputs)

        return self._cached(f"image|{digest}", len(pixels), encode)

    def of_texts(self, token_ids: Tensor) -> Tensor:
        """Return ``[N, E]`` features of token ids ``[N, L]`` on the CPU."""
        digest = hashlib.sha256(token_ids.numpy().tobytes()).hexdigest()

        def encode(start: int, stop: int) -> Tensor:
            ids = self._backbone.trim(token_ids[start:stop].long())
            return self._backbone.text.features(ids.to(self._device))

        return self._cached(f"text|{digest}", len(token_ids), encode)

    @property
    def _device(self) -> torch.device:
        return next(self._backbone.parameters()).device

    def _cached(self, what: str, count: int, encode: Callable[[int, int], Tensor]) -> Tensor:
        key = hashlib.sha256(f"{self._fingerprint}|{what}".encode()).hexdigest()[:32]
        path = None if self._folder is None else self._folder / f"{key}.safetensors"
        if path is not None and path.exists():
            # a file that a full disk or a dead process left unreadable is simply computed again
            with contextlib.suppress(SafetensorError, OSError, KeyError):
                return load_file(path)["features"]
        features = self._compute(what.partition("|")[0], count, encode)
        if path is not None:
            _write(path, features)
        return features

    @torch.no_grad()
    def _compute(self, kind: str, count: int, encode: Callable[[int, int], Tensor]) -> Tensor:
        self._reporter.start(f"frozen {kind} features", count)
        parts = []
        for start in range(0, count, self._batch_size):
            stop = min(count, start + self._batch_size)
            parts.append(encode(start, stop).float().cpu())
            self._reporter.advance(stop - start)
        return torch.cat(parts)


def _write(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file({"features": features}, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)

"""Soft shapes and textures from which every picture is drawn: [n, P] fields over P pixels, float32.

Film axes: u to the right of the picture, v downwards, both about [-1, 1]; the patient's right is on the
picture's left. Compact bells and clipped ramps stand in for exponentials, and textures are picked from a
fixed bank instead of being filtered per image, for speed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FINE, CLOUD = 0, 1  # the two scales of the texture bank
_BANK_SIZE = 64
_CYCLES = (9.0, 3.0)  # cycles per film: fine grain, clouds


def grid(size: int) -> tuple[Array, Array]:
    """Return film coordinates (x, y) of every pixel of a size x size image, each [1, size * size]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    return np.tile(axis, size)[None], np.repeat(axis, size)[None]


def ramp(distance: Array, steepness: float = 16.0) -> Array:
    """Return an anti-aliased step from 0 to 1, ``1 / steepness`` wide and centred at 0."""
    step = distance * np.float32(steepness)
    step += np.float32(0.5)
    clipped: Array = np.clip(step, 0, 1, out=step)
    return clipped


def bump(squared: Array) -> Array:
    """Return the compact bell ``(1 - d2)^2`` where ``d2 < 1``, else 0; several times cheaper than exp."""
    bell = np.float32(1) - squared
    np.maximum(bell, 0, out=bell)
    squared_bell: Array = np.square(bell, out=bell)
    return squared_bell


def column(values: Any) -> Array:
    """Return values as a [n, 1] float32 column that broadcasts over pixels."""
    return np.asarray(values, np.float32).reshape(-1, 1)


def uniform(rng: np.random.Generator, count: int, low: float, high: float) -> Array:
    """Return a [count, 1] float32 column of uniform draws."""
    return rng.uniform(low, high, (count, 1)).astype(np.float32)


def normal(rng: np.random.Generator, count: int, mean: float, deviation: float) -> Array:
    """Return a [count, 1] float32 column of normal draws."""
    return (mean + deviation * rng.standard_normal((count, 1))).astype(np.float32)


def segment(u: Array, v: Array, start: tuple[Array, Array], end: tuple[Array, Array], width: float) -> Array:
    """Return a soft line of the given half-width between two points, whose coordinates are [n, 1] columns."""
    (au, av), (bu, bv) = start, end
    du, dv = bu - au, bv - av
    along = np.clip(((u - au) * du + (v - av) * dv) / (du * du + dv * dv), 0, 1)
    squared = (u - au - along * du) ** 2 + (v - av - along * dv) ** 2
    return bump(squared / np.float32(width**2))


@lru_cache(maxsize=4)
def _bank(size: int) -> tuple[Array, Array]:
    """Return 64 smooth unit-variance textures per scale, the same for all seeds: each [64, size, size]."""
    rng = np.random.Generator(np.random.PCG64(2024))
    frequency = np.fft.fftfreq(size) * size
    squared = frequency[:, None] ** 2 + frequency[None] ** 2
    banks = []
    for cycles in _CYCLES:
        white = rng.standard_normal((_BANK_SIZE, size, size))
        smooth = np.fft.ifft2(np.fft.fft2(white) * np.exp(-squared / (2 * cycles**2))).real
        banks.append((smooth / smooth.std(axis=(1, 2), keepdims=True)).astype(np.float32))
    return banks[0], banks[1]


def texture(rng: np.random.Generator, count: int, size: int, scale: int) -> Array:
    """Return smooth random textures of unit variance, [count, size * size]; scale is FINE or CLOUD."""
    bank = _bank(size)[scale]
    picked = bank[rng.integers(0, len(bank), count)]
    offset = (int(rng.integers(size)), int(rng.integers(size)))
    rolled: Array = np.roll(picked, offset, axis=(1, 2)).reshape(count, -1)
    return rolled

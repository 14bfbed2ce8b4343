"""From density to a film: response, exposure, blur, noise and burnt-in marks."""

from __future__ import annotations

import numpy as np

from benchmark.phantom.chest.domains import Domain
from benchmark.phantom.shapes import Array, normal, uniform

_GLYPHS = (
    np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], bool),  # L
    np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 1]], bool),  # R
)


def expose(rng: np.random.Generator, density: Array, domain: Domain, size: int) -> Array:
    """Turn densities [n, P] into films [n, size, size] uint8; air is dark, bone and metal are bright."""
    count = len(density)
    gamma = np.maximum(normal(rng, count, *domain.gamma), 0.5)
    film = np.clip(density / 0.95, 0.0, 1.4) ** gamma
    film = (
        0.5 + (film - 0.47) * normal(rng, count, *domain.contrast) + normal(rng, count, 0, domain.brightness)
    )
    film = film.reshape(count, size, size)
    _blur(rng, film, domain)
    film += rng.standard_normal(film.shape, dtype=np.float32) * uniform(rng, count, *domain.noise)[:, :, None]
    _collimate(rng, film, domain)
    _mark_side(rng, film, domain)
    _point(rng, film, domain)
    return (np.clip(film, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(rng: np.random.Generator, film: Array, domain: Domain) -> None:
    """One 3x3 binomial pass over a random share of the films."""
    rows = np.flatnonzero(rng.random(len(film)) < domain.blur)
    soft = film[rows]
    soft[:, 1:-1] = 0.25 * (soft[:, :-2] + soft[:, 2:]) + 0.5 * soft[:, 1:-1]
    soft[:, :, 1:-1] = 0.25 * (soft[:, :, :-2] + soft[:, :, 2:]) + 0.5 * soft[:, :, 1:-1]
    film[rows] = soft


def _collimate(rng: np.random.Generator, film: Array, domain: Domain) -> None:
    size = film.shape[-1]
    for row in np.flatnonzero(rng.random(len(film)) < domain.collimator):
        top, bottom, left, right = rng.integers(1, max(2, size // 14), 4)
        for edge in (np.s_[:top], np.s_[-bottom:], np.s_[:, :left], np.s_[:, -right:]):
            film[row][edge] = 0.02


def _mark_side(rng: np.random.Generator, film: Array, domain: Domain) -> None:
    size = film.shape[-1]
    for row in np.flatnonzero(rng.random(len(film)) < domain.marker):
        glyph = _GLYPHS[int(rng.integers(2))]
        y, margin = int(rng.integers(1, size // 8)), int(rng.integers(0, size // 10))
        x = margin if rng.random() < 0.5 else size - 4 - margin
        film[row, y : y + 4, x : x + 3][glyph] = 0.98


def _point(rng: np.random.Generator, film: Array, domain: Domain) -> None:
    """Publication figures carry arrows, which point at nothing in particular here."""
    size = film.shape[-1]
    for row in np.flatnonzero(rng.random(len(film)) < domain.arrow):
        y, x = rng.integers(size // 5, size * 4 // 5, 2)
        for step in range(5):
            film[row, y + step, x + step : x + step + 2] = 1.0
        film[row, y, x : x + 4] = 1.0
        film[row, y : y + 4, x] = 1.0

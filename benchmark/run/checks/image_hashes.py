"""Hashes and thumbnails of images, to find the same image or a near copy under any name.

Two images are the same if their prepared pixels or their source files are. Grey images have the same hash with one and
with three channels. Near copies, such as a film compressed or resized again, have thumbnails that correlate by more
than ``NEAR``. An image of (almost) one value has neither: two black films are not a leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.console import Reporter
from benchmark.data.cache import cached
from benchmark.data.prepared import FILES, LABEL_PREFIX, PIXELS, Array, Prepared
from benchmark.preprocess import THUMBNAIL

Numbers = npt.NDArray[np.uint64]
NEAR = 0.995
"""Correlation of thumbnails above which images are near copies; different chest films, drawn or real, reach .985."""
_VERSION = 1  # raise it whenever the same pixels would give another number
_CHUNK = 256
_ROWS, _COLUMNS, _PAIRS = 1024, 8192, 4096
_BLANK = 2
"""Largest spread of an image, in grey levels, that is taken for blank."""


@dataclass(frozen=True)
class Imprint:
    """The images of a dataset.

    Attributes:
        ids: N image ids. patients: N patient ids, empty where not known.
        pixels, files: N numbers each, of the prepared pixels and of the source file; 0 where there is none.
        thumbnails: ``[N, 32, 32]`` uint8; of one value where the image is blank or its pixels are not there.
        people: whose patient ids these are; only those of one name can be compared.
        key: tells these images from all others.
        labels: bool ``[N, K]``, which of the ``names`` each image shows; None where nothing is known of it.
    """

    ids: list[str]
    patients: list[str]
    pixels: Numbers
    files: Numbers
    thumbnails: Array
    people: str
    key: str
    labels: npt.NDArray[np.bool_] | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def named(self, rows: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        """Return the ids of some of the images, given as ``[N]``."""
        return tuple(self.ids[row] for row in np.flatnonzero(rows))

    def within(self, other: Imprint) -> npt.NDArray[np.bool_]:
        """Return which of these images, ``[N]``, are also in another dataset."""
        same = (np.isin(mine, theirs) & (mine != 0) for mine, theirs in self._beside(other))
        return np.logical_or.reduce(list(same))

    def of_patients_of(self, other: Imprint) -> npt.NDArray[np.bool_]:
        """Return which of these images, ``[N]``, are of patients that another dataset has too, as far as is known."""
        known = set(other.patients) - {""} if other.people == self.people else set()
        return np.array([patient in known for patient in self.patients], dtype=np.bool_)

    @cached_property
    def coarse(self) -> npt.NDArray[np.float32]:
        """What rules out near copies: ``[N, 64]``, zeros where there is no thumbnail."""
        return _coarse(self.thumbnails)

    def near(self, other: Imprint) -> npt.NDArray[np.intp]:
        """Return for each image, ``[N]``, one of another dataset that it is a near copy of, or -1.

        Unit vectors that correlate by r are sqrt(2 - 2 r) apart, and no further in a projection. So 64 numbers in place
        of 1,024 rule out almost all pairs; only those left are compared in full.
        """
        found = np.full(len(self), -1, dtype=np.intp)
        shown, there = (np.flatnonzero(one.coarse.any(axis=1)) for one in (self, other))
        for start in range(0, len(shown), _ROWS):
            for first in range(0, len(there), _COLUMNS):
                rows, columns = shown[start : start + _ROWS], there[first : first + _COLUMNS]
                rows = rows[found[rows] < 0]
                close = _squares(self.coarse[rows], other.coarse[columns]) < 2 - 2 * NEAR + 1e-4
                pairs = np.stack(np.divmod(np.flatnonzero(close), len(columns)))
                for begin in range(0, pairs.shape[1], _PAIRS):
                    row, column = pairs[:, begin : begin + _PAIRS]
                    row, column = rows[row], columns[column]
                    both = _units(self.thumbnails[row]) * _units(other.thumbnails[column])
                    near = both.sum(axis=1) > NEAR
                    found[row[near]] = column[near]
        return found

    def repeated(self) -> npt.NDArray[np.bool_]:
        """Return which images, ``[N]``, stand further up in this dataset already."""
        again = np.zeros(len(self), dtype=np.bool_)
        for numbers in (self.pixels, self.files):
            first = np.zeros(len(self), dtype=np.bool_)
            first[np.unique(numbers, return_index=True)[1]] = True
            again |= ~first & (numbers != 0)
        return again

    def contradicted(self, other: Imprint) -> list[tuple[int, int]]:
        """Return pairs of an image here and the same one there under other labels; in one dataset, each pair once."""
        if self.labels is None or other.labels is None or self.names != other.names:
            return []
        found: set[tuple[int, int]] = set()
        for mine, theirs in self._beside(other):
            there = _rows_of(theirs, mine)
            found |= {(row, column) for value, rows in _rows_of(mine, theirs).items() for row in rows
                      for column in there.get(value, ())}  # fmt: skip
        return sorted(
            (row, column)
            for row, column in found
            if (self is not other or row > column) and (self.labels[row] != other.labels[column]).any()
        )

    def _beside(self, other: Imprint) -> tuple[tuple[Numbers, Numbers], ...]:
        return (self.pixels, other.pixels), (self.files, other.files)


def imprint(data: Prepared, people: str, folder: Path | None, reporter: Reporter) -> Imprint:
    """Return the numbers of a dataset's images; those of its pixels are computed once and kept.

    Args:
        data: the dataset; one whose pixels are not made yet is known by its files alone.
        people: whose patient ids it has.
        folder: where numbers are kept; None keeps nothing.
        reporter: told about the work.
    """
    frame, count = data.manifest, len(data)
    ids = frame["image_id"].astype(str).tolist()
    key = hashlib.sha256("\n".join([f"{_VERSION} {data.digests[PIXELS]}", *ids]).encode()).hexdigest()
    pixels, thumbnails = np.zeros(count, dtype=np.uint64), data.thumbnails
    blank = np.zeros(count, dtype=np.bool_)
    if np.prod(data.pixels.shape[1:]):
        place = None if folder is None else folder / key[:32]
        pixels = _kept(place, "", row_numbers, data, reporter)
        blank = pixels == 0
        if thumbnails is None:  # drawn, or prepared before there were any
            thumbnails = _kept(place, "-thumbnails", row_thumbnails, data, reporter)
    if thumbnails is None:
        thumbnails = np.zeros((count, *THUMBNAIL.size), dtype=np.uint8)
    files = np.array([int(text[:16] or "0", 16) for text in _column(data, FILES)], dtype=np.uint64)
    files = np.where(blank, np.uint64(0), files)
    names = data.labels()
    labels = frame[[f"{LABEL_PREFIX}{name}" for name in names]].to_numpy() == 1 if names else None
    patients = _column(data, "patient_id")
    return Imprint(ids, patients, pixels, files, thumbnails, people, key, labels, tuple(names))


def row_numbers(pixels: Array, reporter: Reporter) -> Numbers:
    """Return the number of every image of uint8 ``[N, H, W]`` or ``[N, H, W, 3]``, or of stored features."""
    numbers = np.zeros(len(pixels), dtype=np.uint64)
    reporter.start("hash images", len(pixels))
    for start in range(0, len(pixels), _CHUNK):
        rows = np.asarray(pixels[start : start + _CHUNK])
        numbers[start : start + len(rows)] = [_number(row) for row in rows]
        reporter.advance(len(rows))
    return numbers


def row_thumbnails(pixels: Array, reporter: Reporter) -> npt.NDArray[np.uint8]:
    """Return the thumbnail, ``[N, 32, 32]``, of every image of uint8 ``[N, H, W]`` or ``[N, H, W, 3]``."""
    thumbnails = np.zeros((len(pixels), *THUMBNAIL.size), dtype=np.uint8)
    reporter.start("make thumbnails", len(pixels))
    for row in range(len(pixels)):
        image = np.asarray(pixels[row])
        thumbnails[row] = THUMBNAIL.pixels(image) if image.dtype == np.uint8 else _middle(image)
        reporter.advance()
    return thumbnails


def _middle(volume: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the thumbnail of a volume in Hounsfield units: its middle slice."""
    grey = (np.clip(volume[len(volume) // 2], -1000, 1000) + 1000) * (255 / 2000)
    return THUMBNAIL.pixels(np.rint(grey).astype(np.uint8))


def _rows_of(numbers: Numbers, wanted: Numbers) -> dict[int, list[int]]:
    """Return number -> rows that have it, of those that occur among others too; 0 is no number."""
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(numbers, wanted) & (numbers != 0)).tolist():
        found.setdefault(int(numbers[row]), []).append(row)
    return found


def _coarse(thumbnails: Array) -> npt.NDArray[np.float32]:
    """Return ``[N, 64]``, the orthogonal projection of the unit vectors of thumbnails onto means over 4 x 4 pixels."""
    means = np.kron(np.eye(8), np.full((4, 1), 0.5))
    onto = np.kron(means, means).astype(np.float32)
    steps = range(0, len(thumbnails), _COLUMNS)
    return np.concatenate([onto[:0], *(_units(thumbnails[i : i + _COLUMNS]) @ onto for i in steps)])


def _squares(ones: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the squared distances ``[N, M]`` of rows, by one product."""
    a, b = ((rows**2).sum(axis=1, keepdims=True) for rows in (ones, others))
    left = np.concatenate([-2 * ones, a, np.ones_like(a)], axis=1)
    squares: npt.NDArray[np.float32] = left @ np.concatenate([others, np.ones_like(b), b], axis=1).T
    return squares


def _units(thumbnails: Array) -> npt.NDArray[np.float32]:
    """Return thumbnails ``[N, 1024]`` less their mean, of length 1; zeros where they spread by a grey level or less."""
    values = np.asarray(thumbnails, dtype=np.float32).reshape(len(thumbnails), -1)
    values -= values.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
    blank = lengths <= np.sqrt(values.shape[1])
    values *= np.where(blank, 0, 1 / np.where(blank, 1, lengths)).astype(np.float32)
    return values


def _number(image: npt.NDArray[np.uint8]) -> int:
    # enough to see that most are neither blank nor grey in colour
    some = image[::8, ::8] if image.ndim > 1 else image
    blank = 0 if image.dtype.kind == "f" else _BLANK  # stored features have no grey levels
    if np.ptp(some) <= blank and np.ptp(image) <= blank:
        return 0
    if image.ndim == 3 and _is_grey(some) and _is_grey(image):
        image = image[:, :, 0]
    digest = hashlib.blake2b(f"{image.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return max(1, int.from_bytes(digest.digest(), "little"))


def _is_grey(image: npt.NDArray[np.uint8]) -> bool:
    return bool((image == image[:, :, :1]).all())


def _column(data: Prepared, name: str) -> list[str]:
    return data.manifest[name].astype(str).tolist() if name in data.manifest else [""] * len(data)


def _kept(
    place: Path | None, suffix: str, make: Callable[..., npt.NDArray[Any]], data: Prepared, reporter: Reporter
) -> npt.NDArray[Any]:
    return cached(
        None if place is None else place.with_name(f"{place.name}{suffix}.npy"),
        make=lambda: make(data.pixels, reporter),
        read=lambda path: np.load(path, allow_pickle=False),
        write=_save,
        what="image hashes",
        reporter=reporter,
    )


def _save(path: Path, numbers: npt.NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, numbers, allow_pickle=False)

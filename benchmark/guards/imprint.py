"""What an image shows as one number, so that the same image is found again whatever its name is.

Two images are the same when their prepared pixels are, or the files that they were made from. Grey images have the same
number with one and with three channels. An image of (almost) one value has none: two black films are no leak.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.console import Reporter
from benchmark.data.kept import kept
from benchmark.data.prepared import FILES, PIXELS, Array, Prepared

Numbers = npt.NDArray[np.uint64]
_VERSION = 1  # raise it whenever the same pixels would give another number
_CHUNK = 256
_BLANK = 2
"""Largest spread of an image, in grey levels, that is taken for blank."""


@dataclass(frozen=True)
class Imprint:
    """The images of a dataset.

    Attributes:
        ids: N image ids. patients: N patient ids, empty where not known.
        pixels, files: N numbers each, of the prepared pixels and of the source file; 0 where there is none.
        people: whose patient ids these are; only those of one name can be compared.
        key: tells these images from all others.
    """

    ids: list[str]
    patients: list[str]
    pixels: Numbers
    files: Numbers
    people: str
    key: str

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

    def repeated(self) -> npt.NDArray[np.bool_]:
        """Return which images, ``[N]``, stand further up in this dataset already."""
        again = np.zeros(len(self), dtype=np.bool_)
        for numbers in (self.pixels, self.files):
            first = np.zeros(len(self), dtype=np.bool_)
            first[np.unique(numbers, return_index=True)[1]] = True
            again |= ~first & (numbers != 0)
        return again

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
    pixels = np.zeros(count, dtype=np.uint64)
    if np.prod(data.pixels.shape[1:]):
        pixels = kept(
            None if folder is None else folder / f"{key[:32]}.npy",
            make=lambda: row_numbers(data.pixels, reporter),
            read=lambda path: np.load(path, allow_pickle=False),
            write=_save,
            what="image hashes",
            reporter=reporter,
        )
        blank = pixels == 0
    else:
        blank = np.zeros(count, dtype=np.bool_)
    files = np.array([int(text[:16] or "0", 16) for text in _column(data, FILES)], dtype=np.uint64)
    return Imprint(
        ids, _column(data, "patient_id"), pixels, np.where(blank, np.uint64(0), files), people, key
    )


def row_numbers(pixels: Array, reporter: Reporter) -> Numbers:
    """Return the number of every image of uint8 ``[N, H, W]`` or ``[N, H, W, 3]``."""
    numbers = np.zeros(len(pixels), dtype=np.uint64)
    reporter.start("hash images", len(pixels))
    for start in range(0, len(pixels), _CHUNK):
        rows = np.asarray(pixels[start : start + _CHUNK])
        numbers[start : start + len(rows)] = [_number(row) for row in rows]
        reporter.advance(len(rows))
    return numbers


def _number(image: npt.NDArray[np.uint8]) -> int:
    some = image[::8, ::8]  # enough to see that most images are neither blank nor grey in colour
    if np.ptp(some) <= _BLANK and np.ptp(image) <= _BLANK:
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


def _save(path: Path, numbers: Numbers) -> None:
    with path.open("wb") as file:
        np.save(file, numbers, allow_pickle=False)

"""Reading CT volumes: NIfTI files, folders of DICOM slices, arrays; and fitting them as whole Hounsfield units (HU).

Slope and intercept of a table are applied where the content says that they are missing, file by file: of CT-RATE, one
release of the files holds HU and the other does not, and the table is the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.backbones.volumes import VolumeFitting, check_hounsfield
from benchmark.data.prepare.images import ImageError, foreign
from benchmark.errors import DataError
from benchmark.files import file_sha256
from benchmark.preprocess import THUMBNAIL

Values = npt.NDArray[Any]
SUFFIXES = (".nii", ".nii.gz", ".npy", ".npz")
"""Of volumes in one file; a folder is a DICOM series."""
MAX_VOXELS = 1_500_000_000
"""Voxels that a file may declare: a small file may declare more than fits into memory."""
SPACING, AXES, SLOPE, INTERCEPT = "_spacing", "_axes", "_slope", "_intercept"
"""Columns of a reader's table: what a file does not say itself, or not reliably."""
_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
_UNEVEN = 0.02
"""Share by which steps between slices may differ."""


@dataclass(frozen=True)
class Scan:
    """A volume as it was read.

    Attributes:
        values: ``[i, j, k]``. axes: where each of them points, for example "LPS". spacing: millimetres along each.
        sha256: of its file, or of all files of its folder. kind: of the file.
    """

    values: Values
    axes: str
    spacing: tuple[float, float, float]
    sha256: str
    kind: str


def read_scan(path: Path, row: Mapping[str, Any] | None = None, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read a volume.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.npy``, ``.npz`` (key ``ct``, or the only array), or a folder with the slices of
            one DICOM series.
        row: of the reader's table; its ``_spacing`` (JSON, millimetres along each axis of the file) and ``_axes`` count
            for arrays, and for NIfTI files whose header is blank.
        max_voxels: a file that declares more is refused before it is read.

    Raises:
        ImageError: missing, damaged, too large, or no volume.
        DataError: a library is not installed.
    """
    told = row or {}
    if path.is_dir():
        return _series(path, max_voxels)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if meaning := "empty file" if not start else foreign(start):
        raise ImageError(f"{path}: {meaning}")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path, told, max_voxels)
    if name.endswith((".npy", ".npz")):
        return _array(path, told, max_voxels)
    raise ImageError(f"{path}: not a volume: expected {', '.join(SUFFIXES)}, or a folder of DICOM slices")


def hounsfield(scan: Scan, row: Mapping[str, Any] | None = None) -> tuple[Values, str]:
    """Return the HU of a scan, and where they come from: "metadata" (the table's slope and intercept) or "stored".

    Raises:
        ImageError: neither is HU, with the reason.
    """
    told = row or {}
    if told.get(INTERCEPT) not in (None, ""):
        scaled = scan.values * float(told.get(SLOPE) or 1) + float(told[INTERCEPT])
        try:
            check_hounsfield(scaled, "")
            return scaled, "metadata"
        except DataError:
            pass  # the file holds HU already, or nothing that is HU
    try:
        check_hounsfield(scan.values, "")
    except DataError as error:
        raise ImageError(str(error).removeprefix(": ")) from error
    return scan.values, "stored"


def fitted(
    path: Path, fitting: VolumeFitting, row: Mapping[str, Any] | None = None, max_voxels: int = MAX_VOXELS
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], dict[str, Any]]:
    """Return a volume as a model takes it, in whole HU ``[D, H, W]``, its thumbnail, and the facts of a journal.

    Raises:
        ImageError: it cannot be read, or does not hold HU.
    """
    scan = read_scan(path, row, max_voxels)
    values, source = hounsfield(scan, row)
    values, spacing = turned(values, scan.axes, scan.spacing, fitting.axes)
    whole = np.rint(fitting.volume(values, spacing)).astype(np.int16)
    notes = {"volume": scan.kind, "hu": source}
    size = {"width": int(values.shape[2]), "height": int(values.shape[1])}
    return whole, thumbnail(whole, fitting.window), {"sha256": scan.sha256, **size, "notes": notes}


def thumbnail(volume: Values, window: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the middle slice of a fitted volume in small."""
    low, high = window
    middle = volume[len(volume) // 2].astype(np.float64)
    grey = np.rint((np.clip(middle, low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return THUMBNAIL.pixels(grey)


def turned(
    values: Values, have: str, spacing: tuple[float, ...], want: str
) -> tuple[Values, tuple[float, ...]]:
    """Return a volume whose axes point elsewhere, and its spacing in that order; nothing is resampled."""
    order = [next(i for i, letter in enumerate(have) if letter in (one, _OPPOSITE[one])) for one in want]
    flips = tuple(slice(None, None, 1 if have[i] == one else -1) for i, one in zip(order, want, strict=True))
    return values.transpose(order)[flips], tuple(spacing[i] for i in order)


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a folder's files."""
    lines = (f"{item.name} {file_sha256(item)}" for item in _files(folder))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------- formats
def _nifti(path: Path, told: Mapping[str, Any], max_voxels: int) -> Scan:
    try:
        import nibabel
    except ImportError as error:
        raise DataError(_install(path, "NIfTI", "nibabel")) from error
    try:
        image: Any = nibabel.load(path)
        _check_shape(path, image.shape, max_voxels)
        affine = np.asarray(image.affine, dtype=np.float64)
        values = np.asanyarray(image.dataobj)
        axes = "".join(letter or "" for letter in nibabel.aff2axcodes(affine))
    except ImageError:
        raise
    except Exception as error:  # the library raises many kinds on damaged files
        raise ImageError(f"{path}: damaged NIfTI file ({_short(error)})") from error
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    blank = np.allclose(affine, np.eye(4)) and told.get(SPACING)
    if blank:
        axes, spacing = str(told.get(AXES) or "LPS"), _told_spacing(path, told)
    return Scan(_numbers(path, values), axes, _checked(path, spacing, axes), file_sha256(path), "nifti")


def _array(path: Path, told: Mapping[str, Any], max_voxels: int) -> Scan:
    try:
        content = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            names = list(content.files)
            if "ct" not in names and len(names) != 1:
                raise ImageError(f"{path}: no array 'ct'; it has {', '.join(names[:4])}")
            content = content["ct" if "ct" in names else names[0]]
        _check_shape(path, content.shape, max_voxels)
        values = np.asarray(content)
    except ImageError:
        raise
    except Exception as error:  # pickles, damaged archives
        raise ImageError(f"{path}: cannot be read as an array of numbers ({_short(error)})") from error
    axes, spacing = str(told.get(AXES) or "SPL"), _told_spacing(path, told)
    return Scan(_numbers(path, values), axes, _checked(path, spacing, axes), file_sha256(path), "array")


def _series(folder: Path, max_voxels: int) -> Scan:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_rescale
    except ImportError as error:
        raise DataError(_install(folder, "DICOM", "pydicom")) from error
    try:
        slices: list[Any] = [pydicom.dcmread(path) for path in _files(folder)]
        slices = [item for item in slices if "ImagePositionPatient" in item and "Rows" in item]
    except Exception as error:  # the library raises many kinds on damaged files
        raise ImageError(f"{folder}: damaged DICOM file ({_short(error)})") from error
    if len(slices) < 2:
        raise ImageError(f"{folder}: {len(slices)} DICOM slices with a position, expected a series")
    series = {str(item.get("SeriesInstanceUID")) for item in slices}
    forms = {(int(item.Rows), int(item.Columns), *map(float, item.PixelSpacing)) for item in slices}
    turns = {tuple(round(float(one), 4) for one in item.ImageOrientationPatient) for item in slices}
    for what, found in (("series", series), ("sizes or spacings", forms), ("orientations", turns)):
        if len(found) > 1:
            raise ImageError(f"{folder}: {len(found)} {what} in one folder, expected one")
    rows, columns, row_step, column_step = next(iter(forms))
    _check_shape(folder, (len(slices), int(rows), int(columns)), max_voxels)
    across, down = np.array(next(iter(turns))).reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([np.dot(normal, np.array(item.ImagePositionPatient, dtype=float)) for item in slices])
    order = np.argsort(places)
    steps = np.diff(places[order])
    step = float(np.median(steps))
    if step <= 0 or bool((np.abs(steps - step) > _UNEVEN * step).any()):
        raise ImageError(
            f"{folder}: slices are missing or stand twice: steps from {steps.min():g} to {steps.max():g} mm"
        )
    try:
        values = np.stack([apply_rescale(slices[i].pixel_array, slices[i]) for i in order])
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{folder}: DICOM that cannot be decoded ({_short(error)})") from error
    axes = "".join(_letter(direction) for direction in (normal, down, across))
    spacing = _checked(folder, np.array([step, row_step, column_step]), axes)
    return Scan(_numbers(folder, values), axes, spacing, folder_sha256(folder), "dicom")


def _letter(direction: Values) -> str:
    """Return where a direction in DICOM's coordinates (to the left, the back, the head) mostly points."""
    axis = int(np.abs(direction).argmax())
    return ("LPS" if direction[axis] > 0 else "RAI")[axis]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _told_spacing(path: Path, told: Mapping[str, Any]) -> Values:
    text = str(told.get(SPACING) or "")
    try:
        found = np.array(json.loads(text), dtype=np.float64)
    except ValueError:
        found = np.empty(0)
    if found.shape != (3,):
        raise ImageError(
            f"{path}: the file does not say its spacing: expected three numbers of millimetres, got '{text}'"
        )
    return found


def _checked(path: Path, spacing: Values, axes: str) -> tuple[float, float, float]:
    if sorted(letter if letter in "RAS" else _OPPOSITE.get(letter, "?") for letter in axes) != list("ARS"):
        raise ImageError(f"{path}: its axes point to '{axes}', expected one each of L/R, A/P and S/I")
    first, second, third = (float(step) for step in spacing)
    if not all(0 < step < math.inf for step in (first, second, third)):
        raise ImageError(f"{path}: spacing of {first:g} x {second:g} x {third:g} mm")
    return first, second, third


def _check_shape(path: Path, shape: tuple[int, ...], max_voxels: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ImageError(f"{path}: expected a volume of three axes, got {'x'.join(map(str, shape))}")
    if math.prod(shape) > max_voxels:
        raise ImageError(f"{path}: {'x'.join(map(str, shape))}, more than {max_voxels:,} voxels")


def _numbers(path: Path, values: Values) -> Values:
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{path}: voxels of kind {values.dtype}, expected numbers")
    if values.dtype.kind == "f" and not bool(np.isfinite(values).all()):
        raise ImageError(f"{path}: voxels that are not finite numbers")
    return values


def _install(path: Path, what: str, package: str) -> str:
    return f'{path}: reading {what} needs {package}: pip install "medpeft-bench[data]" (or pip install {package})'


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]

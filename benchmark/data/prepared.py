"""Prepared datasets: one folder layout for every source.

A prepared folder holds ``manifest.csv`` (row i describes image i), ``pixels.npy`` (uint8 [N, H, W] or [N, H, W, 3]; CT
volumes: int16 [N, D, H, W], Hounsfield units; memory mapped), optionally ``masks.npy`` (bool [N, H, W]), and
``prepare_report.json``: how it was made, counts, and the size and sha256 of each file. A generated folder appears whole
or not at all, so several processes may make the same one at once.

A folder prepared from downloads holds one pixel file per transform instead, ``pixels-<transform>.npy`` (and
``masks-...``, ``thumbnails-...``); only files that its report lists count, the report is written last.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmark.errors import DataError
from benchmark.files import file_sha256, is_as_written, temporary_beside

if TYPE_CHECKING:  # commands that only plan open no table
    import pandas as pd

FORMAT_VERSION = 1
TRANSFORMS_VERSION = 2
"""Of the report of a folder with one pixel file per transform; others keep version 1."""
MANIFEST, REPORT = "manifest.csv", "prepare_report.json"
PIXELS, MASKS, THUMBNAILS = "pixels.npy", "masks.npy", "thumbnails.npy"
LABEL_PREFIX = "label_"
FILES = "sha256"
"""Column of the manifest: hash of the file that an image was made from, where it was one."""
SIZES = ("original_width", "original_height")


class NotMadeError(DataError):
    """Data that have to be drawn or decoded first; ``changed``: because their raw files have changed."""

    def __init__(self, message: str, *, changed: bool = False) -> None:
        super().__init__(message)
        self.changed = changed


class Rows:
    """Some rows of an array on disk, in any order, read when they are asked for.

    Args:
        array: [N, ...], memory mapped.
        rows: M indices into it.
    """

    def __init__(self, array: npt.NDArray[Any], rows: npt.NDArray[np.integer[Any]]) -> None:
        self.array, self.rows = array, rows
        self.shape: tuple[int, ...] = (len(rows), *array.shape[1:])
        self.dtype, self.ndim = array.dtype, array.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Return one row for a number, else an array of the rows of a slice or index array."""
        values: npt.NDArray[Any] = self.array[self.rows[index]]
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Rows:
        """Return a view of some rows of this view."""
        return Rows(self.array, self.rows[rows])


Array = npt.NDArray[Any] | Rows


def take(array: Array, rows: npt.NDArray[np.integer[Any]]) -> Array:
    """Return some rows of an array on disk without reading them; consecutive rows stay a plain slice."""
    if isinstance(array, Rows):
        return array.take(rows)
    if len(rows) and (np.diff(rows) == 1).all():
        part: npt.NDArray[Any] = array[int(rows[0]) : int(rows[-1]) + 1]
        return part
    return Rows(array, rows)


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset, ready to be read.

    Attributes:
        name: dataset and part, for messages.
        folder: where it lies.
        pixels: [N, H, W] or [N, H, W, 3] uint8, or [N, D, H, W] int16 (volumes in HU), memory mapped, or a view of
            rows of such a file.
        manifest: N rows. Text columns are strings (empty when missing); ``label_<Name>`` columns are float64
            with 1, 0,
            -1 (uncertain) and NaN (blank); ``boxes`` is JSON ``[[x1, y1, x2, y2], ...]``, original pixels.
        masks: [N, H, W] bool, memory mapped, or None.
        info: how the data were made, as given when the folder was written. ``transform`` and ``notes`` (what a
            reader of results must know: skipped images, a split that is not the published one) go into results;
            ``patients`` says whose patient ids these are, where another dataset may have the same patients.
        digests: ``pixels.npy``, ``manifest.csv`` and ``masks.npy`` -> sha256 of the file in their role.
        selection: which rows of the folder these are, when not all.
        thumbnails: [N, 32, 32] uint8 of the originals (:data:`THUMBNAIL`), memory mapped, or None.
    """

    name: str
    folder: Path
    pixels: Array
    manifest: pd.DataFrame
    masks: Array | None
    info: dict[str, Any]
    digests: dict[str, str]
    selection: str = ""
    thumbnails: Array | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def source(self) -> str:
        """The table that the rows come from, for messages."""
        return str(self.info.get("source", self.folder / MANIFEST))

    def select(self, rows: npt.NDArray[np.integer[Any]], selection: str) -> Prepared:
        """Return some rows as a dataset of their own, without reading them.

        Args:
            rows: indices.
            selection: what tells these rows from others of the same folder, for example ``split=test``.
        """
        return replace(
            self,
            pixels=take(self.pixels, rows),
            manifest=self.manifest.iloc[rows].reset_index(drop=True),
            masks=None if self.masks is None else take(self.masks, rows),
            thumbnails=None if self.thumbnails is None else take(self.thumbnails, rows),
            selection=f"{self.selection}{selection};",
        )

    def labels(self) -> list[str]:
        """Return the label names, without their prefix, in the order of the columns."""
        names = [str(column) for column in self.manifest.columns]
        return [name.removeprefix(LABEL_PREFIX) for name in names if name.startswith(LABEL_PREFIX)]


def check_writable(folder: Path) -> None:
    """Make the parent of a folder before its content is made, which may take long.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}); choose another --data-root") from error


def write_prepared(
    folder: Path,
    *,
    name: str,
    pixels: npt.NDArray[np.uint8],
    manifest: pd.DataFrame,
    masks: npt.NDArray[np.bool_] | None = None,
    info: Mapping[str, Any],
) -> Prepared:
    """Write a prepared folder beside its place, then rename it into place.

    When another process has put the same folder there meanwhile, that one is kept and returned.

    Args:
        folder: must not exist yet, or is what another process made.
        name: dataset and part.
        pixels: [N, H, W] or [N, H, W, 3] uint8.
        manifest: N rows.
        masks: [N, H, W] bool.
        info: how the data were made; JSON.

    Returns:
        The dataset, read back from disk.

    Raises:
        DataError: arrays and manifest do not fit together, or the folder cannot be written.
    """
    _check_fit(name, pixels, manifest, masks)
    try:
        with temporary_beside(folder, folder=True) as beside:
            os.chmod(beside, 0o755)  # noqa: S103  mkdtemp makes it private, a shared data root is meant to be read
            np.save(beside / PIXELS, pixels)
            manifest.to_csv(beside / MANIFEST, index=False, lineterminator="\n")
            if masks is not None:
                np.save(beside / MASKS, masks)
            _write_report(beside, name, len(pixels), info)
            _move_into_place(beside, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}); free space or choose another --data-root"
        ) from error
    return load_prepared(folder)


def _check_fit(
    name: str, pixels: npt.NDArray[Any], manifest: pd.DataFrame, masks: npt.NDArray[Any] | None
) -> None:
    pictures = pixels.dtype == np.uint8 and (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3))
    if not pictures and not (pixels.dtype == np.int16 and pixels.ndim == 4):
        raise DataError(
            f"{name}: pixels: expected uint8 [N, H, W] or [N, H, W, 3], or int16 volumes [N, D, H, W], "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if len(manifest) != len(pixels):
        raise DataError(
            f"{name}: {len(pixels)} images but {len(manifest)} manifest rows; they must be as many"
        )
    if "image_id" not in manifest.columns or manifest["image_id"].duplicated().any():
        raise DataError(f"{name}: manifest: expected a column image_id without duplicates")
    if masks is not None and (masks.dtype != np.bool_ or masks.shape != pixels.shape[:3]):
        raise DataError(f"{name}: masks: expected bool {pixels.shape[:3]}, got {masks.dtype} {masks.shape}")


def _write_report(folder: Path, name: str, images: int, info: Mapping[str, Any]) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    facts = {"name": name, "images": images, "info": dict(info), "files": files}
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=2)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _move_into_place(beside: Path, folder: Path) -> None:
    try:
        os.rename(beside, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, and its folder is as good as ours
            raise


def transform_files(transform: str) -> dict[str, str]:
    """Return role -> file name of a transform; the empty one is that of generated folders."""
    return {
        name: name.replace(".", f"-{transform}." if transform else ".")
        for name in (PIXELS, MASKS, THUMBNAILS)
    }


def folder_transforms(folder: Path) -> list[str]:
    """Return the transforms that a folder was prepared at; none when it is not prepared.

    Raises:
        DataError: its report is damaged.
    """
    return sorted(read_report(folder).get("transforms", {})) if (folder / REPORT).exists() else []


def load_prepared(folder: Path, *, transform: str = "", verify: bool = False) -> Prepared:
    """Open a prepared folder.

    Args:
        folder: what :func:`write_prepared` or benchmark/data/prepare/prepare.py wrote.
        transform: which pixel file, in a folder that has several.
        verify: compare the sha256 of every file whatever is known of it; else that of files which have changed since it
            was compared (:func:`is_as_written`). So row i of the manifest always describes image i.

    Returns:
        The dataset; pixels and masks stay on disk until they are read.

    Raises:
        DataError: something is missing, truncated, altered, or written by a newer version.
    """
    report = read_report(folder)
    names = {MANIFEST: MANIFEST, **transform_files(transform)}
    roles = {
        role: name for role, name in names.items() if role in (MANIFEST, PIXELS) or name in report["files"]
    }
    for name in roles.values():
        _check_file(folder / name, report["files"].get(name, {}), verify)
    arrays = {role: _open_array(folder / name) for role, name in roles.items() if role != MANIFEST}
    pixels, masks, thumbnails = arrays[PIXELS], arrays.get(MASKS), arrays.pop(THUMBNAILS, None)
    # a copy that shares its columns: a run opens a folder many times
    manifest = _manifest(folder / MANIFEST, str(report["files"][MANIFEST]["sha256"])).copy(deep=False)
    _check_fit(str(folder), pixels, manifest, masks)
    digests = {role: str(report["files"][roles[role]].get("sha256")) for role in (MANIFEST, *arrays)}
    info = dict(report["info"]) | ({"transform": transform} if transform else {})
    return Prepared(str(report["name"]), folder, pixels, manifest, masks, info, digests, "", thumbnails)


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of a prepared folder.

    Raises:
        DataError: missing, damaged, or written by a newer version.
    """
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{folder}: not a prepared dataset ({REPORT} cannot be read); prepare it again"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete {folder} and prepare it again") from error
    version = report.get("format_version") if isinstance(report, dict) else None
    if not isinstance(version, int) or not _is_report(report):
        raise DataError(f"{path}: not a prepare report; delete {folder} and prepare it again")
    if version > TRANSFORMS_VERSION:
        raise DataError(
            f"{path}: format {version} was written by a newer version; update, or use another --data-root"
        )
    return {"name": folder.name, "info": {}, **report}


def _is_report(report: Mapping[str, Any]) -> bool:
    """Return whether the parts of a report that are read have the right types."""
    parts = [report.get("files"), report.get("transforms", {}), report.get("info", {})]
    if not all(isinstance(part, dict) for part in parts):
        return False
    return all(isinstance(facts, dict) for part in parts[:2] for facts in part.values())


def _check_file(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    cure = f"delete {path.parent} and prepare it again"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: missing; {cure}") from error
    if size != expected.get("bytes"):
        raise DataError(
            f"{path}: expected {expected.get('bytes')} bytes, got {size} (truncated copy?); {cure}"
        )
    sha256 = str(expected.get("sha256"))
    if not (file_sha256(path) == sha256 if verify else is_as_written(path, sha256)):
        raise DataError(f"{path}: contents differ from the sha256 in {REPORT}; {cure}")


def _open_array(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a NumPy array ({error}); delete {path.parent} and prepare it again"
        ) from error
    return array


@functools.lru_cache(maxsize=32)
def _manifest(path: Path, sha256: str) -> pd.DataFrame:
    """Read a manifest whose content has this hash, once per process."""
    return read_manifest(path)


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest: text columns stay text (empty when missing), label and size columns become numbers.

    Raises:
        DataError: not a CSV file, or a label other than 1, 0, -1 and empty.
    """
    import pandas as pd

    try:
        manifest = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); prepare the dataset again") from error
    for column in manifest.columns:
        if column.startswith(LABEL_PREFIX) or column in SIZES:
            manifest[column] = _numbers(path, column, manifest[column])
    return manifest


def _numbers(path: Path, column: str, values: pd.Series[str]) -> pd.Series[Any]:
    allowed = (1, 0, -1) if column.startswith(LABEL_PREFIX) else None
    numbers, row = numbers_of(values, allowed)
    if row is not None:
        expected = "1, 0, -1 or empty" if allowed else "a number or empty"
        raise DataError(f"{path}: row {row + 2}, {column}: expected {expected}, got '{values.iloc[row]}'")
    whole = column in SIZES and not numbers.isna().any()
    return numbers.astype(int) if whole else numbers


def numbers_of(
    values: pd.Series[Any], allowed: tuple[int, ...] | None = (1, 0, -1)
) -> tuple[pd.Series[Any], int | None]:
    """Return cells as numbers, blanks as NaN, and the position of the first cell that is not allowed.

    Args:
        values: numbers or text.
        allowed: None takes any number; the default is what a label may be.
    """
    import pandas as pd

    numbers = pd.to_numeric(values.replace("", None), errors="coerce").astype(float)
    wrong = ~(values.isna() | (values == "")) & ~(numbers.isin(allowed) if allowed else numbers.notna())
    return numbers, int(np.flatnonzero(wrong)[0]) if wrong.any() else None


LABEL_TEXTS = {1.0: "1", 0.0: "0", -1.0: "-1"}

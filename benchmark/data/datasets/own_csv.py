"""One's own images: a CSV file with a column of image paths, and of texts, labels or classes, named in a suite file.

It prepares itself: on first use the images are decoded and fitted to the backbone into ``<data-root>/csv/``.
That folder is known by the list of images alone: texts and labels are always those of the CSV file as it is now.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmark.data.labels import NO_FINDING
from benchmark.data.prepare.images import Inside
from benchmark.data.prepare.prepare import VERSION, BadImagesError, prepare
from benchmark.data.prepare.raw import Access, RawDataset, RawTable, box_problem
from benchmark.data.prepared import FILES, LABEL_PREFIX, MANIFEST, PIXELS, SIZES, Prepared
from benchmark.errors import ConfigError, DataError, suggest, unknown
from benchmark.files import user_path
from benchmark.preprocess import CROPS, Fitting
from benchmark.registry import register_dataset
from benchmark.settings import words

if TYPE_CHECKING:
    from benchmark.console import Reporter

SEPARATORS = ",;\t|"
_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": np.nan}


@dataclass(frozen=True)
class Wish:
    """The keys of a suite's entry; what they mean stands at :class:`OwnCsv`.

    Raises:
        ConfigError: keys that contradict each other, or an unknown choice.
    """

    file: str
    images: str | None = None
    path_column: str = "path"
    text_column: str | None = None
    label_columns: Sequence[str] | str | None = None
    class_column: str | None = None
    boxes_column: str | None = None
    split_column: str | None = None
    patient_column: str | None = None
    study_column: str | None = None
    patients: str | None = None
    part: str | None = None
    crop: str | None = None
    on_bad_image: str = "error"
    classes: Sequence[str] | None = None
    kind: str = ""
    exclusive: bool = False
    allow_outside: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_image not in ("error", "skip"):
            raise ConfigError("csv: on_bad_image: " + unknown("choice", self.on_bad_image, ("error", "skip")))
        if self.crop not in (None, *CROPS):
            raise ConfigError("csv: crop: " + unknown("crop", str(self.crop), CROPS))
        if self.class_column is not None and self.label_columns is not None:
            raise ConfigError("csv: give class_column or label_columns, not both")

    @property
    def path(self) -> Path:
        """The CSV file."""
        return user_path(self.file)

    @property
    def folder(self) -> Path:
        """Where the paths in the file begin."""
        return self.path.parent if self.images is None else user_path(self.images)

    def named(self) -> dict[str, str]:
        """Return manifest column -> column of the file, of those that the entry names."""
        columns = {
            "text": self.text_column, "boxes": self.boxes_column, "split": self.split_column,
            "patient_id": self.patient_column, "study_id": self.study_column,
        }  # fmt: skip
        return {name: column for name, column in columns.items() if column is not None}


class OwnCsv:
    """The dataset ``csv``: opens one's own CSV file, and prepares its images when they are not."""

    def __call__(
        self,
        data_root: Path,
        *,
        file: str,
        images: str | None = None,
        path_column: str = "path",
        text_column: str | None = None,
        label_columns: Sequence[str] | str | None = None,
        class_column: str | None = None,
        boxes_column: str | None = None,
        split_column: str | None = None,
        patient_column: str | None = None,
        study_column: str | None = None,
        patients: str | None = None,
        part: str | None = None,
        crop: str | None = None,
        on_bad_image: str = "error",
        classes: Sequence[str] | None = None,
        kind: str = "",
        exclusive: bool = False,
        allow_outside: bool = False,
        fitting: Fitting | None = None,
        reporter: Reporter | None = None,
        make: bool = True,
    ) -> Prepared:
        """Return the rows of a CSV file, or of one part of it.

        Args:
            data_root: folder of all datasets.
            file: the CSV file; a relative path begins at the working folder.
            images: folder that the paths in the file begin at; default is the file's own.
            path_column: column of image paths.
            text_column: column of reports; by default ``text`` where it is there.
            label_columns: columns of 1, 0, -1 and blanks; default: the ``classes``, and all that begin with ``label_``.
            class_column: column of one class name per row.
            boxes_column: column of ``[[x1, y1, x2, y2], ...]`` in pixels of the image file, for detection.
            split_column: by default ``split``.
            patient_column: by default ``patient_id``.
            study_column: by default ``study_id``.
            patients: a name for those whose ids these are; ids of another file or dataset are compared with them if it
                gives the same. Default: one for all files whose patient column has this name.
            part: keep the rows with this value in the split column.
            crop: "squash", "shortest_crop" or "longest_pad"; default: the backbone's rule, else shortest_crop.
            on_bad_image: "error", or "skip" to leave out images that cannot be read and say so in every result.
            classes: those of the view; every row must have one of them, unless ``exclusive``.
            kind: of the view.
            exclusive: of the view.
            allow_outside: take images that paths or links name outside the folder where the paths begin.
            fitting: what the backbone wants; None returns the rows alone, with empty pixels, and decodes nothing.
            reporter: told about progress.
            make: decode images that are not prepared; else NotMadeError is raised.

        Raises:
            ConfigError: keys that contradict each other.
            DataError: a problem of the file, with its row and column, or of an image.
        """
        wish = Wish(
            file, images, path_column, text_column, label_columns, class_column, boxes_column, split_column,
            patient_column, study_column, patients, part, crop, on_bad_image, classes, kind, exclusive, allow_outside,
        )  # fmt: skip
        own = _Csv(wish)
        frame = own.rows()
        data = own.undecoded() if fitting is None else own.pixels(Path(data_root), fitting, reporter, make)
        return own.joined(data, frame)


@dataclass
class _Csv:
    """A CSV file as text cells; its index is the row number as spreadsheets count, the header being row 1."""

    wish: Wish
    table: pd.DataFrame = field(init=False)
    row_of: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.table = _read(self.wish.path, self.wish.path_column)
        for name, column in self.wish.named().items():
            self._need(column, f"{name.removesuffix('_id')}_column")
        self.row_of = {}
        for row, path in _cells(self.table[self.wish.path_column]):
            if path == "":
                raise self._problem(row, self.wish.path_column, "empty")
            if path in self.row_of:
                raise self._problem(
                    row, self.wish.path_column, f"'{path}' stands in row {self.row_of[path]} already"
                )
            self.row_of[path] = row
        self._check_images()

    def _check_images(self) -> None:
        inside = Inside(self.wish.folder, allow_outside=self.wish.allow_outside)
        for path, row in self.row_of.items():
            if problem := inside.problem(path):
                text = f"'{path}' is not read: {problem}. If that is meant: allow_outside: true"
                raise self._problem(row, self.wish.path_column, text)
        missing = [path for path in self.row_of if not (self.wish.folder / path).is_file()]
        if missing:
            more = (
                f" ({len(missing):,} of {len(self.row_of):,} images are not there)"
                if len(missing) > 1
                else ""
            )
            text = f"no image '{missing[0]}' in folder '{self.wish.folder}'{more}"
            raise self._problem(self.row_of[missing[0]], self.wish.path_column, text)

    def _need(self, column: str, key: str) -> None:
        if column not in self.table:
            columns = [str(name) for name in self.table.columns]
            raise DataError(
                f"{self.wish.path}: row 1: no column '{column}' ({key}).{suggest(column, columns)} "
                f"Columns: {', '.join(columns)}"
            )

    def _problem(self, row: int, column: str, text: str) -> DataError:
        return DataError(f"{self.wish.path}: row {row}, column '{column}': {text}")

    # ------------------------------------------------------------------ texts and labels
    def rows(self) -> pd.DataFrame:
        """Return the manifest rows of the wanted part, indexed by row number."""
        wish, frame = self.wish, pd.DataFrame({"image_id": self.table[self.wish.path_column]})
        for name in ("text", "split", "patient_id", "study_id", "labelled"):
            column = wish.named().get(name, name)
            if column in self.table:
                frame[name] = self.table[column]
        if wish.part is not None:
            self._need(wish.split_column or "split", "split_column, for 'part'")
            known = [value for value in frame["split"].unique() if value]
            if wish.part not in known:
                raise DataError(f"{wish.path}: " + unknown("part", wish.part, known))
            frame = frame[frame["split"] == wish.part]
        if wish.text_column is not None:
            self._check(frame["text"], wish.text_column, lambda text: "" if text.strip() else "empty text")
        if wish.boxes_column is not None:
            frame["boxes"] = self.table.loc[frame.index, wish.boxes_column]
            self._check(frame["boxes"], wish.boxes_column, box_problem)
        return frame.assign(**self._labels(self.table.loc[frame.index]))

    def _check(self, values: pd.Series[Any], column: str, problem: Callable[[str], str]) -> None:
        for row, value in _cells(values):
            if text := problem(value):
                raise self._problem(row, column, text)

    def _labels(self, rows: pd.DataFrame) -> dict[str, pd.Series[Any]]:
        wish, classes = self.wish, [str(name) for name in self.wish.classes or ()]
        if wish.class_column is not None:
            self._need(wish.class_column, "class_column")
            return self._classes(rows[wish.class_column].str.strip(), wish.class_column, classes)
        if wish.label_columns is not None:
            listed = wish.label_columns
            columns = [str(name) for name in (words(listed) if isinstance(listed, str) else listed)]
        else:
            prefixed = [name for name in map(str, rows.columns) if name.startswith(LABEL_PREFIX)]
            columns = [name for name in classes if name in rows] + prefixed
            if not prefixed:
                self._check_all_labels(classes, columns)
        labels = {}
        for column in columns:
            self._need(column, "label_columns")
            labels[LABEL_PREFIX + column.removeprefix(LABEL_PREFIX)] = self._numbers(rows[column], column)
        return labels

    def _check_all_labels(self, classes: list[str], columns: list[str]) -> None:
        """Refuse to take the classes for all that an image can show, where the entry asks what else it shows."""
        none = NO_FINDING in classes and NO_FINDING not in columns and self.wish.kind != "binary"
        if none or self.wish.exclusive:
            what = f"the class '{NO_FINDING}', which is no column," if none else "exclusive"
            raise DataError(
                f"{self.wish.path}: row 1: {what} depends on every label column, not on the classes alone: "
                f"name them all, label_columns: [{', '.join(columns)}, ...]"
            )

    def _numbers(self, values: pd.Series[Any], column: str) -> pd.Series[Any]:
        values = values.str.strip()
        expected = "expected 1, 0, -1 or empty, got"
        self._check(values, column, lambda value: "" if value in _VALUES else f"{expected} '{value}'")
        return values.map(_VALUES).astype(float)

    def _classes(self, values: pd.Series[Any], column: str, known: list[str]) -> dict[str, pd.Series[Any]]:
        if known and not self.wish.exclusive:
            self._check(values, column, lambda name: "" if name in known else unknown("class", name, known))
        names = known + sorted(set(values) - {""} - set(known))
        return {LABEL_PREFIX + name: (values == name).astype(float) for name in names}

    # ------------------------------------------------------------------ images
    def pixels(self, data_root: Path, fitting: Fitting, reporter: Reporter | None, make: bool) -> Prepared:
        """Return all images of the file, decoding those that are not prepared."""
        wish, paths = self.wish, sorted(self.row_of)
        key = hashlib.sha256("\n".join([str(wish.folder.resolve()), *paths]).encode()).hexdigest()[:12]
        table = pd.DataFrame({"image_id": paths, "file": paths})
        dataset = RawDataset(
            name=f"csv/{wish.path.stem}-{key}",
            title=wish.path.name,
            access=Access("open", str(wish.path), "your own files", "your own"),
            layout="",
            read=lambda raw: RawTable(table, (("images", len(table)),)),
        )
        try:
            prepare(
                dataset, wish.folder, data_root, fitting=dataset.wanted(wish.crop, fitting), reporter=reporter,
                wait=True, on_bad_image="skip" if wish.on_bad_image == "skip" else "error",
                allow_outside=wish.allow_outside, make=make,
            )  # fmt: skip
        except BadImagesError as error:
            first = min(error.bad, key=lambda item: self.row_of[item["file"]])
            more = f"; {len(error.bad):,} images of the file cannot be read" if len(error.bad) > 1 else ""
            text = f"image '{first['file']}': {first['reason']}{more}. Replace it, or leave such images out: "
            row = self.row_of[first["file"]]
            raise self._problem(row, wish.path_column, text + "on_bad_image: skip") from error
        return dataset(data_root, crop=wish.crop, fitting=fitting)

    def undecoded(self) -> Prepared:
        """Return all images of the file without their pixels, in the same order."""
        paths = sorted(self.row_of)
        pixels = np.zeros((len(paths), 0, 0), dtype=np.uint8)
        manifest = pd.DataFrame({"image_id": paths})
        return Prepared("", self.wish.folder, pixels, manifest, None, {}, {PIXELS: "none"})

    def _of_images(self, data: Prepared, rows: np.ndarray[Any, np.dtype[np.intp]]) -> str:
        """Return what tells the images of some rows from others: their files, and what was done to them."""
        if FILES not in data.manifest:
            return data.digests[PIXELS]
        made = [str(VERSION), str(data.info.get("transform")), *data.manifest[FILES].iloc[rows]]
        return hashlib.sha256("\n".join(made).encode()).hexdigest()

    def joined(self, data: Prepared, frame: pd.DataFrame) -> Prepared:
        """Return the prepared images in the order of the rows, with the rows' texts and labels."""
        place = {name: i for i, name in enumerate(data.manifest["image_id"])}
        frame = frame[frame["image_id"].isin(list(place))]
        rows = np.array([place[name] for name in frame["image_id"]], dtype=np.intp)
        digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
        # what stands in the images' own files, not in this one
        own = data.manifest.columns.intersection([FILES, *SIZES])
        frame = frame.assign(**{name: data.manifest[name].to_numpy()[rows] for name in own})
        if self.wish.boxes_column is not None and len(own) > 1:
            self._check_inside(frame, self.wish.boxes_column)
        patients = self.wish.patients or f"csv {self.wish.patient_column or 'patient_id'}"
        return replace(
            data.select(rows, "rows of a CSV file"),
            name=self.wish.path.name,
            manifest=frame.reset_index(drop=True),
            info={**data.info, "source": str(self.wish.path), "patients": patients},
            digests={**data.digests, PIXELS: self._of_images(data, rows), MANIFEST: digest},
        )

    def _check_inside(self, frame: pd.DataFrame, column: str) -> None:
        """Refuse boxes that are those of another size of the image."""
        for row, text, *size in frame[["boxes", *SIZES]].itertuples():
            for box in json.loads(text or "[]"):
                if min(box) < -1 or (np.array(box[2:]) > np.array(size) + 1).any():
                    where = f"box {box} does not lie in the image, {size[0]} x {size[1]} pixels"
                    raise self._problem(row, column, where)


def _cells(values: pd.Series[Any]) -> Iterator[tuple[int, str]]:
    """Return pairs of row number and cell."""
    return zip(values.index.tolist(), values.tolist(), strict=True)


def _read(path: Path, column: str) -> pd.DataFrame:
    """Return the cells of a CSV file as text, whatever separator its header has; a byte order mark is no part of it.

    Raises:
        DataError: no such file, not UTF-8, without the path column, or rows of different lengths.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); relative paths begin at '{Path.cwd()}'"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as CSV in UTF-8 encoding") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(
            f"{path}: line {line}: a zero byte, which no text has; save it as CSV in UTF-8 encoding"
        )
    try:
        return _parsed(path, column, text)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}; a quote that does not end?)") from error


def _parsed(path: Path, column: str, text: str) -> pd.DataFrame:
    header = text.partition("\n")[0]
    columns = {sep: next(csv.reader([header], delimiter=sep), []) for sep in SEPARATORS}
    separator = next((sep for sep, names in columns.items() if column in map(str.strip, names)), None)
    if separator is None:
        likely = max(columns.values(), key=len)
        raise DataError(
            f"{path}: row 1: no column '{column}' (path_column).{suggest(column, likely)} Columns: {', '.join(likely)}"
        )
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    names = [name.strip() for name in rows[0]]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: row 1: column '{twice}' stands there twice")
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(names):
            raise DataError(
                f"{path}: row {number}: {len(row)} cells instead of {len(names)} (a '{separator}' without quotes?)"
            )
    filled = {number: row for number, row in enumerate(rows[1:], start=2) if row}
    if not filled:
        raise DataError(f"{path}: has no rows")
    return pd.DataFrame(list(filled.values()), columns=names, index=list(filled), dtype=str)


own_csv = register_dataset("csv")(OwnCsv())

"""Your own images: a CSV file with columns of image paths and of texts, labels or classes, named in a suite file.

On first use the images are decoded and fitted to the backbone into ``<data-root>/csv/``. The folder depends on the list
of images alone; texts and labels are read from the CSV file each time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmark.backbones.volumes import VolumeFitting
from benchmark.data.dataset import LoadRequest
from benchmark.data.labels import NO_FINDING
from benchmark.data.prepare.images import MAX_PIXELS, FolderGuard
from benchmark.data.prepare.prepare import VERSION, BadImagesError, prepare
from benchmark.data.prepare.raw import Access, RawDataset, RawTable, box_problem
from benchmark.data.prepare.volumes import SPACING
from benchmark.data.prepared import FILES, LABEL_PREFIX, MANIFEST, PIXELS, SIZES, Prepared, numbers_of
from benchmark.errors import ConfigError, DataError, suggest, unknown
from benchmark.files import user_path
from benchmark.preprocess import Crop, Fitting
from benchmark.registry import register_dataset
from benchmark.settings import setting, words

SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class CsvOptions:
    """The keys of a data entry.

    Raises:
        ConfigError: keys that contradict each other.
    """

    file: str = setting(MISSING, "the CSV file; relative paths begin at the working folder")
    images: str | None = setting(None, "folder where the paths in the file begin; default: that of the file")
    path_column: str = setting("path", "image paths, each once")
    text_column: str | None = setting(None, "reports; default: the column text, if there is one")
    label_columns: Any = setting(None, "columns of 1, 0, -1 and blanks; default: the classes, and label_*")
    class_column: str | None = setting(None, "one class name per row, instead of label columns")
    boxes_column: str | None = setting(None, "[[x1, y1, x2, y2], ...] in pixels of the image file")
    split_column: str | None = setting(None, "default: split")
    patient_column: str | None = setting(None, "default: patient_id")
    study_column: str | None = setting(None, "default: study_id")
    patients: str | None = setting(
        None,
        "whose ids these are: ids of two sets are compared where this name is the same; "
        "default: one name for all files whose patient column has this name",
    )
    part: str | None = setting(None, "keep the rows with this value in the split column")
    crop: Crop | None = setting(None, "default: the rule of the backbone, else shortest_crop")
    on_bad_image: Literal["error", "skip"] = setting("error", "skip: leave out images that cannot be read")
    classes: Any = setting(None, "as in the view: every row has one of them, unless exclusive")
    kind: str = setting("", "as in the view")
    exclusive: bool = setting(False, "as in the view")
    max_pixels: int = setting(MAX_PIXELS, "an image file that declares more is not read", low=1)
    allow_outside: bool = setting(False, "take images outside the folder where the paths begin")
    spacing_column: str | None = setting(
        None, "of volumes in .npy and .npz: millimetres between slices, rows and columns, as [2.5, 0.7, 0.7]"
    )

    def __post_init__(self) -> None:
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


@register_dataset("csv")
class OwnCsv:
    """Opens a user's CSV file, and prepares its images if they are not prepared."""

    Options = CsvOptions
    fits_images = True

    def load(self, options: CsvOptions, request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part; without a fitting their pixels are empty, and nothing is decoded.

        Raises:
            NotMadeError: images have to be decoded, and are not to be.
            DataError: a problem of the file, with its row and column, or of an image.
        """
        own = _Csv(options)
        frame = own.rows()
        data = own.undecoded() if request.fitting is None else own.pixels(request, request.fitting)
        return own.joined(data, frame)


@dataclass
class _Csv:
    """A CSV file as text cells, indexed by the row numbers of a spreadsheet: the header is row 1."""

    options: CsvOptions
    table: pd.DataFrame = field(init=False)
    row_of: dict[str, int] = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.table = read_cells(self.options.path, self.options.path_column)
        for name, column in self.options.named().items():
            self._need(column, f"{name.removesuffix('_id')}_column")
        self.row_of = {}
        for row, path in _cells(self.table[self.options.path_column]):
            if path == "":
                raise self._problem(row, self.options.path_column, "empty")
            if path in self.row_of:
                raise self._problem(
                    row, self.options.path_column, f"'{path}' stands in row {self.row_of[path]} already"
                )
            self.row_of[path] = row
        self._check_images()

    def _check_images(self) -> None:
        inside = FolderGuard(self.options.folder, allow_outside=self.options.allow_outside)
        for path, row in self.row_of.items():
            if problem := inside.problem(path):
                text = f"'{path}' is not read: {problem}. If that is meant: allow_outside: true"
                raise self._problem(row, self.options.path_column, text)
        missing = [path for path in self.row_of if not (self.options.folder / path).exists()]
        if missing:
            more = (
                f" ({len(missing):,} of {len(self.row_of):,} images are not there)"
                if len(missing) > 1
                else ""
            )
            text = f"no image '{missing[0]}' in folder '{self.options.folder}'{more}"
            raise self._problem(self.row_of[missing[0]], self.options.path_column, text)

    def _need(self, column: str, key: str) -> None:
        if column not in self.table:
            columns = [str(name) for name in self.table.columns]
            raise DataError(
                f"{self.options.path}: row 1: no column '{column}' ({key}).{suggest(column, columns)} "
                f"Columns: {', '.join(columns)}"
            )

    def _problem(self, row: int, column: str, text: str) -> DataError:
        return DataError(f"{self.options.path}: row {row}, column '{column}': {text}")

    # ------------------------------------------------------------------ texts and labels
    def rows(self) -> pd.DataFrame:
        """Return the manifest rows of the wanted part, indexed by row number."""
        options, frame = self.options, pd.DataFrame({"image_id": self.table[self.options.path_column]})
        for name in ("text", "split", "patient_id", "study_id", "labelled"):
            column = options.named().get(name, name)
            if column in self.table:
                frame[name] = self.table[column]
        if options.part is not None:
            self._need(options.split_column or "split", "split_column, for 'part'")
            frame["split"] = frame["split"].str.strip()
            if outside := int((frame["split"] == "").sum()):
                self.notes = [f"rows of {options.path.name} that are in no part (empty cell): {outside:,}"]
            known = [value for value in frame["split"].unique() if value]
            if options.part not in known:
                raise DataError(f"{options.path}: " + unknown("part", options.part, known))
            frame = frame[frame["split"] == options.part]
        if options.text_column is not None:
            self._check(frame["text"], options.text_column, lambda text: "" if text.strip() else "empty text")
        if options.boxes_column is not None:
            frame["boxes"] = self.table.loc[frame.index, options.boxes_column]
            self._check(frame["boxes"], options.boxes_column, box_problem)
        return frame.assign(**self._labels(self.table.loc[frame.index]))

    def _check(self, values: pd.Series[Any], column: str, problem: Callable[[str], str]) -> None:
        for row, value in _cells(values):
            if text := problem(value):
                raise self._problem(row, column, text)

    def _labels(self, rows: pd.DataFrame) -> dict[str, pd.Series[Any]]:
        options, classes = self.options, [str(name) for name in self.options.classes or ()]
        if options.class_column is not None:
            self._need(options.class_column, "class_column")
            return self._classes(rows[options.class_column].str.strip(), options.class_column, classes)
        if options.label_columns is not None:
            listed = options.label_columns
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
        """Refuse classes as the only label columns where the entry depends on all labels of an image."""
        none = NO_FINDING in classes and NO_FINDING not in columns and self.options.kind != "binary"
        if none or self.options.exclusive:
            what = f"the class '{NO_FINDING}', which is no column," if none else "exclusive"
            raise DataError(
                f"{self.options.path}: row 1: {what} depends on every label column, not on the classes alone: "
                f"name them all, label_columns: [{', '.join(columns)}, ...]"
            )

    def _numbers(self, values: pd.Series[Any], column: str) -> pd.Series[Any]:
        values = values.str.strip()
        numbers, at = numbers_of(values)
        if at is not None:
            problem = f"expected 1, 0, -1 or empty, got '{values.iloc[at]}'"
            raise self._problem(int(values.index[at]), column, problem)
        return numbers

    def _classes(self, values: pd.Series[Any], column: str, known: list[str]) -> dict[str, pd.Series[Any]]:
        if known and not self.options.exclusive:
            self._check(values, column, lambda name: "" if name in known else unknown("class", name, known))
        names = known + sorted(set(values) - {""} - set(known))
        return {LABEL_PREFIX + name: (values == name).astype(float) for name in names}

    # ------------------------------------------------------------------ images
    def pixels(self, request: LoadRequest, fitting: Fitting) -> Prepared:
        """Return all images of the file, decoding those that are not prepared."""
        options, paths = self.options, sorted(self.row_of)
        key = hashlib.sha256("\n".join([str(options.folder.resolve()), *paths]).encode()).hexdigest()[:12]
        table = pd.DataFrame({"image_id": paths, "file": paths})
        if options.spacing_column is not None:
            self._need(options.spacing_column, "spacing_column")
            table[SPACING] = self.table.loc[
                [self.row_of[path] for path in paths], options.spacing_column
            ].to_numpy()
        dataset = RawDataset(
            name=f"csv/{options.path.stem}-{key}",
            title=options.path.name,
            access=Access("open", str(options.path), "your own files", "your own"),
            layout="",
            read=lambda raw: RawTable(table, (("images", len(table)),)),
            volumes=isinstance(fitting, VolumeFitting),
        )
        try:
            prepare(
                dataset, options.folder, request.data_root, fitting=dataset.wanted(options.crop, fitting),
                reporter=request.reporter, wait=True, on_bad_image=options.on_bad_image,
                allow_outside=options.allow_outside, make=request.make, max_pixels=options.max_pixels,
            )  # fmt: skip
        except BadImagesError as error:
            first = min(error.bad, key=lambda item: self.row_of[item["file"]])
            more = f"; {len(error.bad):,} images of the file cannot be read" if len(error.bad) > 1 else ""
            text = f"image '{first['file']}': {first['reason']}{more}. Replace it, or leave such images out: "
            row = self.row_of[first["file"]]
            raise self._problem(row, options.path_column, text + "on_bad_image: skip") from error
        return dataset.load(RawDataset.Options(crop=options.crop), request)

    def undecoded(self) -> Prepared:
        """Return all images of the file without their pixels, in the same order."""
        paths = sorted(self.row_of)
        pixels = np.zeros((len(paths), 0, 0), dtype=np.uint8)
        manifest = pd.DataFrame({"image_id": paths})
        return Prepared("", self.options.folder, pixels, manifest, None, {}, {PIXELS: "none"})

    def _of_images(self, data: Prepared, rows: np.ndarray[Any, np.dtype[np.intp]]) -> str:
        """Return a digest of the images of some rows: of their files, and of how they were fitted."""
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
        if self.options.boxes_column is not None and len(own) > 1:
            self._check_inside(frame, self.options.boxes_column)
        patients = self.options.patients or f"csv {self.options.patient_column or 'patient_id'}"
        return replace(
            data.select(rows, "rows of a CSV file"),
            name=self.options.path.name,
            manifest=frame.reset_index(drop=True),
            info={
                **data.info,
                "source": str(self.options.path),
                "patients": patients,
                "notes": [*data.info.get("notes", ()), *self.notes],
            },
            digests={**data.digests, PIXELS: self._of_images(data, rows), MANIFEST: digest},
        )

    def _check_inside(self, frame: pd.DataFrame, column: str) -> None:
        """Refuse boxes that lie outside of their image: they belong to another size of it."""
        for row, text, *size in frame[["boxes", *SIZES]].itertuples():
            for box in json.loads(text or "[]"):
                if min(box) < -1 or (np.array(box[2:]) > np.array(size) + 1).any():
                    where = f"box {box} does not lie in the image, {size[0]} x {size[1]} pixels"
                    raise self._problem(row, column, where)


def _cells(values: pd.Series[Any]) -> Iterator[tuple[int, str]]:
    """Return pairs of row number and cell."""
    return zip(values.index.tolist(), values.tolist(), strict=True)


def read_cells(path: Path, column: str) -> pd.DataFrame:
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
        raise DataError(f"{path}: row 1: column '{twice}' occurs twice")
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(names):
            raise DataError(
                f"{path}: row {number}: {len(row)} cells instead of {len(names)} (a '{separator}' without quotes?)"
            )
    filled = {number: row for number, row in enumerate(rows[1:], start=2) if row}
    if not filled:
        raise DataError(f"{path}: has no rows")
    return pd.DataFrame(list(filled.values()), columns=names, index=list(filled), dtype=str)

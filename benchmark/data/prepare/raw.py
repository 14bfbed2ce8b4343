"""What a reader of downloads declares about a dataset: where to get it, how to read it, and its table of images.

A reader registers one :class:`RawDataset`. ``run_benchmark.py prepare`` reads the downloads through it and writes a
prepared folder (benchmark/data/prepare/prepare.py); a suite then opens that folder by calling the same object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmark.backbones.volumes import DEFAULT, VolumeFitting
from benchmark.data.dataset import LoadRequest, NoOptions, build_options
from benchmark.data.prepared import (
    LABEL_PREFIX,
    LABEL_TEXTS,
    Prepared,
    folder_transforms,
    load_prepared,
    numbers_of,
)
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.files import PROGRAM
from benchmark.preprocess import Crop, Fitting
from benchmark.settings import setting

Mask = Callable[[Mapping[str, Any], tuple[int, int]], npt.NDArray[np.bool_]]


DEFAULT_SIZE = (224, 224)
"""(h, w) that datasets are prepared at unless asked otherwise."""


@dataclass(frozen=True)
class Access:
    """Where a dataset comes from.

    Attributes:
        kind: "open", "registration" (a form or account) or "credentialed" (training and an agreement).
        url: its official page.
        how: which files to download, one line.
        licence: terms of use, one line.
    """

    kind: Literal["open", "registration", "credentialed"]
    url: str
    how: str
    licence: str


@dataclass(frozen=True)
class RawTable:
    """The table of a dataset as its downloads have it, before any image is opened.

    Attributes:
        table: one row per image: ``image_id`` (unique text), ``file`` (posix path relative to the raw folder; absent
            when ``pixels`` are given), and the manifest columns that the source has: ``text``, ``split``,
            ``split_<protocol>``, ``patient_id``, ``study_id``, ``view``, ``label_<Name>`` (1, 0, -1, empty),
            ``labelled``, ``boxes`` (JSON). Columns that begin with ``_`` are for ``mask`` only.
        steps: what was read, dropped (negative) and kept, in order, for the report.
        ids: named id lists that identify the splits (benchmark/data/splits).
        pixels: uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` where the source holds arrays; read slice by slice, upwards.
        sources: further raw files that decide what is in ``pixels``, relative to the raw folder.
    """

    table: pd.DataFrame
    steps: tuple[tuple[str, int], ...] = ()
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pixels: Any = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawDataset:
    """A dataset that is prepared from downloads.

    Attributes:
        name: its folder below the data root.
        title: for people.
        access: where to get it.
        layout: the expected raw folder, a few lines.
        read: ``read(raw, options) -> RawTable``; ``read(raw)`` where there are no options.
        reader_options: the dataclass of the options of ``prepare``; None: there are none.
        crop: how images are fitted for models that have no rule of their own, unless asked otherwise.
        mask: ``mask(row, (h, w))`` returns the bool mask of an image of that original size.
        patients: whose patient ids the manifest has, where several datasets have the same patients.
        volumes: whether its images are CT volumes (benchmark/data/prepare/volumes.py).
    """

    name: str
    title: str
    access: Access
    layout: str
    read: Callable[..., RawTable]
    reader_options: type[Any] | None = None
    crop: str = "shortest_crop"
    mask: Mask | None = None
    patients: str = ""
    volumes: bool = False

    @dataclass(frozen=True)
    class Options:
        """The keys of a data entry."""

        part: str | None = setting(None, "value of the split column; None takes every row that has one")
        protocol: str | None = setting(None, "use the column split_<protocol> instead of split")
        crop: Crop | None = setting(None, "how images are fitted, whatever the rule of the backbone is")

    def load(self, options: Any, request: LoadRequest) -> Prepared:
        """Open the prepared folder, or the rows of one part of it; nothing is made here.

        Raises:
            DataError: not prepared, not fitted so, or no such part.
        """
        data = self._open(request.data_root, options.crop, request.fitting)
        return self.rows_of(data, options.part, options.protocol)

    def wanted(self, crop: str | None, fitting: Fitting) -> Fitting:
        """Return how the images are fitted: by an explicit crop, else the model's rule, else the dataset's own.

        Raises:
            ConfigError: pictures for volumes, or the other way round.
        """
        if self.volumes != isinstance(fitting, VolumeFitting):
            kinds = ("CT volumes", "pictures") if self.volumes else ("pictures", "CT volumes")
            raise ConfigError(
                f"dataset '{self.name}' has {kinds[0]}, the fitting is one of {kinds[1]}: choose another of the two"
            )
        if self.volumes:
            return fitting
        if crop is not None and crop != fitting.crop:
            fitting = replace(fitting, crop=crop, side=None)
        return fitting.on(self.crop)

    def select(self, options: Mapping[str, Any]) -> RawDataset:
        """Return the dataset that options of ``prepare`` or of a data entry stand for."""
        del options
        return self

    def read_table(self, raw: Path, given: Mapping[str, Any]) -> tuple[RawTable, dict[str, Any]]:
        """Return the table of the downloads, and all options that it was read with.

        Raises:
            ConfigError: unknown, missing or wrong options, all in one.
            DataError: as the reader raises it.
        """
        options = build_options(self.reader_options or NoOptions, given, self.name)
        table = self.read(raw, options) if self.reader_options else self.read(raw)
        return table, dict(vars(options))

    def prepare_command(self, data_root: Path | str = "DIR") -> str:
        """Return the command that prepares this dataset."""
        return f"{PROGRAM} prepare {self.name} --raw DIR --data-root {data_root}"

    def command_for(self, data_root: Path | str, transform: str) -> str:
        """Return the command that prepares this dataset fitted as a transform's name says."""
        command, fitting = self.prepare_command(data_root), VolumeFitting.parse(transform)
        if fitting == DEFAULT:
            return command
        if fitting == Fitting(DEFAULT_SIZE, self.crop):
            return command
        if not self.volumes and fitting == Fitting(fitting.size, fitting.crop):
            return f"{command} --crop {fitting.crop} --size {'x'.join(map(str, fitting.size))}"
        return f"{command} --transform {transform}"

    def transform(self, have: Sequence[str], crop: str | None, fitting: Fitting | None) -> str:
        """Return the name of the fitting that is asked for, whether it is there or not.

        Args:
            have: what the folder was prepared as.
            crop: an explicit one, or None.
            fitting: what the backbone wants; None takes any that is there.
        """
        if fitting is not None:
            return self.wanted(crop, fitting).name
        if self.volumes:
            return [*have, DEFAULT.name][0]
        own = crop or self.crop
        fits = [name for name in have if Fitting.parse(name).crop == own]
        return (fits or ([] if crop else list(have)) or [Fitting(DEFAULT_SIZE, own).name])[0]

    def _open(self, data_root: Path, crop: str | None, fitting: Fitting | None) -> Prepared:
        folder = data_root / self.name
        have = folder_transforms(folder)
        name = self.transform(have, crop, fitting)
        command = self.command_for(data_root, name)
        if not have:
            raise DataError(
                f"dataset '{self.name}' is not prepared in {data_root}: {command}. "
                f"Get it at {self.access.url} ({self.access.kind} access): {self.access.how}"
            )
        if name not in have:
            raise DataError(
                f"dataset '{self.name}' is prepared in {data_root} as {', '.join(have)}, not as {name}: {command}"
            )
        return load_prepared(folder, transform=name)

    def rows_of(self, data: Prepared, part: str | None, protocol: str | None = None) -> Prepared:
        """Return the rows of a part.

        Raises:
            DataError: no such protocol or part.
        """
        column = f"split_{protocol}" if protocol else "split"
        if column not in data.manifest:
            if protocol:
                have = [c.removeprefix("split_") for c in map(str, data.manifest) if c.startswith("split_")]
                raise DataError(f"dataset '{self.name}': " + unknown("protocol", protocol, have))
            if part is not None:
                raise DataError(f"dataset '{self.name}' has no parts: leave out 'part: {part}'")
            return data
        values = data.manifest[column]
        if part is not None and part not in set(values) - {""}:
            raise DataError(f"dataset '{self.name}': " + unknown("part", part, set(values) - {""}))
        rows = np.flatnonzero(values == part if part is not None else values != "")
        return data.select(rows, f"{column}={'*' if part is None else part}")


def checked_table(name: str, source: RawTable) -> pd.DataFrame:
    """Return the table with every value as text, as the manifest will hold it.

    Raises:
        DataError: no rows, duplicate ids, an invalid label or box, or rows that do not fit the pixels.
    """
    table = source.table.reset_index(drop=True)
    lacking = {"image_id", *(["file"] if source.pixels is None else [])} - set(table.columns)
    if lacking:
        raise DataError(f"dataset '{name}': its reader gives no column {', '.join(sorted(lacking))}")
    if source.pixels is not None and len(source.pixels) != len(table):
        raise DataError(f"dataset '{name}': {len(source.pixels)} images but {len(table)} rows")
    if table.empty:
        steps = ", ".join(f"{text} {count:,}" for text, count in source.steps)
        raise DataError(f"dataset '{name}': no image is left to prepare ({steps or 'the table is empty'})")
    columns: dict[str, Any] = {}
    for column in map(str, table.columns):
        columns[column] = (
            _labels(name, column, table[column])
            if column.startswith(LABEL_PREFIX)
            else table[column].map(_text)
        )
    ids = columns["image_id"]
    if (repeated := ids[ids.duplicated()]).any():
        raise DataError(f"dataset '{name}': image_id '{repeated.iloc[0]}' stands in {len(repeated) + 1} rows")
    if "boxes" in columns:
        _check_boxes(name, ids, columns["boxes"])
    return pd.DataFrame(columns)


def _text(value: Any) -> str:
    """Return a cell as text that survives a CSV file; missing is empty."""
    if isinstance(value, list | tuple):
        return json.dumps(value)
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return ""
    return str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _labels(name: str, column: str, values: pd.Series[Any]) -> pd.Series[Any]:
    numbers, row = numbers_of(values)
    if row is not None:
        raise DataError(
            f"dataset '{name}': {column}, row {row}: expected 1, 0, -1 or empty, got '{values.iloc[row]}'"
        )
    return numbers.map(LABEL_TEXTS).fillna("")


def _check_boxes(name: str, ids: pd.Series[Any], boxes: pd.Series[Any]) -> None:
    for image, text in zip(ids, boxes, strict=True):
        if problem := box_problem(text):
            raise DataError(f"dataset '{name}': boxes of image '{image}': {problem}")


def box_problem(text: str) -> str:
    """Return what is wrong with the boxes of an image as a manifest holds them; nothing when they are right."""
    try:
        right = not text or all(
            len(box) == 4 and box[0] < box[2] and box[1] < box[3] for box in json.loads(text)
        )
    except (ValueError, TypeError):
        right = False
    return "" if right else f"expected [[x1, y1, x2, y2], ...], got '{text}'"

"""What a reader of downloads says about a dataset: where to get it, how to read it, which image shows what.

A reader registers one :class:`RawDataset`. ``run_benchmark.py prepare`` reads the downloads through it and writes a
prepared folder (benchmark/data/prepare.py); a suite then opens that folder by calling the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmark.data.fitting import Fitting
from benchmark.data.prepared import Prepared, folder_transforms, load_prepared
from benchmark.errors import DataError, unknown

if TYPE_CHECKING:
    from benchmark.console import Reporter

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
    """A dataset as its downloads say it, before any image is opened.

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
        read: ``read(raw, **options) -> RawTable``; its keyword parameters are the options of ``prepare``.
        crop: how images are fitted for models that have no rule of their own, unless asked otherwise.
        mask: ``mask(row, (h, w))`` returns the bool mask of an image of that original size.
        patients: whose patient ids the manifest has, where several datasets have the same patients.
    """

    name: str
    title: str
    access: Access
    layout: str
    read: Callable[..., RawTable]
    crop: str = "shortest_crop"
    mask: Mask | None = None
    patients: str = ""

    def __call__(
        self,
        data_root: Path,
        *,
        part: str | None = None,
        protocol: str | None = None,
        crop: str | None = None,
        fitting: Fitting | None = None,
        reporter: Reporter | None = None,
    ) -> Prepared:
        """Open the prepared folder, or the rows of one part of it.

        Args:
            data_root: folder of all datasets.
            part: value of the split column; None takes every row that has one.
            protocol: use the column ``split_<protocol>`` instead of ``split``.
            crop: "squash", "shortest_crop" or "longest_pad", whatever the model's rule is.
            fitting: what the backbone wants; None takes any that is there.
            reporter: not needed, nothing is made here.

        Raises:
            ConfigError: unknown crop.
            DataError: not prepared, not fitted so, or no such part.
        """
        return self.rows_of(self._open(Path(data_root), crop, fitting), part, protocol)

    def wanted(self, crop: str | None, fitting: Fitting) -> Fitting:
        """Return how the images are fitted: by an explicit crop, else the model's rule, else the dataset's own."""
        if crop is not None and crop != fitting.crop:
            fitting = replace(fitting, crop=crop, side=None)
        return fitting.on(self.crop)

    def select(self, options: Mapping[str, Any]) -> tuple[RawDataset, dict[str, Any]]:
        """Return the dataset that options of ``prepare`` stand for, and the options left for its reader."""
        return self, dict(options)

    def prepare_command(self, data_root: Path | str = "DIR") -> str:
        """Return the command that prepares this dataset."""
        return f"run_benchmark.py prepare {self.name} --raw DIR --data-root {data_root}"

    def command_for(self, data_root: Path | str, transform: str) -> str:
        """Return the command that prepares this dataset fitted as a transform's name says."""
        command, fitting = self.prepare_command(data_root), Fitting.parse(transform)
        if fitting == Fitting(DEFAULT_SIZE, self.crop):
            return command
        if fitting == Fitting(fitting.size, fitting.crop):
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

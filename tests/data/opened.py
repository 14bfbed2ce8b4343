"""Calling dataset plugins and readers with their options as keywords."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.console import NullReporter, Reporter
from benchmark.data.dataset import Dataset, LoadRequest, build_options
from benchmark.data.prepare.raw import RawTable
from benchmark.data.prepared import Prepared
from benchmark.preprocess import Fitting


def opened(
    dataset: Dataset,
    root: Path,
    fitting: Fitting | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Prepared:
    """Return what a dataset gives for a data entry with these options."""
    request = LoadRequest(root, fitting, reporter or NullReporter())
    return dataset.load(build_options(dataset.Options, options, "tested"), request)


def read(reader: ModuleType, raw: Path, **options: Any) -> RawTable:
    """Return the table that a reader makes of a raw folder."""
    return reader.read(raw, reader.Options(**options)) if hasattr(reader, "Options") else reader.read(raw)

"""Checks of what a dataset's reader returns, before anything is made from it."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmark.data.prepared import LABEL_PREFIX
from benchmark.data.raw import RawDataset, RawTable
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.settings import coerce


def options_of(dataset: RawDataset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a dataset's reader as the types it declares; those not given have their defaults.

    Raises:
        ConfigError: unknown options or values, all in one.
    """
    hints = typing.get_type_hints(dataset.read) if inspect.isfunction(dataset.read) else {}
    parameters = list(inspect.signature(dataset.read).parameters.values())[1:]
    values = {item.name: item.default for item in parameters if item.default is not item.empty}
    problems = []
    for key, value in given.items():
        if key not in {item.name for item in parameters}:
            problems.append(
                unknown(f"option of dataset '{dataset.name}'", key, [item.name for item in parameters])
            )
            continue
        try:
            values[key] = coerce(value, hints.get(key, Any))
        except ValueError as error:
            problems.append(f"{key}: expected {error}, got {value!r}")
    lacking = [item.name for item in parameters if item.name not in values and item.name not in given]
    problems += [f"dataset '{dataset.name}' needs {name}=..." for name in lacking]
    if problems:
        raise ConfigError(problems)
    return values


def checked_table(name: str, source: RawTable) -> pd.DataFrame:
    """Return the table with every value as text, as the manifest will hold it.

    Raises:
        DataError: no rows, duplicate ids, a label or box that is none, or rows that do not fit the pixels.
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
    numbers = pd.to_numeric(values.replace("", None), errors="coerce").astype(float)
    given = ~(values.isna() | (values == ""))
    wrong = given & ~numbers.isin([1, 0, -1])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"dataset '{name}': {column}, row {row}: expected 1, 0, -1 or empty, got '{values.iloc[row]}'"
        )
    return numbers.map({1.0: "1", 0.0: "0", -1.0: "-1"}).fillna("")


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

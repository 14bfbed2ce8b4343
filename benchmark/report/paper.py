"""The numbers that the paper reports (ACE-LoRA, arXiv 2603.17079), read from ``results/paper/tables.csv``.

They are data for comparison and never mixed with measured ones. Values are as printed there: accuracies, AUROC (the
paper writes AUC), Dice and mAP in percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from benchmark.errors import DataError
from benchmark.files import paper_tables, shown

COLUMNS = ["table", "row_method", "group", "dataset", "metric", "value"]
KEY = ["table", "row_method", "group", "dataset", "metric"]


@dataclass(frozen=True)
class PaperTables:
    """Reported numbers, one row each: columns table, row_method, group, dataset, metric, value."""

    frame: pd.DataFrame

    def table(self, table: str) -> pd.DataFrame:
        """Return the rows of one table id, such as "1" or "A.3", in the paper's order."""
        rows: pd.DataFrame = self.frame[self.frame["table"] == table]
        return rows

    def methods(self, table: str) -> list[str]:
        """Return the method titles of a table in the paper's order."""
        return list(dict.fromkeys(key[1] for key in self._values if key[0] == table))

    def value(self, table: str, method: str, dataset: str, metric: str) -> float | None:
        """Return a reported number in the paper's unit, or None where the paper has none.

        Args:
            table: table id.
            method: the paper's spelling, for example "CLIP-Adapter".
            dataset: the paper's spelling, for example "CheXpert5x200".
            metric: ACC, AUROC, Dice or mAP.
        """
        return self._values.get((table, method, dataset, metric))

    def reports(self, table: str, dataset: str, metric: str) -> bool:
        """Return whether a table has this metric of this dataset for some method; names as in `value`."""
        return (table, dataset, metric) in self._columns

    @cached_property
    def metrics(self) -> frozenset[str]:
        """Heads of all columns."""
        return frozenset(metric for _, _, metric in self._columns)

    @cached_property
    def _columns(self) -> frozenset[tuple[str, str, str]]:
        return frozenset((table, dataset, metric) for table, _, dataset, metric in self._values)

    @cached_property
    def _values(self) -> dict[tuple[str, str, str, str], float]:
        keys = self.frame[["table", "row_method", "dataset", "metric"]].itertuples(index=False, name=None)
        return dict(zip(keys, self.frame["value"].astype(float), strict=True))


def load_paper(path: Path | None = None) -> PaperTables:
    """Read and check the reported numbers.

    Raises:
        DataError: the file is missing, has other columns, a value that is not a number, or a repeated key.
    """
    path = paper_tables() if path is None else path
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(KEY, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)}: cannot read the paper's numbers: {error}") from error
    if list(frame.columns) != COLUMNS:
        expected, given = ", ".join(COLUMNS), ", ".join(frame.columns)
        raise DataError(f"{shown(path)}: expected columns {expected}, got {given}")
    numbers = pd.to_numeric(frame["value"], errors="coerce")
    for wrong, problem in (
        (numbers.isna(), "expected a number, got {value!r}"),
        (frame.duplicated(KEY), "this table, method, group, dataset and metric is there already"),
    ):
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(f"{shown(path)}:{row + 2}: " + problem.format(value=frame["value"].iloc[row]))
    return PaperTables(frame.assign(value=numbers, metric=frame["metric"].str.replace("AUC", "AUROC")))

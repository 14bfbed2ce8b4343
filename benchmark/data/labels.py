"""Labels of the rows of a dataset: 1, 0, -1 (uncertain) and blank, and how the last two are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.data.prepared import LABEL_PREFIX, Prepared
from benchmark.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import pandas as pd

POLICIES = {
    "uncertain": {"zero": 0.0, "one": 1.0, "distinct": 2.0},
    "blank": {"zero": 0.0, "distinct": 3.0},
}
"""What -1 and blank labels stand for; a number above 1 is a state of its own, which only a corpus has."""
NO_FINDING = "No Finding"


@dataclass(frozen=True)
class Labels:
    """Labels of N rows and K names.

    Attributes:
        names: K label names. source: what a message names.
        raw: float32 ``[N, K]`` of 1, 0, -1 and nan.
        labelled: ``[N]``, which rows have labels. policy: of -1 and of blanks, one of `POLICIES` each.
    """

    names: list[str]
    source: str
    raw: np.ndarray
    labelled: np.ndarray
    policy: Mapping[str, str]

    @classmethod
    def of(cls, data: Prepared, frame: pd.DataFrame, policy: Mapping[str, str], where: str = "") -> Labels:
        """Read the labels of some rows of a dataset.

        Args:
            data: the dataset.
            frame: those rows of its manifest.
            policy: "uncertain" and "blank" -> name of a policy; "zero" where one is not given.
            where: how a message names what the policies belong to.

        Raises:
            ConfigError: an unknown policy.
        """
        for key, value in policy.items():
            if value not in POLICIES[key]:
                raise ConfigError(f"{where}{key}: " + unknown("policy", value, POLICIES[key]))
        names = data.labels()
        raw = frame[[f"{LABEL_PREFIX}{name}" for name in names]].to_numpy(dtype=np.float32)
        # A labeler that mentions nothing leaves a row of blanks: labelled, and another thing than no labels at all.
        labelled = (frame["labelled"] == "1").to_numpy() if "labelled" in frame else (~np.isnan(raw)).any(1)
        return cls(names, data.source, raw, labelled, dict.fromkeys(POLICIES, "zero") | dict(policy))

    def rows(self, kept: np.ndarray) -> Labels:
        """Return the labels of some rows."""
        return replace(self, raw=self.raw[kept], labelled=self.labelled[kept])

    def values(self) -> np.ndarray:
        """Return float32 ``[N, K]`` with -1 and blanks set to what the policies say; rows without labels are nan."""
        values = self.raw
        for key, where in self._states().items():
            values = np.where(where, np.float32(POLICIES[key][self.policy[key]]), values)
        return np.where(self.labelled[:, None], values, np.float32("nan"))

    def shown(self, label: str) -> np.ndarray:
        """Return which rows, ``[N]``, show a label; "No Finding", where it is no label, is a row without any other.

        Raises:
            DataError: there is no such label.
        """
        values = self.values() == 1
        if label in self.names:
            return values[:, self.names.index(label)]
        if label != NO_FINDING or not self.names:
            raise DataError(f"{self.source}: " + unknown("label", label, self.names))
        return self.labelled & ~values.any(axis=1)

    def alone(self, names: Sequence[str]) -> np.ndarray:
        """Return which rows, ``[N]``, show one of some labels and nothing else; "No Finding": nothing at all."""
        findings = [label for label in self.names if label != NO_FINDING]
        shown = np.stack([self.shown(label) for label in findings], axis=1)
        wanted = np.array([label in names for label in findings])
        one = (shown.sum(axis=1) == 1) & shown[:, wanted].any(axis=1)
        return one | ((NO_FINDING in names) & self.labelled & ~shown.any(axis=1))

    def digest(self) -> str:
        """Return a text that identifies these policies; empty for the default ones."""
        return "".join(f":{key}={value}" for key, value in self.policy.items() if value != "zero")

    def facts(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return how many values of some labels (None: of all) were set to which value; empty if none was."""
        columns = [k for k, name in enumerate(self.names) if names is None or name in names]
        found: dict[str, Any] = {
            key: {"count": int(where[:, columns].sum()), "set_to": self.policy[key]}
            for key, where in self._states().items()
            if where[:, columns].any()
        }
        if columns and not self.labelled.all():
            found["rows_without"] = int((~self.labelled).sum())
        return {"labels": found} if found else {}

    def _states(self) -> dict[str, np.ndarray]:
        labelled = self.labelled[:, None]
        return {"uncertain": labelled & (self.raw == -1), "blank": labelled & np.isnan(self.raw)}

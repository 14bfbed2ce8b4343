"""One cell of the store, as the report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.store.cells import cell_name

Key = tuple[str, str, str]
"""Task, dataset, metric."""


@dataclass(frozen=True)
class Run:
    """One cell of the store as it was found.

    Attributes:
        folder: ``runs/<suite>/<backbone>/<method>[+<variant>]/seed-<n>``.
        config: config.yaml; keys used: suite_name, suite, backbone, method, variant, seed, limit, recipe, tasks.
        status: success, failed, partial, running, or unreadable.
        error: the message of a run that is not a success.
        tasks: task name -> its JSON.
        efficiency: efficiency.json.
        provenance: provenance.json.
        history: rows of history.jsonl.
        adapted: adapt.json.
    """

    folder: Path
    config: Mapping[str, Any]
    status: str
    error: str
    tasks: Mapping[str, Mapping[str, Any]]
    efficiency: Mapping[str, Any]
    provenance: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    adapted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def imported(self) -> Mapping[str, Any]:
        """Where the adapter was imported from; empty when it was trained here."""
        return self.adapted.get("imported") or {}

    @property
    def trains(self) -> bool:
        """Whether the method trains anything, as far as is known."""
        return self.efficiency.get("trainable_parameters") != 0

    @property
    def created(self) -> str:
        """When it was started, in a form that sorts; empty when nothing says it."""
        return str(self.provenance.get("created") or "")

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self.config.get("suite_name") or self.folder.parts[-4])

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return str(self.config.get("backbone") or self.folder.parts[-3])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config.get("method") or self.folder.parts[-2].partition("+")[0])

    @property
    def variant(self) -> str:
        """What is changed against the method as the suite has it, such as "topk=3"; else empty."""
        return str(
            self.config.get("variant") or ("" if self.config else self.folder.parts[-2].partition("+")[2])
        )

    @property
    def cell(self) -> str:
        """Method and variant: ``<method>[+<variant>]``."""
        return cell_name(self.method, self.variant)

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.config.get("seed", self.folder.name.removeprefix("seed-")))

    @property
    def limit(self) -> int | None:
        """Samples per dataset if the run was cut short by --limit."""
        return self.config.get("limit")

    def scores(self) -> dict[Key, Mapping[str, Any]]:
        """Return (task, dataset, metric) -> {"value", "ci_low", "ci_high", "n"} of all finished tasks.

        A failed or unfinished run has none: what lies in its folder may stem from an earlier attempt.
        """
        if self.status not in ("success", "partial"):
            return {}
        return {
            (name, dataset, metric): entry
            for name, task in self.tasks.items()
            if task.get("status") != "failed"
            for dataset, result in (task.get("datasets") or {}).items()
            for metric, entry in (result.get("metrics") or {}).items()
            if entry.get("value") is not None
        }

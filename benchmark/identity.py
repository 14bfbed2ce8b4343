"""What a result was made of: the data as read, the weights, the arithmetic that ran, and the version of the numbers.

Kept as "identity" in a cell's ``adapt.json`` and in each ``<task>.json``. Digests come from content, never from paths,
names or times, so the same data elsewhere are the same, and other data under the same name are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.data.load import load_dataset, needed, parts_of
from benchmark.data.prepared import MANIFEST, MASKS, PIXELS, Prepared

if TYPE_CHECKING:
    from benchmark.console import Reporter
    from benchmark.data.fitting import Fitting
    from benchmark.plan import CellSpec

NUMBERS = 2
"""Version of the numbers. Raise it when the same settings, data and weights now give another number anywhere."""
KEY = "identity"
Identity = Mapping[str, Any]
"""JSON: ``numbers``, ``weights``, ``arithmetic``, ``data`` (name -> digest), and in results of a task ``adapter``."""


@dataclass
class Sources:
    """What results would be made of now; each dataset is opened once.

    Attributes:
        data_root: folder of prepared data. reporter: told about data that have to be made.
        weights: digest of the backbone. arithmetic: fp32, bf16 or fp16. fitting: what the backbone wants.
    """

    data_root: Path
    reporter: Reporter
    weights: str
    arithmetic: str
    fitting: Fitting | None
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    def of_adaptation(self, spec: CellSpec) -> dict[str, Any]:
        """Return the identity of a cell's adapter; one that was not trained rests on no data.

        Raises:
            BenchmarkError: data cannot be had.
        """
        suite = needed(spec.suite, [spec.method])
        return self._with({use: [suite[use]] for use in ("corpus", "validation") if suite.get(use)})

    def of_task(self, spec: CellSpec, task: str, adapter: Identity) -> dict[str, Any]:
        """Return the identity of a task's results on an adapter of that identity.

        Raises:
            BenchmarkError: data cannot be had.
        """
        entries: Mapping[str, Mapping[str, Any]] = spec.tasks[task].get("datasets") or {}
        return self._with({name: parts_of(entry) for name, entry in entries.items()}) | {
            "adapter": digest(adapter)
        }

    def _with(self, data: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            "numbers": NUMBERS,
            "weights": self.weights,
            "arithmetic": self.arithmetic,
            "data": {name: self._digest(entries) for name, entries in data.items()},
        }

    def _digest(self, entries: Sequence[Mapping[str, Any]]) -> str:
        key = json.dumps(entries, sort_keys=True, default=str)
        if key not in self._known:
            opened = [load_dataset(entry, self.data_root, self.reporter, self.fitting) for entry in entries]
            self._known[key] = data_digest(opened)
        return self._known[key]


def data_digest(opened: Sequence[Prepared]) -> str:
    """Return ``<images>-<rows>``: a digest of what data show and one of what is said of them (texts, labels, parts)."""
    images = [[one.digests[PIXELS], one.digests.get(MASKS), one.selection] for one in opened]
    rows = [[one.digests[MANIFEST], one.selection] for one in opened]
    return f"{digest(images)}-{digest(rows)}"


def digest(content: Any) -> str:
    """Return 12 hex digits of the SHA-256 of JSON types."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity in a stored file's content; files of programs that kept none are of numbers 0."""
    found = stored.get(KEY)
    return dict(found) if isinstance(found, Mapping) else {"numbers": 0, "data": {}}

"""Read the store and bring the runs of one method together: means over seeds, notes on what is left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmark.errors import BenchmarkError, StoreError
from benchmark.registry import METHODS
from benchmark.report.paper import PaperTables
from benchmark.store import CellFolder, Store


@dataclass(frozen=True)
class Run:
    """One cell of the store as it was found.

    Attributes:
        folder: ``runs/<suite>/<backbone>/<method>/seed-<n>``.
        config: config.yaml; keys used: suite_name, suite, backbone, method, seed, limit.
        status: success, failed, partial, running, or unreadable.
        error: the message of a run that is not a success.
        tasks: task name -> its JSON.
        efficiency: efficiency.json.
        provenance: provenance.json.
        history: rows of history.jsonl.
        imported: where the adapter was imported from; empty when it was trained here.
    """

    folder: Path
    config: Mapping[str, Any]
    status: str
    error: str
    tasks: Mapping[str, Mapping[str, Any]]
    efficiency: Mapping[str, Any]
    provenance: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    imported: Mapping[str, Any] = field(default_factory=dict)

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
        return str(self.config.get("method") or self.folder.parts[-2])

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.config.get("seed", self.folder.name.removeprefix("seed-")))

    @property
    def limit(self) -> int | None:
        """Samples per dataset if the run was cut short by --limit."""
        return self.config.get("limit")

    def scores(self) -> dict[tuple[str, str, str], Mapping[str, Any]]:
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


@dataclass(frozen=True)
class Score:
    """One metric over the seeds of a method; fractions. The interval is the mean of the runs' intervals."""

    value: float
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """One method on one backbone: means over its usable runs, and notes on the others.

    Attributes:
        paper_row: the row of the paper's tables that stands for this method.
        runs: those that the means are over (all of them when none is usable). left_out: the others.
        scores: (task, dataset, metric) -> Score.
        efficiency: number of efficiency.json -> mean over seeds; nested keys joined by "_".
        notes: what a reader must know before comparing this row.
        ranked: False when its numbers may not be compared with the others (limited runs, ceilings).
    """

    method: str
    title: str
    paper_row: str = ""
    runs: tuple[Run, ...] = ()
    left_out: tuple[Run, ...] = ()
    scores: Mapping[tuple[str, str, str], Score] = field(default_factory=dict)
    efficiency: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ranked: bool = True

    def mean_over(self, keys: Collection[tuple[str, str, str]]) -> Score | None:
        """Mean of several scores, with the spread of the seeds' means; None when one of them is missing."""
        if not keys or not all(key in self.scores for key in keys):
            return None
        complete = [scores for run in self.runs if all(key in (scores := run.scores()) for key in keys)]
        per_seed = [fmean(scores[key]["value"] for key in keys) for scores in complete]
        value = fmean(self.scores[key].value for key in keys)
        return Score(value, stdev(per_seed) if len(per_seed) > 1 else None, None, None, len(per_seed))


@dataclass(frozen=True)
class Block:
    """All methods of one suite on one backbone: what may be compared."""

    suite: str
    backbone: str
    spec: Mapping[str, Any]
    rows: tuple[Row, ...]
    ceiling: Row | None = None

    def datasets(self, task: str = "zeroshot") -> list[str]:
        """Datasets of a task that some row has a score for, in the order of the suite file."""
        measured = list(dict.fromkeys(key[1] for row in self.rows for key in row.scores if key[0] == task))
        listed = [name for name in self._dataset_specs(task) if name in measured]
        return listed + [name for name in measured if name not in listed]

    def keys(self, metric: str, task: str = "zeroshot") -> list[tuple[str, str, str]]:
        """Keys of one metric on every dataset that some row has it for."""
        return sorted({key for row in self.rows for key in row.scores if (key[0], key[2]) == (task, metric)})

    def data_notes(self, dataset: str, task: str = "zeroshot") -> list[str]:
        """What the preparation says of a dataset's data: another split than the published one, images left out."""
        results = [
            ((run.tasks.get(task) or {}).get("datasets") or {}).get(dataset) or {}
            for row in self.rows
            for run in row.runs
        ]
        notes = [
            str(note) for result in results for note in (result.get("info") or {}).get("data_notes") or ()
        ]
        return list(dict.fromkeys(notes))

    def dataset_title(self, dataset: str, task: str = "zeroshot") -> str:
        """Title of a dataset in the suite file, else its name."""
        return str((self._dataset_specs(task).get(dataset) or {}).get("title") or dataset)

    def _dataset_specs(self, task: str) -> Mapping[str, Any]:
        tasks = self.spec.get("tasks") or {}
        return (tasks.get(task) or {}).get("datasets") or {}


def read_runs(output_dir: Path, suite: str | None = None) -> list[Run]:
    """Read every cell below ``output_dir``; one that cannot be read is kept with status unreadable."""
    runs = [_read_run(cell) for cell in Store(output_dir).cells()]
    return [run for run in runs if suite is None or run.suite == suite]


def collect_blocks(output_dir: Path, paper: PaperTables, suite: str | None = None) -> list[Block]:
    """Group the runs of a store into comparable blocks, methods in the order of the paper's Table 1."""
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in read_runs(output_dir, suite):
        groups.setdefault((run.suite, run.backbone), {}).setdefault(run.method, []).append(run)
    ceilings = _read_ceilings(output_dir)
    order = {title: rank for rank, title in enumerate(paper.methods("1"))}
    blocks = []
    for (name, backbone), methods in sorted(groups.items()):
        rows = [make_row(method, runs) for method, runs in methods.items()]
        rows.sort(key=lambda row: (order.get(row.paper_row, len(order)), row.title.lower(), row.method))
        specs = [run.config.get("suite") for row in rows for run in row.runs]
        spec = dict(next((item for item in specs if isinstance(item, Mapping)), {}))
        # a run adds its tasks to those of earlier ones; its suite names only the tasks that it was asked for
        ran = [run.config.get("tasks") for row in rows for run in row.runs]
        spec["tasks"] = {
            name: task for item in [spec.get("tasks"), *ran] for name, task in (item or {}).items()
        }
        ceiling = ceilings.get(f"{name}/{backbone}")
        blocks.append(Block(name, backbone, spec, tuple(rows), ceiling))
    return blocks


def make_row(method: str, runs: Sequence[Run]) -> Row:
    """Average the runs of a method; limited and imported runs count only when there are no others."""
    runs = sorted(runs, key=lambda run: (len(run.seed), run.seed))
    notes = [note for run in runs if (note := _note(run))]
    usable = [run for run in runs if run.scores()]
    trained = [run for run in usable if not run.imported] or usable
    files = sorted({str(run.imported.get("file")) for run in usable if run.imported})
    if files:
        notes.append(
            f"imported from {', '.join(files)}, not trained by this recipe: "
            + ("not ranked" if trained is usable else "left out")
        )
    whole = [run for run in trained if run.limit is None]
    limits = sorted({int(run.limit) for run in trained if run.limit is not None})
    if limits and whole:
        notes.append(f"runs limited to {_listed(limits)} samples are left out")
    elif limits:
        notes.append(f"limited to {_listed(limits)} samples: not comparable, not ranked")
    used = whole or trained or runs
    title, paper_row = method_titles(method)
    only_imported = bool(used) and all(run.imported for run in used)
    return Row(
        method=method,
        title=f"{title} (imported)" if only_imported else title,
        paper_row=paper_row,
        runs=tuple(used),
        left_out=tuple(run for run in runs if run not in used),
        scores=_mean_scores(used),
        efficiency=_mean_efficiency([run for run in used if run.efficiency]),
        notes=tuple(notes),
        ranked=bool(whole) and not only_imported,
    )


def method_titles(method: str) -> tuple[str, str]:
    """A method's title and its row in the paper's tables, from its card; its name if there is no plugin."""
    try:
        card = METHODS.get(method).card
        return str(card.title), str(card.paper_row or card.title)
    except (BenchmarkError, AttributeError, ImportError):
        return method, method


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested dict, keys joined by "_"."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}_")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "schema_version":
            flat[prefix + key] = float(value)
    return flat


def _read_run(cell: CellFolder) -> Run:
    try:
        config = cell.read_config()
        status = _read(cell, "status.json")
        return Run(
            folder=cell.path,
            config=config,
            status=str(status.get("status", "running")),
            error=str(status.get("error") or ""),
            tasks={task: cell.read_json(f"{task}.json") for task in cell.results()},
            efficiency=_read(cell, "efficiency.json"),
            provenance=_read(cell, "provenance.json"),
            history=cell.read_history(),
            imported=_read(cell, "adapt.json").get("imported") or {},
        )
    except StoreError as error:
        return Run(cell.path, {}, "unreadable", str(error), {}, {}, {}, [])


def _read(cell: CellFolder, name: str) -> dict[str, Any]:
    return cell.read_json(name) if cell.exists(name) else {}


def _read_ceilings(output_dir: Path) -> dict[str, Row]:
    """Reference rows: "<suite>/<backbone>" -> {"title", "datasets": {name: {metric: value}}}."""
    path = output_dir / "ceilings.json"
    if not path.is_file():
        return {}
    rows = {}
    try:
        for key, entry in json.loads(path.read_text(encoding="utf-8")).items():
            scores = {
                ("zeroshot", dataset, metric): Score(float(value), None, None, None, 1)
                for dataset, metrics in entry["datasets"].items()
                for metric, value in metrics.items()
            }
            rows[key] = Row("ceiling", str(entry["title"]), scores=scores, ranked=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{path}: expected suite/backbone -> title, datasets -> metrics ({error!r})"
        ) from error
    return rows


def _note(run: Run) -> str:
    """What is wrong with one run, or an empty string."""
    words = {"success": "", "running": "is unfinished", "partial": "is partial"}
    word = words.get(run.status, run.status)
    return "" if not word else f"seed {run.seed} {word}" + (f" ({run.error})" if run.error else "")


def _mean_scores(runs: Sequence[Run]) -> dict[tuple[str, str, str], Score]:
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        for key, entry in run.scores().items():
            found.setdefault(key, []).append(entry)
    return {key: _mean_score(entries) for key, entries in found.items()}


def _mean_score(entries: Sequence[Mapping[str, Any]]) -> Score:
    values = [float(entry["value"]) for entry in entries]
    bounds = [
        fmean(side) if len(side) == len(entries) else None
        for side in (
            [float(entry[name]) for entry in entries if entry.get(name) is not None]
            for name in ("ci_low", "ci_high")
        )
    ]
    return Score(fmean(values), stdev(values) if len(values) > 1 else None, bounds[0], bounds[1], len(values))


def _mean_efficiency(runs: Sequence[Run]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, value in flat_numbers(run.efficiency).items():
            found.setdefault(key, []).append(value)
    return {key: fmean(values) for key, values in found.items()}


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(str(number) for number in numbers)

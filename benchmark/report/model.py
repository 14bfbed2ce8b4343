"""The report's data model: runs, their scores, rows, and blocks of rows to compare."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from benchmark.errors import BenchmarkError
from benchmark.metrics.classification import Metric
from benchmark.registry import TASKS
from benchmark.store.cells import cell_name

if TYPE_CHECKING:
    from benchmark.config.experiments import Experiment

Key = tuple[str, str, str]
"""Task, dataset, metric."""
DatasetKey = tuple[str, str]
SMALLEST_DIFFERENCE = 0.005
"""Smallest difference of two scores that matters unless another one is asked for, as a fraction."""
NOT_RUN = "not run"
NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Run:
    """One cell of the store as it was found.

    Attributes:
        folder: ``runs/<suite>/<backbone>/<method>[+<variant>]/seed-<n>``.
        config: config.yaml; keys used: suite_name, suite, backbone, method, variant, seed, limit, recipe, tasks.
        status: success, failed, partial, running, or unreadable.
        error: the message of a run that is not a success.
        tasks: task name -> its JSON.
        efficiency, provenance, adapted: efficiency.json, provenance.json, adapt.json. history: rows of history.jsonl.
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
        from_folder = "" if self.config else self.folder.parts[-2].partition("+")[2]
        return str(self.config.get("variant") or from_folder)

    @property
    def cell(self) -> str:
        """Method and variant: ``<method>[+<variant>]``."""
        return cell_name(self.method, self.variant)

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.config.get("seed", self.folder.name.removeprefix("seed-")))

    @property
    def by_seed(self) -> tuple[int, str]:
        """What puts runs in the order of their seeds."""
        return len(self.seed), self.seed

    @property
    def limit(self) -> int | None:
        """Samples per dataset if the run was cut short by --limit."""
        return self.config.get("limit")

    def task(self, task: str) -> Mapping[str, Any]:
        """JSON of a task; empty where it was not run."""
        return self.tasks.get(task) or {}

    def result(self, task: str, dataset: str) -> Mapping[str, Any]:
        """What a task says of a dataset; empty where it has no result."""
        return (self.task(task).get("datasets") or {}).get(dataset) or {}

    def info(self, task: str, dataset: str) -> Mapping[str, Any]:
        """``info`` of a result."""
        return self.result(task, dataset).get("info") or {}

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


@dataclass(frozen=True)
class Doubt:
    """What a reader must know before using numbers.

    Attributes:
        kind: a word or two that name it in short marks.
        text: a sentence without its subject and full stop.
        subject: what it is about: titles of rows, or of a dataset; empty where that is known from where it stands.
    """

    kind: str
    text: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}." if self.subject else f"{self.text}."


@dataclass(frozen=True)
class Score:
    """One metric over the seeds of a method; fractions. The interval is the mean of the runs' intervals.

    Attributes:
        runs: those that it is the mean of; none for what is no mean of runs.
        n: samples that it was measured on, where the results say so.
        apart: whether it was made of other things than the block's other scores, so that it may not be compared.
    """

    value: float
    sd: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    runs: tuple[Run, ...] = field(default=(), repr=False)
    n: int | None = None
    apart: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, where there is one."""
        return None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)

    @property
    def lengths(self) -> tuple[float, float] | None:
        """How far the interval reaches below and above the value."""
        if self.bounds is None:
            return None
        low, high = self.bounds
        return max(0.0, self.value - low), max(0.0, high - self.value)

    @property
    def whole(self) -> tuple[float, float] | None:
        """The same for the interval over test patients and training seeds: lengths add as squares (statistics.md)."""
        if self.lengths is None:
            return None
        noise = NORMAL * (self.sd or 0.0) / math.sqrt(self.seeds)
        below, above = (math.hypot(length, noise) for length in self.lengths)
        return below, above

    def bars(self, scale: float) -> list[list[float]] | None:
        """That interval times ``scale``, as matplotlib takes it."""
        return None if self.whole is None else [[scale * length] for length in self.whole]

    @property
    def seeds(self) -> int:
        """How many runs it is the mean of."""
        return max(1, len(self.runs))


@dataclass(frozen=True)
class Row:
    """One method (or variant of it) on one backbone: means over its usable runs, and notes on the others.

    Attributes:
        paper_row: the row of the paper's tables that stands for this method.
        runs: those that the means are over (all of them when none is usable). left_out: the others.
        scores: (task, dataset, metric) -> Score.
        efficiency: number of efficiency.json -> mean over seeds; nested keys joined by "_".
        notes: what a reader must know before comparing this row.
        ranked: False when its numbers may not be compared with the others (limited runs, ceilings).
        variant: what is changed against the method as the suite has it.
        settings: what else tells its runs from seeds of the same name with other settings; empty for the first of
            such rows, which keeps the name of the cell.
        place: the row's backbone where it is not that of its block.
        missing: why there are no runs: "not run", or what is unknown here.
        difference: titles of the two rows whose difference this one is.
        number: its place among all rows of the report, which gives its colour and marker in every figure.
    """

    method: str
    title: str
    paper_row: str = ""
    runs: tuple[Run, ...] = ()
    left_out: tuple[Run, ...] = ()
    scores: Mapping[Key, Score] = field(default_factory=dict)
    efficiency: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[Doubt, ...] = ()
    ranked: bool = True
    variant: str = ""
    settings: str = ""
    place: str = ""
    missing: str = ""
    difference: tuple[str, str] | None = None
    number: int = 0

    @property
    def trains(self) -> bool:
        """Whether the method trains anything, as far as is known."""
        return self.efficiency.get("trainable_parameters") != 0

    @property
    def cell(self) -> str:
        """Name of the row within its block: ``<method>[+<variant>][@<place>]``."""
        changes = ",".join(filter(None, (self.variant, self.settings)))
        return cell_name(self.method, changes) + (f"@{self.place}" if self.place else "")

    @property
    def beside(self) -> bool:
        """Whether somebody asked for this variant beside the method, and not an experiment alone."""
        return any(run.config.get("beside") for run in self.runs)

    @property
    def finished(self) -> list[Run]:
        """Its runs with scores."""
        return [run for run in self.runs if run.scores()]

    def compared(self, key: Key) -> bool:
        """Whether its score may be compared with those of other rows."""
        return self.ranked and key in self.scores and not self.scores[key].apart

    def runs_at(self, task: str, dataset: str) -> tuple[Run, ...]:
        """The runs behind its scores on a dataset that may be compared with those of other rows."""
        scores = (score for key, score in self.scores.items() if key[:2] == (task, dataset))
        return next((score.runs for score in scores if not score.apart), ())

    def mean_over(self, keys: Collection[Key]) -> Score | None:
        """Mean of several scores, with the spread of the seeds' means; None when one of them is missing.

        Its interval takes the scores' patients for different ones: lengths add as squares.
        """
        if not keys or not all(key in self.scores for key in keys):
            return None
        complete = tuple(run for run in self.runs if all(run in self.scores[key].runs for key in keys))
        per_seed = [fmean(run.scores()[key]["value"] for key in keys) for run in complete]
        spread = stdev(per_seed) if len(per_seed) > 1 else None
        scores = [self.scores[key] for key in keys]
        value, apart = fmean(score.value for score in scores), any(score.apart for score in scores)
        lengths = [score.lengths for score in scores if score.lengths is not None]
        if len(lengths) < len(scores):
            return Score(value, spread, runs=complete, apart=apart)
        below, above = (math.hypot(*side) / len(scores) for side in zip(*lengths, strict=True))
        return Score(value, spread, value - below, value + above, complete, apart=apart)


@dataclass(frozen=True, eq=False)
class Block:
    """What stands in one table: the methods of one suite on one backbone, or the rows of an experiment.

    Attributes:
        suite, backbone: where the rows were measured, unless a row says otherwise (``Row.place``).
        spec: the suite as the runs have it, with all tasks that ran.
        ceiling: a reference row that is no method.
        variants: cells that are variants of methods for experiments; not rows of this table.
        experiment: what the rows were chosen by; None for the table of all methods.
        beside: other rows of the same suite and backbone: they know sample counts and reference scores too.
        command: what runs the rows that are missing.
        unlike: why the paper's numbers do not apply although the suite stands for the paper's.
        baseline: cell that the others are compared with; None: the first row in which nothing is trained.
        smallest: difference of two scores that matters, as a fraction.
    """

    suite: str
    backbone: str
    spec: Mapping[str, Any]
    rows: tuple[Row, ...]
    ceiling: Row | None = None
    variants: tuple[Row, ...] = ()
    experiment: Experiment | None = None
    beside: tuple[Row, ...] = ()
    command: str = ""
    unlike: str = ""
    baseline: str | None = None
    smallest: float = SMALLEST_DIFFERENCE

    @property
    def table(self) -> str:
        """Id of the table in the paper, or the experiment's own."""
        return "1" if self.experiment is None else str(self.experiment.id)

    @property
    def title(self) -> str:
        """Title of the suite."""
        return str(self.spec.get("title") or self.suite)

    @property
    def heading(self) -> str:
        """Title of the suite, and the backbone."""
        return f"{self.title}, backbone {self.backbone}"

    @property
    def present(self) -> set[Key]:
        """Keys of all scores of its rows."""
        return {key for row in self.rows for key in row.scores}

    @property
    def tasks(self) -> list[str]:
        """Tasks of the suite in the order of its file, then others that some row has scores of."""
        return list(
            dict.fromkeys([*(self.spec.get("tasks") or {}), *sorted({key[0] for key in self.present})])
        )

    @property
    def first_task(self) -> str:
        """What the suite is first of all about: columns of this task need not be told apart from others."""
        return next(iter(self.tasks), "")

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, Metric]]:
        """Task -> name -> metric that the task has said something of, in the order of their columns."""
        runs = [run for row in (*self.rows, *self.beside) for run in row.runs]
        asked = self.experiment.tasks if self.experiment else ()
        return {task: declared_metrics(task, runs) for task in dict.fromkeys([*self.tasks, *asked])}

    def metric(self, key: Key) -> Metric:
        """The metric of a column."""
        return self.metrics.get(key[0], {}).get(key[2]) or Metric(key[2])

    def headline(self, task: str) -> list[str]:
        """Metrics of a task that stand for it unless others are asked for: its headline, else its first one."""
        declared = self.metrics.get(task, {})
        return [name for name, metric in declared.items() if metric.headline] or list(declared)[:1]

    def datasets(self, task: str) -> list[str]:
        """Datasets of a task that some row has a score for, in the order of the suite file."""
        measured = list(dict.fromkeys(key[1] for row in self.rows for key in row.scores if key[0] == task))
        listed = [name for name in self.dataset_specs(task) if name in measured]
        return listed + [name for name in measured if name not in listed]

    def keys(self, metric: str, task: str) -> list[Key]:
        """Keys of one metric on every dataset that some row has it for."""
        return sorted(key for key in self.present if (key[0], key[2]) == (task, metric))

    def data_notes(self, dataset: str, task: str) -> list[str]:
        """What the preparation says of a dataset's data: another split than the published one, images left out."""
        facts = self.facts(dataset, task)
        return list(dict.fromkeys(str(note) for info in facts for note in info.get("data_notes") or ()))

    def facts(self, dataset: str, task: str) -> list[Mapping[str, Any]]:
        """``info`` of each result of a dataset, of rows of this table first."""
        runs = [run for row in (*self.rows, *self.beside) for run in row.runs]
        return [run.info(task, dataset) for run in runs if run.result(task, dataset)]

    def dataset_title(self, dataset: str, task: str) -> str:
        """Title of a dataset in the suite file, of another task if need be, and which of its classes; else its name."""
        tasks = (task, *(self.spec.get("tasks") or {}))
        entries = (self.dataset_specs(name).get(dataset) or {} for name in tasks)
        entry = next((entry for entry in entries if entry.get("title")), None)
        half = f" ({entry['subset']} classes)" if entry and entry.get("subset") else ""
        return dataset if entry is None else f"{entry['title']}{half}"

    def dataset_specs(self, task: str) -> Mapping[str, Any]:
        """Datasets of a task as the suite names them."""
        return ((self.spec.get("tasks") or {}).get(task) or {}).get("datasets") or {}


def span(counts: Iterable[int]) -> str:
    """Smallest and largest count as text: ``3``, ``1 to 3``; empty without any."""
    found = sorted(counts)
    return " to ".join(str(count) for count in dict.fromkeys((*found[:1], *found[-1:])))


def declared_metrics(task: str, runs: Iterable[Run]) -> dict[str, Metric]:
    """What a task says of its metrics, by name: as its results have it, else its plugin.

    Of a task that says nothing all metrics with a score have their names for heads.
    """
    results = [result for run in runs if (result := run.tasks.get(task))]
    stored = (item for result in results for item in (result.get("metrics") or {}).items())
    if found := {name: Metric.of_stored(name, content or {}) for name, content in stored}:
        return found
    try:
        declared = TASKS.get(task).metrics
    except (BenchmarkError, AttributeError, ImportError):
        declared = ()
    datasets = (one for result in results for one in (result.get("datasets") or {}).values())
    scored = dict.fromkeys(name for one in datasets for name in one.get("metrics") or {})
    return {metric.name: metric for metric in declared or (Metric(name, name) for name in scored)}


def mean_scores(
    runs: Sequence[Run], dataset: DatasetKey | None = None, *, apart: bool = False
) -> dict[Key, Score]:
    """Return mean scores of runs, on one dataset (with its task) or on all; ``apart`` as in `Score`."""
    found: dict[Key, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in runs:
        for key, entry in run.scores().items():
            if dataset in (None, key[:2]):
                found.setdefault(key, []).append((run, entry))
    return {key: _mean_score(results, apart=apart) for key, results in found.items()}


def _mean_score(results: Sequence[tuple[Run, Mapping[str, Any]]], *, apart: bool) -> Score:
    runs, entries = zip(*results, strict=True)
    values = known_numbers(entries, "value")
    low, high = (
        fmean(side) if len(side) == len(entries) else None
        for side in (known_numbers(entries, "ci_low"), known_numbers(entries, "ci_high"))
    )
    spread, count = stdev(values) if len(values) > 1 else None, max(known_numbers(entries, "n"), default=None)
    return Score(fmean(values), spread, low, high, runs, None if count is None else int(count), apart)


def known_numbers(entries: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Return the numbers of one name, where there is one."""
    return [float(entry[name]) for entry in entries if entry.get(name) is not None]

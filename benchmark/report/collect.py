"""Reads the store and groups the runs of each method: means over seeds, notes on what is left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from benchmark.errors import BenchmarkError, StoreError
from benchmark.metrics.classification import Metric
from benchmark.registry import METHODS, TASKS
from benchmark.report.agreement import Made, Place, by_settings, differences, made_of, usual
from benchmark.report.paper import PaperTables
from benchmark.report.runs import Key, Run
from benchmark.store.cells import CellFolder, Store, cell_name
from benchmark.store.contents import CEILINGS, content_problem
from benchmark.store.provenance import scrub

if TYPE_CHECKING:
    from benchmark.config.experiments import Experiment

SMALLEST_DIFFERENCE = 0.005
"""Smallest difference of two scores that matters unless another one is asked for, as a fraction."""


OTHER_DATA = "other data"
"""Kind of the doubts on results that were made of other things than the others of their table."""


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
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    runs: tuple[Run, ...] = field(default=(), repr=False)
    n: int | None = None
    apart: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, where there is one."""
        return None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)

    def bars(self, scale: float) -> list[list[float]] | None:
        """The interval as lengths below and above the value, times ``scale``, as matplotlib takes them."""
        if self.bounds is None:
            return None
        lengths = (self.value - self.bounds[0], self.bounds[1] - self.value)
        return [[scale * max(0.0, length)] for length in lengths]

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

    @property
    def trains(self) -> bool:
        """Whether the method trains anything, as far as is known."""
        return self.efficiency.get("trainable_parameters") != 0

    @property
    def cell(self) -> str:
        """Name of the row within its block: ``<method>[+<variant>][@<place>]``."""
        changes = ",".join(filter(None, (self.variant, self.settings)))
        return cell_name(self.method, changes) + (f"@{self.place}" if self.place else "")

    def compared(self, key: Key) -> bool:
        """Whether its score may be compared with those of other rows."""
        return self.ranked and key in self.scores and not self.scores[key].apart

    def runs_at(self, task: str, dataset: str) -> tuple[Run, ...]:
        """The runs behind its scores on a dataset that may be compared with those of other rows."""
        scores = (score for key, score in self.scores.items() if key[:2] == (task, dataset))
        return next((score.runs for score in scores if not score.apart), ())

    def mean_over(self, keys: Collection[Key]) -> Score | None:
        """Mean of several scores, with the spread of the seeds' means; None when one of them is missing."""
        if not keys or not all(key in self.scores for key in keys):
            return None
        complete = tuple(run for run in self.runs if all(run in self.scores[key].runs for key in keys))
        per_seed = [fmean(run.scores()[key]["value"] for key in keys) for run in complete]
        value = fmean(self.scores[key].value for key in keys)
        apart = any(self.scores[key].apart for key in keys)
        return Score(value, stdev(per_seed) if len(per_seed) > 1 else None, None, None, complete, apart=apart)


@dataclass(frozen=True)
class Block:
    """What stands in one table: the methods of one suite on one backbone, or the rows of an experiment.

    Attributes:
        suite, backbone: where the rows were measured, unless a row says otherwise (``Row.place``).
        spec: the suite as the runs have it, with all tasks that ran.
        ceiling: a reference row, not a method.
        variants: cells that are variants of methods; rows of experiments, not of this table.
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
    def heading(self) -> str:
        """Title of the suite, and the backbone."""
        return f"{self.spec.get('title') or self.suite}, backbone {self.backbone}"

    @property
    def tasks(self) -> list[str]:
        """Tasks of the suite in the order of its file, then others that some row has scores of."""
        scored = sorted({key[0] for row in self.rows for key in row.scores})
        return list(dict.fromkeys([*(self.spec.get("tasks") or {}), *scored]))

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
        return sorted({key for row in self.rows for key in row.scores if (key[0], key[2]) == (task, metric)})

    def data_notes(self, dataset: str, task: str) -> list[str]:
        """What the preparation says of a dataset's data: another split than the published one, images left out."""
        facts = self.facts(dataset, task)
        return list(dict.fromkeys(str(note) for info in facts for note in info.get("data_notes") or ()))

    def facts(self, dataset: str, task: str) -> list[Mapping[str, Any]]:
        """``info`` of each result of a dataset, of rows of this table first."""
        runs = [run for row in (*self.rows, *self.beside) for run in row.runs]
        results = [((run.tasks.get(task) or {}).get("datasets") or {}).get(dataset) for run in runs]
        return [result.get("info") or {} for result in results if result]

    def dataset_title(self, dataset: str, task: str) -> str:
        """Title of a dataset in the suite file, of another task if need be; else its name."""
        tasks = (task, *(self.spec.get("tasks") or {}))
        entries = (self.dataset_specs(name).get(dataset) or {} for name in tasks)
        return next((str(entry["title"]) for entry in entries if entry.get("title")), dataset)

    def dataset_specs(self, task: str) -> Mapping[str, Any]:
        """Datasets of a task as the suite names them."""
        tasks = self.spec.get("tasks") or {}
        return (tasks.get(task) or {}).get("datasets") or {}


def read_runs(output_dir: Path, suite: str | None = None) -> list[Run]:
    """Read every cell below ``output_dir``; one that cannot be read is kept with status unreadable."""
    runs = [_read_run(cell) for cell in Store(output_dir).cells()]
    return [run for run in runs if suite is None or run.suite == suite]


def collect_blocks(
    output_dir: Path,
    paper: PaperTables,
    suite: str | None = None,
    *,
    baseline: str | None = None,
    smallest: float = SMALLEST_DIFFERENCE,
) -> list[Block]:
    """Group the runs of a store into comparable blocks, methods in the order of the paper's Table 1.

    Args:
        output_dir: folder of the store.
        paper: the paper's numbers.
        suite: only this one.
        baseline: as in `Block`.
        smallest: as in `Block`.
    """
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Run]]] = {}
    for run in read_runs(output_dir, suite):
        groups.setdefault((run.suite, run.backbone), {}).setdefault((run.method, run.variant), []).append(run)
    ceilings = _read_ceilings(output_dir)
    order = {title: rank for rank, title in enumerate(paper.methods("1"))}
    blocks = []
    for (name, backbone), cells in sorted(groups.items()):
        rows = [row for (method, variant), runs in cells.items() for row in _rows(method, variant, runs)]
        rows = comparable(rows, baseline)
        rows.sort(key=lambda row: (order.get(row.paper_row, len(order)), row.title.lower(), row.cell))
        whole = tuple(row for row in rows if not row.variant)
        variants = tuple(row for row in rows if row.variant)
        spec, entry = _spec(rows), ceilings.get(f"{name}/{backbone}")
        ceiling = _ceiling(entry, next(iter(spec["tasks"]), "")) if entry else None
        unlike = other_backbone(spec, backbone)
        blocks.append(
            Block(
                name, backbone, spec, whole, ceiling, variants,
                unlike=unlike, baseline=baseline, smallest=smallest,
            )
        )  # fmt: skip
    return blocks


def comparable(rows: Sequence[Row], baseline: str | None) -> list[Row]:
    """Return the rows of a table with means over results that were made of the same things, and notes on the others.

    A row without such results keeps its score, which then stands apart.

    Args:
        rows: of one table. Those that are not ranked beside others that are stay as they are.
        baseline: as in `Block`.
    """
    ranked = any(row.ranked and row.scores for row in rows)
    checked = [row for row in rows if row.scores and row.difference is None and (row.ranked or not ranked)]
    base = baseline_cell(checked, baseline)
    wanted = {
        place: usual([(row.cell, run) for row in checked for run in _having(row, place)], place, base)
        for place in {key[:2] for row in checked for key in row.scores}
    }
    return [_comparable(row, wanted) if any(row is one for one in checked) else row for row in rows]


def _comparable(row: Row, wanted: Mapping[Place, Made]) -> Row:
    """Let each score of a row be the mean of the runs that were made of what is wanted, else of those alike."""
    scores, told = dict(row.scores), dict.fromkeys(note for note in row.notes if note.kind != OTHER_DATA)
    for place in dict.fromkeys(key[:2] for key in row.scores):
        runs = _having(row, place)
        fitting = [run for run in runs if not _differing(run, place, wanted[place])]
        own = wanted[place] if fitting else usual([(row.cell, run) for run in runs], place)
        kept = [run for run in runs if not _differing(run, place, own)]
        for run in runs:
            words = "; ".join(_differing(run, place, wanted[place]))
            if words and not fitting:
                told[Doubt(OTHER_DATA, f"made with {words}: not compared")] = None
            elif words:
                told[Doubt(OTHER_DATA, f"seed {run.seed} made with {words}: left out")] = None
        found = _mean_scores(kept, place, apart=not fitting)
        scores |= {key: score for key, score in found.items() if key in scores}
    return replace(row, scores=scores, notes=tuple(told))


def _differing(run: Run, place: Place, wanted: Made) -> list[str]:
    return differences(made_of(run, place), wanted, _title(run, place))


def _having(row: Row, place: Place) -> list[Run]:
    """The runs of a row that have a result of a dataset."""
    return [run for run in row.runs if any(key[:2] == place for key in run.scores())]


def _title(run: Run, place: Place) -> str:
    """Title of a dataset, as a run's suite names it."""
    task = ((run.config.get("suite") or {}).get("tasks") or {}).get(place[0]) or {}
    return str(((task.get("datasets") or {}).get(place[1]) or {}).get("title") or place[1])


def baseline_cell(rows: Sequence[Row], wanted: str | None) -> str:
    """The cell that the others are compared with: the one asked for, else the first row in which nothing is trained."""
    if wanted is not None:
        return wanted
    return next((row.cell for row in rows if row.efficiency.get("trainable_parameters") == 0), "")


def other_backbone(spec: Mapping[str, Any], backbone: str) -> str:
    """Why numbers on this backbone are not the paper's; empty when it is the one of the suite."""
    own = spec.get("backbone") or backbone
    return "" if own == backbone else f"the suite stands for the paper's with backbone {own}, not {backbone}"


def _spec(rows: Sequence[Row]) -> dict[str, Any]:
    """The suite of the rows' runs, with the tasks of all of them: each run names only those it was asked for."""
    runs = [run for row in rows for run in row.runs]
    suites = [run.config["suite"] for run in runs if isinstance(run.config.get("suite"), Mapping)]
    spec = dict(next(iter(suites), {}))
    asked = [spec.get("tasks"), *(run.config.get("tasks") for run in runs)]
    spec["tasks"] = {name: task for item in asked for name, task in (item or {}).items()}
    return spec


def _rows(method: str, variant: str, runs: Sequence[Run]) -> Iterator[Row]:
    """Yield the row of a cell, or one per settings that its seeds were run with."""
    groups = by_settings(runs)
    for number, (label, group) in enumerate(groups):
        row = make_row(method, group, variant, label)
        if len(groups) > 1:
            seeds = ", ".join(run.seed for run in row.runs)
            text = (
                f"seed{'s' * (len(row.runs) > 1)} {seeds} with {label}; other seeds ran with other settings"
            )
            note = Doubt("settings differ", text)
            row = replace(row, settings=label if number else "", notes=(*row.notes, note))
        yield row


def make_row(method: str, runs: Sequence[Run], variant: str = "", label: str = "") -> Row:
    """Average the runs of a method or variant; limited and imported runs count only when there are no others.

    Args:
        method: its name.
        runs: of one cell, all with the same settings.
        variant: what is changed against the method as the suite has it.
        label: what else the title says of the settings.
    """
    runs = sorted(runs, key=lambda run: (len(run.seed), run.seed))
    notes = [note for run in runs if (note := _note(run))]
    usable = [run for run in runs if run.scores()]
    trained = [run for run in usable if not run.imported] or usable
    files = sorted({str(run.imported.get("file")) for run in usable if run.imported})
    if files:
        outcome = "not ranked" if trained is usable else "left out"
        text = f"imported from {', '.join(files)}, not trained by this recipe: {outcome}"
        notes.append(Doubt("imported" if trained is usable else "left out", text))
    whole = [run for run in trained if run.limit is None]
    limits = sorted({int(run.limit) for run in trained if run.limit is not None})
    if limits and whole:
        notes.append(Doubt("left out", f"runs limited to {_listed(limits)} samples are left out"))
    elif limits:
        notes.append(Doubt("limited", f"limited to {_listed(limits)} samples: not comparable, not ranked"))
    used = whole or trained or runs
    title, paper_row = method_titles(method)
    changes = ",".join(filter(None, (variant, label)))
    title += f" ({changes})" if changes else ""
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
        variant=variant,
    )


def method_titles(method: str) -> tuple[str, str]:
    """A method's title and its row in the paper's tables, from its card; its name if there is no plugin."""
    try:
        card = METHODS.get(method).card
        return str(card.title), str(card.paper_row or card.title)
    except (BenchmarkError, AttributeError, ImportError):
        return method, method


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
            adapted=_read(cell, "adapt.json"),
        )
    except StoreError as error:
        return Run(cell.path, {}, "unreadable", str(scrub(str(error))), {}, {}, {}, [])


def _read(cell: CellFolder, name: str) -> dict[str, Any]:
    return cell.read_json(name) if cell.exists(name) else {}


def _read_ceilings(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Reference rows: "<suite>/<backbone>" -> {"title", "datasets": {name: {metric: value}}}."""
    path = output_dir / "ceilings.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = content_problem(content, CEILINGS)
    except (OSError, ValueError, RecursionError):
        problem = "not valid JSON"
    if problem:
        raise StoreError(f"{path}: expected suite/backbone -> title, datasets -> metrics ({problem})")
    return {key: {"title": key, **entry} for key, entry in content.items()}


def _ceiling(entry: Mapping[str, Any], task: str) -> Row:
    scores = {
        (task, dataset, metric): Score(float(value), None, None, None)
        for dataset, metrics in (entry.get("datasets") or {}).items()
        for metric, value in metrics.items()
    }
    return Row("ceiling", str(entry["title"]), scores=scores, ranked=False)


def _note(run: Run) -> Doubt | None:
    """What is wrong with one run."""
    words = {"running": "is unfinished", "partial": "is partial"}
    if run.status == "success":
        return None
    text = f"seed {run.seed} {words.get(run.status, run.status)}" + (f" ({run.error})" if run.error else "")
    return Doubt("unfinished" if run.status in words else "failed", text)


def _mean_scores(runs: Sequence[Run], place: Place | None = None, *, apart: bool = False) -> dict[Key, Score]:
    """Mean scores of runs, of one dataset or of all."""
    found: dict[Key, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in runs:
        for key, entry in run.scores().items():
            if place in (None, key[:2]):
                found.setdefault(key, []).append((run, entry))
    return {key: _mean_score(results, apart=apart) for key, results in found.items()}


def _mean_score(results: Sequence[tuple[Run, Mapping[str, Any]]], *, apart: bool) -> Score:
    runs, entries = zip(*results, strict=True)
    values = [float(entry["value"]) for entry in entries]
    low, high = (
        fmean(side) if len(side) == len(entries) else None
        for side in (
            [float(entry[name]) for entry in entries if entry.get(name) is not None]
            for name in ("ci_low", "ci_high")
        )
    )
    counts = [int(entry["n"]) for entry in entries if entry.get("n") is not None]
    spread = stdev(values) if len(values) > 1 else None
    return Score(fmean(values), spread, low, high, runs, max(counts, default=None), apart)


def _mean_efficiency(runs: Sequence[Run]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, value in flat_numbers(run.efficiency).items():
            found.setdefault(key, []).append(value)
    return {key: fmean(values) for key, values in found.items()}


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(str(number) for number in numbers)

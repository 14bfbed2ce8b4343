"""The paper's tables and figures as files, and the cells that each needs on a suite.

``configs/experiments/<name>.yaml`` holds an ``experiment:`` section and, beside it, any key of a configuration. Each
row names a method and its changes. Changes that differ from the suite's own settings make a variant of the method, so
that experiments share their cells. `resolve` is the one place where rows become cells, for the run and the report.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Strict

from benchmark.config.layers import plain
from benchmark.config.load import suite_options, suite_recipe
from benchmark.config.run_config import Recipe, Settings
from benchmark.errors import BenchmarkError, ConfigError, PluginError, suggest
from benchmark.files import configs, read_yaml, shown
from benchmark.registry import BACKBONES, METHODS
from benchmark.settings import Given, called, check, read, setting, words
from benchmark.store.cells import cell_name

Kind = Literal["table", "datasets", "curve", "figure"]


def _pair(titles: list[str]) -> list[str]:
    if len(titles) != 2:
        raise ValueError("the titles of two rows")
    return titles


def _some(values: Any) -> Any:
    if not values:
        raise ValueError("at least one")
    return values


@dataclass(frozen=True)
class ExperimentRow:
    """One row of an experiment as it is written; the attributes are its keys."""

    title: str = setting("", "name of the row; {backbone} stands for the backbone (default: paper_row)")
    paper_row: str = setting("", "the paper's name of the row, as in results/paper/tables.csv")
    method: str = setting("", "name of the method; none for a difference or for a row of datasets")
    backbone: str = setting(
        "", "a name or a role of the suite's `related` (default: the backbone of the run)"
    )
    suite: str = setting("", "a role of the suite's `related` (default: the experiment's)")
    task: str = setting("", "in rows of datasets, whose datasets")
    set: Annotated[Mapping[Annotated[str, Strict()], Any], called("keys and values")] = field(
        default_factory=dict, metadata={"help": "option of the method, recipe.<key> or corpus.<key> -> value"}
    )
    recipe_of: str = setting("", "a method whose recipe in the suite this row takes, as in an ablation")
    difference: Annotated[Sequence[str], AfterValidator(_pair), called("the titles of two rows")] = setting(
        (), "titles of two rows, a and b; the row shows a - b"
    )


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        id: the paper's number or an own name.
        kind: "table"; "datasets": a table that needs no cells; "curve": a sweep; "figure": a picture of cells.
        title: of the table or figure. note: what its caption must say.
        suite: a role of the chosen suite's ``related``; empty: the chosen suite.
        tasks: task -> the metrics that are shown.
        rows: in order; the points of a sweep come after the others.
        option: the key that a sweep changes, as in `ExperimentRow.set`.
        source: the file, as messages name it.
        settings: the ordinary configuration keys of the file.
    """

    id: str
    kind: Kind
    title: str = ""
    note: str = ""
    suite: str = ""
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[ExperimentRow, ...] = ()
    option: str = ""
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Stem of its files: ``table_5``, ``table_A1``, ``figure_A2``; of one without a number its id."""
        if not any(map(str.isdigit, self.id)):
            return self.id
        kind = "table" if self.kind in ("table", "datasets") else "figure"
        return f"{kind}_{self.id.replace('.', '')}"

    @property
    def label(self) -> str:
        """Name for people: ``table A.1``."""
        kind = "table" if self.kind in ("table", "datasets") else "figure"
        return f"{kind} {self.id}"


@dataclass(frozen=True)
class ResolvedRow:
    """One row on a suite and backbone.

    Attributes:
        title: of the row. paper_row: the paper's name of it. suite_name, backbone, method: of its cells.
        variant: what tells its cells from the method's own; empty when nothing does.
        reason: why it cannot be run here; empty when it can.
        difference: titles of the rows whose scores are subtracted, or None.
        task: in rows of datasets, whose datasets.
        value: of the swept key; None in rows that are no point of a sweep.
        changes: what the variant stands for, keys as in `ExperimentRow.set`.
    """

    title: str
    paper_row: str
    suite_name: str
    backbone: str
    method: str = ""
    variant: str = ""
    reason: str = ""
    difference: tuple[str, str] | None = None
    task: str = ""
    value: Any = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> str:
        """Name of its cells' method with the variant, ``<method>[+<variant>]``."""
        return cell_name(self.method, self.variant)


def variant_text(changes: Mapping[str, Any]) -> str:
    """Return the canonical text of changes: sorted ``key=value``, joined by commas."""
    return ",".join(f"{key}={_text(changes[key])}" for key in sorted(changes))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


# ---------------------------------------------------------------------------- files
@functools.cache
def experiments() -> tuple[Experiment, ...]:
    """Return the experiments of ``configs/experiments/``, tables first, in the paper's order.

    Raises:
        ConfigError: a file is wrong; holds all problems of all files.
    """
    problems: list[str] = []
    found = [read_experiment(path, problems) for path in sorted(configs("experiments").glob("*.yaml"))]
    if problems:
        raise ConfigError(problems)
    return tuple(sorted((item for item in found if item), key=lambda item: _order(item.name)))


def _order(name: str) -> tuple[bool, bool, int, str]:
    kind, _, number = name.partition("_")
    digits = number.lstrip("A")
    return kind != "table", number != digits, int(digits) if digits.isdecimal() else 99, name


@dataclass(frozen=True)
class Sweep:
    """A ``sweep:`` section: one row for each value of an option."""

    method: str
    option: str
    values: Annotated[list[Any], AfterValidator(_some), called("a list of values")]


@dataclass(frozen=True)
class Section:
    """An ``experiment:`` section."""

    id: str
    kind: Kind
    tasks: Annotated[
        Mapping[str, Annotated[Sequence[str], called("a list of metrics")]],
        AfterValidator(_some),
        called("task -> list of metrics"),
    ]
    title: str = setting("", "of the table or figure")
    note: str = setting("", "what its caption must say")
    suite: str = setting("", "a role of the suite's `related` (default: the chosen suite)")
    rows: Sequence[ExperimentRow] | None = setting(None, "rows in order")
    sweep: Sweep | None = setting(None, "rows that differ in one value, after the others")


def read_experiment(path: Path, problems: list[str]) -> Experiment | None:
    """Read a file with an ``experiment:`` section; None, and lines in ``problems``, when it is wrong."""
    before = len(problems)
    values = read_yaml(path, problems)
    place = f"{shown(path)}:experiment"
    section, wrong = read(Section, values.pop("experiment", None), lambda key: f"{place}.{key}".rstrip("."))
    problems += wrong
    if section is None:
        return None
    problems += _row_problems(section, place)
    rows = [replace(row, title=row.title or row.paper_row) for row in section.rows or ()]
    rows += _points(section.sweep) if section.sweep else []
    if not rows:
        problems.append(f"{place}: expected rows or a sweep, got neither")
    _check_titles(rows, place, problems)
    if len(problems) > before:
        return None
    tasks = {str(task): tuple(metrics) for task, metrics in section.tasks.items()}
    option = section.sweep.option if section.sweep else ""
    return Experiment(
        section.id, section.kind, section.title, section.note, section.suite, tasks, tuple(rows), option,
        shown(path), values,
    )  # fmt: skip


def _row_problems(section: Section, where: str) -> Iterator[str]:
    for number, row in enumerate(section.rows or (), start=1):
        place = f"{where}.rows.{number}"
        if section.kind != "datasets" and bool(row.method) == bool(row.difference):
            yield f"{place}: expected either a method or a difference"
        elif section.kind == "datasets" and not row.task:
            yield f"{place}: the key 'task' is missing"
        elif not (row.title or row.paper_row):
            yield f"{place}: the key 'title' is missing"


def _points(sweep: Sweep) -> list[ExperimentRow]:
    name = sweep.option.rpartition(".")[2]
    return [
        ExperimentRow(title=f"{name} = {_text(value)}", method=sweep.method, set={sweep.option: value})
        for value in sweep.values
    ]


def _check_titles(rows: Sequence[ExperimentRow], where: str, problems: list[str]) -> None:
    titles = [row.title for row in rows]
    for title in dict.fromkeys(titles):
        if titles.count(title) > 1:
            problems.append(f"{where}.rows: two rows have the title '{title}'. Give each one of its own")
    differences = {row.title for row in rows if row.difference}
    for row in rows:
        for title in row.difference:
            place = f"{where}.rows.{row.title}.difference"
            if title not in titles:
                problems.append(f"{place}: no row has the title '{title}'.{suggest(title, titles)}")
            elif title in differences:
                problems.append(f"{place}: '{title}' is a difference itself. Name rows with a method")


# ---------------------------------------------------------------------------- cells
def resolve(
    experiment: Experiment, suite: Mapping[str, Any], backbone: str, *, strict: bool = False
) -> tuple[ResolvedRow, ...]:
    """Return the rows of an experiment on a suite and a backbone; what cannot be run there has a reason.

    Args:
        experiment: what to resolve.
        suite: the chosen suite, as read or as a cell's config.yaml holds it.
        backbone: canonical name of the chosen backbone.
        strict: raise what is written wrongly, instead of giving it as a reason.

    Raises:
        ConfigError: with ``strict``; holds the problems of all rows.
    """
    resolver = _Resolver(experiment, suite, backbone)
    rows = tuple(resolver.row(row) for row in experiment.rows)
    if strict and resolver.problems:
        raise ConfigError(list(dict.fromkeys(resolver.problems)))
    return rows


def cells_needed(experiment: Experiment, suite: Mapping[str, Any], backbone: str) -> int:
    """Return how many cells an experiment needs per seed; no method is imported.

    Rows that differ only in what the suite sets anyway are counted apart.
    """
    resolver = _Resolver(experiment, suite, backbone)
    rows = [resolver.row(row, variants=False) for row in experiment.rows if row.method]
    return len({(row.suite_name, row.backbone, row.cell) for row in rows if not row.reason})


def named_backbones(suite: Mapping[str, Any]) -> list[str]:
    """Return the backbones that rows of experiments name and that a suite may run on, in their order."""
    related, own = suite.get("related") or {}, str(suite.get("name"))
    fitting = words(suite.get("backbones") or [])
    named = [
        str(related.get(row.backbone) or row.backbone)
        for experiment in experiments()
        for row in experiment.rows
        if row.backbone and related.get(row.suite or experiment.suite, own) == own
    ]
    return [name for name in dict.fromkeys(named) if name in BACKBONES and (not fitting or name in fitting)]


class _Unavailable(Exception):
    """Why a row cannot be run."""


class _Resolver:
    def __init__(self, experiment: Experiment, suite: Mapping[str, Any], backbone: str) -> None:
        self.experiment, self.suite, self.backbone = experiment, suite, backbone
        self.name = str(suite.get("name", ""))
        self.related: Mapping[str, Any] = suite.get("related") or {}
        self.problems: list[str] = []

    def row(self, row: ExperimentRow, *, variants: bool = True) -> ResolvedRow:
        """Resolve one row; without ``variants`` no method is imported, and changes are as written."""
        suite_name, backbone, reason, method = self.name, self.backbone, "", row.method
        changes: dict[str, Any] = {}
        try:
            suite = self._suite(row)
            suite_name = str(suite.get("name", ""))
            backbone = self._backbone(row, suite)
            if row.method:
                method = METHODS.resolve(row.method)
                changes = self._changes(row, method, suite) if variants else dict(row.set)
                self._check_pairs(changes, method, suite)
        except (_Unavailable, BenchmarkError) as error:
            reason = str(error)
            backbone = row.backbone or backbone
            self.problems += error.problems if isinstance(error, ConfigError) else []
        first, second = (self._title(title) for title in row.difference) if row.difference else ("", "")
        return ResolvedRow(
            title=row.title.replace("{backbone}", backbone), paper_row=row.paper_row, suite_name=suite_name,
            backbone=backbone, method=method, variant=variant_text(changes), reason=reason,
            difference=(first, second) if row.difference else None, task=row.task,
            value=row.set.get(self.experiment.option), changes=changes,
        )  # fmt: skip

    def _title(self, title: str) -> str:
        """Return the resolved title of the row that is written with this one."""
        return next(self.row(row).title for row in self.experiment.rows if row.title == title)

    def _suite(self, row: ExperimentRow) -> Mapping[str, Any]:
        role = row.suite or self.experiment.suite
        if not role:
            return self.suite
        name = self.related.get(role)
        if not name:
            raise _Unavailable(f"suite '{self.name}' has no related suite for '{role}'")
        suite = self.suite if name == self.name else read_suite(str(name))
        if suite is None:
            raise _Unavailable(f"the related suite '{name}' is not in configs/suites")
        return suite

    def _backbone(self, row: ExperimentRow, suite: Mapping[str, Any]) -> str:
        """Return the row's backbone; a related suite has its own, unless the user chose another one."""
        wanted = self.backbone
        if suite is not self.suite and wanted == own_backbone(self.suite):
            wanted = own_backbone(suite)
        if row.backbone:
            wanted = str(self.related.get(row.backbone) or row.backbone)
        try:
            found = BACKBONES.resolve(wanted)
        except PluginError:
            raise _Unavailable(f"no backbone '{wanted}' is known here") from None
        fitting = words(suite.get("backbones") or [])
        if row.backbone and fitting and found not in fitting:
            raise _Unavailable(f"suite '{suite.get('name')}' is made for {', '.join(fitting)}")
        return found

    def _changes(self, row: ExperimentRow, method: str, suite: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a row changes, typed, without what the suite sets anyway."""
        recipe = suite_recipe(method, suite)
        default = {f"recipe.{key}": plain(value) for key, value in vars(recipe).items()}
        default |= suite_options(method, suite)
        default["corpus.fraction"] = (suite.get("corpus") or {}).get("fraction", 1)
        wanted = dict(row.set)
        if row.recipe_of:
            other = suite_recipe(METHODS.resolve(row.recipe_of), suite)
            hashed = [item.name for item in dataclasses.fields(Recipe) if item.metadata["hashed"]]
            wanted = {f"recipe.{name}": getattr(other, name) for name in hashed} | wanted
        typed = self._typed(wanted, row, METHODS.get(method))
        return {key: value for key, value in typed.items() if value != default.get(key)}

    def _typed(self, wanted: Mapping[str, Any], row: ExperimentRow, plugin: Any) -> dict[str, Any]:
        place = f"{self.experiment.source}:experiment.rows.{row.title}.set"
        typed: dict[str, Any] = {}
        problems: list[str] = []
        for key, value in wanted.items():
            section, dot, name = key.rpartition(".")
            cls = {"recipe": Recipe, "corpus": _Corpus}.get(section, getattr(plugin, "Options", None))
            if cls is None or (dot and section not in ("recipe", "corpus")):
                problems.append(f"{place}.{key}: expected an option, recipe.<key> or corpus.<key>")
                continue
            found, wrong = check(cls, [Given(name, value, f"{place}.{key}")], f"{section or 'method'} key")
            typed |= {key: plain(found.get(name))}
            problems += wrong
        if problems:
            raise ConfigError(problems)
        return typed

    def _check_pairs(self, changes: Mapping[str, Any], method: str, suite: Mapping[str, Any]) -> None:
        """Refuse a share of the corpus smaller than one batch, if the suite states the number of pairs."""
        corpus, share = suite.get("corpus") or {}, changes.get("corpus.fraction")
        counts = [corpus[key] for key in ("n", "limit") if isinstance(corpus.get(key), int)]
        batch = changes.get("recipe.batch_size", suite_recipe(method, suite).batch_size)
        if share is not None and counts and math.ceil(share * min(counts)) < batch:
            raise _Unavailable(f"{share:.0%} of {min(counts)} pairs are less than one batch of {batch}")


@dataclass(frozen=True)
class _Corpus:
    """Keys of a suite's corpus that a row may change."""

    fraction: float = 1.0


def read_suite(name: str) -> dict[str, Any] | None:
    """Return a suite of ``configs/suites/``, or None if there is no such file."""
    path = configs("suites", f"{name}.yaml")
    if not path.is_file():
        return None
    return {"name": name, **_cached_yaml(path, path.stat().st_mtime_ns)}


def own_backbone(suite: Mapping[str, Any]) -> str:
    """Return the backbone that a suite runs on by default."""
    return str(suite.get("backbone") or Settings.backbone)


@functools.lru_cache(maxsize=64)
def _cached_yaml(path: Path, changed: int) -> dict[str, Any]:
    del changed  # a part of the key: a file that was edited is read again
    return read_yaml(path)

"""The request of one command: an ordinary configuration, or the cells of the experiments in its ``--config`` files."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.config.experiments import (
    Experiment,
    ExperimentRow,
    ResolvedRow,
    own_backbone,
    read_experiment,
    resolve,
)
from benchmark.config.fewshot import PAIRS
from benchmark.config.layers import (
    DEFAULT_SUITE,
    Layer,
    Stack,
    method_layer,
    selections,
    suite_layer,
)
from benchmark.config.load import config_of, load_config, user_layers
from benchmark.config.run_config import RunConfig
from benchmark.errors import ConfigError, PluginError
from benchmark.files import read_yaml, shipped, shown
from benchmark.registry import BACKBONES, METHODS, TASKS, scan_plugins
from benchmark.settings import words

Pair = tuple[ExperimentRow, ResolvedRow]


@dataclass(frozen=True)
class Request:
    """One command's cells.

    Attributes:
        configs: together they name all cells; those of an experiment come one per backbone, suite and variant.
        experiments: those that were asked for; none for an ordinary run.
        skipped: one line per row that cannot be run here.
        named: backbones that rows name themselves: without their weights the other rows still run.
    """

    configs: tuple[RunConfig, ...]
    experiments: tuple[Experiment, ...] = ()
    skipped: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()


def load_request(
    flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = (), files: Sequence[str] = ()
) -> Request:
    """Read the flags, key=value words and ``--config`` files of a command.

    Args:
        flags: flag name (underscores) -> raw value; None means not given.
        overrides: ``key=value`` words.
        files: one YAML file of settings, or any number of files with an ``experiment:`` section.

    Raises:
        ConfigError: holds every problem found.
        PluginError: no selected method can be imported.
    """
    files = [shipped(file) for file in files]
    sections = ["experiment" in read_yaml(Path(file)) for file in files]
    if not any(sections):
        if len(files) > 1:
            raise ConfigError("--config: several files are taken only when each has an 'experiment:' section")
        return Request((load_config(flags, overrides, files[0] if files else None),))
    if not all(sections):
        plain = shown(Path(files[sections.index(False)]))
        raise ConfigError(f"--config: {plain} has no 'experiment:' section. Give its settings as key=value")
    problems: list[str] = []
    user = user_layers(flags or {}, overrides, None, problems)
    read = [read_experiment(Path(file), problems) for file in files]
    if problems:
        raise ConfigError(problems)
    return _joined([_Rows(experiment, user).load() for experiment in read if experiment])


def _joined(requests: Sequence[Request]) -> Request:
    configs = tuple(config for request in requests for config in request.configs)
    skipped = tuple(line for request in requests for line in request.skipped)
    found = tuple(item for request in requests for item in request.experiments)
    if not configs and any(item.kind != "datasets" for item in found):
        raise ConfigError(["nothing to run", *skipped])
    named = frozenset[str]().union(*(request.named for request in requests))
    return Request(configs, found, tuple(dict.fromkeys(skipped)), named)


class _Rows(Stack):
    """Turns the rows of one experiment into layers above the user's, which the loader of ordinary runs reads."""

    def __init__(self, experiment: Experiment, user: Sequence[Layer]) -> None:
        super().__init__([Layer(experiment.source, selections(dict(experiment.settings))), *user])
        self.experiment = experiment
        self.problems += scan_plugins(words(self.last("plugins") or []))

    def load(self) -> Request:
        if str(self.last("protocol", PAIRS)) != PAIRS:
            self.problems.append(f"{self.where('protocol')}: experiments adapt on pairs. Leave it out")
        own_suite = str(self.last("suite") or DEFAULT_SUITE)
        suite = suite_layer(own_suite, self.problems).values
        self.raise_problems()
        wanted = str(self.last("backbone") or own_backbone(suite))
        backbone = self.resolved(BACKBONES, wanted, self.where("backbone"))
        self._check_names()
        self.raise_problems()
        rows = resolve(self.experiment, suite, backbone, strict=True)
        pairs = [pair for pair in zip(self.experiment.rows, rows, strict=True) if pair[1].method]
        pairs = self._narrowed(pairs)
        self._check_contradictions([pair for pair in pairs if not pair[1].reason], backbone)
        self.raise_problems()
        skipped = [self._skipped(row, row.reason) for _, row in pairs if row.reason]
        configs: list[RunConfig] = []
        for group in _groups([row for _, row in pairs if not row.reason]):
            name = group[0].suite_name
            reference = own_suite if name == str(suite.get("name")) else name
            tasks = self._tasks(reference)
            if not tasks and self.last("only_tasks") is None:
                reason = f"suite '{name}' has no data for {', '.join(self.experiment.tasks)}"
                skipped += [self._skipped(row, reason) for row in group]
            else:
                configs += self._config(group, reference, backbone, tasks)
        self.raise_problems()
        roles = suite.get("related") or {}
        named = {
            row.backbone
            for written, row in pairs
            if written.backbone and written.backbone not in roles and not row.reason
        }
        return Request(tuple(configs), (self.experiment,), tuple(skipped), frozenset(named - {backbone}))

    def _skipped(self, row: ResolvedRow, reason: str) -> str:
        return f"{self.experiment.label}, {row.title}: {reason}"

    def _check_names(self) -> None:
        """Refuse unknown methods and tasks; an unknown backbone is a row that cannot be run here."""
        where = f"{self.experiment.source}:experiment"
        for row in self.experiment.rows:
            for key, name in (("method", row.method), ("recipe_of", row.recipe_of)):
                if name:
                    self.resolved(METHODS, name, f"{where}.rows.{row.title}.{key}")
        for task in self.experiment.tasks:
            self.resolved(TASKS, task, f"{where}.tasks.{task}")

    def _narrowed(self, pairs: list[Pair]) -> list[Pair]:
        """Return the rows of the methods that the user selects."""
        wanted = words(self.last("only_methods", "all"))
        if "all" in wanted:
            return pairs
        try:
            chosen = METHODS.expand(map(str, wanted))
        except PluginError as error:
            self.problems.append(f"{self.where('only_methods')}: {error}")
            return pairs
        kept = [pair for pair in pairs if pair[1].method in chosen]
        if pairs and not kept:
            have = ", ".join(dict.fromkeys(row.method for _, row in pairs))
            listed = ", ".join(map(str, wanted))
            self.problems.append(
                f"{self.where('only_methods')}: no row of {self.experiment.label} is of {listed}, only: {have}"
            )
        return kept

    def _check_contradictions(self, pairs: Sequence[Pair], backbone: str) -> None:
        label = self.experiment.label
        for layer in self.layers:
            for written, row in pairs:
                for key in {*written.set, *row.changes}:
                    if place := _place_of(layer, row.method, key):
                        self.problems.append(
                            f"{place}: the rows of {label} set '{key}' themselves. Leave it out"
                        )
        replaced = [row.title for written, row in pairs if _replaced(written, row)]
        if self.last("recipe_name") == "authors" and replaced:
            self.problems.append(
                f"{self.where('recipe_name')}: authors would replace what {label} sets in "
                f"{', '.join(replaced)}. Leave it out"
            )
        if self.source("backbone") and pairs and all(written.backbone for written, _ in pairs):
            used = ", ".join(dict.fromkeys(row.backbone for _, row in pairs))
            if used != backbone:
                self.problems.append(
                    f"{self.where('backbone')}: every row of {label} has its own ({used}). Leave it out"
                )

    def _tasks(self, reference: str) -> list[str]:
        """Return the experiment's tasks that the suite has data for."""
        tasks = suite_layer(reference, self.problems).values.get("tasks") or ()
        have = {TASKS.canonical(name) for name in tasks}
        return [task for name in self.experiment.tasks if (task := TASKS.canonical(name)) in have]

    def _config(
        self, group: Sequence[ResolvedRow], reference: str, backbone: str, tasks: Sequence[str]
    ) -> Iterator[RunConfig]:
        """Yield the configuration of rows that differ in their methods alone."""
        row = group[0]
        without = {"suite", "backbone", "only_methods"} | (
            {"pretrained"} if row.backbone != backbone else set()
        )
        user = [dataclasses.replace(x, values=_less(x.values, without)) for x in self.layers]
        top = _row_layer(self.experiment, row)
        top.values.update(
            suite=reference, backbone=row.backbone, only_methods=list(dict.fromkeys(x.method for x in group))
        )
        bottom = Layer(self.experiment.source, {"only_tasks": list(tasks)})
        try:
            config = config_of([bottom, *user, top])
        except ConfigError as error:
            self.problems += error.problems
            return
        variants = {row.method: row.variant} if row.variant else {}
        yield dataclasses.replace(config, variants=variants, beside=False)


def _groups(rows: Sequence[ResolvedRow]) -> list[list[ResolvedRow]]:
    """Bring together the rows that one configuration can hold: all plain methods of a backbone and suite."""
    found: dict[tuple[str, str, str], list[ResolvedRow]] = {}
    for row in rows:
        key = (row.suite_name, row.backbone, row.cell if row.variant else "")
        found.setdefault(key, []).append(row)
    return list(found.values())


def _row_layer(experiment: Experiment, row: ResolvedRow) -> Layer:
    """Return the changes of a row as a layer whose keys are named by where they are written."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in row.changes.items():
        section, _, name = key.rpartition(".")
        path = {"corpus": ["corpus"], "recipe": ["methods", row.method, "recipe"]}
        keys = path.get(section, ["methods", row.method, "options"])
        here = values
        for outer in keys:
            here = here.setdefault(outer, {})
        here[name] = value
        places[".".join([*keys, name])] = f"{experiment.source}:experiment.rows.{row.title}.set.{key}"
    return Layer(experiment.source, values, places)


def _replaced(written: ExperimentRow, row: ResolvedRow) -> bool:
    """Return whether a method's authors' recipe would change what a row means to keep as it is in the suite."""
    layer = method_layer(row.method, [])
    authors = {f"recipe.{item.key}" for item in layer.of_plugin(METHODS, row.method, "recipe", "authors")}
    authors |= {item.key for item in layer.of_plugin(METHODS, row.method, "options", "authors")}
    return bool(written.recipe_of or authors & (set(written.set) - set(row.changes)))


def _place_of(layer: Layer, method: str, key: str) -> str:
    """Return where a layer of the user sets what a row of a method sets too; empty where it does not."""
    section, _, name = key.rpartition(".")
    if section and any(item.key == name for item in layer.below(section)):
        return layer.where(f"{section}.{name}")
    part = "recipe" if section == "recipe" else "options"
    given = () if section == "corpus" else layer.of_plugin(METHODS, method, part)
    return next((item.where for item in given if item.key == name), "")


def _less(values: Mapping[str, Any], without: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in without}

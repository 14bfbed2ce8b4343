"""The configuration of a run: layers of YAML and command line become one frozen, checked RunConfig.

Which layer wins is written in configs/defaults.yaml. All problems of all layers are collected, then raised once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.config import fewshot
from benchmark.config.data_entries import DataEntries, mapping
from benchmark.config.layers import (
    DEFAULT_SUITE,
    FLAGS,
    OVERRIDES,
    VARIANTS,
    Layer,
    Stack,
    file_problems,
    from_flags,
    from_overrides,
    from_yaml,
    method_file,
    method_layer,
    missing_problems,
    plugin_options,
    suite_layer,
)
from benchmark.config.run_config import Recipe, RunConfig, Settings, family_of
from benchmark.config.short import NOTE, fitting_batch, smoke_pools, smoke_suite, task_layers, with_smoke
from benchmark.data.batch_size import one_pair
from benchmark.errors import ConfigError, PluginError
from benchmark.files import configs, default_data_root, shown
from benchmark.machine import processes
from benchmark.registry import (
    BACKBONES,
    METHODS,
    TASKS,
    Registry,
    is_deterministic,
    load_plugins,
    scan_plugins,
    told_once,
)
from benchmark.settings import Given, check, contract_problem, words


def load_config(
    flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = (), config_file: str | None = None
) -> RunConfig:
    """Read all layers and return the checked configuration.

    Args:
        flags: flag name (underscores) -> raw value; None means not given.
        overrides: ``key=value`` words, for example ``recipe.lr=1e-3`` or ``methods.<name>.<option>=3``.
        config_file: a YAML file of the user.

    Returns:
        The configuration. The selected methods and tasks have been imported.

    Raises:
        ConfigError: holds every problem found, each with where it stands.
        PluginError: no selected method can be imported.
    """
    problems: list[str] = []
    return config_of(user_layers(flags or {}, overrides, config_file, problems), problems)


def user_layers(
    flags: Mapping[str, Any], overrides: Sequence[str], config_file: str | None, problems: list[str]
) -> list[Layer]:
    """Return the user's layers, weakest first: the file, the flags, the key=value words."""
    layers = [from_yaml(Path(config_file), problems)] if config_file else []
    return [*layers, from_flags(flags), from_overrides(overrides, Recipe, problems)]


def config_of(user: Sequence[Layer], problems: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of the user's layers above the suite that they name.

    Args:
        user: weakest first.
        problems: found while these layers were read.

    Raises:
        ConfigError, PluginError: as in :func:`load_config`.
    """
    return _Loader(user, problems).load()


def suite_recipe(method: str, suite: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a suite gives a method when the user says nothing; nothing is imported.

    Args:
        method: canonical name.
        suite: as read, or as a cell's config.yaml holds it.

    Raises:
        ConfigError: the suite's recipe of the method is wrong.
    """
    return _suite_recipe(method, _said(suite))


def suite_options(method: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a suite gives a method when the user says nothing.

    Raises:
        ConfigError: the suite's options of the method are wrong.
        PluginError: the method is unknown or cannot be imported.
    """
    return _suite_options(METHODS.get(method), method, _said(suite))


def _said(suite: Mapping[str, Any]) -> str:
    """Return the part of a suite that recipes and options depend on, as a key."""
    return json.dumps({key: suite[key] for key in ("name", "recipe", "methods") if key in suite}, default=str)


def _suite_loader(said: str) -> _Loader:
    suite = json.loads(said)
    return _Loader([], suite=Layer(f"suite '{suite.get('name', '')}'", suite))


@functools.lru_cache(maxsize=256)
def _suite_recipe(method: str, said: str) -> Recipe:
    loader = _suite_loader(said)
    recipe = loader.recipe(loader.recipe_values(method, loader.method_layers(method)))
    loader.raise_problems()
    return recipe


@functools.lru_cache(maxsize=256)
def _suite_options(plugin: Any, method: str, said: str) -> dict[str, Any]:
    del plugin  # a part of the key: another class of the same name has other options
    loader = _suite_loader(said)
    _, options, broken = loader.options(METHODS, [method], {method: loader.method_layers(method)})
    loader.raise_problems()
    if broken:
        raise PluginError(broken[0])
    return options[method]


class _Loader(Stack):
    """Collects the problems of all layers: first what needs no import, then the plugins' own options."""

    def __init__(
        self, user: Sequence[Layer], problems: Sequence[str] = (), *, suite: Layer | None = None
    ) -> None:
        super().__init__([], problems)
        self.entries = DataEntries(self.problems)
        self.user = with_smoke(user)
        self.defaults = from_yaml(configs("defaults.yaml"), self.problems)
        self.layers = [self.defaults, *self.user]
        before = len(self.problems)
        self.suite = suite or suite_layer(self.last("suite", DEFAULT_SUITE), self.problems)
        self.readable = len(self.problems) == before
        self.layers = [self.defaults, self.suite, *self.user]
        self.variants: tuple[str, ...] = VARIANTS[:1]
        self.few: list[Layer] = []  # sections of the few-shot protocols, where one of them is asked for
        self.notes: list[str] = []

    def load(self) -> RunConfig:
        for layer in self.layers:
            self.problems += file_problems(layer, suite=layer is self.suite)
        settings = self._settings()
        protocol = settings.setdefault("protocol", fewshot.PAIRS)
        pairs = protocol == fewshot.PAIRS
        self.few = [] if pairs else fewshot.below(self.layers)
        self.variants = VARIANTS if settings.get("recipe_name") == "authors" else VARIANTS[:1]
        methods = self._select(METHODS, "methods", METHODS.names(extras=False))
        suite = self._suite()
        known_tasks = list(mapping(suite.get("tasks")))
        everything = [name for name in known_tasks if name in TASKS and TASKS.entry(name).in_all]
        tasks = self._select(TASKS, "tasks", everything)
        adapt_only = not tasks
        for task in tasks if known_tasks else []:
            if task not in map(TASKS.canonical, known_tasks):
                have = ", ".join(known_tasks)
                self.problems.append(
                    f"{self.suite.source}: the suite has no data for task '{task}', only: {have}"
                )
        layers = {name: self.method_layers(name) for name in methods}
        given = {name: self.recipe_values(name, layers[name]) for name in methods}
        written = {name: self.recipe(given[name]) for name in methods}
        self.raise_problems()
        broken = load_plugins(settings.get("plugins", ()))
        methods, options, more = self.options(METHODS, methods, layers)
        short = list(task_layers(tasks, self.user, smoke=bool(settings.get("smoke"))))
        tasks, task_options, lost = self.options(TASKS, tasks, dict.fromkeys(tasks, [*short, *self.layers]))
        broken += more + lost
        tasks, pools = (tasks, {}) if pairs else self._few_labels(tasks, settings)
        task_options = {name: task_options[name] for name in tasks}
        methods = self._fitting(methods, protocol, pools)
        self.entries.check_keys()
        trained = [name for name in methods if not is_deterministic(name)]
        recipes = written | {name: fitting_batch(written[name], settings.get("limit")) for name in trained}
        for task in tasks:
            self.entries.check_task(task, TASKS.get(task))
        self.entries.check_validation(self.suite, trains=pairs and bool(trained))
        if self.readable:
            self.problems += missing_problems(self.suite, suite, trains=pairs and bool(trained))
        check = _one_pair if pairs else fewshot.keeps_last
        for name in trained:
            self.problems += check(recipes[name], given[name])
        self.raise_problems()
        if not methods or not (tasks or adapt_only):
            raise PluginError(
                "; ".join(told_once(broken)) or "nothing to run: no method or no task is selected"
            )
        if settings.get("smoke"):
            suite, task_options = smoke_suite(suite, task_options)
            pools = smoke_pools(pools)
        own_seeds = {} if pairs else fewshot.own_seeds(settings, methods, self._gives("seeds"), self.notes)
        notes = [*self.notes, self._without_authors(trained, given)]
        notes += _shortened(settings, [written[name] for name in trained])
        return RunConfig(
            **settings, methods=tuple(methods), tasks=tuple(tasks), recipes=recipes, options=options,
            suite_name=str(suite["name"]), suite=suite | {"tasks": task_options},
            task_options=task_options, broken=tuple(told_once(broken)),
            origins={name: _origins(given[name]) for name in methods},
            notes=tuple(filter(None, notes)), pools=pools, own_seeds=own_seeds,
        )  # fmt: skip

    def _gives(self, key: str) -> bool:
        """Return whether somebody set a key, and not the defaults alone."""
        return self.source(key) not in (None, self.defaults)

    def _few_labels(
        self, tasks: Sequence[str], settings: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """Return the tasks and the labelled images of a few-shot run."""
        named = [TASKS.canonical(str(item)) for item in words(self.last("only_tasks", "all"))]
        kept, problems = fewshot.evaluated(tasks, named)
        self.problems += problems
        if not kept:
            self.problems.append(f"{self.suite.source}: no task is selected that few-shot protocols evaluate")
            return kept, {}
        found = fewshot.Pools(self.entries, kept[0], settings["protocol"])
        validation = settings.get("selection") == "coop"
        pools = found.find(self.few, settings.get("datasets", ()), validation=validation)
        self.entries.check_names()
        self.notes += found.notes
        return kept, pools

    def _fitting(
        self, methods: Sequence[str], protocol: str, pools: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Return the methods that a protocol can run; others that the user did not name are left out of a group."""
        unfit = fewshot.unfit(methods, protocol, pools)
        named = {METHODS.canonical(str(item)) for item in words(self.last("only_methods", "all"))}
        where, pairs = self.where("only_methods"), protocol == fewshot.PAIRS
        for why in dict.fromkeys(unfit.values()):
            names = [name for name in unfit if unfit[name] == why]
            if asked := [name for name in names if pairs or name in named]:
                self.problems.append(f"{where}: {', '.join(asked)} {why}. Leave them out")
            elif names:
                self.notes.append(f"{', '.join(names)} left out: methods that {why}")
        return [name for name in methods if name not in unfit]

    def _settings(self) -> dict[str, Any]:
        names = {item.name for item in dataclasses.fields(Settings)}
        given = [
            Given(key, value, layer.where(key))
            for layer in self.layers
            for key, value in layer.values.items()
            if key in names
        ]
        values, problems = check(Settings, given, "key")
        self.problems += problems
        given_few = {key: self.where(key) for key in fewshot.KEYS if self._gives(key)}
        self.problems += fewshot.setting_problems(values, given_few)
        values["shots"] = fewshot.shots_of(values)
        values.setdefault("data_root", default_data_root())
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device := values.get("device", "auto")):
            self.problems.append(f"--device: expected auto, cpu, cuda or cuda:<i>, got '{device}'")
        values["seeds"] = tuple(dict.fromkeys(values.get("seeds", (0,))))
        if not values["seeds"]:
            self.problems.append("--seeds: expected at least one seed, got none")
        missing = scan_plugins(values.get("plugins", ()))
        self.problems += missing
        self.complete = not missing  # else a name that is not known may be one of theirs
        wanted = values.get("backbone", Settings.backbone)
        values["backbone"] = self.resolved(BACKBONES, wanted, self.where("backbone"))
        if values.get("baseline") is not None:
            values["baseline"] = self.resolved(METHODS, values["baseline"], self.where("baseline"))
        values["weights"] = self._weights()
        own = values["weights"].get(family_of(values["backbone"]))
        values["pretrained"] = values.get("pretrained") or own
        return values

    def _weights(self) -> dict[str, str]:
        return {
            self.resolved(BACKBONES, name, layer.where(f"weights.{name}")): str(path)
            for layer in self.layers
            for name, path in mapping(layer.values.get("weights")).items()
        }

    def _select(self, registry: Registry, key: str, everything: list[str]) -> list[str]:
        """Return the canonical names of the last ``methods`` or ``tasks`` selection."""
        wanted, where = words(self.last(f"only_{key}", "all")), self.where(f"only_{key}")
        if key == "tasks" and wanted == ["none"]:  # adapt only: the test sets stay unopened
            return []
        chosen: list[str] = []
        for item in wanted:
            try:
                chosen += everything if item == "all" else registry.expand([str(item)])
            except PluginError as error:
                if self.complete:
                    self.problems.append(f"{where}: {error}")
        if not wanted:
            self.problems.append(f"{where}: expected at least one name, got none")
        return list(dict.fromkeys(map(registry.canonical, chosen)))

    def _suite(self) -> dict[str, Any]:
        """Return the suite with the user's changes to its data entries; check their keys and datasets."""
        suite = dict(self.suite.values)
        for layer in self.user:
            for key in ("corpus", "validation"):
                if key in layer.values:
                    suite[key] = {**mapping(suite.get(key)), **mapping(layer.values[key])}
            if "templates" in layer.values:
                suite["templates"] = layer.values["templates"]
        for layer in [*self.layers, *self.few]:
            for registry, key in ((METHODS, "methods"), (TASKS, "tasks")):
                for name in mapping(layer.values.get(key)):
                    self.resolved(registry, name, layer.where(f"{key}.{name}"))
        for layer in self.layers:
            self.entries.read(layer)
        self.entries.check_names()
        suite["corpus"] = self.entries.with_share(suite.get("corpus"))
        suite.setdefault("name", Path(self.suite.source).stem)
        return suite

    def method_layers(self, name: str) -> list[Layer]:
        """Return the layers that may hold ``methods.<name>`` settings, the method's own file in its place."""
        return [self.defaults, method_layer(name, self.problems), self.suite, *self.few, *self.user]

    def _in_order(self, layers: Sequence[Layer]) -> list[tuple[Layer, str]]:
        """Return the layers of a method with the part that is read, weakest first: the authors' over the common."""
        below = [layer for layer in layers if layer not in self.user]
        return [
            *((layer, variant) for variant in self.variants for layer in below),
            *((layer, variant) for layer in self.user for variant in self.variants),
        ]

    def recipe_values(self, name: str, layers: Sequence[Layer]) -> list[tuple[str, Given]]:
        """Return the values of a method's recipe, weakest first, each with the name of its layer."""
        found = [("defaults", item) for item in self.defaults.below("recipe")]
        found += [("suite", item) for item in self.suite.below("recipe")]
        found += [
            (f"few-shot {_origin(few, item)}", item) for few in self.few for item in few.below("recipe")
        ]
        for layer, variant in self._in_order(layers):
            if variant == "common" and layer in self.user:
                found += [(_origin(layer, item), item) for item in layer.below("recipe")]
            for item in layer.of_plugin(METHODS, name, "recipe", variant):
                label = "suite.methods" if layer is self.suite else _origin(layer, item)
                found.append(("authors" if variant == "authors" else label, item))
        return found

    def recipe(self, given: Sequence[tuple[str, Given]]) -> Recipe:
        values, problems = check(Recipe, [item for _, item in given], "recipe key")
        self.problems += problems
        try:
            return Recipe(**values)
        except ConfigError as error:
            self.problems += error.problems
            return Recipe()

    def _without_authors(self, names: Sequence[str], given: Mapping[str, Sequence[tuple[str, Given]]]) -> str:
        """Return the line on methods that train by another recipe than the authors' one that was asked for."""
        lacking = [name for name in names if "authors" not in [label for label, _ in given[name]]]
        if not lacking or "authors" not in self.variants:
            return ""
        files = ", ".join(dict.fromkeys(shown(method_file(name)) for name in lacking))
        return (
            f"recipe=authors: no authors' recipe of {', '.join(lacking)} ({files}: recipe.authors). "
            "The common one is taken"
        )

    def options(
        self, registry: Registry, names: Sequence[str], layers: Mapping[str, list[Layer]]
    ) -> tuple[list[str], dict[str, dict[str, Any]], list[str]]:
        """Import plugins; return those that work, their resolved options, and what is broken."""
        options, broken = {}, []
        for name in names:
            try:
                plugin = registry.get(name)
            except PluginError as error:
                broken.append(str(error))
                continue
            if problem := contract_problem(plugin):
                broken.append(f"{registry.kind} '{name}' ({registry.entry(name).origin}): {problem}")
                continue
            given: list[Given] = []
            for layer, variant in self._in_order(layers[name]):
                given += layer.of_plugin(registry, name, "options", variant)
            options[name] = plugin_options(plugin, given, f"{registry.kind} '{name}'", self.problems)
        return list(options), options, broken


def _origin(layer: Layer, item: Given) -> str:
    """Return a short name of the layer that a value comes from."""
    return item.where if layer.source in (FLAGS, OVERRIDES) else Path(layer.source).name


def _origins(given: Sequence[tuple[str, Given]]) -> dict[str, str]:
    """Return recipe key -> name of the layer that set it last, weakest layer first."""
    found: dict[str, str] = {}
    for label, item in given:
        found.pop(item.key, None)
        found[item.key] = label
    return found


def _one_pair(recipe: Recipe, given: Sequence[tuple[str, Given]]) -> Iterator[str]:
    """Yield the line on a batch in which no pair is compared with another one."""
    if found := one_pair(recipe.batch_size, processes() if recipe.negatives == "local" else 1):
        where = [item.where for _, item in given if item.key == "batch_size"] or ["recipe.batch_size"]
        yield f"{where[-1]}: {found}"


def _shortened(settings: Mapping[str, Any], written: Sequence[Recipe]) -> Iterator[str]:
    """Yield one line per thing that a short run is given unasked."""
    limit = settings.get("limit")
    large = sorted(
        {recipe.batch_size for recipe in written if limit is not None and recipe.batch_size > limit}
    )
    if settings.get("smoke"):
        yield NOTE
    elif large:
        yield f"--limit {limit}: batches of {', '.join(map(str, large))} pairs are lowered to {limit}"


def build_options(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen ``Options`` dataclass from JSON types (lists become the declared tuples).

    Raises:
        ConfigError: unknown keys or wrong values, all of them in one error.
    """
    typed, problems = check(cls, [Given(key, value, key) for key, value in values.items()], "option")
    if problems:
        raise ConfigError(problems)
    return cls(**typed)

"""The configuration of a run: layers of YAML and command line become one frozen, checked RunConfig.

Later layers win: dataclass defaults, configs/defaults.yaml, the suite, configs/methods/<method>.yaml, the
suite's own method settings, ``--config`` FILE, flags, key=value. All problems of all layers are collected,
then raised once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.entries import DataEntries
from benchmark.errors import ConfigError, PluginError, suggest
from benchmark.layers import (
    DEFAULT_SUITE,
    Layer,
    from_flags,
    from_overrides,
    from_yaml,
    merged,
    method_layer,
    option_values,
    plain,
    recipe_values,
    suite_layer,
)
from benchmark.paths import configs, default_data_root
from benchmark.registry import BACKBONES, METHODS, TASKS, Registry, load_plugins, scan_plugins
from benchmark.settings import Given, check, setting, words

SUITE_KEYS = frozenset(
    {"name", "title", "description", "backbone", "pretrained", "corpus", "templates", "validation"}
    | {"tasks", "recipe", "methods", "paper", "related", "backbones"}
)


@dataclass(frozen=True)
class Recipe:
    """How a method is trained; the same for all methods of a table unless a file or flag says otherwise.

    Raises:
        ConfigError: values of a wrong type or out of bounds, all of them in one error.
    """

    epochs: int = setting(40, "passes over the corpus", low=1)
    max_steps: int | None = setting(None, "stop after this many optimiser steps", low=1)
    batch_size: int = setting(64, "image-report pairs per optimiser step", low=1)
    lr: float = setting(1e-3, "peak learning rate", above=0)
    weight_decay: float = setting(1e-2, "AdamW weight decay (never on the logit scale)", low=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW betas", low=0)
    eps: float = setting(1e-8, "AdamW epsilon", above=0)
    warmup_epochs: float = setting(1.0, "length of the linear warm-up in epochs", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "learning rate after warm-up")
    grad_clip: float | None = setting(None, "largest gradient norm", above=0)
    loss: Literal["label_guided", "clip"] = setting("label_guided", "contrastive loss")
    label_match: Literal["equal", "shared_positive"] = setting("equal", "which pairs label_guided leaves out")
    logit_scale: Literal["log", "frozen", "linear"] = setting("log", "how the logit scale is trained")
    micro_batch: int | None = setting(None, "pairs per forward pass (same gradients)", low=1, hashed=False)
    select: Literal["best", "last"] = setting("best", "checkpoint that is kept, by validation")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "arithmetic of the towers")
    log_every: int = setting(20, "steps between two rows of the history", low=1, hashed=False)
    eval_batch_size: int = setting(256, "images per forward pass in evaluation", low=1, hashed=False)

    def __post_init__(self) -> None:
        given = [Given(key, value, f"recipe.{key}") for key, value in vars(self).items()]
        problems = check(Recipe, given, "recipe key")[1]
        if any(not beta < 1 for beta in self.betas if isinstance(beta, float)):
            problems.append(f"recipe.betas: expected values below 1, got {self.betas!r}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Settings:
    """Settings of a run as a whole, each with a flag of the same name."""

    backbone: str = setting("tiny", "backbone name")
    pretrained: str | None = setting(None, "weights of the backbone: tag or path")
    data_root: Path = setting(None, "folder of prepared data sets")
    output_dir: Path = setting(Path("results"), "folder of the results")
    seeds: tuple[int, ...] = setting((0,), "random seeds, one run each", low=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:<i>")
    num_workers: int = setting(0, "processes that load data, per run", low=0)
    jobs: int | None = setting(None, "runs side by side", low=1)
    limit: int | None = setting(None, "use only this many samples of every data set", low=1)
    plugins: tuple[str, ...] = setting((), "Python files or modules with more plugins")
    baseline: str | None = setting(None, "method that the others are compared with")
    recipe_name: Literal["common", "authors"] = setting("common", "one recipe for all, or each paper's own")
    dry_run: bool = setting(False, "print the plan and stop")
    overwrite: bool = setting(False, "run finished cells again")
    eval_only: bool = setting(False, "evaluate existing adapters again")
    debug: bool = setting(False, "show tracebacks")


@dataclass(frozen=True)
class RunConfig(Settings):
    """Everything a run needs, resolved and checked.

    Attributes:
        methods: canonical names; those whose plugin could not be imported are in ``broken`` instead.
        tasks: canonical names.
        suite_name: name of the suite.
        suite: the suite as read, with overrides of its data entries.
        recipes: method -> its recipe.
        options: method -> all options of its ``Options`` dataclass, as JSON types.
        task_options: task -> its options and its ``datasets``.
        broken: one line per plugin that raised on import.
        variants: method -> what tells its cells from the method as it is set by default; methods without are left out.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    suite_name: str = ""
    suite: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    task_options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)


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
    """Return what the user says, weakest first: the file, the flags, the key=value words."""
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
    loader = _Loader([], suite=_as_layer(suite))
    recipe = loader._recipe(method, loader._method_layers(method), {})
    loader._raise()
    return recipe


def suite_options(method: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a suite gives a method when the user says nothing.

    Raises:
        ConfigError: the suite's options of the method are wrong.
        PluginError: the method is unknown or cannot be imported.
    """
    loader = _Loader([], suite=_as_layer(suite))
    _, options, broken = loader._options(METHODS, [method], {method: loader._method_layers(method)})
    loader._raise()
    if broken:
        raise PluginError(broken[0])
    return options[method]


def _as_layer(suite: Mapping[str, Any]) -> Layer:
    return Layer(f"suite '{suite.get('name', '')}'", dict(suite))


class _Loader:
    """Collects the problems of all layers: first what needs no import, then the plugins' own options."""

    def __init__(
        self, user: Sequence[Layer], problems: Sequence[str] = (), *, suite: Layer | None = None
    ) -> None:
        self.problems: list[str] = list(problems)
        self.entries = DataEntries(self.problems)
        self.defaults = from_yaml(configs("defaults.yaml"), self.problems)
        self.user = list(user)
        self.suite = suite or suite_layer(self._last("suite", DEFAULT_SUITE), self.problems)
        self.layers = [self.defaults, self.suite, *self.user]

    def load(self) -> RunConfig:
        self._check_top_level()
        settings = self._settings()
        methods = self._select(METHODS, "methods", METHODS.names(extras=False))
        suite = self._suite()
        known_tasks = list(self._section(suite, "tasks", self.suite))
        everything = [name for name in known_tasks if _knows(TASKS, name) and TASKS.entry(name).in_all]
        tasks = self._select(TASKS, "tasks", everything)
        adapt_only = not tasks
        for task in tasks if known_tasks else []:
            if task not in [_canonical(TASKS, name) for name in known_tasks]:
                have = ", ".join(known_tasks)
                self.problems.append(
                    f"{self.suite.source}: the suite has no data for task '{task}', only: {have}"
                )
        layers = {name: self._method_layers(name) for name in methods}
        recipes = {name: self._recipe(name, layers[name], settings) for name in methods}
        self._raise()
        broken = load_plugins(settings.get("plugins", ()))
        methods, options, more = self._options(METHODS, methods, layers)
        task_layers = {name: [*self.layers] for name in tasks}
        tasks, task_options, lost = self._options(TASKS, tasks, task_layers)
        broken += more + lost
        self.entries.check_keys()
        self._raise()
        if not methods or not (tasks or adapt_only):
            raise PluginError("; ".join(broken) or "nothing to run: no method or no task is selected")
        return RunConfig(
            **settings, methods=tuple(methods), tasks=tuple(tasks), recipes=recipes, options=options,
            suite_name=str(suite["name"]), suite=suite | {"tasks": task_options},
            task_options=task_options, broken=tuple(broken),
        )  # fmt: skip

    def _raise(self) -> None:
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))

    def _last(self, key: str, default: Any) -> Any:
        for layer in reversed([self.defaults, *self.user]):
            if key in layer.values:
                return layer.values[key]
        return default

    def _section(self, values: Mapping[str, Any], key: str, layer: Layer) -> dict[str, Any]:
        """Return a mapping below a key; a value of another type is a problem."""
        section = values.get(key)
        if section is None or isinstance(section, dict):
            return section or {}
        self.problems.append(f"{layer.where(key)}: expected keys and values, got {section!r}")
        return {}

    def _check_top_level(self) -> None:
        run_keys = {item.name for item in dataclasses.fields(Settings)}
        run_keys |= {"suite", "methods", "tasks", "recipe", "only_methods", "only_tasks"}
        data_keys = {"corpus", "validation", "templates"}
        for layer in self.layers:
            known = SUITE_KEYS if layer is self.suite else run_keys | data_keys
            for key in layer.values:
                if key not in known and not (layer is self.suite and key == "name"):
                    near = suggest(
                        key, {*known, *(f"recipe.{item.name}" for item in dataclasses.fields(Recipe))}
                    )
                    names = ", ".join(sorted(name for name in known if not name.startswith("only_")))
                    self.problems.append(f"{layer.where(key)}: unknown key '{key}'.{near} Known: {names}")

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
        values.setdefault("data_root", default_data_root())
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device := values.get("device", "auto")):
            self.problems.append(f"--device: expected auto, cpu, cuda or cuda:<i>, got '{device}'")
        values["seeds"] = tuple(dict.fromkeys(values.get("seeds", (0,))))
        if not values["seeds"]:
            self.problems.append("--seeds: expected at least one seed, got none")
        self.problems += scan_plugins(values.get("plugins", ()))
        values["backbone"] = self._resolved(BACKBONES, values.get("backbone", Settings.backbone), "backbone")
        if values.get("baseline") is not None:
            values["baseline"] = self._resolved(METHODS, values["baseline"], "baseline")
        return values

    def _resolved(self, registry: Registry, name: str, key: str) -> str:
        try:
            return registry.resolve(name)
        except PluginError as error:
            where = next(layer.where(key) for layer in reversed(self.layers) if key in layer.values)
            self.problems.append(f"{where}: {error}")
            return name

    def _select(self, registry: Registry, key: str, everything: list[str]) -> list[str]:
        """Return the canonical names that the last ``methods`` or ``tasks`` selection stands for."""
        source = next((x for x in reversed([self.defaults, *self.user]) if f"only_{key}" in x.values), None)
        wanted = words(source.values[f"only_{key}"]) if source else ["all"]
        if key == "tasks" and wanted == ["none"]:  # adapt only: the test sets stay unopened
            return []
        chosen: list[str] = []
        for item in wanted:
            try:
                chosen += everything if item == "all" else registry.expand([str(item)])
            except PluginError as error:
                self.problems.append(f"{source.where(key) if source else key}: {error}")
        if not wanted:
            self.problems.append(
                f"{source.where(key) if source else key}: expected at least one name, got none"
            )
        return list(dict.fromkeys(_canonical(registry, name) for name in chosen))

    def _suite(self) -> dict[str, Any]:
        """Return the suite with the user's changes to its data entries; check their keys and datasets."""
        suite = dict(self.suite.values)
        self._section(suite, "related", self.suite)
        for layer in self.user:
            for key in ("corpus", "validation"):
                if key in layer.values:
                    suite[key] = {
                        **self._section(suite, key, self.suite),
                        **self._section(layer.values, key, layer),
                    }
                    self.entries.add(suite[key], layer, key)
            if "templates" in layer.values:
                suite["templates"] = layer.values["templates"]
        for key in ("corpus", "validation"):
            self.entries.add(self.suite.values.get(key) or {}, self.suite, key)
        for layer in self.layers:
            for task, options in self._section(layer.values, "tasks", layer).items():
                self._resolved_below(TASKS, task, layer, "tasks")
                datasets = options.get("datasets") if isinstance(options, dict) else None
                for name, entry in (datasets or {}).items():
                    self.entries.add(entry, layer, f"tasks.{task}.datasets.{name}")
            for method in self._section(layer.values, "methods", layer):
                self._resolved_below(METHODS, method, layer, "methods")
        suite["corpus"] = self.entries.with_share(suite.get("corpus"), self.layers)
        suite.setdefault("name", Path(self.suite.source).stem)
        return suite

    def _resolved_below(self, registry: Registry, name: str, layer: Layer, key: str) -> None:
        try:
            registry.resolve(name)
        except PluginError as error:
            self.problems.append(f"{layer.where(f'{key}.{name}')}: {error}")

    def _method_layers(self, name: str) -> list[Layer]:
        """Return the layers that may hold ``methods.<name>`` settings, the method's own file in its place."""
        return [self.defaults, method_layer(name, self.problems), self.suite, *self.user]

    def _recipe(self, name: str, layers: list[Layer], settings: Mapping[str, Any]) -> Recipe:
        variant = settings.get("recipe_name", "common")
        given = self.defaults.below("recipe") + self.suite.below("recipe")
        for layer in layers:
            if layer in self.user:
                given += layer.below("recipe")
            for prefix, section in layer.sections("methods", name, METHODS):
                given += recipe_values(
                    layer, f"{prefix}.recipe", section.get("recipe"), variant, layer in self.user
                )
        values, problems = check(Recipe, given, "recipe key")
        self.problems += problems
        try:
            return Recipe(**values)
        except ConfigError as error:
            self.problems += error.problems
            return Recipe()

    def _options(
        self, registry: Registry, names: Sequence[str], layers: Mapping[str, list[Layer]]
    ) -> tuple[list[str], dict[str, dict[str, Any]], list[str]]:
        """Import plugins; return those that work, their resolved options, and what is broken."""
        key, options, broken = f"{registry.kind}s", {}, []
        for name in names:
            try:
                plugin = registry.get(name)
            except PluginError as error:
                broken.append(str(error))
                continue
            given: list[Given] = []
            for layer in layers[name]:
                for prefix, section in layer.sections(key, name, registry):
                    given += option_values(layer, prefix, section, registry.kind)
            options[name] = self._plugin_options(plugin, given, f"{registry.kind} '{name}'")
        return list(options), options, broken

    def _plugin_options(self, plugin: Any, given: list[Given], label: str) -> dict[str, Any]:
        datasets: dict[str, Any] = {}
        for item in given:
            if item.key == "datasets" and label.startswith("task") and isinstance(item.value, dict):
                datasets = merged(datasets, item.value)
        rest = [item for item in given if not (item.key == "datasets" and label.startswith("task"))]
        cls = getattr(plugin, "Options", _NoOptions)
        values, problems = check(cls, rest, f"option of {label}")
        self.problems += problems
        resolved: dict[str, Any] = {"datasets": datasets} if label.startswith("task") else {}
        if not problems:
            try:
                made = cls(**values)
                resolved |= {item.name: plain(getattr(made, item.name)) for item in dataclasses.fields(cls)}
            except (TypeError, ValueError) as error:
                self.problems.append(f"{label}: {error}")
        return resolved


@dataclass(frozen=True)
class _NoOptions:
    """For plugins that declare no Options."""


def build_options(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen ``Options`` dataclass from JSON types (lists become the declared tuples).

    Raises:
        ConfigError: unknown keys or wrong values, all of them in one error.
    """
    typed, problems = check(cls, [Given(key, value, key) for key, value in values.items()], "option")
    if problems:
        raise ConfigError(problems)
    return cls(**typed)


def _knows(registry: Registry, name: str) -> bool:
    try:
        registry.resolve(name)
    except PluginError:
        return False
    return True


def _canonical(registry: Registry, name: str) -> str:
    return registry.resolve(name) if _knows(registry, name) else name

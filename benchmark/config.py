"""The configuration of a run: layers of YAML and command line become one frozen, checked RunConfig.

Which layer wins is written in configs/defaults.yaml. All problems of all layers are collected, then raised once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.batch_size import one_pair
from benchmark.entries import DataEntries, mapping
from benchmark.errors import ConfigError, PluginError
from benchmark.layers import (
    DEFAULT_SUITE,
    FLAGS,
    OVERRIDES,
    VARIANTS,
    Layer,
    from_flags,
    from_overrides,
    from_yaml,
    method_file,
    method_layer,
    option_values,
    plugin_options,
    recipe_values,
    suite_layer,
)
from benchmark.parallel import processes
from benchmark.paths import configs, default_data_root, shown
from benchmark.plugin_files import told_once
from benchmark.registry import BACKBONES, METHODS, TASKS, Registry, load_plugins, scan_plugins
from benchmark.settings import Given, check, contract_problem, setting, words
from benchmark.suite_keys import key_problems, method_problems, missing_problems, sort_problems


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
    optimiser: Literal["adamw", "adam", "sgd"] = setting("adamw", "optimiser", hashed="unless default")
    weight_decay: float = setting(
        1e-2, "weight decay, never on the logit scale; adam and sgd add it to the gradient", low=0
    )
    betas: tuple[float, float] = setting((0.9, 0.999), "Adam's betas; the first is SGD's momentum", low=0)
    eps: float = setting(1e-8, "Adam's epsilon", above=0)
    warmup_epochs: float = setting(1.0, "length of the linear warm-up in epochs", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "learning rate after warm-up")
    grad_clip: float | None = setting(None, "largest gradient norm", above=0)
    loss: Literal["label_guided", "clip"] = setting("label_guided", "contrastive loss")
    label_match: Literal["equal", "shared_positive"] = setting("equal", "which pairs label_guided leaves out")
    logit_scale: Literal["log", "frozen", "linear"] = setting("log", "how the logit scale is trained")
    micro_batch: int | None = setting(None, "pairs per forward pass (same gradients)", low=1, hashed=False)
    select: Literal["best", "last"] = setting("best", "checkpoint that is kept, by validation")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "arithmetic of the towers")
    negatives: Literal["global", "local"] = setting(
        "global", "with several processes: pairs that the loss compares", hashed="unless default"
    )
    length_bucket: int = setting(
        0, "batches whose texts are sorted by length together (0: off)", low=0, hashed="unless default"
    )
    compile: bool = setting(False, "compile the towers' blocks (torch.compile)", hashed="unless default")
    gradient_checkpointing: bool = setting(False, "keep only the blocks' inputs for backward", hashed=False)
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
    seeds: tuple[int, ...] = setting((0,), "random seeds, one run each", low=0, high=2**32 - 1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:<i>")
    num_workers: int = setting(0, "processes that load data, per run", low=0)
    jobs: int | None = setting(None, "runs side by side", low=1)
    engine: Literal["local", "ray"] = setting("local", "where runs are made: this machine or a Ray cluster")
    ray_address: str | None = setting(None, "HOST:PORT of the Ray cluster's head")
    cpus_per_cell: float | None = setting(None, "on Ray: cores of one run", above=0)
    gpus_per_cell: float | None = setting(None, "on Ray: GPUs of one run, or a share of one", low=0)
    limit: int | None = setting(None, "use only this many samples of every data set", low=1)
    plugins: tuple[str, ...] = setting((), "Python files or modules with more plugins")
    hash_ids: bool = setting(False, "store keyed hashes instead of image and patient ids")
    allow_overlap: bool = setting(
        False, "go on when test images are in the corpus or validation set; results say so", hashed=False
    )
    baseline: str | None = setting(None, "method that the others are compared with")
    smallest_difference: float = setting(
        0.5, "smallest difference of two scores that matters, in points", low=0.05, high=100, hashed=False
    )
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
        origins: method -> recipe key -> the layer that its value comes from, weakest layer first.
        options: method -> all options of its ``Options`` dataclass, as JSON types.
        task_options: task -> its options and its ``datasets``.
        broken: one line per plugin that raised on import.
        notes: one line per thing that is not as the user may expect.
        variants: method -> what tells its cells from the method as it is set by default; methods without are left out.
        weights: backbone -> its weights, of those that rows of experiments name.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    suite_name: str = ""
    suite: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    task_options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def weights_of(self, backbone: str) -> str | None:
        """Return what the section ``weights`` names for a backbone, whatever the options in its name."""
        return self.weights.get(_head(backbone))


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
    recipe = loader._recipe(loader._recipe_values(method, loader._method_layers(method)))
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
        before = len(self.problems)
        self.suite = suite or suite_layer(self._last("suite", DEFAULT_SUITE), self.problems)
        self.readable = len(self.problems) == before
        self.layers = [self.defaults, self.suite, *self.user]
        self.variants: tuple[str, ...] = VARIANTS[:1]

    def load(self) -> RunConfig:
        self.problems += key_problems(self.layers, self.suite, Settings, Recipe)
        for layer in self.layers:
            self.problems += sort_problems(layer, suite=layer is self.suite)
        settings = self._settings()
        self.variants = VARIANTS if settings.get("recipe_name") == "authors" else VARIANTS[:1]
        methods = self._select(METHODS, "methods", METHODS.names(extras=False))
        suite = self._suite()
        self.problems += missing_problems(self.suite, suite) if self.readable else []
        known_tasks = list(mapping(suite.get("tasks")))
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
        given = {name: self._recipe_values(name, layers[name]) for name in methods}
        recipes = {name: self._recipe(given[name]) for name in methods}
        self._raise()
        broken = load_plugins(settings.get("plugins", ()))
        methods, options, more = self._options(METHODS, methods, layers)
        task_layers = {name: [*self.layers] for name in tasks}
        tasks, task_options, lost = self._options(TASKS, tasks, task_layers)
        broken += more + lost
        self.entries.check_keys()
        self._check_entries(methods, tasks)
        trained = [name for name in methods if not getattr(METHODS.get(name), "deterministic", False)]
        for name in trained:
            self.problems += _one_pair(recipes[name], given[name])
        self._raise()
        if not methods or not (tasks or adapt_only):
            raise PluginError(
                "; ".join(told_once(broken)) or "nothing to run: no method or no task is selected"
            )
        return RunConfig(
            **settings, methods=tuple(methods), tasks=tuple(tasks), recipes=recipes, options=options,
            suite_name=str(suite["name"]), suite=suite | {"tasks": task_options},
            task_options=task_options, broken=tuple(told_once(broken)),
            origins={name: _origins(given[name]) for name in methods},
            notes=tuple(filter(None, [self._without_authors(trained, given)])),
        )  # fmt: skip

    def _check_entries(self, methods: Sequence[str], tasks: Sequence[str]) -> None:
        for task in tasks:
            self.entries.check_task(task, TASKS.get(task))
        trains = any(not getattr(METHODS.get(name), "deterministic", False) for name in methods)
        self.entries.check_validation(self.suite, trains=trains)

    def _raise(self) -> None:
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))

    def _last(self, key: str, default: Any) -> Any:
        for layer in reversed([self.defaults, *self.user]):
            if key in layer.values:
                return layer.values[key]
        return default

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
        missing = scan_plugins(values.get("plugins", ()))
        self.problems += missing
        self.complete = not missing  # else a name that is not known may be one of theirs
        values["backbone"] = self._resolved(BACKBONES, values.get("backbone", Settings.backbone), "backbone")
        if values.get("baseline") is not None:
            values["baseline"] = self._resolved(METHODS, values["baseline"], "baseline")
        values["weights"] = self._weights()
        values["pretrained"] = values.get("pretrained") or values["weights"].get(_head(values["backbone"]))
        return values

    def _weights(self) -> dict[str, str]:
        named: dict[str, str] = {}
        for layer in self.layers:
            for name, path in mapping(layer.values.get("weights")).items():
                self._resolved_below(BACKBONES, name, layer, "weights")
                named[_canonical(BACKBONES, name)] = str(path)
        return named

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
                if self.complete:
                    self.problems.append(f"{source.where(key) if source else key}: {error}")
        if not wanted:
            self.problems.append(
                f"{source.where(key) if source else key}: expected at least one name, got none"
            )
        return list(dict.fromkeys(_canonical(registry, name) for name in chosen))

    def _suite(self) -> dict[str, Any]:
        """Return the suite with the user's changes to its data entries; check their keys and datasets."""
        suite = dict(self.suite.values)
        for layer in self.user:
            for key in ("corpus", "validation"):
                if key in layer.values:
                    suite[key] = {**mapping(suite.get(key)), **mapping(layer.values[key])}
            if "templates" in layer.values:
                suite["templates"] = layer.values["templates"]
        for layer in self.layers:
            for registry, key in ((METHODS, "methods"), (TASKS, "tasks")):
                for name in mapping(layer.values.get(key)):
                    self._resolved_below(registry, name, layer, key)
            self.entries.read(layer)
        self.entries.check_names()
        suite["corpus"] = self.entries.with_share(suite.get("corpus"))
        suite.setdefault("name", Path(self.suite.source).stem)
        return suite

    def _resolved_below(self, registry: Registry, name: str, layer: Layer, key: str) -> None:
        try:
            registry.resolve(name)
        except PluginError as error:
            self.problems.append(f"{layer.where(f'{key}.{name}')}: {error}")

    def _method_layers(self, name: str) -> list[Layer]:
        """Return the layers that may hold ``methods.<name>`` settings, the method's own file in its place."""
        own = method_layer(name, self.problems)
        section = mapping(own.values.get("methods")).get(name)
        self.problems += method_problems(own, f"methods.{name}", section)
        return [self.defaults, own, self.suite, *self.user]

    def _in_order(self, layers: Sequence[Layer]) -> list[tuple[Layer, str]]:
        """Return the layers of a method with the part that is read, weakest first: the authors' over the common."""
        below = [layer for layer in layers if layer not in self.user]
        return [
            *((layer, variant) for variant in self.variants for layer in below),
            *((layer, variant) for layer in self.user for variant in self.variants),
        ]

    def _recipe_values(self, name: str, layers: Sequence[Layer]) -> list[tuple[str, Given]]:
        """Return the values of a method's recipe, weakest first, each with the name of its layer."""
        found = [("defaults", item) for item in self.defaults.below("recipe")]
        found += [("suite", item) for item in self.suite.below("recipe")]
        for layer, variant in self._in_order(layers):
            if variant == "common" and layer in self.user:
                found += [(_origin(layer, item), item) for item in layer.below("recipe")]
            for prefix, section in layer.sections("methods", name, METHODS):
                for item in recipe_values(layer, prefix, section, variant):
                    label = "suite.methods" if layer is self.suite else _origin(layer, item)
                    found.append(("authors" if variant == "authors" else label, item))
        return found

    def _recipe(self, given: Sequence[tuple[str, Given]]) -> Recipe:
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
            if problem := contract_problem(plugin):
                broken.append(f"{registry.kind} '{name}' ({registry.entry(name).origin}): {problem}")
                continue
            given: list[Given] = []
            for layer, variant in self._in_order(layers[name]):
                for prefix, section in layer.sections(key, name, registry):
                    given += option_values(layer, prefix, section, registry.kind, variant)
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


def _head(backbone: str) -> str:
    return backbone.partition(":")[0]


def _canonical(registry: Registry, name: str) -> str:
    return registry.resolve(name) if _knows(registry, name) else name

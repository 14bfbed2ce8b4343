"""Few-shot protocols: what they need of a configuration, and the cells that they ask for.

A few-shot cell is adapted on a draw from the labelled images of one dataset. Its suite says so: ``corpus`` is the data
entry of these images, ``validation`` that of more of them where labels choose settings, and ``support`` says what is
drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.config.data_entries import DataEntries, LayeredEntry, mapping
from benchmark.config.layers import Layer
from benchmark.config.run_config import Recipe, RunConfig
from benchmark.data.dataset import dataset_plugin
from benchmark.data.entries import PARTS, part_entry
from benchmark.data.fewshot import half
from benchmark.errors import ConfigError, PluginError, unknown
from benchmark.registry import METHODS, TASKS, is_deterministic
from benchmark.settings import Given

PAIRS = "pairs"
SECTION = "fewshot"
KEYS = ("shots", "sampling", "selection", "datasets")
"""Settings that no run on pairs has."""
_SHOTS: Mapping[str, tuple[int, ...]] = {"fewshot": (1, 2, 4, 8, 16)}
_MOST = 16
_SEEDS, _FITTED = 5, 20
"""Seeds of the strict protocol: of methods that train, and of those that are fitted in a moment."""
_COOP: tuple[int, ...] = (1, 2, 3)
_REALISTIC = 50


@dataclass(frozen=True)
class Share:
    """Cells of one method that differ in their seeds alone.

    Attributes:
        suite: theirs, with what they are adapted on.
        tasks: task -> options and datasets.
        seeds: one cell each.
        variant: what tells them from the method's other cells.
    """

    suite: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    variant: str = ""


def shares(config: RunConfig, method: str) -> Iterator[Share]:
    """Yield the cells of a method: one share with pairs, else one per dataset and number of shots.

    A method that learns nothing has one cell per dataset, of no shots.
    """
    if config.protocol == PAIRS:
        yield Share(config.suite, config.task_options, config.seeds)
        return
    one = is_deterministic(method)
    seeds = config.own_seeds.get(method, config.seeds)
    for dataset, pool in config.pools.items():
        tasks = {name: _asked(config, task, dataset) for name, task in config.task_options.items()}
        for shots in (0,) if one else config.shots:
            support = {"protocol": config.protocol, "dataset": dataset, "shots": shots}
            if not one:
                support |= {"sampling": config.sampling, "selection": config.selection}
            suite = {key: config.suite[key] for key in config.suite if key != "validation"}
            suite |= {"corpus": pool["train"], "support": support, "tasks": tasks}
            if "val" in pool and not one:
                suite["validation"] = {**pool["val"], "task": next(iter(tasks))}
            yield Share(suite, tasks, seeds[:1] if one else seeds, _variant(support))


def _variant(support: Mapping[str, Any]) -> str:
    """Return what tells a cell from others of its method; what every strict, standard run has is left out."""
    usual = {"sampling": "standard", "selection": "strict"}
    return ",".join(f"{key}={value}" for key, value in support.items() if usual.get(key) != value)


def _asked(config: RunConfig, task: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return a task with the datasets that a cell is evaluated on: its own, its two halves, or all."""
    entries = task.get("datasets") or {}
    if config.protocol == "cross_dataset":
        return dict(task)
    entry = entries[dataset]
    halves = ("base", "new") if config.protocol == "base_to_new" else ()
    parts = {f"{dataset}-{which}": {**entry, "subset": which} for which in halves}
    return {**task, "datasets": parts or {dataset: entry}}


# --- the configuration --------------------------------------------------------------------------------------


class _Below(Layer):
    """What a layer says below its few-shot section."""

    def where(self, key: str) -> str:
        """Return how a message names a key."""
        return Layer(self.source, {}).where(f"{SECTION}.{key}")


def below(layers: Sequence[Layer]) -> list[Layer]:
    """Return the few-shot sections of layers as layers, weakest first."""
    found = ((layer.source, mapping(layer.values.get(SECTION))) for layer in layers)
    return [_Below(source, {**section}) for source, section in found if section]


def setting_problems(settings: Mapping[str, Any], where: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each setting that does not go with the protocol.

    Args:
        settings: of the run.
        where: key of `KEYS` that somebody set -> where.
    """
    if settings.get("protocol", PAIRS) == PAIRS:
        for place in where.values():
            yield f"{place}: only with protocol=fewshot, base_to_new or cross_dataset"
    elif settings.get("sampling") == "realistic" and settings.get("selection") == "coop":
        yield f"{where['sampling']}: selection=coop draws as many images of each class. Leave one of them out"


def shots_of(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the numbers of shots of a run, ascending."""
    protocol = settings.get("protocol", PAIRS)
    own = tuple(sorted(set(settings.get("shots") or ())))
    return own or (() if protocol == PAIRS else _SHOTS.get(protocol, (_MOST,)))


def seeds_of(settings: Mapping[str, Any], method: str) -> tuple[int, ...]:
    """Return the seeds that the protocol asks for of a method."""
    if settings.get("selection") == "coop":
        return _COOP
    if settings.get("sampling") == "realistic":
        return tuple(range(_REALISTIC))
    return tuple(range(_FITTED if getattr(METHODS.get(method), "fits", False) else _SEEDS))


def own_seeds(
    settings: Mapping[str, Any], methods: Sequence[str], given: bool, notes: list[str]
) -> dict[str, tuple[int, ...]]:
    """Return the seeds of each method; none where the user has given some, which are said to be few if they are.

    Args:
        settings: of the run.
        methods: canonical names.
        given: whether the user gave seeds.
        notes: where lines for the user go.
    """
    asked = {name: seeds_of(settings, name) for name in methods}
    if not given:
        return asked
    lacking: dict[int, list[str]] = {}
    for name, seeds in asked.items():
        if len(settings["seeds"]) < len(seeds) and not is_deterministic(name):
            lacking.setdefault(len(seeds), []).append(name)
    listed = "; ".join(f"{count} for {', '.join(names)}" for count, names in lacking.items())
    if listed:
        notes.append(f"{len(settings['seeds'])} seeds are given, the protocol asks for {listed}")
    return {}


def keeps_last(recipe: Recipe, given: Sequence[tuple[str, Given]]) -> Iterator[str]:
    """Yield the line on a recipe that selects anything but the last step."""
    if recipe.select != "last":
        where = next(item.where for _, item in reversed(given) if item.key == "select")
        yield f"{where}: few-shot protocols keep the last step. Leave it out"


class Pools:
    """The labelled images of a run's datasets.

    Args:
        entries: of all layers.
        task: name of the task that they are taken from.
        protocol: of the run.
    """

    def __init__(self, entries: DataEntries, task: str, protocol: str) -> None:
        self._entries, self._task, self._protocol = entries, task, protocol
        self.notes: list[str] = []

    def find(
        self, sections: Sequence[Layer], wanted: Sequence[str], *, validation: bool
    ) -> dict[str, dict[str, Any]]:
        """Return dataset -> its entries; what is wrong with one goes to the problems of the entries.

        Args:
            sections: few-shot sections, weakest first.
            wanted: datasets; all that have labelled images if there are none.
            validation: whether validation labels choose settings.
        """
        prefix, problems = f"tasks.{self._task}.datasets.", self._entries.problems
        tests = {
            name.removeprefix(prefix): entry
            for name, entry in self._entries.found.items()
            if name.startswith(prefix)
        }
        said = [(mapping(layer.values.get("datasets")), layer) for layer in sections]
        listed = list(dict.fromkeys(name for section, _ in said for name in section))
        problems += [
            f"{self._place(said, name)}: {unknown('dataset', name, tests)}"
            for name in listed
            if name not in tests
        ]
        problems += [f"--datasets: {unknown('dataset', name, tests)}" for name in wanted if name not in tests]
        found = {}
        for name in wanted or listed or tests:
            if name in tests and (pool := self._pool(name, tests[name], said, asked=name in wanted)):
                found[name] = pool if validation else {"train": pool["train"]}
        if not found and not problems:
            reasons = "; ".join(self.notes)
            problems.append(
                f"protocol={self._protocol}: no dataset to adapt on{f' ({reasons})' * bool(reasons)}"
            )
        return found

    @staticmethod
    def _place(said: Sequence[tuple[Mapping[str, Any], Layer]], name: str) -> str:
        layer = next(layer for section, layer in reversed(said) if name in section)
        return layer.where(f"datasets.{name}")

    def _pool(
        self,
        name: str,
        test: LayeredEntry,
        said: Sequence[tuple[Mapping[str, Any], Layer]],
        *,
        asked: bool,
    ) -> dict[str, Any] | None:
        """Return the entries of one dataset; None where it cannot be adapted on."""
        own = [
            (mapping(section.get(name)), layer, f"datasets.{name}")
            for section, layer in said
            if section.get(name)
        ]
        layered = LayeredEntry([*test.layers, *(own or _other_parts(test.values))])
        problem = self._problem(test.values, has_pool=len(layered.layers) > len(test.layers))
        if problem:
            line = f"dataset '{name}': {problem}"
            self._entries.problems.extend([line] if asked else [])
            self.notes.extend([] if asked else [f"{line}. It is left out"])
            return None
        self._entries.found[f"{SECTION}.{name}"] = layered
        values = layered.values
        if "train" not in values:
            return {"train": {key: values[key] for key in values if key not in PARTS}}
        return {part: part_entry(values, part) for part in ("train", "val") if part in values}

    def _problem(self, entry: Mapping[str, Any], *, has_pool: bool) -> str:
        """Return why a dataset cannot be adapted on; empty where it can."""
        if entry.get("kind") == "multilabel":
            return "few-shot protocols need one class per image, this one is multilabel"
        if not has_pool:
            return "nothing says where labelled images for training are: fewshot.datasets.<name>"
        if self._protocol == "base_to_new" and len(half(len(entry.get("classes") or ()), "new")) < 2:
            return "base_to_new needs four classes, two for each half"
        return ""


def _other_parts(entry: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Layer, str]]:
    """Return the training and validation part of a dataset that has named parts and is tested on its test part."""
    try:
        options = {
            item.name for item in dataclasses.fields(dataset_plugin(str(entry.get("dataset"))).Options)
        }
    except (ConfigError, PluginError):  # told elsewhere
        return []
    if "part" not in options or entry.get("part") != "test":
        return []
    return [({part: {"part": part} for part in ("train", "val")}, Layer(SECTION, {}), "datasets")]


def evaluated(tasks: Sequence[str], named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tasks that few-shot protocols evaluate, and one line for each other one that was named.

    Args:
        tasks: canonical names; their plugins can be imported.
        named: those that the user named, not with ``all``.
    """
    kept = [name for name in tasks if getattr(TASKS.get(name), "few_labels", False)]
    others = [name for name in tasks if name in named and name not in kept]
    return kept, [f"--tasks: few-shot protocols do not evaluate {name}. Leave it out" for name in others]


def unfit(methods: Sequence[str], protocol: str, pools: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return method -> why a protocol cannot run it, as the end of a sentence about several."""
    found = {}
    described = bool(pools) and all(pool["train"].get("descriptions") for pool in pools.values())
    for name in methods:
        plugin = METHODS.get(name)
        if protocol == PAIRS:
            if getattr(plugin, "needs_classes", False):
                found[name] = "learn from class labels, and this run adapts on image-report pairs"
        elif getattr(plugin, "needs_descriptions", False) and not described:
            found[name] = "need sentences about each class (the key 'descriptions' of a dataset)"
        elif protocol != "fewshot" and getattr(plugin, "class_bound", False):
            found[name] = f"are bound to the classes that they learn from, and {protocol} asks for others"
    return found

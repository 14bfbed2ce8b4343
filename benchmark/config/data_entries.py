"""The data entries of a configuration (corpus, validation, datasets of tasks): their keys, each with its place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmark.config.layers import Layer, merged
from benchmark.data.entries import PARTS, option_problems, view_problems
from benchmark.errors import PluginError, quoted
from benchmark.registry import DATASETS, TASKS
from benchmark.settings import coerce


@dataclass
class LayeredEntry:
    """One data entry: its values in each layer, weakest first, with the layer and the path of the entry there."""

    layers: list[tuple[Mapping[str, Any], Layer, str]] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """The values of all layers, laid one over the other."""
        return functools.reduce(merged, (values for values, _, _ in self.layers), {})

    def where(self, key: str) -> str:
        """Return how a message names a key: by the last layer that has it."""
        _, layer, path = next((x for x in reversed(self.layers) if key in x[0]), self.layers[0])
        return layer.where(f"{path}.{key}")

    def whole(self) -> str:
        """Return how a message names the entry."""
        return self.layers[0][1].where(self.layers[0][2])

    def part(self, part: str) -> LayeredEntry:
        """Return the entry of one part: what stands below its key is laid over the rest."""
        rest: list[tuple[Mapping[str, Any], Layer, str]] = [
            ({key: values[key] for key in values if key not in PARTS}, layer, path)
            for values, layer, path in self.layers
        ]
        own: list[tuple[Mapping[str, Any], Layer, str]] = [
            (mapping(values.get(part)), layer, f"{path}.{part}") for values, layer, path in self.layers
        ]
        return LayeredEntry(rest + own)


class DataEntries:
    """Collects data entries as the layers are read, and later checks their keys against the imported plugins.

    Args:
        problems: where what is wrong is added.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.found: dict[str, LayeredEntry] = {}

    def read(self, layer: Layer) -> None:
        """Add what a layer says of data entries; a task may be spelt in any way."""
        for key in ("corpus", "validation"):
            if values := mapping(layer.values.get(key)):
                self._add(key, values, layer, key)
        for task, options in mapping(layer.values.get("tasks")).items():
            for name, entry in mapping(mapping(options).get("datasets")).items():
                path = "tasks.{}.datasets.{}"
                self._add(path.format(TASKS.canonical(task), name), entry, layer, path.format(task, name))

    def _add(self, name: str, values: Any, layer: Layer, path: str) -> None:
        if not isinstance(values, Mapping):
            self.problems.append(f"{layer.where(path)}: expected keys and values, got {quoted(values)}")
            return
        if "fraction" in values and name != "corpus":
            self.problems.append(f"{layer.where(f'{path}.fraction')}: only the corpus can be cut to a share")
        for part in PARTS:
            if not isinstance(values.get(part, {}), Mapping):
                where = layer.where(f"{path}.{part}")
                self.problems.append(f"{where}: expected keys and values, got {quoted(values[part])}")
        self.found.setdefault(name, LayeredEntry()).layers.append((values, layer, path))

    def check_names(self) -> None:
        """Check what needs no plugin: that the dataset is known, and the keys of the view."""
        for entry in self._each():
            values = entry.values
            if "dataset" not in values:
                self.problems.append(f"{entry.whole()}: the key 'dataset' is missing")
                continue
            self.problems += view_problems(values, entry.where)
            try:
                DATASETS.resolve(values["dataset"])
            except PluginError as error:
                self.problems.append(f"{entry.where('dataset')}: {error}")

    def check_keys(self) -> None:
        """Check the keys of all entries against the options of their datasets, which are imported for it."""
        for entry in self._each():
            try:
                self.problems += option_problems(entry.values, entry.where, entry.whole())
            except PluginError as error:
                self.problems.append(f"{entry.where('dataset')}: {error}")

    def check_task(self, task: str, plugin: Any) -> None:
        """Check the entries of a task against what it needs to know of them."""
        for name, entry in self.found.items():
            if name.startswith(f"tasks.{task}.datasets."):
                self.problems += _task_problems(plugin, entry, validation=False)

    def check_validation(self, suite: Layer, *, trains: bool) -> None:
        """Check the validation entry; only what trains must have one."""
        entry = self.found.get("validation")
        if entry is None:
            if trains:
                self.problems.append(
                    f"{suite.source}: the key 'validation' is missing: training keeps what scores best there"
                )
            return
        values = entry.values
        lacking = [key for key in ("task", "metric") if key not in values]
        self.problems += [f"{entry.where(key)}: the key '{key}' is missing" for key in lacking]
        if "task" in values:
            try:
                self.problems += _task_problems(TASKS.get(values["task"]), entry, validation=True)
            except PluginError as error:
                self.problems.append(f"{entry.where('task')}: {error}")

    def _each(self) -> Iterator[LayeredEntry]:
        """Yield all entries, those that have parts part by part."""
        for entry in self.found.values():
            parts = [part for part in PARTS if part in entry.values]
            yield from [entry.part(part) for part in parts] or [entry]

    def with_share(self, corpus: Any) -> Any:
        """Return a corpus with its share as a number; a share of 1 is left out, so that the cells are the same."""
        if not isinstance(corpus, dict) or "fraction" not in corpus:
            return corpus
        rest = {key: value for key, value in corpus.items() if key != "fraction"}
        share = 0.0
        with contextlib.suppress(ValueError):
            share = coerce(corpus["fraction"], float)
        if not 0 < share <= 1:
            where, got = self.found["corpus"].where("fraction"), quoted(corpus["fraction"])
            self.problems.append(f"{where}: expected a number above 0 and up to 1, got {got}")
        return rest if share == 1 else rest | {"fraction": share}


def mapping(section: Any) -> dict[str, Any]:
    """Return a section if it is a mapping, else an empty one: what is no mapping is reported elsewhere."""
    return section if isinstance(section, dict) else {}


def _task_problems(plugin: Any, entry: LayeredEntry, *, validation: bool) -> Iterator[str]:
    if check := getattr(plugin, "check_entry", None):  # a plugin that is no task is reported when it runs
        for key, problem in check(entry.values, validation=validation):
            yield f"{entry.where(key)}: {problem}"

"""Short runs: ``--smoke``, which shows that everything works, and what ``--limit`` and ``--max-steps`` bring along."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmark.config.layers import Layer
from benchmark.config.run_config import Recipe
from benchmark.data.dataset import dataset_plugin
from benchmark.data.entries import PARTS
from benchmark.errors import PluginError
from benchmark.registry import TASKS

SUFFIX = "-smoke"
"""Ends the name of the suite of a smoke run, so that its results stand apart from all others."""
NOTE = "smoke run: a few images and two steps of everything; it shows what works, its scores mean nothing"
_IMAGES = 64
_LAYER: Mapping[str, Any] = {"limit": _IMAGES, "recipe": {"max_steps": 2, "batch_size": 16}}
_TASKS: Mapping[str, Any] = {"bootstrap": 50}


def with_smoke(user: Sequence[Layer]) -> list[Layer]:
    """Return the user's layers above the settings of a smoke run, if one of them asks for it."""
    asked = next((layer.values["smoke"] for layer in reversed(user) if "smoke" in layer.values), False)
    wanted = asked is True or str(asked).lower() == "true"
    return [Layer("--smoke", {key: _LAYER[key] for key in _LAYER}), *user] if wanted else list(user)


def task_layers(tasks: Iterable[str], user: Sequence[Layer], *, smoke: bool) -> Iterator[Layer]:
    """Yield what a short run sets for tasks that have such options; weaker than what anybody says of a task itself.

    Args:
        tasks: canonical names.
        user: the user's layers: the steps that they allow every method bind heads too.
        smoke: whether it is a smoke run.
    """
    steps = [item.value for layer in user for item in layer.below("recipe") if item.key == "max_steps"]
    wanted = ({"max_steps": steps[-1]} if steps else {}) | (dict(_TASKS) if smoke else {})
    for task in tasks:
        try:
            known = getattr(TASKS.get(task), "Options", None)
        except PluginError:  # told where its options are read
            continue
        fields = (
            {item.name for item in dataclasses.fields(known)} if dataclasses.is_dataclass(known) else set()
        )
        if mine := {key: value for key, value in wanted.items() if key in fields}:
            yield Layer(user[-1].source if user else "", {"tasks": {task: mine}})


def fitting_batch(recipe: Recipe, limit: int | None) -> Recipe:
    """Return a recipe whose batch is no larger than the samples that a run may use, but a pair can be compared."""
    size = recipe.batch_size if limit is None else min(recipe.batch_size, max(2, limit))
    return dataclasses.replace(recipe, batch_size=size)


def smoke_suite(
    suite: Mapping[str, Any], task_options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a suite and the options of its tasks under another name, with few images where data are drawn."""
    cut: dict[str, Any] = {key: suite[key] for key in suite if key != "paper"}
    cut["name"] = f"{suite['name']}{SUFFIX}"
    cut["title"] = f"{suite.get('title') or suite['name']}, smoke run: scores mean nothing"
    cut |= {key: _few(suite[key]) for key in ("corpus", "validation") if suite.get(key)}
    options = {
        task: values
        | {"datasets": {name: _few(entry) for name, entry in (values.get("datasets") or {}).items()}}
        for task, values in task_options.items()
    }
    return cut, options


def smoke_pools(pools: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the labelled images of a few-shot run with few images where data are drawn."""
    return {name: {part: _few(entry) for part, entry in pool.items()} for name, pool in pools.items()}


def _few(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data entry that asks for few images, if its dataset can be asked for a number of them."""
    if "n" not in {item.name for item in dataclasses.fields(dataset_plugin(entry["dataset"]).Options)}:
        return dict(entry)

    def fewer(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "n": min(values.get("n") or _IMAGES, _IMAGES)}

    parts = {part: fewer(entry[part]) for part in PARTS if part in entry}
    return {**entry, **parts} if parts else fewer(entry)

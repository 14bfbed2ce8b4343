"""Tables of a run's plan: which cells run, which are reused, and the recipe of each method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.config.layers import plugin_options
from benchmark.config.run_config import RunConfig
from benchmark.console import Console
from benchmark.layout import Fitted
from benchmark.plan import CellSpec, Plan
from benchmark.registry import METHODS
from benchmark.store.cells import cell_name

_SAID = {"lr", "epochs", "max_steps", "batch_size", "optimiser", "warmup_epochs", "schedule", "weight_decay"} | {
    "precision", "loss",
}  # fmt: skip
_WHOLE = ("authors", "suite", "defaults")
"""Layers that hold a whole recipe: named without their keys."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan's cells: which run, which are reused."""
    words = {"todo": "run", "partial": "evaluate", "done": "reuse"}
    lines: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(plan.cells):
        spec, tasks = cell.spec, " ".join(cell.missing or cell.spec.tasks)
        alone = (
            () if "support" in spec.suite else (number,)
        )  # few-shot cells are many: their seeds share a line
        key = (spec.cell, spec.backbone, spec.suite_name, tasks, words[cell.state], alone)
        lines.setdefault(key, []).append(spec.seed)
    rows = ((key[0], _span(seeds), *key[1:5]) for key, seeds in lines.items())
    title = f"plan: {len(plan.open)} of {len(plan.cells)} cells to run"
    console.rows(
        ("method", "seed", "backbone", "suite", "tasks", "state"), rows, title, gives_way="suite, backbone"
    )


def _span(seeds: Sequence[int]) -> str:
    """Return seeds in a few characters: 3, or 0-4, or 1,5."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def recipe_table(plan: Plan, configs: Sequence[RunConfig]) -> Fitted:
    """Return what the cells of a plan use: recipe, options that differ from their defaults, and from which layers.

    Args:
        plan: the cells.
        configs: those that the plan was made of.
    """
    origins = {
        (one.suite_name, one.backbone, cell_name(name, one.variants.get(name, ""))): one.origins.get(name, {})
        for one in configs
        for name in one.methods
    }
    several = len({(spec.suite_name, spec.backbone) for spec in (cell.spec for cell in plan.cells)}) > 1
    shared: dict[str, list[str]] = {}
    for spec in (cell.spec for cell in plan.cells):
        key = (spec.suite_name, spec.backbone, spec.cell)
        shared.setdefault(_words(spec, origins.get(key, {})), []).append(
            "/".join(key if several else key[2:])
        )
    rows = [("\n".join(dict.fromkeys(cells)), text) for text, cells in shared.items()]
    return Fitted.of(("method", "recipe"), rows, "what they use (configs/defaults.yaml: which layer wins)")


def _words(spec: CellSpec, origins: Mapping[str, str]) -> str:
    plugin = METHODS.get(spec.method)
    defaults = plugin_options(plugin, [], spec.method, [])
    options = [f"{key}={_plain(value)}" for key, value in spec.options.items() if value != defaults.get(key)]
    lines = [f"options: {', '.join(options)}"] * bool(options)
    if getattr(plugin, "deterministic", False):
        return "\n".join(["trains nothing", *lines])
    return "\n".join([_recipe_words(spec), *lines, f"from {_origin_words(origins)}"])


def _recipe_words(spec: CellSpec) -> str:
    recipe = spec.recipe
    length, warm_up = recipe.epochs, recipe.warmup_epochs
    said = [
        f"lr {recipe.lr:g}",
        f"{length} epoch{'s' * (length != 1)}"
        + (f", at most {recipe.max_steps} steps" if recipe.max_steps else ""),
        f"batch {recipe.batch_size}",
        recipe.optimiser,
        f"{warm_up:g} epoch{'s' * (warm_up != 1)} of warm-up" if warm_up else "no warm-up",
        recipe.schedule,
        f"weight decay {recipe.weight_decay:g}",
        f"precision {recipe.precision}",
        "cross-entropy over the classes" if "support" in spec.suite else f"loss {recipe.loss}",
    ]
    rest = [
        f"{item.name}={_plain(value)}"
        for item in dataclasses.fields(recipe)
        if item.name not in _SAID
        and item.metadata["hashed"]
        and (value := getattr(recipe, item.name)) != item.default
    ]
    return "; ".join([", ".join(said), *rest])


def _origin_words(origins: Mapping[str, str]) -> str:
    """Return the layers that a recipe comes from, strongest first, with the keys that they set."""
    found = []
    for label in dict.fromkeys(reversed(list(origins.values()))):
        keys = [key for key, layer in origins.items() if layer == label]
        says_it = label.replace("-", "_").endswith(keys[0])  # a flag or a key=value word
        found.append(label if says_it or label in _WHOLE else f"{label} ({', '.join(keys)})")
    return ", ".join(found)


def _plain(value: Any) -> str:
    """Return a value as it is written in key=value words."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"

"""What may stand at the top of a suite and of a user's layers: known keys, and of which sort each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.errors import quoted, suggest
from benchmark.layers import VARIANTS, Layer

SUITE_KEYS = frozenset(
    {"name", "title", "description", "backbone", "pretrained", "corpus", "templates", "validation"}
    | {"tasks", "recipe", "methods", "paper", "related", "backbones"}
)
_SECTIONS = ("corpus", "validation", "tasks", "methods", "paper", "related", "weights")


def key_problems(layers: Sequence[Layer], suite: Layer, settings: type, recipe: type) -> Iterator[str]:
    """Yield one line for each key that no layer, or not this one, may have.

    Args:
        layers: all of them.
        suite: the one that is the suite.
        settings: dataclass of the settings.
        recipe: dataclass of the recipe.
    """
    run_keys = {item.name for item in dataclasses.fields(settings)}
    run_keys |= {"suite", "methods", "tasks", "recipe", "only_methods", "only_tasks"}
    run_keys |= {"corpus", "validation", "templates", "weights"}
    fields = {item.name for item in dataclasses.fields(recipe)}
    for layer in layers:
        known = SUITE_KEYS if layer is suite else run_keys
        for key in layer.values:
            if key not in known:
                names = ", ".join(sorted(name for name in known if not name.startswith("only_")))
                near = f" Did you mean 'recipe.{key}'?" if key in fields else suggest(key, known)
                yield f"{layer.where(key)}: unknown key '{key}'.{near} Known: {names}"


def sort_problems(layer: Layer, *, suite: bool) -> Iterator[str]:
    """Yield one line for each key of a layer whose value is of the wrong sort.

    Args:
        layer: any layer.
        suite: it is the suite, which has some keys more.
    """
    values = layer.values
    for key in _SECTIONS:
        if values.get(key) is not None and not isinstance(values[key], Mapping):
            yield f"{layer.where(key)}: expected keys and values, got {quoted(values[key])}"
    if values.get("recipe") is not None and not isinstance(values["recipe"], Mapping):
        yield (
            f"{layer.where('recipe')}: expected common, authors, or keys and values, got {quoted(values['recipe'])}"
        )
    for name, section in _items(values.get("methods")):
        yield from method_problems(layer, f"methods.{name}", section)
    for name, section in _items(values.get("tasks")):
        yield from _nested_problems(layer, f"tasks.{name}", section, ("datasets",))
    if values.get("templates"):
        yield from _template_problems(layer, values["templates"])
    if suite:
        yield from _suite_problems(layer)


def missing_problems(suite: Layer, merged: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each key that neither the suite nor the user gives, ``merged`` being what both say."""
    needed = {
        "templates": 'prompts such as ["a picture of {}"]',
        "corpus": "the pairs that methods are adapted on",
    }
    for key, meaning in needed.items():
        if not merged.get(key):
            yield f"{suite.source}: the key '{key}' is missing: {meaning}"


def method_problems(layer: Layer, path: str, section: Any) -> Iterator[str]:
    """Yield one line for each part of a method's settings that should hold keys and values, and does not."""
    yield from _nested_problems(layer, path, section, ("recipe",))
    source = section.get("source", "") if isinstance(section, Mapping) else ""
    if not isinstance(source, str):
        yield f"{layer.where(f'{path}.source')}: expected a text, got {quoted(source)}"
    for key in ("recipe", "options"):
        below = section.get(key) if isinstance(section, Mapping) else None
        if isinstance(below, Mapping) and set(below) <= set(VARIANTS):
            yield from _nested_problems(layer, f"{path}.{key}", below, VARIANTS)


def _nested_problems(layer: Layer, path: str, section: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield one line when a section, or what stands below one of some keys of it, holds no keys and values."""
    below = section if isinstance(section, Mapping) else {}
    for place, value in [(path, section), *((f"{path}.{key}", below.get(key)) for key in keys)]:
        if value is not None and not isinstance(value, Mapping):
            yield f"{layer.where(place)}: expected keys and values, got {quoted(value)}"


def _template_problems(layer: Layer, templates: Any) -> Iterator[str]:
    if not isinstance(templates, list | tuple):
        yield f"{layer.where('templates')}: expected a list of prompts, got {quoted(templates)}"
    else:
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                yield (
                    f"{layer.where('templates')}: expected a text with one {{}} for the class, got {quoted(template)}"
                )


def _suite_problems(suite: Layer) -> Iterator[str]:
    for key in ("name", "title", "description"):
        if key in suite.values and not isinstance(suite.values[key], str | int | float):
            yield f"{suite.where(key)}: expected a text, got {quoted(suite.values[key])}"
    backbones = suite.values.get("backbones")
    if backbones is not None and not isinstance(backbones, str | list):
        yield f"{suite.where('backbones')}: expected a list of names, got {quoted(backbones)}"
    for key, value in _items(suite.values.get("related")):
        if not isinstance(value, str):
            yield f"{suite.where(f'related.{key}')}: expected the name of a suite or backbone, got {quoted(value)}"
    for key, value in _items(suite.values.get("paper")):
        if str(key).startswith("table_") and not isinstance(value, Mapping):
            yield f"{suite.where(f'paper.{key}')}: expected the paper's names and ours, got {quoted(value)}"


def _items(section: Any) -> list[tuple[Any, Any]]:
    return list(section.items()) if isinstance(section, Mapping) else []

"""The layers of a configuration: values of one YAML file, the flags or key=value words, and their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.config.declared import MethodFile, RunFile, Suite
from benchmark.errors import ConfigError, PluginError, quoted, unknown
from benchmark.files import configs, parse_yaml, read_yaml, shown, user_path
from benchmark.registry import Registry
from benchmark.registry.sources import reason_of
from benchmark.settings import Given, check, read, unsaid

FLAGS, OVERRIDES = "flags", "key=value"
VARIANTS = ("common", "authors")
RECIPE_FLAGS = ("epochs", "max_steps", "batch_size", "lr", "precision", "loss")
"""Flags that are keys of the recipe."""
DEFAULT_SUITE = "phantom"


@dataclass(frozen=True)
class Layer:
    """Nested values of one source.

    Attributes:
        source: a file name, "flags" or "key=value".
        values: nested mapping. A plain selection (``methods: all``) is kept as ``only_methods``, so that
            ``methods`` always holds settings by name; the same for tasks.
        places: key -> where it stands, for keys that are written elsewhere than the nesting says.
    """

    source: str
    values: dict[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Return how a message names a key of this layer: ``file:key``, ``--flag`` or the key."""
        if not key:
            return self.source
        key = "recipe" if key == "recipe_name" else key.removeprefix("only_")
        if key in self.places:
            return self.places[key]
        if self.source == FLAGS:
            return "--" + key.split(".")[-1].replace("_", "-")
        return key if self.source == OVERRIDES else f"{self.source}:{key}"

    def below(self, key: str) -> list[Given]:
        """Return the values below a key, each with its place."""
        section = self.values.get(key)
        if not isinstance(section, dict):  # reported by `file_problems`
            return []
        return [Given(name, value, self.where(f"{key}.{name}")) for name, value in section.items()]

    def of_plugin(self, registry: Registry, name: str, part: str, variant: str = "common") -> Iterator[Given]:
        """Yield what a layer says of a method or task, under any spelling of its name.

        Args:
            registry: METHODS or TASKS.
            name: canonical name.
            part: "recipe" or "options"; options also stand beside that key.
            variant: "common", which flat values are too, or "authors".
        """
        plugins = self.values.get(f"{registry.kind}s")
        for spelling, section in plugins.items() if isinstance(plugins, dict) else ():
            if not isinstance(section, dict) or registry.canonical(str(spelling)) != name:
                continue
            prefix = f"{registry.kind}s.{spelling}"
            below, chosen = _variant_part(section.get(part), variant)
            for key, value in chosen.items():
                yield Given(key, value, self.where(f"{prefix}.{part}{below}.{key}"))
            if part == "options" and variant == "common":
                others = ("options", "recipe", "source") if registry.kind == "method" else ("options",)
                for key in (key for key in section if key not in others):
                    yield Given(key, section[key], self.where(f"{prefix}.{key}"))


def from_yaml(path: Path, problems: list[str]) -> Layer:
    """Read a YAML file as a layer; what is wrong with it is added to ``problems``."""
    return Layer(shown(path), selections(read_yaml(path, problems)))


def from_flags(flags: Mapping[str, Any]) -> Layer:
    """Return the layer of command-line flags; names of recipe fields go below ``recipe``."""
    given = {key: value for key, value in flags.items() if value is not None and value is not False}
    values = {key: value for key, value in given.items() if key not in RECIPE_FLAGS}
    recipe = {key: value for key, value in given.items() if key in RECIPE_FLAGS}
    return Layer(FLAGS, selections(values | ({"recipe": recipe} if recipe else {})))


def from_overrides(pairs: Sequence[str], recipe: type, problems: list[str]) -> Layer:
    """Return the layer of ``key=value`` words; values are YAML, ``lr`` is short for ``recipe.lr``."""
    recipe_fields = {item.name for item in dataclasses.fields(recipe)}
    layer = Layer(OVERRIDES, {})
    for pair in pairs:
        try:
            parts, value = key_and_value(pair)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if len(parts) == 1 and parts[0] in recipe_fields:
            parts = ["recipe", *parts]
        _put(layer, parts, value, problems)
    return layer


def key_and_value(pair: str) -> tuple[list[str], Any]:
    """Return the parts of the key of a ``key=value`` word, and its value as YAML reads it.

    Raises:
        ConfigError: it has no key, or an empty part in it.
    """
    key, equals, text = pair.partition("=")
    parts = key.strip().replace("-", "_").split(".")
    if not equals or not all(parts):
        raise ConfigError(f"expected key=value, got {quoted(pair)}. Example: recipe.lr=1e-3")
    return parts, yaml_value(text)


def suite_layer(reference: Any, problems: list[str]) -> Layer:
    """Read a suite by name (``configs/suites/<name>.yaml``) or path (``FILE.yaml``)."""
    text = str(reference)
    is_path = text.endswith((".yaml", ".yml")) or "/" in text
    known = {item.stem: item for item in configs("suites").glob("*.yaml")}
    path = user_path(text) if is_path else known.get(text)
    if path is None or not path.is_file():
        problem = f"file '{text}' does not exist" if is_path else unknown("suite", text, known)
        problems.append(f"--suite: {problem}")
        return Layer(text, {})
    values = read_yaml(path, problems)
    return Layer(shown(path), values if "name" in values else {"name": path.stem, **values})


def method_file(name: str) -> Path:
    """Return ``configs/methods/<name>.yaml``, one file for all members of a family."""
    return configs("methods", f"{name.split(':', 1)[0]}.yaml")


def method_layer(name: str, problems: list[str]) -> Layer:
    """Read the settings file of a method, where it exists, as a layer below ``methods.<name>``."""
    path = method_file(name)
    if not path.is_file():
        return Layer(shown(path), {})
    section = read_yaml(path, problems)
    layer = Layer(shown(path), {"methods": {name: section}})
    problems += read(MethodFile, section, lambda key: layer.where(f"methods.{name}.{key}".rstrip(".")))[1]
    return layer


def yaml_value(text: str) -> Any:
    """Return the value of a ``key=value`` word: YAML, or the text itself if it is not YAML."""
    try:
        return parse_yaml(text)
    except ConfigError:
        return text


def selections(values: dict[str, Any]) -> dict[str, Any]:
    """Tell a selection of names (``methods: all``) from settings by name (``methods: {name: ...}``)."""
    out = {}
    for key, value in values.items():
        plain = key in ("methods", "tasks") and not isinstance(value, dict)
        out[f"only_{key}" if plain else key] = value
    if isinstance(out.get("recipe"), str):
        out["recipe_name"] = out.pop("recipe")
    return out


def _put(layer: Layer, parts: list[str], value: Any, problems: list[str]) -> None:
    if len(parts) == 1:
        chosen = selections({parts[0]: value})
        layer.values.update(chosen)
        return
    here = layer.values
    for part in parts[:-1]:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            problems.append(f"{'.'.join(parts)}: '{part}' is already given as a plain value")
            return
    here[parts[-1]] = value


def _variant_part(section: Any, variant: str) -> tuple[str, dict[str, Any]]:
    """Return what a recipe or options say for "common" or "authors", and below which key; flat ones are common."""
    if not isinstance(section, dict):
        return "", {}
    if set(section) <= set(VARIANTS):
        found = section.get(variant)
        return f".{variant}", found if isinstance(found, dict) else {}
    return "", section if variant == "common" else {}


@dataclass(frozen=True)
class _NoOptions:
    """For plugins that declare no Options."""


def plugin_options(plugin: Any, given: Sequence[Given], label: str, problems: list[str]) -> dict[str, Any]:
    """Return all options of a method or task as JSON types, and the datasets of a task.

    Args:
        plugin: the class.
        given: its values in all layers, weakest first.
        label: how a message names it, beginning with "method" or "task".
        problems: where what is wrong is added.
    """
    is_task = label.startswith("task")
    datasets: dict[str, Any] = {}
    for item in given:
        if is_task and item.key == "datasets" and isinstance(item.value, dict):
            datasets = merged(datasets, item.value)
    rest = [item for item in given if not (is_task and item.key == "datasets")]
    cls = getattr(plugin, "Options", _NoOptions)
    values, wrong = check(cls, rest, f"option of {label}")
    problems += wrong
    resolved: dict[str, Any] = {"datasets": datasets} if is_task else {}
    if not wrong:
        try:
            made = cls(**values)
            said = {item.name: getattr(made, item.name) for item in dataclasses.fields(cls)}
            resolved |= {name: plain(said[name]) for name in said if name not in unsaid(made)}
        except Exception as error:  # a plugin's own check may raise anything
            problems.append(f"{label}: {reason_of(error)}")
    return resolved


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``old`` with ``new`` laid over it, mappings key by key."""
    out = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def plain(value: Any) -> Any:
    """Return a value as JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def file_problems(layer: Layer, *, suite: bool) -> list[str]:
    """Return one line for each value of a layer that its declaration does not allow, and for each unknown key."""
    return read(Suite if suite else RunFile, layer.values, layer.where)[1]


def missing_problems(suite: Layer, values: Mapping[str, Any], *, trains: bool) -> Iterator[str]:
    """Yield one line for each key that a run needs and neither the suite nor the user gives."""
    needed = {"templates": 'prompts such as ["a picture of {}"]'}
    needed |= {"corpus": "the pairs that methods are adapted on"} if trains else {}
    for key, meaning in needed.items():
        if not values.get(key):
            yield f"{suite.source}: the key '{key}' is missing: {meaning}"


class Stack:
    """Layers over one another, weakest first, and the problems that were found in them.

    Args:
        layers: weakest first.
        problems: found while they were read.
    """

    def __init__(self, layers: Sequence[Layer], problems: Sequence[str] = ()) -> None:
        self.layers = list(layers)
        self.problems = list(problems)

    def source(self, key: str) -> Layer | None:
        """Return the strongest layer that has a key."""
        return next((layer for layer in reversed(self.layers) if key in layer.values), None)

    def last(self, key: str, default: Any = None) -> Any:
        """Return the strongest value of a key."""
        layer = self.source(key)
        return layer.values[key] if layer else default

    def where(self, key: str) -> str:
        """Return how a message names the strongest value of a key."""
        layer = self.source(key)
        return layer.where(key) if layer else key.removeprefix("only_")

    def resolved(self, registry: Registry, name: str, where: str) -> str:
        """Return the canonical name; an unknown one is a problem at ``where``, and returned as it is."""
        try:
            return registry.resolve(name)
        except PluginError as error:
            self.problems.append(f"{where}: {error}")
            return name

    def raise_problems(self) -> None:
        """Raise ConfigError with all problems, each once; nothing when there are none."""
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))

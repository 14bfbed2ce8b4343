"""The layers of a configuration: values of one YAML file, the flags or key=value words, and their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import PluginError, unknown
from benchmark.paths import configs, shown
from benchmark.registry import Registry
from benchmark.settings import Given

FLAGS, OVERRIDES = "flags", "key=value"
DEFAULT_SUITE = "phantom"
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same result, many times faster


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
        key = key.removeprefix("only_")
        if key in self.places:
            return self.places[key]
        if self.source == FLAGS:
            return "--" + key.split(".")[-1].replace("_", "-")
        return key if self.source == OVERRIDES else f"{self.source}:{key}"

    def below(self, key: str) -> list[Given]:
        """Return the values below a key, each with its place."""
        section = self.values.get(key)
        if section is None:
            return []
        if not isinstance(section, dict):
            return [Given(key, section, self.where(key))]
        return [Given(name, value, self.where(f"{key}.{name}")) for name, value in section.items()]

    def sections(self, key: str, name: str, registry: Registry) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (path, settings) of each ``<key>.<spelling of name>`` mapping."""
        group = self.values.get(key)
        for spelling, section in group.items() if isinstance(group, dict) else ():
            try:
                same = registry.resolve(str(spelling)) == name
            except PluginError:
                continue
            if same and isinstance(section, dict):
                yield f"{key}.{spelling}", section


def from_yaml(path: Path, problems: list[str]) -> Layer:
    """Read a YAML file as a layer; what is wrong with it is added to ``problems``."""
    return Layer(shown(path), selections(read_yaml(path, problems)))


def from_flags(flags: Mapping[str, Any]) -> Layer:
    """Return the layer of command-line flags; names of recipe fields go below ``recipe``."""
    recipe_flags = ("epochs", "max_steps", "batch_size", "lr", "precision", "loss")
    given = {key: value for key, value in flags.items() if value is not None and value is not False}
    values = {key: value for key, value in given.items() if key not in recipe_flags}
    recipe = {key: value for key, value in given.items() if key in recipe_flags}
    return Layer(FLAGS, selections(values | ({"recipe": recipe} if recipe else {})))


def from_overrides(pairs: Sequence[str], recipe: type, problems: list[str]) -> Layer:
    """Return the layer of ``key=value`` words; values are YAML, ``lr`` is short for ``recipe.lr``."""
    recipe_fields = {item.name for item in dataclasses.fields(recipe)}
    layer = Layer(OVERRIDES, {})
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.strip().replace("-", "_").split(".") if equals else []
        if not parts or not all(parts):
            problems.append(f"expected key=value, got '{pair}'. Example: recipe.lr=1e-3")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if len(parts) == 1 and parts[0] in recipe_fields:
            parts = ["recipe", *parts]
        _put(layer, parts, value, problems)
    return layer


def suite_layer(reference: Any, problems: list[str]) -> Layer:
    """Read a suite by name (``configs/suites/<name>.yaml``) or path (``FILE.yaml``)."""
    text = str(reference)
    is_path = text.endswith((".yaml", ".yml")) or "/" in text
    path = Path(text).expanduser() if is_path else configs("suites", f"{text}.yaml")
    if not path.is_file():
        known = [item.stem for item in configs("suites").glob("*.yaml")]
        problem = (
            f"--suite: file '{text}' does not exist"
            if is_path
            else f"--suite: {unknown('suite', text, known)}"
        )
        problems.append(problem)
        return Layer(text, {})
    values = read_yaml(path, problems)
    return Layer(shown(path), values if "name" in values else {"name": path.stem, **values})


def method_layer(name: str, problems: list[str]) -> Layer:
    """Read ``configs/methods/<name>.yaml``, where it exists, as a layer below ``methods.<name>``."""
    path = configs("methods", f"{name.split(':', 1)[0]}.yaml")
    if not path.is_file():
        return Layer(shown(path), {})
    section = read_yaml(path, problems)
    for key in section:
        if key not in ("recipe", "options"):
            problems.append(f"{shown(path)}:{unknown('key', key, ('recipe', 'options'))}")
    return Layer(shown(path), {"methods": {name: section}})


def read_yaml(path: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """Return the mapping in a YAML file; an unreadable file gives ``{}`` and one line in ``problems``."""
    problem = ""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)  # noqa: S506
        if values is None or isinstance(values, dict):
            return {str(key): value for key, value in (values or {}).items()}
        problem = f"expected keys and values, got {type(values).__name__}"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = f"not valid YAML{line}: {getattr(error, 'problem', None) or 'cannot be parsed'}"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})"
    if problems is not None:
        problems.append(f"{shown(path)}: {problem}")
    return {}


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


def recipe_values(layer: Layer, key: str, section: Any, variant: str, by_user: bool) -> list[Given]:
    """Return the recipe values of a method's section: flat ones are the common recipe, or the user's wish."""
    if not isinstance(section, dict):
        return []
    if set(section) <= {"common", "authors"}:
        chosen, key = section.get(variant) or {}, f"{key}.{variant}"
    else:
        chosen = section if by_user or variant == "common" else {}
    return [Given(name, value, layer.where(f"{key}.{name}")) for name, value in chosen.items()]


def option_values(layer: Layer, prefix: str, section: dict[str, Any], kind: str) -> list[Given]:
    """Return option values of a section; those below ``options:`` and those beside it are the same."""
    found = []
    for key, value in section.items():
        if key == "options" and isinstance(value, dict):
            found += [
                Given(name, item, layer.where(f"{prefix}.options.{name}")) for name, item in value.items()
            ]
        elif not (key == "recipe" and kind == "method"):
            found.append(Given(key, value, layer.where(f"{prefix}.{key}")))
    return found


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

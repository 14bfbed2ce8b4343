"""JSON Schemas of the YAML files that users write, for editors that check and complete them.

They are made from the declarations that the program itself checks files with: `benchmark.config.declared`, `Recipe`,
the sections of an experiment, and the Options of every method, task and dataset.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from benchmark.config.declared import MethodFile, RunFile, Suite
from benchmark.config.experiments import Section
from benchmark.config.run_config import Recipe
from benchmark.data.entries import PARTS, View
from benchmark.registry import DATASETS, METHODS, TASKS, Registry
from benchmark.settings import json_schema

NAMES = ("suite", "run", "experiment", "method")
"""Kinds of files that have a schema."""
Schema = dict[str, Any]
_NAMES: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_NULL: Schema = {"type": "null"}
_ANYTHING: Schema = {"type": ["object", "null"], "additionalProperties": {"type": ["object", "null"]}}


def schema_text(name: str) -> str:
    """Return the JSON Schema of one kind of file; imports all methods, tasks and datasets.

    Args:
        name: one of `NAMES`.

    Raises:
        PluginError: a method, task or dataset cannot be imported.
    """
    writer = _Writer()
    schema = getattr(writer, name)()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **schema, "$defs": writer.used_by(schema)}, indent=1) + "\n"


class _Writer:
    """Writes schemas that refer to the same definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self.recipe = self.define(Recipe.__name__, json_schema(Recipe))

    def define(self, name: str, schema: Schema) -> Schema:
        """Return a reference to a schema that is defined once."""
        self.definitions |= schema.pop("$defs", {})
        self.definitions[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    def used_by(self, schema: Schema) -> dict[str, Schema]:
        """Return the definitions that a schema refers to."""
        used: dict[str, Schema] = {}
        waiting = _references(schema)
        while waiting:
            name = waiting.pop()
            used[name] = self.definitions[name]
            waiting |= _references(used[name]) - used.keys()
        return dict(sorted(used.items()))

    def suite(self) -> Schema:
        return {"title": "A suite: configs/suites/<name>.yaml", **self._file(Suite)}

    def run(self) -> Schema:
        return {"title": "Settings of a run: a file for --config", **self._file(RunFile)}

    def experiment(self) -> Schema:
        schema = self._file(RunFile)
        schema["properties"]["experiment"] = self.define(Section.__name__, json_schema(Section))
        title = "An experiment: configs/experiments/<name>.yaml"
        return {"title": title, **schema, "required": ["experiment"]}

    def method(self) -> Schema:
        keys = json_schema(MethodFile)["properties"]
        keys |= {"recipe": self._twice(self.recipe), "options": {"type": ["object", "null"]}}
        return {"title": "Settings of a method: configs/methods/<name>.yaml", **_object(keys)}

    def _file(self, hint: type) -> Schema:
        """Return the schema of a suite or a run's file as it is written."""
        keys = json_schema(hint)["properties"]
        names = {key: keys.pop(f"only_{key}", None) for key in ("methods", "tasks")}
        keys.pop("recipe_name", None)
        keys["recipe"] = {"anyOf": [{"enum": ["common", "authors"]}, self.recipe, _NULL]}
        few = {
            "recipe": {"anyOf": [self.recipe, _NULL]},
            "methods": _ANYTHING,
            "datasets": _ANYTHING,
            "published": _NAMES,
        }
        keys["fewshot"] = {"anyOf": [_object(few), _NULL]}
        for key, plugins in (("methods", self._plugins(METHODS)), ("tasks", self._plugins(TASKS))):
            keys[key] = {"anyOf": [_NAMES, plugins]} if names[key] else plugins
        entry = self._entry()
        keys |= {key: {"anyOf": [entry, _NULL]} for key in ("corpus", "validation")}
        return _object(keys)

    def _plugins(self, registry: Registry) -> Schema:
        """Return settings by name; what stands below other names, such as plugins of the user, is left alone."""
        names = [name for name in registry.names() if not registry.entry(name).family]
        section = {"method": self._method, "task": self._task}[registry.kind]
        return {
            "type": ["object", "null"],
            "properties": {name: {"anyOf": [section(name), _NULL]} for name in names},
            "additionalProperties": {"type": ["object", "null"]},
        }

    def _method(self, name: str) -> Schema:
        options = _options(METHODS.get(name))
        below = self._twice(self.define(f"{name}.options", _object(options)))
        keys = {"source": {"type": "string"}, "recipe": self._twice(self.recipe), "options": below}
        return _object({**options, **keys})

    def _task(self, name: str) -> Schema:
        options = _options(TASKS.get(name))
        entries = {"type": ["object", "null"], "additionalProperties": self._entry()}
        return _object({**options, "options": _object(options), "datasets": entries})

    def _twice(self, schema: Schema) -> Schema:
        """Return a section that is flat, or stands below ``common`` and ``authors``."""
        return {"anyOf": [schema, _object(dict.fromkeys(("common", "authors"), schema)), _NULL]}

    def _entry(self) -> Schema:
        """Return the schema of a data entry: keys that all have, and those of the dataset that it names."""
        common = json_schema(View)["properties"]
        cases = []
        for name in DATASETS.names():
            named = {"properties": {"dataset": {"enum": [name, *DATASETS.entry(name).aliases]}}}
            own = {**dict.fromkeys((*common, *PARTS), True), **_options(DATASETS.get(name))}
            cases.append({"if": {**named, "required": ["dataset"]}, "then": _object(own)})
        return self.define("entry", {"type": "object", "properties": common, "allOf": cases})


def _references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].rpartition("/")[2]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_references, schema.values()))


def _options(plugin: Any) -> dict[str, Schema]:
    cls = getattr(plugin, "Options", None)
    return dict(json_schema(cls)["properties"]) if dataclasses.is_dataclass(cls) else {}


def _object(properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}

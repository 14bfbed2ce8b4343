"""What configuration files may hold: suites, files for ``--config`` and the settings file of a method.

A plain selection of names (``methods: all``) is kept apart from settings by name (``methods: {<name>: ...}``), as
``only_methods``; so is ``recipe: authors`` as ``recipe_name`` (`benchmark.config.layers.selections`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, PlainValidator

from benchmark.config.run_config import Recipe, Settings
from benchmark.settings import Stored, called, setting


def _template(text: Any) -> str:
    if not isinstance(text, str) or text.count("{}") != 1:
        raise ValueError("a text with one {} for the class")
    return text


def _role(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError("the name of a suite or backbone")
    return name


def _paper(section: dict[Any, Any]) -> dict[Any, Any]:
    for key, value in section.items():
        if str(key).startswith("table_") and not isinstance(value, Mapping):
            raise ValueError(f"the paper's names and ours below '{key}'")
    return section


def _name(text: str) -> str:
    if not 0 < len(text) <= 100 or not text.isprintable() or set(text) & set("/\\"):
        raise ValueError("a name of 1 to 100 printable characters without / and \\")
    return text


Section = Mapping[str, Any]
Name = Annotated[str, AfterValidator(_name)]
Templates = Annotated[
    list[Annotated[Any, PlainValidator(_template, json_schema_input_type=str)]], called("a list of prompts")
]
Roles = Mapping[str, Annotated[Any, PlainValidator(_role, json_schema_input_type=str)]]
Names = Annotated[tuple[str, ...], called("a list of names")]


@dataclass(frozen=True)
class Variants(Stored):
    """A recipe or options: flat, or below one of the two keys."""

    common: Section | None = setting(None, "as in this benchmark")
    authors: Section | None = setting(None, "as in the method's paper; taken with recipe=authors")


@dataclass(frozen=True)
class MethodFile:
    """``configs/methods/<name>.yaml``."""

    as_written: ClassVar[bool] = True

    source: str = setting("", "where the values come from")
    recipe: Variants | None = setting(None, "recipe of this method")
    options: Variants | None = setting(None, "its options")


@dataclass(frozen=True)
class MethodSettings(MethodFile, Stored):
    """Settings of a method in another file; all other keys are options."""


@dataclass(frozen=True)
class TaskSettings(Stored):
    """Settings of a task; all other keys are options."""

    datasets: Mapping[Name, Any] | None = setting(None, "name -> data entry")
    options: Section | None = setting(None, "its options, which may also stand beside this key")


@dataclass(frozen=True)
class FewShot:
    """What differs with the few-shot protocols."""

    datasets: Mapping[Name, Section | None] | None = setting(
        None, "dataset of the task -> keys of its labelled images, laid over those of the test set"
    )
    recipe: Annotated[Recipe, called("keys and values")] | None = setting(None, "how all methods are trained")
    methods: Mapping[str, MethodSettings | None] | None = setting(None, "method -> recipe and options")
    published: Names | None = setting(None, "groups of results/paper/fewshot.csv whose rows stand beside")


@dataclass(frozen=True)
class _Shared:
    """Keys of suites and of a user's files."""

    corpus: Section | None = setting(None, "data entry of the pairs that methods are adapted on")
    validation: Section | None = setting(None, "data entry that checkpoints are chosen on")
    templates: Templates | None = setting(None, "prompts, each with one {} for the class")
    tasks: Mapping[str, TaskSettings | None] | None = setting(
        None, "task -> its options and datasets", hashed=False
    )
    recipe: Annotated[Recipe, called("common, authors, or keys and values")] | None = setting(
        None, "how all methods are trained", hashed=False
    )
    methods: Mapping[str, MethodSettings | None] | None = setting(
        None, "method -> recipe and options", hashed=False
    )
    fewshot: FewShot | None = setting(None, "what differs with the few-shot protocols", hashed=False)


@dataclass(frozen=True)
class Suite(_Shared):
    """``configs/suites/<name>.yaml``; ``hashed``: the adapted weights depend on the key, in a cell of this suite."""

    name: Name | None = setting(None, "name of the suite (default: of the file)", hashed=False)
    title: str | None = setting(None, "for people", hashed=False)
    description: str | None = setting(None, "for people", hashed=False)
    backbone: str | None = setting(None, "backbone unless another one is asked for", hashed=False)
    pretrained: str | None = setting(None, "its weights: tag or path", hashed=False)
    backbones: Names | None = setting(None, "backbones that the suite is made for", hashed=False)
    related: Roles | None = setting(None, "role -> suite or backbone that experiments ask for", hashed=False)
    paper: Annotated[Section, AfterValidator(_paper)] | None = setting(
        None, "what the paper calls these datasets", hashed=False
    )


@dataclass(frozen=True)
class RunFile(Settings, _Shared):
    """A file for ``--config``, the flags, or key=value words."""

    suite: str | None = setting(None, "suite: a name or the path of a YAML file")
    only_methods: Names | None = setting(None, "")
    only_tasks: Names | None = setting(None, "")
    weights: Mapping[str, Any] | None = setting(None, "backbone -> its weights")


NOT_ADAPTATION = frozenset(item.name for item in dataclasses.fields(Suite) if not item.metadata["hashed"])
"""Parts of a suite that the adapted weights do not depend on, or that are resolved elsewhere in the cell."""

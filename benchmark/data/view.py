"""The keys of a data entry that say how a dataset is read, whatever plugin opens it: types, and what must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.errors import quoted, suggest
from benchmark.settings import Given, check, setting


@dataclass(frozen=True)
class View:
    """The keys; a data entry may leave out any of them but ``dataset``."""

    dataset: str = setting("", "name of the plugin")
    title: Any = setting("", "for people")
    kind: Literal["multiclass", "binary", "multilabel"] = setting("multiclass", "what the labels are")
    classes: Any = setting((), "label names")
    positive: Any = setting(None, "the class that a binary set asks for")
    prompts: Any = setting(None, "label name -> text in the template")
    metric: str = setting("", "what validation selects by")
    min_positives: int = setting(1, "positives that a class needs in validation", low=1)
    templates: Any = setting(None, "templates of this set")
    task: str = setting("", "task that validates")
    limit: int | None = setting(None, "keep only the first rows", low=1)
    exclusive: bool = setting(False, "keep only images that show one class and nothing else")
    uncertain: Literal["zero", "one", "distinct"] = setting("zero", "what a label of -1 stands for")
    blank: Literal["zero", "distinct"] = setting("zero", "what an empty label stands for")
    fraction: Any = setting(1.0, "share of the corpus")


VIEW_KEYS = frozenset(item.name for item in dataclasses.fields(View))
"""All other keys of a data entry are the dataset plugin's own."""
PARTS = ("train", "val", "test")
"""Keys of a dense task's entry: what stands below one of them is laid over the common keys for that part."""


def view_problems(entry: Mapping[str, Any], where: Callable[[str], str]) -> Iterator[str]:
    """Yield one line for each key of the view that is wrong.

    Args:
        entry: a data entry.
        where: how a message names one of its keys.
    """
    given = [Given(key, value, where(key)) for key, value in entry.items() if key in VIEW_KEYS]
    typed, problems = check(View, given, "data key")
    yield from problems
    for item in given:
        # Entries stay as they are written: a number must be one, not a text that looks like one.
        value = typed.get(item.key, item.value)
        if not isinstance(value, str) and value != item.value:
            yield f"{item.where}: expected {quoted(value)} without quotes, got {quoted(item.value)}"
    yield from _class_problems(entry, where)


def _class_problems(entry: Mapping[str, Any], where: Callable[[str], str]) -> Iterator[str]:
    prompts, classes = entry.get("prompts"), entry.get("classes")
    if prompts is not None and not isinstance(prompts, Mapping):
        yield f"{where('prompts')}: expected label names and texts, got {quoted(prompts)}"
        prompts = None
    if classes is None:
        return
    if not isinstance(classes, list | tuple) or not classes:
        yield f"{where('classes')}: expected a list of label names, got {quoted(classes)}"
        return
    wrong = [name for name in classes if isinstance(name, bool) or not isinstance(name, str | int)]
    if wrong:
        hint = " (write Yes and No in quotes)" if isinstance(wrong[0], bool) else ""
        yield f"{where('classes')}: expected label names{hint}, got {quoted(wrong[0])}"
        return
    names = [str(name) for name in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        yield f"{where('classes')}: the class '{twice[0]}' stands there twice"
    positive = entry.get("positive")
    if entry.get("kind") == "binary" and len(names) != 2:
        yield f"{where('classes')}: expected two classes for kind binary, got {len(names)}"
    if entry.get("kind") == "binary" and positive is None:
        yield f"{where('kind')}: the key 'positive' is missing, which says which of the classes is asked for"
    asked = [("positive", positive)] if positive is not None else []
    for key, name in [*asked, *(("prompts", name) for name in prompts or ())]:
        if str(name) not in names:
            yield f"{where(key)}: '{name}' is none of the classes.{suggest(str(name), names)}"

"""Data entries of a suite: their keys, and the prepared datasets that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark.console import Reporter
from benchmark.data.dataset import LoadRequest, build_options, dataset_plugin, missing_options
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError, PluginError, quoted, suggest, unknown
from benchmark.preprocess import Fitting
from benchmark.registry import calling, is_deterministic
from benchmark.settings import Given, check, setting


def load_dataset(
    entry: Mapping[str, Any],
    data_root: Path,
    reporter: Reporter,
    fitting: Fitting | None = None,
    *,
    make: bool = True,
) -> Prepared:
    """Load the dataset that a data entry names.

    Args:
        entry: ``dataset`` and the options of its plugin, beside keys of the view.
        data_root: folder of prepared data.
        reporter: told about progress.
        fitting: what the backbone takes. Data that are stored at one size, like drawn ones, are used as they are.
            None: only the rows are needed.
        make: draw or decode what is missing.

    Raises:
        NotMadeError: it is missing, and ``make`` is False.
        ConfigError: an unknown, missing or wrong option.
        DataError: the images have another size than the backbone takes, or as the plugin raises it.
        PluginError: the plugin failed, or returned something else than a prepared dataset.
    """
    plugin, name = dataset_plugin(entry["dataset"]), f"dataset '{entry['dataset']}'"
    taken = {item.name for item in dataclasses.fields(plugin.Options)}
    given = {key: value for key, value in entry.items() if key in taken or key not in (*VIEW_KEYS, *PARTS)}
    options = build_options(plugin.Options, given, entry["dataset"])
    with calling(name):
        prepared = plugin.load(options, LoadRequest(Path(data_root), fitting, reporter, make))
    if not isinstance(prepared, Prepared):
        raise PluginError(f"{name}: its plugin gives a {type(prepared).__name__}, expected a Prepared")
    size = () if fitting is None else fitting.size
    have = prepared.pixels.shape[1 : 1 + len(size)]
    if have != size:
        raise DataError(
            f"{name} has images of {' x '.join(map(str, have))} pixels, the backbone takes "
            f"{' x '.join(map(str, size))}: choose another --backbone or suite"
        )
    return prepared


def data_entries(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every data entry of a suite: corpus, validation set, and the datasets of its tasks."""
    return [entry for _, entry in entries_by_use(suite)]


def entries_by_use(suite: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every data entry of a suite with what it is for: "corpus", or the name of a task."""
    if suite.get("corpus"):
        yield "corpus", suite["corpus"]
    if suite.get("validation"):
        yield str(suite["validation"].get("task", "")), suite["validation"]
    for name, task in (suite.get("tasks") or {}).items():
        for entry in (task.get("datasets") or {}).values():
            for part in parts_of(entry):
                yield name, part


def needed(suite: Mapping[str, Any], methods: Iterable[str]) -> Mapping[str, Any]:
    """Return a suite without its corpus and validation set where none of the methods trains anything."""
    if not all(map(is_deterministic, methods)):
        return suite
    return {key: value for key, value in suite.items() if key not in ("corpus", "validation")}


def parts_of(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the data entries of a task's dataset: one per part where it has parts, else itself."""
    return [part_entry(entry, part) for part in PARTS if part in entry] or [entry]


def part_entry(entry: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the data entry of one part of a dense task's dataset.

    Raises:
        ConfigError: the entry has no such part.
    """
    if not isinstance(entry.get(part), Mapping):
        raise ConfigError(
            f"dataset '{entry.get('title', entry['dataset'])}': no key '{part}' says what {part} is"
        )
    return {key: value for key, value in entry.items() if key not in PARTS} | dict(entry[part])


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
    descriptions: str | None = setting(
        None, "JSON file of sentences about each class: {class: [sentence, ...]}"
    )
    task: str = setting("", "task that validates")
    limit: int | None = setting(None, "keep only the first rows", low=1)
    subset: Literal["all", "base", "new"] = setting("all", "half of the classes, base being the first")
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
    yield from _value_problems(View, entry, where)[1]
    yield from _class_problems(entry, where)


def option_problems(entry: Mapping[str, Any], where: Callable[[str], str], whole: str) -> Iterator[str]:
    """Yield one line for each key of an entry that its dataset does not take, lacks, or wants of another type.

    Args:
        entry: a data entry.
        where: how a message names one of its keys.
        whole: how a message names the entry.

    Raises:
        PluginError: the plugin cannot be imported, or is no dataset.
    """
    name, cls = entry["dataset"], dataset_plugin(entry["dataset"]).Options
    values, problems = _value_problems(cls, entry, where)
    known = VIEW_KEYS | {item.name for item in dataclasses.fields(cls)}
    problems += [f"{where(key)}: {unknown('data key', key, known)}" for key in entry if key not in known]
    problems += [f"{whole}: dataset '{name}' needs the key '{key}'" for key in missing_options(cls, entry)]
    yield from problems
    if not problems:
        try:
            cls(**values)
        except ConfigError as error:
            yield from (f"{whole}: {problem}" for problem in error.problems)


def _value_problems(
    cls: type, entry: Mapping[str, Any], where: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the typed values of the keys that a dataclass has, and one line for each that is wrong."""
    fields = {item.name for item in dataclasses.fields(cls)}
    given = [Given(key, value, where(key)) for key, value in entry.items() if key in fields]
    typed, problems = check(cls, given, "data key")
    for item in given:
        # Entries stay as they are written: a number must be one, not a text that looks like one.
        value = typed.get(item.key, item.value)
        quoted_number = isinstance(item.value, str) and not isinstance(value, str | Path | tuple)
        if quoted_number and value != item.value:
            problems.append(
                f"{item.where}: expected {quoted(value)} without quotes, got {quoted(item.value)}"
            )
    return typed, problems


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
        yield f"{where('classes')}: the class '{twice[0]}' occurs twice"
    positive = entry.get("positive")
    if entry.get("kind") == "binary" and len(names) != 2:
        yield f"{where('classes')}: expected two classes for kind binary, got {len(names)}"
    if entry.get("kind") == "binary" and positive is None:
        yield f"{where('kind')}: the key 'positive' is missing, which says which of the classes is asked for"
    asked = [("positive", positive)] if positive is not None else []
    for key, name in [*asked, *(("prompts", name) for name in prompts or ())]:
        if str(name) not in names:
            yield f"{where(key)}: '{name}' is not one of the classes.{suggest(str(name), names)}"

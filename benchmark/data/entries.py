"""From a suite's data entries to prepared datasets and views of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark.console import Reporter
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError, PluginError, quoted, suggest
from benchmark.preprocess import Fitting
from benchmark.registry import DATASETS, METHODS, calling
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
        entry: ``dataset`` and the plugin's own keys, beside keys of the view.
        data_root: folder of prepared data.
        reporter: told about what is made.
        fitting: what the backbone wants, for loaders that fit images (those that name ``size`` get just that); data
            that are stored at one size, like drawn ones, are used as they are. None takes any, and makes nothing that
            depends on it.
        make: draw or decode what is not there yet.

    Raises:
        NotMadeError: it is not there, and is not to be made.
        ConfigError: if the plugin does not take one of the keys.
        DataError: the images have another size than is wanted, or as the plugin raises it.
        PluginError: as the plugin raises it.
    """
    loader = DATASETS.get(entry["dataset"])
    size = None if fitting is None else fitting.size
    prepared = _called(loader, entry, data_root, reporter=reporter, size=size, fitting=fitting, make=make)
    have = prepared.pixels.shape[1 : 1 + len(size or ())]
    if size is not None and have != size:
        raise DataError(
            f"dataset '{entry['dataset']}' has images of {_times(have)} pixels, the backbone takes {_times(size)}: "
            "choose another --backbone or suite"
        )
    return prepared


def check_dataset(entry: Mapping[str, Any], data_root: Path, reporter: Reporter) -> Prepared:
    """Make sure that a dataset can be loaded, before any work begins; what is generated is written now.

    Raises:
        ConfigError, DataError, PluginError: as in :func:`load_dataset`.
    """
    return load_dataset(entry, data_root, reporter)


def _called(loader: Any, entry: Mapping[str, Any], data_root: Path, **extras: Any) -> Prepared:
    """Call a plugin with the keys of an entry that are its own, and with view keys and extras that it names."""
    parameters = inspect.signature(loader).parameters
    own = {
        key: value
        for key, value in entry.items()
        if key in parameters or (key not in VIEW_KEYS and key not in PARTS)
    }
    for key in ("size", "fitting", "make"):
        if key in own:
            raise ConfigError(f"dataset '{entry['dataset']}': '{key}' is not yours to set; leave it out")
    given = {key: value for key, value in extras.items() if key in parameters or key == "reporter"}
    name = f"dataset '{entry['dataset']}'"
    try:
        inspect.signature(loader).bind(data_root, **given, **own)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
    with calling(name):
        prepared = loader(data_root, **given, **own)
    if not isinstance(prepared, Prepared):
        raise PluginError(f"{name}: its plugin gives a {type(prepared).__name__}, expected a Prepared")
    return prepared


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


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
    if not all(getattr(METHODS.get(name), "deterministic", False) for name in methods):
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

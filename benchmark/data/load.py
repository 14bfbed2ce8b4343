"""From a suite's data entries to prepared datasets and views of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.console import Reporter
from benchmark.data.fitting import Fitting
from benchmark.data.prepared import Prepared
from benchmark.data.view import PARTS, VIEW_KEYS
from benchmark.errors import ConfigError, DataError, PluginError
from benchmark.plugin_files import calling
from benchmark.registry import DATASETS, METHODS


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

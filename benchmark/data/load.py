"""From a suite's data entries to prepared datasets and views of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.console import Reporter
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError
from benchmark.registry import DATASETS

_VIEW = "dataset title kind classes positive prompts metric min_positives templates task limit exclusive"
_VIEW += " uncertain blank fraction"
VIEW_KEYS = frozenset(_VIEW.split(" "))
"""Keys of a data entry that say how a dataset is read; all others are the dataset plugin's own."""
PARTS = ("train", "val", "test")
"""Keys of a dense task's entry: what stands below one of them is laid over the common keys for that part."""


def load_dataset(
    entry: Mapping[str, Any], data_root: Path, reporter: Reporter, size: tuple[int, ...] | None = None
) -> Prepared:
    """Load the dataset that a data entry names.

    Args:
        entry: ``dataset`` and the plugin's own keys, beside keys of the view.
        data_root: folder of prepared data.
        reporter: told about what is made.
        size: (h, w) of the images that the backbone takes, for loaders that offer several; None takes any, and makes
            nothing that depends on it.

    Raises:
        ConfigError: if the plugin does not take one of the keys.
        DataError: the images have another size than is wanted, or as the plugin raises it.
        PluginError: as the plugin raises it.
    """
    loader = DATASETS.get(entry["dataset"])
    prepared: Prepared = _called(loader, entry, data_root, reporter=reporter, size=size)
    have = prepared.pixels.shape[1 : 1 + len(size or ())]
    if size is not None and have != tuple(size):
        raise DataError(
            f"dataset '{entry['dataset']}' has images of {_times(have)} pixels, the backbone takes {_times(size)}: "
            "choose another --backbone or suite"
        )
    return prepared


def check_dataset(entry: Mapping[str, Any], data_root: Path, reporter: Reporter) -> None:
    """Make sure that a dataset can be loaded, before any work begins; what is generated is written now.

    Raises:
        ConfigError, DataError, PluginError: as in :func:`load_dataset`.
    """
    load_dataset(entry, data_root, reporter)


def _called(loader: Any, entry: Mapping[str, Any], data_root: Path, **extras: Any) -> Any:
    """Call a plugin with the keys of an entry that are its own, and with view keys and extras that it names."""
    parameters = inspect.signature(loader).parameters
    own = {
        key: value
        for key, value in entry.items()
        if key in parameters or (key not in VIEW_KEYS and key not in PARTS)
    }
    if "size" in own:
        raise ConfigError(f"dataset '{entry['dataset']}': 'size' follows from the backbone; leave it out")
    given = {key: value for key, value in extras.items() if key in parameters or key == "reporter"}
    try:
        return loader(data_root, **given, **own)
    except TypeError as error:
        raise ConfigError(f"dataset '{entry['dataset']}': {error}") from error


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def data_entries(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every data entry of a suite: corpus, validation set, and the datasets of its tasks."""
    entries = [suite[key] for key in ("corpus", "validation") if suite.get(key)]
    for task in (suite.get("tasks") or {}).values():
        for entry in (task.get("datasets") or {}).values():
            entries += [part_entry(entry, part) for part in PARTS if part in entry] or [entry]
    return entries


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

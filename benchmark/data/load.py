"""From a suite's data entries to prepared datasets and views of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.console import Reporter
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError
from benchmark.registry import DATASETS

_VIEW = "dataset title kind classes positive prompts metric min_positives templates task limit exclusive"
VIEW_KEYS = frozenset(_VIEW.split(" "))
"""Keys of a data entry that say how a dataset is read; all others are the dataset plugin's own."""


def load_dataset(entry: Mapping[str, Any], data_root: Path, reporter: Reporter) -> Prepared:
    """Load the dataset that a data entry names.

    Args:
        entry: ``dataset`` and the plugin's own keys, beside keys of the view.
        data_root: folder of prepared data.
        reporter: told about what is made.

    Raises:
        ConfigError: if the plugin does not take one of the keys.
        PluginError, DataError: as the plugin raises them.
    """
    own = {key: value for key, value in entry.items() if key not in VIEW_KEYS}
    loader = DATASETS.get(entry["dataset"])
    try:
        prepared: Prepared = loader(data_root, reporter=reporter, **own)
    except TypeError as error:
        raise ConfigError(f"dataset '{entry['dataset']}': {error}") from error
    return prepared


def data_entries(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every data entry of a suite: corpus, validation set, and the datasets of its tasks."""
    entries = [suite[key] for key in ("corpus", "validation") if suite.get(key)]
    for task in (suite.get("tasks") or {}).values():
        entries += list((task.get("datasets") or {}).values())
    return entries

"""The contract of datasets: a class with a dataclass of options and a method that opens the dataset.

A plugin registers a class (or an object) that has ``Options``, a frozen dataclass whose fields are the keys of a data
entry, and ``load(options, request)``, which returns a prepared dataset: docs/add_a_dataset.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmark.console import NullReporter, Reporter
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, PluginError
from benchmark.preprocess import Fitting
from benchmark.registry import DATASETS, calling
from benchmark.settings import Given, check, contract_problem


@dataclass(frozen=True)
class LoadRequest:
    """What a dataset is asked for, apart from the options of the data entry.

    Attributes:
        data_root: folder of all prepared data.
        fitting: how images are to be fitted for the backbone; None when only the rows are asked for.
        reporter: told about progress.
        make: draw or decode what is missing; otherwise raise :class:`~benchmark.data.prepared.NotMadeError`.
    """

    data_root: Path
    fitting: Fitting | None = None
    reporter: Reporter = dataclasses.field(default_factory=NullReporter)
    make: bool = True


class Dataset(Protocol):
    """A dataset plugin. It may set ``fits_images = True``: it fits images to the backbone when it is first used."""

    Options: type[Any]

    def load(self, options: Any, request: LoadRequest) -> Prepared:
        """Open the dataset.

        Args:
            options: an instance of ``Options``, filled from the data entry.
            request: where the data are and what the backbone takes.
        """


@dataclass(frozen=True)
class NoOptions:
    """The options of what has none."""


def dataset_plugin(name: str) -> Dataset:
    """Return the dataset plugin of a name; a registered class is instantiated.

    Raises:
        PluginError: unknown name, a plugin that cannot be imported, or one without Options and load.
    """
    found = DATASETS.get(name)
    if problem := _contract_problem(found):
        raise PluginError(f"dataset '{name}' ({DATASETS.entry(name).origin}): {problem}")
    with calling(f"dataset '{name}'"):
        plugin: Dataset = found() if isinstance(found, type) else found
    return plugin


def _contract_problem(found: Any) -> str:
    if not callable(getattr(found, "load", None)) or getattr(found, "Options", None) is None:
        return "expected a class with Options and load(self, options, request), see docs/add_a_dataset.md"
    return contract_problem(found, required=True)


def missing_options(cls: type[Any], given: Mapping[str, Any]) -> list[str]:
    """Return the names of options without a default that are not given."""
    fields = [item for item in dataclasses.fields(cls) if item.init and item.name not in given]
    return [item.name for item in fields if item.default is item.default_factory is MISSING]


def build_options(cls: type[Any], given: Mapping[str, Any], name: str) -> Any:
    """Return the options of a dataset.

    Args:
        cls: the dataclass of its options.
        given: key -> value, as YAML or the command line has it.
        name: of the dataset, for messages.

    Raises:
        ConfigError: unknown or missing options and wrong values, all in one.
    """
    raw = [Given(key, value, key) for key, value in given.items()]
    values, problems = check(cls, raw, f"option of dataset '{name}'")
    problems += [f"dataset '{name}' needs {key}=..." for key in missing_options(cls, given)]
    if problems:
        raise ConfigError(problems)
    return cls(**values)

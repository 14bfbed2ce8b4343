"""The data entries of a configuration (corpus, validation set, datasets of tasks): their keys, each with its place."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from benchmark.errors import PluginError, unknown
from benchmark.layers import Layer
from benchmark.registry import DATASETS
from benchmark.settings import coerce


class DataEntries:
    """Collects data entries as the layers are read, and later checks their keys against the imported plugins.

    Args:
        problems: where what is wrong is added.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self._found: list[tuple[dict[str, Any], Layer, str]] = []

    def add(self, entry: Any, layer: Layer, key: str) -> None:
        """Keep an entry, if it names a known dataset."""
        if not isinstance(entry, dict):
            self.problems.append(f"{layer.where(key)}: expected keys and values, got {entry!r}")
            return
        if "fraction" in entry and key != "corpus":
            self.problems.append(f"{layer.where(f'{key}.fraction')}: only the corpus can be cut to a share")
        if "dataset" in entry:
            try:
                DATASETS.resolve(entry["dataset"])
                self._found.append((entry, layer, key))
            except PluginError as error:
                self.problems.append(f"{layer.where(f'{key}.dataset')}: {error}")

    def check_keys(self) -> None:
        """Check the keys of all entries against what tasks read and what each dataset plugin takes."""
        from benchmark.data.load import PARTS, VIEW_KEYS

        for entry, layer, key in list(self._found):
            for part in PARTS if key.startswith("tasks.") else ():
                if part in entry:
                    below = entry[part]
                    whole = {"dataset": entry["dataset"], **below} if isinstance(below, dict) else below
                    self.add(whole, layer, f"{key}.{part}")
        for entry, layer, key in self._found:
            parameters = inspect.signature(DATASETS.get(entry["dataset"])).parameters.values()
            if any(item.kind is item.VAR_KEYWORD for item in parameters):
                continue
            known = VIEW_KEYS | {item.name for item in parameters} - {"data_root", "reporter"}
            known |= set(PARTS) if key.startswith("tasks.") else set()
            for name in entry:
                if name not in known:
                    self.problems.append(
                        f"{layer.where(f'{key}.{name}')}: {unknown('data key', name, known)}"
                    )

    def with_share(self, corpus: Any, layers: Sequence[Layer]) -> Any:
        """Return a corpus with its share as a number; all of it is what no share says, so that cells agree."""
        if not isinstance(corpus, dict) or "fraction" not in corpus:
            return corpus
        rest = {key: value for key, value in corpus.items() if key != "fraction"}
        try:
            share = coerce(corpus["fraction"], float)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            source = next(x for x in reversed(layers) if "fraction" in (x.values.get("corpus") or ()))
            self.problems.append(
                f"{source.where('corpus.fraction')}: expected a number above 0 and up to 1, "
                f"got {corpus['fraction']!r}"
            )
        return rest if share == 1 else rest | {"fraction": share}

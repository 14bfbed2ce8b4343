"""Compares two folders of one cell file by file and number by number, and lists what differs in how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.store.cells import CellFolder, leaves

ADAPTER, HISTORY, ADAPTED = "adapter.safetensors", "history.jsonl", "adapt.json"
_CLOCKS = frozenset({"seconds"})
"""Keys of histories that say how long something took."""
_NOT_RESULTS = frozenset({"schema_version", "adapt_hash", "task_hash", "identity"})
_NOT_ORIGIN = frozenset({"schema_version", "created", "seed", "limited", "config_hash", "config", "imported"})
_OF_RUN = ("device", "threads", "processes")
"""Keys of efficiency.json that results may depend on."""
_IDS = "_id"
"""Ending of the names of arrays that hold identifiers."""

Array = np.ndarray[Any, Any]
Leaf = Any  # an array, a number, a text, a truth value or None


@dataclass(frozen=True)
class FileDifference:
    """One file of both folders.

    Attributes:
        name: of the file. count: what was compared: numbers, texts and so on, entries of arrays singly.
        differing: how many of them differ.
        largest: largest absolute difference of two numbers; infinite where one side has none.
        where: the place of the largest difference. reason: what stands there, when that is no matter of numbers.
        notes: what was passed over, and why.
    """

    name: str
    count: int
    differing: int
    largest: float = 0.0
    where: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    def within(self, tolerance: float) -> bool:
        """Return whether all is equal; with a tolerance above 0, whether no number is further off than that."""
        return not self.differing or (tolerance > 0 and self.largest <= tolerance)


@dataclass(frozen=True)
class _Distance:
    """How far two leaves are apart; the fields are those of :class:`FileDifference`."""

    differing: int
    largest: float = 0.0
    reason: str = ""


def compare_cells(stored: CellFolder, again: CellFolder, tasks: Sequence[str]) -> list[FileDifference]:
    """Compare adapter, history, metrics and predictions of two runs of one cell.

    Args:
        stored: the first run.
        again: the second run.
        tasks: whose results are compared.

    Raises:
        UnreadableError: a file is missing or damaged.
    """
    hashed = all(folder.read_config().get("hash_ids") for folder in (stored, again))
    return [
        _compare(name, _content(stored, name), _content(again, name), hashed)
        for name in _files(stored, tasks)
    ]


def differing_origin(stored: CellFolder, again: CellFolder) -> list[str]:
    """Return "what: this then, that now" for versions, commit, hardware, weights and threads that differ."""
    before, after = (_origin(folder) for folder in (stored, again))
    return [
        f"{key}: {_shown(before.get(key))} then, {_shown(after.get(key))} now"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def _origin(folder: CellFolder) -> dict[str, Leaf]:
    origin = {
        key: value for key, value in folder.find_json("provenance.json").items() if key not in _NOT_ORIGIN
    }
    run = {key: value for key, value in folder.find_json("efficiency.json").items() if key in _OF_RUN}
    names = [ADAPTED, *(f"{task}.json" for task in folder.results())]
    made_of = {f"made of ({name})": folder.find_json(name).get("identity") or {} for name in names}
    return _leaves(origin | run | made_of)


# --- the content of a file as one flat mapping --------------------------------------------------------------


def _files(folder: CellFolder, tasks: Sequence[str]) -> Iterator[str]:
    """Yield the names of the files that hold results."""
    yield from (name for name in (ADAPTER, HISTORY, ADAPTED) if folder.exists(name))
    for task in tasks:
        yield f"{task}.json"
        for dataset in folder.read_json(f"{task}.json").get("datasets") or {}:
            yield f"predictions/{task}-{dataset}.npz"


def _content(folder: CellFolder, name: str) -> dict[str, Leaf]:
    """Return what a file says, less clocks and hashes of settings.

    Raises:
        UnreadableError: it is missing or damaged.
    """
    if name == ADAPTER:
        return {key: _as_array(value) for key, value in folder.read_tensors(name).items()}
    if name.endswith(".npz"):
        return dict(folder.read_npz(name))
    if name == HISTORY:
        return _leaves({f"row {number}": row for number, row in enumerate(folder.read_history())})
    content = folder.read_json(name).items()
    return _leaves({key: value for key, value in content if key not in _NOT_RESULTS})


def _as_array(tensor: Any) -> Array:
    """Return a tensor as an array; NumPy has no bfloat16, whose values float32 holds exactly."""
    array: Array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array


def _leaves(values: Any) -> dict[str, Leaf]:
    """Return the values of nested mappings and lists by their places, without clocks."""
    return {place: value for place, value in leaves(values) if place.rpartition(".")[2] not in _CLOCKS}


# --- comparing ----------------------------------------------------------------------------------------------


def _compare(
    name: str, stored: Mapping[str, Leaf], again: Mapping[str, Leaf], hashed_ids: bool
) -> FileDifference:
    """Compare two flat mappings; names of ids may differ as a whole where they are hashed with a key."""
    count, found, notes = 0, {}, []
    for key in dict.fromkeys((*stored, *again)):
        sides = [side[key] for side in (stored, again) if key in side]
        count += max(np.size(side) for side in sides)
        if len(sides) < 2:
            where = "stored cell" if key in stored else "second run"
            found[key] = _Distance(np.size(sides[0]), np.inf, f"only in the {where}")
        elif hashed_ids and key.endswith(_IDS) and _renamed(*sides):
            notes.append(f"{key}: hashed with another key, else the same")
        else:
            found[key] = _distance(*sides)
    differing = {key: one for key, one in found.items() if one.differing}
    if not differing:
        return FileDifference(name, count, 0, notes=tuple(notes))
    where, worst = max(differing.items(), key=lambda item: item[1].largest)
    total = sum(one.differing for one in differing.values())
    return FileDifference(name, count, total, worst.largest, where, worst.reason, tuple(notes))


def _distance(stored: Leaf, again: Leaf) -> _Distance:
    """Compare two leaves: numbers by their bits, all else as it is."""
    a, b = np.asarray(stored), np.asarray(again)
    numbers = a.dtype.kind in "iuf" and b.dtype.kind in "iuf"
    if a.shape != b.shape:
        return _Distance(max(a.size, b.size), np.inf, f"shape {a.shape} then, {b.shape} now")
    if numbers and (a.dtype == b.dtype or a.ndim == 0):
        return _of_numbers(a, b)
    if a.ndim and a.dtype.kind != b.dtype.kind or numbers:
        return _Distance(a.size, np.inf, f"{a.dtype} then, {b.dtype} now")
    differs = np.asarray(a != b)
    if not differs.any():
        return _Distance(0)
    first = tuple(np.argwhere(differs)[0])
    words = f"{_shown(a[first])} then, {_shown(b[first])} now"
    return _Distance(int(differs.sum()), np.inf, words)


def _of_numbers(a: Array, b: Array) -> _Distance:
    same = _bits(a) == _bits(b) if a.dtype == b.dtype else np.asarray(a == b)
    with np.errstate(all="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))[~same]
    if not apart.size:
        return _Distance(0)
    finite = bool(np.isfinite(apart).all())
    return _Distance(
        apart.size, float(apart.max()) if finite else np.inf, "" if finite else "not finite in one run"
    )


def _bits(array: Array) -> Array:
    """Return the bits of each number: equal for equal NaNs, and other for 0.0 than for -0.0."""
    return np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.dtype.itemsize}")


def _renamed(stored: Leaf, again: Leaf) -> bool:
    """Return whether two lists of names differ but tell the same entries apart."""
    if np.shape(stored) != np.shape(again) or np.array_equal(stored, again):
        return False
    pairs = set(zip(np.ravel(stored).tolist(), np.ravel(again).tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Few-shot runs as rows: what each was adapted on, its scores on the published and on the clean test, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmark.metrics.classification import CLEAN
from benchmark.report.model import Block, Key, Row, Run

METRICS = ("acc", "balanced_acc")


@dataclass(frozen=True)
class FewRow:
    """The seeds of one method with one support rule, on one dataset.

    Attributes:
        row: as the store has it. support: protocol, dataset, shots, and sampling and selection where anything is drawn.
        title: of the method, with changes that somebody made of it.
    """

    row: Row
    support: Mapping[str, Any]
    title: str

    @property
    def rule(self) -> tuple[str, str, str]:
        """Protocol, sampling and selection; a method that learns nothing has the first alone."""
        found = self.support
        return str(found["protocol"]), str(found.get("sampling", "")), str(found.get("selection", ""))

    def value(self, run: Run, key: Key) -> float | None:
        """The score of one seed, as a fraction."""
        found = run.scores().get(key, {}).get("value")
        return None if found is None else float(found)

    @property
    def labels(self) -> int | None:
        """Most labels that a seed has seen, those of validation included."""
        if not self.support["shots"]:
            return 0
        counts = [run.adapted.get("labels") for run in self.row.finished]
        return max((int(count) for count in counts if isinstance(count, int)), default=None)


def few_rows(block: Block) -> list[FewRow]:
    """The rows of a block that are few-shot runs."""
    found = []
    for row in (*block.rows, *block.variants):
        run = next(iter(row.finished), None)
        support = ((run.config.get("suite") or {}).get("support") or {}) if run else {}
        if {"protocol", "dataset", "shots"} <= set(support):
            said = {f"{key}={value}" for key, value in support.items()}
            changes = [one for one in row.variant.split(",") if one not in said]
            plain = row.title.partition(" (")[0] if row.variant else row.title
            title = f"{plain} ({','.join(changes)})" if changes else plain
            found.append(FewRow(row, support, title))
    return found


def only_few(block: Block) -> bool:
    """Return whether a block has few-shot runs, and no others."""
    few = {id(one.row) for one in few_rows(block)}
    return bool(few) and all(id(row) in few for row in (*block.rows, *block.variants) if row.finished)


def key_of(row: FewRow, dataset: str, metric: str) -> Key | None:
    """The key of a score; of the clean test that of the published one, where no image leaks."""
    name = metric if dataset in leaky(row) else metric.removesuffix(CLEAN)
    return next((key for key in row.row.scores if key[1:] == (dataset, name)), None)


def leaky(row: FewRow) -> set[str]:
    """The datasets of which some test image is like a labelled one."""
    tasks = (task.get("datasets") or {} for run in row.row.finished for task in run.tasks.values())
    return {name for found in tasks for name, one in found.items() if "clean" in (one.get("info") or {})}


def tests_of(rows: Sequence[FewRow]) -> tuple[str, ...]:
    """What ends the name of a metric: that of the published test, and of the clean one where they differ."""
    return ("", CLEAN) if any(map(leaky, rows)) else ("",)


Where = Callable[[FewRow], list[str]]


def evaluated(row: FewRow) -> list[str]:
    """The datasets that a row was evaluated on."""
    return list(dict.fromkeys(key[1] for key in row.row.scores if key[2] == METRICS[0]))


def source_dataset(row: FewRow) -> list[str]:
    """Of these the one that it was adapted on."""
    return [name for name in evaluated(row) if name == row.support["dataset"]]


def other_datasets(row: FewRow) -> list[str]:
    """Of these the ones that it was not adapted on."""
    return [name for name in evaluated(row) if name != row.support["dataset"]]


def places(rows: Sequence[FewRow]) -> dict[str, Where]:
    """How the head of a column begins -> the datasets that its mean is over."""
    return (
        {"source ": source_dataset, "others ": other_datasets}
        if any(map(other_datasets, rows))
        else {"": evaluated}
    )


def with_most_shots(rows: Sequence[FewRow]) -> dict[str, list[FewRow]]:
    """Title -> its rows with the largest number of shots that it has."""
    found: dict[str, list[FewRow]] = {}
    for one in rows:
        found.setdefault(one.title, []).append(one)
    most = {title: max(one.support["shots"] for one in own) for title, own in found.items()}
    return {
        title: [one for one in own if one.support["shots"] == most[title]] for title, own in found.items()
    }


class Half(NamedTuple):
    """Accuracies on the base and on the new classes of one dataset with one seed."""

    base: float
    new: float
    seed: str

    @property
    def harmonic(self) -> float:
        """Their harmonic mean."""
        return harmonic(self.base, self.new)


def both(row: FewRow, test: str = "") -> Iterator[Half]:
    """Yield what each seed has."""
    keys = [key_of(row, f"{row.support['dataset']}-{half}", METRICS[0] + test) for half in ("base", "new")]
    for run in row.row.finished:
        base, new = (row.value(run, key) if key else None for key in keys)
        if base is not None and new is not None:
            yield Half(base, new, run.seed)


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two scores, 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


Values = Mapping[str, Mapping[tuple[Any, ...], float]]
"""Title -> dataset, shots and seed -> score, of methods that learn."""


def accuracies(rows: Sequence[FewRow]) -> Values:
    """Return accuracies; where there are other datasets than the one that was adapted on, those on them."""
    values: dict[str, dict[tuple[Any, ...], float]] = {}
    where = list(places(rows).values())[-1]
    for one in (one for one in rows if one.support["shots"]):
        for dataset in where(one):
            key = key_of(one, dataset, METRICS[0])
            for run in one.row.finished if key else ():
                if key and (value := one.value(run, key)) is not None:
                    place = (one.support["dataset"], dataset, one.support["shots"], run.seed)
                    values.setdefault(one.title, {})[place] = value
    return values


def harmonics(rows: Sequence[FewRow]) -> Values:
    """Return the harmonic means of accuracies on base and new classes."""
    values: dict[str, dict[tuple[Any, ...], float]] = {}
    for title, own in with_most_shots(rows).items():
        for one in (one for one in own if one.support["shots"]):
            for half in both(one):
                place = (one.support["dataset"], one.support["shots"], half.seed)
                values.setdefault(title, {})[place] = half.harmonic
    return values

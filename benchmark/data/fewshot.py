"""Draws of few labelled images, and halves of a list of classes, as few-shot protocols make them."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Half = Literal["all", "base", "new"]
_VALIDATION = 4


class Draw(NamedTuple):
    """Rows of the training set, and of the validation set, that a run may see."""

    train: list[int]
    validation: list[int]


def coop_draw(
    train: Sequence[Hashable], validation: Sequence[Hashable], shots: int, seed: int, *, repeat: bool = False
) -> Draw:
    """Return the rows that CoOp and its successors draw (`Dassl.pytorch: base_dataset.py`).

    One generator gives first ``shots`` rows of each class of the training set, then at most four of each class of the
    validation set. Classes come in the order of their first row; one with fewer rows gives all of them.

    Args:
        train: class of each row of the training set.
        validation: class of each row of the validation set.
        shots: images of a class.
        seed: of the generator.
        repeat: draw with replacement where a class has fewer rows.
    """
    generator = random.Random(seed)
    shares = ((train, shots), (validation, min(shots, _VALIDATION)))
    return Draw(*(_of_each(labels, count, generator, repeat) for labels, count in shares))


def _of_each(labels: Sequence[Hashable], count: int, generator: random.Random, repeat: bool) -> list[int]:
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    found: list[int] = []
    for own in rows.values():
        if len(own) >= count:
            found += generator.sample(own, count)
        else:
            found += generator.choices(own, k=count) if repeat else own
    return found


def realistic_draw(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Return ``shots`` times as many rows as there are classes, by the shares of the classes: some may have none.

    As SS-Text-U draws them: every class begins the same generator anew.
    """
    values, counts = np.unique(labels, return_counts=True)
    total, found = shots * len(values), []
    for value, count in zip(values, counts, strict=True):
        rows = np.flatnonzero(np.asarray(labels) == value)
        np.random.RandomState(seed).shuffle(rows)  # noqa: NPY002  (the authors' generator)
        found += rows[: int(np.round(total * count / len(labels)))].tolist()
    return found


def half(classes: int, which: Half) -> range:
    """Return the indices of all classes, of the base classes (the first half, rounded up) or of the new ones."""
    middle = (classes + 1) // 2
    return {"all": range(classes), "base": range(middle), "new": range(middle, classes)}[which]


def of_half(labels: Sequence[int], classes: int, which: Half) -> tuple[list[int], list[int]]:
    """Return the rows of a half's classes, in order, and their classes counted from 0 within it."""
    wanted = half(classes, which)
    rows = [row for row, label in enumerate(labels) if label in wanted]
    return rows, [labels[row] - wanted.start for row in rows]


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two scores, 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def strict_draw(labels: Sequence[int], groups: Sequence[Hashable] | None, shots: int, seed: int) -> list[int]:
    """Return ``shots`` rows of each class, of as many patients as there are.

    Rows of a class join in a random order of its own, those of patients who have none yet before all others. So a
    smaller number of shots lies in every larger one, and a class with fewer rows gives all of them.

    Args:
        labels: class of each row.
        groups: patient of each row; None where nothing is known of them.
        shots: images of a class.
        seed: of the draw.
    """
    classes = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(classes).tolist():
        rows = np.flatnonzero(classes == label)
        order = rows[np.random.default_rng([seed, label]).permutation(len(rows))].tolist()
        seen: dict[Hashable, int] = {}
        turn = []  # how many rows of the same patient come before a row
        for row in order:
            group = row if groups is None else groups[row]
            turn.append(seen.get(group, 0))
            seen[group] = turn[-1] + 1
        chosen += [order[at] for at in np.argsort(turn, kind="stable")[:shots]]
    return chosen


def draw(
    labels: Sequence[int],
    validation: Sequence[int],
    *,
    shots: int,
    seed: int,
    sampling: str,
    selection: str,
    groups: Sequence[Hashable] | None = None,
) -> Draw:
    """Return the rows that a run sees, by the rule of its protocol.

    Args:
        labels: class of each training image.
        validation: class of each validation image.
        shots: images of a class.
        seed: of the draw.
        sampling: "standard", or "realistic": :func:`realistic_draw`.
        selection: "coop": :func:`coop_draw`; "strict": :func:`strict_draw`, and no validation image.
        groups: patient of each training image; None where nothing is known of them.
    """
    if selection == "coop":
        return coop_draw(labels, validation, shots, seed)
    if sampling == "realistic":
        return Draw(realistic_draw(labels, shots, seed), [])
    return Draw(strict_draw(labels, groups, shots, seed), [])

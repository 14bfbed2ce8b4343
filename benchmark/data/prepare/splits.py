"""Published splits: id lists known by count and sha256, so that another list is noticed.

``<dataset>.json`` in this folder is ``{list name: {"count": n or null, "sha256": hex or null, "source": text}}``. The
sha256 is over the sorted ids joined by newlines. A list without a published hash is kept in the prepared folder when it
is first seen, and compared with that from then on. A text in place of the hash matches nothing: a list
that can be rebuilt by its rule, but never as the published one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import DataError
from benchmark.files import write_whole

FOLDER = Path(__file__).resolve().parents[1] / "splits"
NOT_PUBLISHED = "not the published split"
FIRST_HERE = "as first prepared here"


def fingerprint(ids: Iterable[str]) -> str:
    """Return the sha256 of ids, sorted and joined by newlines: the same for the same set in any order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


_EXAMPLE = re.compile(r" \(first '.*?'\)(?= and |$)")
"""Part of a message that names an image; what is written down, and so gets into results, names none."""


def published(dataset: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded about the lists of a dataset; nothing for a dataset without a file."""
    path = FOLDER / f"{dataset}.json"
    if not path.is_file():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class CheckedLists:
    """Id lists that were compared with what was published.

    Attributes:
        facts: list name -> {"count", "sha256", "status", "source"}; the status is "published", "as first prepared
            here" (no hash is published), or a text that begins with "not the published split".
        first_seen: lists to keep with :func:`remember` once the preparation is done.
    """

    facts: dict[str, dict[str, Any]]
    first_seen: dict[str, list[str]]

    @property
    def notes(self) -> list[str]:
        """Return one line per list that is not what was published."""
        return [
            f"{name}: {facts['status']}"
            for name, facts in self.facts.items()
            if facts["status"].startswith(NOT_PUBLISHED)
        ]


def check(
    dataset: str,
    ids: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    accept: bool = False,
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> CheckedLists:
    """Compare id lists with what was published, or with what this folder was first prepared from.

    Args:
        dataset: name of the JSON file in this package.
        ids: list name -> ids.
        folder: the prepared folder, where lists without a published hash are kept.
        accept: a list that differs is reported instead of refused.
        recorded: what is published; default reads the JSON file.

    Raises:
        DataError: a list differs and ``accept`` is not set.
    """
    known = published(dataset) if recorded is None else recorded
    lists: dict[str, dict[str, Any]] = {}
    first_seen: dict[str, list[str]] = {}
    for name, values in ids.items():
        entry = known.get(name, {})
        digest = fingerprint(values)
        status, problem = _compare(name, values, digest, entry, folder)
        if problem and not accept:
            raise DataError(
                f"{dataset}: list '{name}' is {NOT_PUBLISHED}: {problem}. Complete the raw files, or go on with "
                "--accept-split; every result will then say so"
            )
        if problem:
            status = f"{NOT_PUBLISHED} ({_EXAMPLE.sub('', problem)})"
        elif status == FIRST_HERE and not _kept(folder, name).exists():
            first_seen[name] = sorted(values)
        lists[name] = {
            "count": len(values), "sha256": digest, "status": status, "source": entry.get("source", ""),
        }  # fmt: skip
    return CheckedLists(lists, first_seen)


def remember(folder: Path, checked: CheckedLists) -> None:
    """Keep the lists that were seen for the first time, to compare later preparations with."""
    for name, values in checked.first_seen.items():
        _write(_kept(folder, name), "\n".join(values) + "\n")


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _kept(folder: Path, name: str) -> Path:
    return folder / "splits" / f"{name}.txt"


def _compare(
    name: str, values: Sequence[str], digest: str, entry: Mapping[str, Any], folder: Path
) -> tuple[str, str]:
    """Return the status of a list, and what is wrong with it (empty when nothing is)."""
    if len(set(values)) != len(values):
        return "", f"{len(values) - len(set(values))} ids stand in it twice"
    count = entry.get("count")
    if count is not None and count != len(values):
        return "", f"{len(values):,} ids instead of {count:,}"
    if entry.get("sha256"):
        same = digest == entry["sha256"]
        return "published", "" if same else f"{len(values):,} ids as published, but others"
    try:
        before = _kept(folder, name).read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        return FIRST_HERE, ""
    if fingerprint(before) == digest:
        return FIRST_HERE, ""
    return "", _difference(before, values)


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    parts = []
    for word, ids in (("missing", sorted(set(before) - set(now))), ("new", sorted(set(now) - set(before)))):
        if ids:
            parts.append(f"{len(ids):,} {word} (first '{ids[0]}')")
    return "against the first preparation here, " + " and ".join(parts)

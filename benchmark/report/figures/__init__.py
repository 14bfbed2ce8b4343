"""Figures of the report as PNG and PDF; a file here, or a plugin, that registers its ``draw`` is a kind of figure.

A figure is drawn again only when its results or the code behind it have changed: ``figures.json`` beside the figures
holds a digest of both.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.console import NullReporter, Reporter
from benchmark.files import file_sha256, write_whole
from benchmark.registry import FIGURES, calling
from benchmark.report.figures.stored import Stored, results
from benchmark.report.figures.style import Drawing, Picture, write
from benchmark.report.model import Block

__all__ = ["Picture", "write_figures"]

DIGESTS = "figures.json"


def write_figures(
    blocks: Sequence[Block], curves: Sequence[Block], folder: Path, reporter: Reporter | None = None
) -> list[Picture]:
    """Write all figures of main blocks, and the curves of experiments, as ``figure_<name>.png`` and ``.pdf``.

    Names of the first block's suite and backbone have no suffix. What has nothing to show is not written.

    Args:
        blocks: of ``collect_blocks``.
        curves: blocks of experiments that sweep a setting.
        folder: where the files go.
        reporter: told how many subjects are done.

    Returns:
        What is there now, in the order of a page.
    """
    before, after = _read(folder / DIGESTS), {}
    pictures: list[Picture] = []
    draws = {name: FIGURES.get(name) for name in FIGURES.names()}
    subjects, reporter = list(_subjects(blocks, curves)), reporter or NullReporter()
    reporter.start("figures", len(subjects))
    for scope, subject in subjects:
        block = subject.block if isinstance(subject, Stored) else subject
        own, first = (block.suite, block.backbone), (blocks[0].suite, blocks[0].backbone)
        suffix = "" if own == first else f"_{block.suite}_{block.backbone}"
        of_subject, found = _digest(subject, suffix), []
        for name, draw in draws.items():
            if draw.of != scope:
                continue
            digest = hashlib.sha256(f"{name} {of_subject} {_code_of(draw)}".encode()).hexdigest()
            there = _unchanged(before.get(digest), folder)
            if there is None:
                with calling(f"figure '{name}'"):
                    there = write(draw(subject), block, folder, suffix)
            after[digest] = [_record(picture) for picture in there]
            found += there
        pictures += sorted(found, key=lambda picture: picture.name)
        reporter.advance(note=pictures[-1].name if found else "")
    text = json.dumps(after, indent=1)
    write_whole(folder / DIGESTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return pictures


def _subjects(blocks: Sequence[Block], curves: Sequence[Block]) -> Iterator[tuple[str, Block | Stored]]:
    """What figures are drawn of: each block, each dataset of it, and each curve."""
    for block in blocks:
        yield "block", block
        for task, dataset in results(block):
            yield "dataset", Stored(block, task, dataset)
    yield from (("curve", block) for block in curves)


# --- what has not changed -----------------------------------------------------------------------------------


def _digest(subject: Block | Stored, suffix: str) -> str:
    """Digest of all results that a figure may show, and of what its name ends in."""
    digest = hashlib.sha256(f"{suffix} {subject!r}".encode())
    for path in subject.files() if isinstance(subject, Stored) else ():
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()


@functools.cache
def _code_of(draw: Callable[[Any], Iterator[Drawing]]) -> str:
    """Digest of the file of a figure, of the report's code and of the libraries that draw."""
    report = Path(__file__).parents[1]
    own = [Path(str(sys.modules[draw.__module__].__file__)), *(report.parent / "metrics").glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted([*report.rglob("*.py"), *own]):
        digest.update(path.read_bytes())
    for library in ("matplotlib", "seaborn", "numpy", "pandas"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def _unchanged(records: Any, folder: Path) -> list[Picture] | None:
    """The pictures of an earlier report whose files are as it left them; None where they must be drawn."""
    try:
        pictures = [
            Picture(one["name"], one["title"], one["caption"], one["place"], folder) for one in records
        ]
        same = all(_hashes(one) == kept["files"] for one, kept in zip(pictures, records, strict=True))
    except (OSError, TypeError, KeyError):
        return None
    return pictures if same else None


def _record(picture: Picture) -> dict[str, Any]:
    words = {"name": picture.name, "title": picture.title, "caption": picture.caption, "place": picture.place}
    return {**words, "files": _hashes(picture)}


def _hashes(picture: Picture) -> list[str]:
    return [file_sha256(path) for path in picture.files]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

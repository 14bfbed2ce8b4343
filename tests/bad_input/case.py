"""What a case of bad input is, and the small world of files that cases spoil."""

from __future__ import annotations

import functools
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

SUITE = """\
name: small
backbone: tiny
templates: ["a picture of {}."]
corpus: {dataset: csv, file: films.csv, text_column: report, part: train}
validation:
  {task: zeroshot, dataset: csv, file: films.csv, part: val, kind: multilabel, metric: auroc, classes: [Edema]}
tasks:
  zeroshot:
    bootstrap: 5
    datasets:
      films: {dataset: csv, file: films.csv, part: test, kind: multilabel, classes: [Edema, Effusion]}
recipe: {epochs: 1, batch_size: 2}
"""
RUN = "run --suite s.yaml --methods zero_shot --device cpu --jobs 1 --output-dir out --data-root data"
"""A run of the small world; what it would do comes to nothing when a case is refused."""
TRAIN = RUN.replace("zero_shot", "taskres")
"""The same with a method that trains, and so needs corpus and validation."""

Setup = Callable[[Path], object]
Says = str | tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One wrong request.

    Attributes:
        name: says what is wrong.
        words: of the command line, one text or a list.
        says: what the error lines contain, one text per line in any order.
        setup: writes into the working folder.
        leaves: globs of files that may be written although the request is refused: unfinished work that continues.
    """

    name: str
    words: str | Sequence[str]
    says: Says
    setup: Setup | None = None
    leaves: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        return shlex.split(self.words) if isinstance(self.words, str) else list(self.words)

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.says,) if isinstance(self.says, str) else self.says


def requests(table: Mapping[str, Says], setup: Setup | None = None) -> list[Case]:
    """Return a case for each command line: words -> what the error lines contain."""
    return [Case(words, words, says, setup) for words, says in table.items()]


def spoilt(head: str, words: str, table: Mapping[str, tuple[Setup, Says]]) -> list[Case]:
    """Return cases of one command line with other files: what is wrong -> (setup, what the error lines contain)."""
    return [Case(f"{head}: {name}", words, says, setup) for name, (setup, says) in table.items()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder with their contents; locks hold nothing, and stay behind."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: text for name, text in content.items() if text or not name.endswith("lock")}


def files(written: Mapping[str, str | bytes] | None = None, /, **more: str | bytes) -> Setup:
    """Return a setup that writes files; ``__`` in a keyword stands for the dot of a suffix."""
    named = {**(written or {}), **{name.replace("__", "."): text for name, text in more.items()}}

    def write(folder: Path) -> None:
        for name, content in named.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def together(*setups: Setup) -> Setup:
    """Return one setup that does what several do, in order."""

    def do(folder: Path) -> None:
        for setup in setups:
            setup(folder)

    return do


@functools.cache
def picture(number: int = 0, suffix: str = "png") -> bytes:
    """Return a small grey picture of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG" if suffix == "jpg" else suffix.upper())
    return file.getvalue()


def small(folder: Path) -> None:
    """Write the suite, its CSV file of twelve films, and the films."""
    rows = ["path,report,split,patient_id,finding,Edema,Effusion"]
    for i in range(12):
        part, edema = ("train", "val", "test")[i % 3], i // 3 % 2
        finding = ("effusion", "edema")[edema]
        rows.append(f"films/{i}.png,Report {i}.,{part},p{i // 2},{finding},{edema},{1 - edema}")
    written: dict[str, str | bytes] = {f"films/{i}.png": picture(i) for i in range(12)}
    files({"s.yaml": SUITE, "films.csv": "\n".join(rows) + "\n", **written})(folder)


def changed(name: str, old: str, new: str) -> Setup:
    """Return a setup of the small world with one text in one file replaced."""

    def change(folder: Path) -> None:
        small(folder)
        path = folder / name
        text = path.read_text()
        assert text.count(old) >= 1, old
        path.write_text(text.replace(old, new, 1))

    return change


def suite(**changes: Any) -> Setup:
    """Return a setup of the small world with other top-level keys in the suite; None drops a key."""
    import yaml

    def change(folder: Path) -> None:
        small(folder)
        values = yaml.safe_load(SUITE) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / "s.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))

    return change

"""Look at the columns of a CSV file of your own images, and write a suite file with comments for it.

It asks nothing: it prints what it took each column for, and what to type next. Edit the file where it is wrong.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmark.cli._parser import ArgumentParser
from benchmark.config.load import load_config
from benchmark.console import Console, NullReporter
from benchmark.errors import ConfigError, DataError
from benchmark.files import default_data_root, user_path, write_whole
from benchmark.registry import METHODS, is_deterministic

_NAMES = {
    "images": ("path", "image", "image_path", "img", "img_path", "file", "filename", "filepath", "file_path"),
    "texts": ("text", "report", "caption", "findings", "impression", "description"),
    "parts": ("split", "part", "subset", "set", "fold"),
    "patients": ("patient_id", "patient", "subject_id", "subject", "pid", "patientid"),
    "studies": ("study_id", "study", "exam", "exam_id", "studyid"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "classes": ("class", "label", "finding", "diagnosis", "category", "target"),
}
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_IMAGE = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|ppm|jp2|dcm|dicom)$", re.I)
_MOST_CLASSES = 50
_BATCH = 64


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_needed(
        "file", "say which CSV file: new-suite FILE.csv", "CSV file with a column of image paths"
    )
    parser.add_argument("--to", metavar="FILE.yaml", help="the suite file (default: beside the CSV file)")


def main(args: argparse.Namespace, console: Console) -> int:
    """Write the suite file and print what was understood.

    Raises:
        ConfigError: the suite file exists already, or the CSV file has nothing that a run can use.
        DataError: the CSV file cannot be read, or has no column of image paths.
    """
    source = user_path(args.file)
    target = user_path(args.to) if args.to else source.with_suffix(".yaml")
    if target.exists():
        raise ConfigError(f"'{target}' is there already. Say --to FILE.yaml, or delete it")
    found = _look(source)
    text = "\n".join(_lines(found)) + "\n"
    try:
        write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written ({error.strerror or error})") from None
    _check(target, found)
    console.rows(
        ("column", "taken for", "holds"), list(_understood(found)), f"{source}: {found.count:,} rows"
    )
    for line in _doubts(found):
        console.warn(line)
    methods = _methods(found)
    console.line(f"wrote {target}. Next:")
    console.line(f"  medpeft-bench validate --suite {target} --methods {methods}")
    console.line(f"  medpeft-bench --suite {target} --methods {methods}")
    return 0


@dataclass
class _Found:
    """What the columns of a file were taken for.

    Attributes:
        file: the CSV file. columns: name -> cells, stripped. roles: role (`_NAMES`) -> column.
        labels: columns of 1, 0, -1 and blanks. parts: train, val, test -> how the file spells it.
    """

    file: Path
    columns: Mapping[str, list[str]]
    roles: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    @property
    def trains(self) -> bool:
        """Whether methods can be adapted: pairs to train on, and labels to validate on, apart from the test rows."""
        return (
            "texts" in self.roles and {"train", "val", "test"} <= set(self.parts) and self.kind("val") != ""
        )

    def rows(self, part: str) -> list[int]:
        """Return the rows of a part; of a file without parts, all."""
        if not self.parts:
            return list(range(self.count))
        cells = self.columns[self.roles["parts"]]
        return [row for row, cell in enumerate(cells) if cell == self.parts.get(part)]

    def values(self, column: str, part: str) -> list[str]:
        """Return the cells of a column in a part."""
        cells = self.columns[column]
        return [cells[row] for row in self.rows(part)]

    def scored(self, part: str) -> list[str]:
        """Return the label columns with both a 1 and something else in a part."""
        positive = {name: [_is_one(cell) for cell in self.values(name, part)] for name in self.labels}
        return [name for name, ones in positive.items() if any(ones) and not all(ones)]

    def names(self, part: str = "") -> list[str]:
        """Return the classes of the class column, frequent ones first, of a part or of all rows."""
        if "classes" not in self.roles:
            return []
        column = self.roles["classes"]
        cells = self.values(column, part) if part else self.columns[column]
        return [name for name, _ in Counter(cell for cell in cells if cell).most_common()]

    def kind(self, part: str) -> str:
        """Return how a part can be scored: multiclass, multilabel, or not at all."""
        if len(self.names(part)) > 1:
            return "multiclass"
        return "multilabel" if self.scored(part) else ""


def _is_one(cell: str) -> bool:
    return bool(cell) and float(cell) == 1


# --- looking ------------------------------------------------------------------------------------------------


def _look(path: Path) -> _Found:
    found = _Found(path, _columns(path))
    free = dict(found.columns)
    tests = {
        "images": lambda cells: _most(cells, lambda cell: bool(_IMAGE.search(cell))),
        "boxes": lambda cells: _most(cells, lambda cell: cell.startswith("[[") or cell == "[]"),
        "parts": lambda cells: len({_role_of(cell) for cell in cells} - {""}) > 1,
    }
    for role, test in tests.items():
        named = [name for name in free if name.lower() in _NAMES[role] and test(free[name])]
        if chosen := [*named, *(name for name in free if test(free[name]))]:
            found.roles[role] = chosen[0]
            del free[chosen[0]]
    if "images" not in found.roles:
        listed = ", ".join(found.columns)
        raise DataError(f"{path}: no column holds image paths (.png, .jpg, .dcm, ...). Columns: {listed}")
    for role in ("patients", "studies"):
        if named := [name for name in free if name.lower() in _NAMES[role]]:
            found.roles[role] = named[0]
            del free[named[0]]
    found.labels = [name for name, cells in free.items() if _is_label(cells)]
    free = {name: cells for name, cells in free.items() if name not in found.labels}
    for role, name in (("texts", _text_column(free)), ("classes", _class_column(free))):
        if name and name not in found.roles.values():
            found.roles[role] = name
    if column := found.roles.get("parts"):
        spelt = dict.fromkeys(cell for cell in found.columns[column] if _role_of(cell))
        found.parts = {_role_of(cell): cell for cell in reversed(spelt)}
    if not found.kind("test"):
        raise ConfigError(
            f"{path}: no column of classes or of labels (1, 0) that differ among the test rows: nothing to score"
        )
    return found


def _columns(path: Path) -> dict[str, list[str]]:
    """Return the cells of a CSV file by column, as the dataset ``csv`` reads them."""
    from benchmark.data.datasets.own_csv import SEPARATORS, read_cells  # loads pandas

    try:
        header = next(iter(path.read_text(encoding="utf-8-sig").splitlines()), "")
    except (OSError, UnicodeDecodeError):
        header = ""  # told below
    names = max((next(csv.reader([header], delimiter=one), []) for one in SEPARATORS), key=len)
    table = read_cells(path, names[0].strip() if names else "path")
    return {str(name): [str(cell).strip() for cell in table[name]] for name in table.columns}


def _most(cells: Sequence[str], holds: object) -> bool:
    filled = [cell for cell in cells if cell]
    assert callable(holds)
    return bool(filled) and sum(map(holds, filled)) > 0.9 * len(filled)


def _role_of(cell: str) -> str:
    return next((part for part, spellings in _PARTS.items() if cell.lower() in spellings), "")


def _is_label(cells: Sequence[str]) -> bool:
    return {cell.removesuffix(".0") for cell in cells} <= {"1", "0", "-1", ""} and any(cells)


def _text_column(free: Mapping[str, list[str]]) -> str:
    length = {name: sum(map(len, cells)) / len(cells) for name, cells in free.items()}
    named = [name for name in free if name.lower() in _NAMES["texts"]]
    long = [name for name in free if length[name] > 20 and _most(free[name], lambda cell: " " in cell)]
    return max(named or long, key=length.__getitem__, default="")


def _class_column(free: Mapping[str, list[str]]) -> str:
    def repeated(cells: Sequence[str]) -> bool:
        names = {cell for cell in cells if cell}
        return 1 < len(names) <= min(_MOST_CLASSES, max(2, len(cells) - 1)) and "" not in cells

    fitting = [name for name, cells in free.items() if repeated(cells) and max(map(len, cells)) <= 60]
    named = [name for name in fitting if name.lower() in _NAMES["classes"]]
    return next(iter([*named, *fitting]), "")


# --- writing ------------------------------------------------------------------------------------------------


def _yaml(value: object) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _lines(found: _Found) -> Iterator[str]:
    roles = found.roles
    yield f"# Written by `new-suite {found.file.name}`; docs/data.md explains every key. Edit it where it is wrong."
    yield f"name: {_yaml(found.file.stem)}"
    yield f"title: {_yaml(found.file.stem.replace('_', ' '))}"
    yield "backbone: tiny  # runs anywhere; for real work a medical model: biomedclip, ... (list backbones)"
    yield "# Each class name is put into these sentences; an image is compared with all of them."
    yield 'templates: ["a medical image of {}."]'
    yield ""
    source: dict[str, object] = {"dataset": "csv", "file": str(found.file), "path_column": roles["images"]}
    keys = (("parts", "split_column"), ("patients", "patient_column"), ("studies", "study_column"))
    source |= {key: roles[role] for role, key in keys if role in roles}
    if found.trains:
        part = {"part": found.parts["train"]}
        labels = {"label_columns": found.labels} if found.labels else {}
        yield "# Pairs that methods are adapted on. Labels tell the loss which pairs show the same."
        yield f"corpus: {_yaml(source | part | {'text_column': roles['texts']} | labels)}"
        yield ""
        yield "# Chooses the checkpoint that is kept. Classes with fewer than min_positives images do not count."
        scoring = {"task": "zeroshot", "metric": "auroc", "min_positives": 1}
        yield f"validation: {_yaml(source | {'part': found.parts['val']} | scoring | _classes(found, 'val'))}"
    else:
        yield "# No corpus: only methods that train nothing can run. See docs/data.md."
    yield ""
    yield from _task_lines(found, source)
    batch = max(2, min(_BATCH, len(found.rows("train")) // 2))
    yield ""
    yield f"recipe: {{epochs: 5, batch_size: {batch}}}  # batches of {batch} pairs; an epoch drops what fills no batch"


def _task_lines(found: _Found, source: Mapping[str, object]) -> Iterator[str]:
    part = {"part": found.parts["test"]} if "test" in found.parts else {}
    yield "tasks:"
    yield "  zeroshot:"
    yield "    datasets:"
    for name, view in _views(found):
        yield f"      {name}:  # {view['kind']}"
        yield f"        {_yaml({**source, **part, **view})}"
    yield "# In any of these entries: `prompts: {CLASS: words}` gives other words for a class; `exclusive: true` keeps"
    yield "# only images that show one of the classes and nothing else."


def _views(found: _Found) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield name and view of each test set: the classes, and the labels."""
    if len(names := found.names("test")) > 1:
        yield "classes", _class_view(found, names)
    if found.scored("test"):
        yield "labels", _label_view(found, "test")


def _classes(found: _Found, part: str) -> dict[str, object]:
    return (
        _class_view(found, found.names(part))
        if found.kind(part) == "multiclass"
        else _label_view(found, part)
    )


def _class_view(found: _Found, names: Sequence[str]) -> dict[str, object]:
    view = {"kind": "multiclass", "class_column": found.roles["classes"], "classes": list(names)}
    return view | _prompts(names)


def _label_view(found: _Found, part: str) -> dict[str, object]:
    scored = found.scored(part)
    return {"kind": "multilabel", "label_columns": found.labels, "classes": scored} | _prompts(scored)


def _prompts(names: Iterable[str]) -> dict[str, object]:
    """Return words for names that are no words, such as ``Pleural_Effusion``."""
    words = {name: name.removeprefix("label_").replace("_", " ") for name in names}
    changed = {name: text for name, text in words.items() if text != name}
    return {"prompts": changed} if changed else {}


# --- saying -------------------------------------------------------------------------------------------------


def _understood(found: _Found) -> Iterator[tuple[str, str, str]]:
    roles = {column: role for role, column in found.roles.items()}
    for name, cells in found.columns.items():
        filled = [cell for cell in cells if cell]
        if name in found.labels:
            ones = sum(map(_is_one, filled))
            yield name, "a label", f"{ones:,} of {len(filled):,} are 1"
        elif name in roles:
            distinct = dict.fromkeys(filled)
            few = ", ".join(list(distinct)[:4]) if len(distinct) <= 8 else f"{len(distinct):,} different"
            yield name, roles[name], few
        else:
            yield name, "not used", ""


def _doubts(found: _Found) -> Iterator[str]:
    if "parts" not in found.roles:
        yield (
            "no column says which images are for training and which for tests (train, val, test): "
            "without one only methods that train nothing can run"
        )
    elif lacking := [part for part in _PARTS if part not in found.parts]:
        yield f"no rows for {', '.join(lacking)} in '{found.roles['parts']}': methods cannot be adapted and tested"
    if "texts" not in found.roles:
        yield "no column of reports: methods cannot be adapted"
    if "patients" not in found.roles:
        yield "no column of patients: intervals count every image as a patient of its own"


def _check(target: Path, found: _Found) -> None:
    """Read the suite as a run does; what is wrong with it is wrong with the CSV file.

    Raises:
        BenchmarkError: says row and column.
    """
    from benchmark.data.entries import data_entries, load_dataset

    config = load_config({"suite": str(target), "methods": _methods(found)})
    for entry in data_entries(config.suite):
        load_dataset(entry, default_data_root(), NullReporter())


def _methods(found: _Found) -> str:
    """Return the methods that can run: all, or those that train nothing."""
    return "all" if found.trains else ",".join(filter(is_deterministic, METHODS.expand(["all"])))

"""Damaged results: cells whose files were cut off, edited by hand or written by a newer version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import quoted
from tests.bad_input.case import RUN, Case, Setup, files, small, together

CELL = "results/runs/toy/tiny/taskres/seed-0"
REPORT = "report --output-dir results --formats md"
WRITTEN = ("results/results.csv", "results/report/table_1.md")
"""What `report` writes all the same, from the other cells."""
_SUITE = {"name": "toy", "title": "Toy", "tasks": {"zeroshot": {"datasets": {"set": {"title": "Toy set"}}}}}


def store(folder: Path) -> None:
    """Write two finished cells."""
    from benchmark.store.cells import Store

    for method in ("zero_shot", "taskres"):
        cell = Store(folder / "results").cell(f"runs/toy/tiny/{method}/seed-0")
        identity = {"suite_name": "toy", "backbone": "tiny", "method": method, "seed": 0, "adapt_hash": "a"}
        cell.write_config(
            {**identity, "suite": _SUITE, "limit": None, "recipe": {}, "options": {}, "tasks": {}}
        )
        cell.write_json("status.json", {"status": "success", "error": None})
        cell.write_json("efficiency.json", {"trainable_parameters": 10, "by_tower": {"image": 10}})
        cell.write_json("provenance.json", {"git": {"commit": "a", "dirty": False}})
        cell.write_json("adapt.json", {"adapt_hash": "a"})
        cell.write_history([{"step": 1, "train_loss": 1.0}])
        score = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 12}
        result = {"n": 12, "kind": "multiclass", "metrics": {"acc": score}, "info": {"logit_scale": 1.0}}
        cell.write_json(
            "zeroshot.json",
            {"status": "success", "metrics": {"acc": {"unit": "%"}}, "datasets": {"set": result}},
        )


def put(name: str, content: bytes | str) -> Setup:
    return together(store, files({f"{CELL}/{name}": content}))


def changed_cell(name: str, place: str, value: Any) -> Setup:
    """Put a value at a dotted place of a JSON or YAML file of the cell."""

    def change(folder: Path) -> None:
        path = folder / CELL / name
        content = yaml.safe_load(path.read_text())
        *keys, last = place.split(".")
        here = content
        for key in keys:
            here = here[key]
        here[last] = value
        path.write_text(yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content))

    return together(store, change)


_FILES: dict[str, tuple[str, bytes | str, str]] = {
    "settings cut off": ("config.yaml", "[1", "missing or damaged. Delete it and run the same command"),
    "settings that are a list": ("config.yaml", "- 1", "missing or damaged"),
    "settings of bytes": ("config.yaml", b"\xff\xfe", "missing or damaged"),
    "settings with the thirteenth month": ("config.yaml", "a: 2020-13-45", "missing or damaged"),
    "a result cut off": ("zeroshot.json", '{"task": ', "damaged. Delete it and run the same command again"),
    "a result that is a list": ("zeroshot.json", "[]", "damaged"),
    "a result of brackets": ("zeroshot.json", "[" * 100_000, "damaged"),
    "a status cut off": ("status.json", "{", "damaged"),
    "a history cut off": ("history.jsonl", '{"step"', "damaged"),
    "a history of numbers": ("history.jsonl", "1\n2\n", "rows.1: expected keys and values, got 1"),
    "a history in words": ("history.jsonl", '{"step": "x"}\n', "rows.1.step: expected a number, got 'x'"),
    "a history that is not finite": ("history.jsonl", '{"a": NaN}\n', "rows.1.a: expected a finite number"),
    "a huge history": (
        "history.jsonl",
        '{}\n{"a": 1e99}\n',
        "rows.2.a: expected a finite number below 1e+30",
    ),
}
_SCORE = "datasets.set.metrics.acc"
_VALUES: list[tuple[str, str, Any, str]] = [
    ("config.yaml", "schema_version", 9, "written by a newer version"),
    ("config.yaml", "suite", 3, "suite: expected keys and values, got 3"),
    ("config.yaml", "suite.tasks.zeroshot.datasets", [1], "expected keys and values, got [1]"),
    ("config.yaml", "seed", "one", "seed: expected a whole number, got 'one'"),
    ("config.yaml", "seed", 10**30, "seed: expected a whole number below 2^63"),
    ("config.yaml", "limit", "few", "limit: expected a whole number, got 'few'"),
    ("config.yaml", "method", ["coop"], "method: expected a text, got ['coop']"),
    (
        "config.yaml",
        "recipe",
        {"lr": float("nan")},
        "recipe.lr: expected a finite number below 1e+30, got nan",
    ),
    ("zeroshot.json", "schema_version", 9, "written by a newer version"),
    ("zeroshot.json", "datasets", [1], "datasets: expected keys and values, got [1]"),
    ("zeroshot.json", _SCORE, 3, f"{_SCORE}: expected keys and values, got 3"),
    ("zeroshot.json", f"{_SCORE}.value", "good", f"{_SCORE}.value: expected a number, got 'good'"),
    ("zeroshot.json", f"{_SCORE}.value", float("nan"), f"{_SCORE}.value: expected a finite number, got nan"),
    ("zeroshot.json", f"{_SCORE}.value", 7.5, "value: expected a fraction between -1 and 1, got 7.5"),
    ("zeroshot.json", f"{_SCORE}.ci_low", "x", f"{_SCORE}.ci_low: expected a number, got 'x'"),
    ("zeroshot.json", f"{_SCORE}.n", "x", f"{_SCORE}.n: expected a whole number, got 'x'"),
    ("zeroshot.json", f"{_SCORE}.n", -1, f"{_SCORE}.n: expected a value of at least 0, got -1"),
    ("zeroshot.json", "datasets.set.info", {"classes": 3}, "info.classes: expected a list, got 3"),
    (
        "zeroshot.json",
        "datasets.set.info",
        {"logit_scale": "x"},
        "info.logit_scale: expected a number, got 'x'",
    ),
    ("config.yaml", "suite.corpus", "x", "suite.corpus: expected keys and values, got 'x'"),
    ("status.json", "status", 3, "status: expected a text, got 3"),
    ("efficiency.json", "by_tower", [1], "by_tower: expected keys and values, got [1]"),
    ("efficiency.json", "trainable_parameters", "many", "trainable_parameters: expected a whole number"),
    ("efficiency.json", "wall_time_s", float("inf"), "wall_time_s: expected a finite number, got inf"),
    ("efficiency.json", "wall_time_s", -1, "wall_time_s: expected a value of at least 0, got -1"),
    ("adapt.json", "imported", "x", "imported: expected keys and values, got 'x'"),
    ("adapt.json", "data_notes", 3, "data_notes: expected a list, got 3"),
    ("provenance.json", "git", "x", "git: expected keys and values, got 'x'"),
]
_CEILINGS = {
    "cut off": ("{", "ceilings.json: expected suite/backbone ->"),
    "in words": (
        '{"toy/tiny": {"title": "a", "datasets": {"set": {"acc": "x"}}}}',
        "(toy/tiny.datasets.set.acc: expected a number, got 'x')",
    ),
}
_DAMAGED: dict[str, tuple[Setup, str]] = {
    **{name: (put(file, text), f"{file}: {says}") for name, (file, text, says) in _FILES.items()},
    **{
        f"{file} with {quoted(value)} for {place}": (changed_cell(file, place, value), says)
        for file, place, value, says in _VALUES
    },
    **{
        f"reference rows {name}": (together(store, files({"results/ceilings.json": text})), says)
        for name, (text, says) in _CEILINGS.items()
    },
}
REPORTS = [
    *(Case(f"report: {name}", REPORT, says, setup, WRITTEN) for name, (setup, says) in _DAMAGED.items()),
    Case(
        "report: an unknown suite",
        f"{REPORT} --suite tyo",
        "no runs of suite 'tyo' to report",
        store,
        WRITTEN,
    ),
    Case("report: an unknown table", f"{REPORT} --tables 99", "unknown table '99'", store, WRITTEN),
    Case(
        "report: an unknown baseline",
        f"{REPORT} --baseline coopp",
        "--baseline: unknown method 'coopp'",
        store,
        WRITTEN,
    ),
]

_COMPARE = "compare taskres zero_shot --output-dir results"
COMPARED = [
    Case(
        "compare: an unknown method",
        "compare taskrs zero_shot --output-dir results",
        "Did you mean 'taskres'?",
        store,
    ),
    Case(
        "compare: a method with itself",
        "compare taskres TaskRes --output-dir results",
        "are the same method; name two",
        store,
    ),
    Case("compare: an unknown metric", f"{_COMPARE} --metric akk", "--metric: unknown metric 'akk'", store),
    Case(
        "compare: an unknown suite",
        f"{_COMPARE} --suite tyo",
        "--suite: unknown suite 'tyo'. Did you mean 'toy'?",
        store,
    ),
    Case(
        "compare: a folder that has nothing in common",
        "compare ./results ./other",
        "no results in 'other'",
        store,
    ),
    *(
        Case(
            f"compare: {name}",
            _COMPARE,
            "have no score in common (seed 0 unreadable (results/runs/toy",
            setup,
        )
        for name, (setup, says) in _DAMAGED.items()
        if name in ("settings cut off", "a result cut off") or "good" in name
    ),
]

KEPT = "out/runs/small/tiny/zero_shot/seed-0"


def finished(folder: Path) -> None:
    """Write the small world and a finished cell of it."""
    small(folder)
    from benchmark.config.load import load_config
    from benchmark.plan import make_plan
    from benchmark.store.cells import Store

    place = Store(Path("out"))
    flags = {"suite": "s.yaml", "methods": ["zero_shot"], "data_root": "data", "device": "cpu"}
    spec = make_plan(load_config(flags), place).cells[0].spec
    cell = place.cell(spec.folder)
    cell.write_config({"adapt_hash": spec.adapt_hash, **spec.public()})
    cell.write_json("status.json", {"status": "success"})
    cell.write_json("zeroshot.json", {"status": "success", "task_hash": spec.task_hash("zeroshot")})


def _newer(name: str) -> Setup:
    """Let a newer version have written a file of the finished cell."""

    def change(folder: Path) -> None:
        path = folder / KEPT / name
        written = re.sub(r"schema_version(.*) 1", r"schema_version\1 9", path.read_text())
        path.write_text(written)

    return together(finished, change)


REUSED = [
    Case(
        "run: settings of a newer version",
        RUN,
        "config.yaml: written by a newer version (schema 9",
        _newer("config.yaml"),
    ),
    Case(
        "run: a result of a newer version",
        RUN,
        "zeroshot.json: written by a newer version (schema 9",
        _newer("zeroshot.json"),
    ),
]


def _without_classes(folder: Path) -> None:
    """Take the classes out of a data entry of the finished cell."""
    finished(folder)
    path = folder / KEPT / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["tasks"]["zeroshot"]["datasets"]["films"]["classes"] = []
    path.write_text(yaml.safe_dump(content))


REPRODUCED = Case(
    "reproduce: a data entry without classes",
    f"reproduce {KEPT} --data-root data --files films.csv",
    "config.yaml:tasks.zeroshot.datasets.films.classes: expected",
    _without_classes,
)

CASES = [*REPORTS, *COMPARED, *REUSED, REPRODUCED]

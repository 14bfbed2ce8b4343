"""Damaged results: cells whose files were cut off, edited by hand or written by a newer version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.bad_input.case import RUN, SUITE, Case, Setup, files, small, together

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
            "zeroshot.json", {"task": "zeroshot", "status": "success", "datasets": {"set": result}}
        )


def put(name: str, content: bytes | str) -> Setup:
    return together(store, files({f"{CELL}/{name}": content}))


def changed_cell(name: str, *keys: str, value: Any) -> Setup:
    """Put a value at some keys of a JSON or YAML file of the cell."""

    def change(folder: Path) -> None:
        path = folder / CELL / name
        content = yaml.safe_load(path.read_text())
        here = content
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = value
        path.write_text(yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content))

    return together(store, change)


def _metric(key: str, value: Any) -> Setup:
    return changed_cell("zeroshot.json", "datasets", "set", "metrics", "acc", key, value=value)


_DAMAGED: dict[str, tuple[Setup, str]] = {
    "settings cut off": (
        put("config.yaml", "[1"),
        "config.yaml: missing or damaged. Delete it and run the same command",
    ),
    "settings that are a list": (put("config.yaml", "- 1"), "config.yaml: missing or damaged"),
    "settings of bytes": (put("config.yaml", b"\xff\xfe"), "config.yaml: missing or damaged"),
    "settings with the thirteenth month": (
        put("config.yaml", "a: 2020-13-45"),
        "config.yaml: missing or damaged",
    ),
    "settings of a newer version": (
        changed_cell("config.yaml", "schema_version", value=9),
        "config.yaml: written by a newer version",
    ),
    "a number for its suite": (
        changed_cell("config.yaml", "suite", value=3),
        "config.yaml: suite: expected keys and values, got 3",
    ),
    "a list of its suite's datasets": (
        changed_cell("config.yaml", "suite", "tasks", "zeroshot", "datasets", value=[1]),
        "suite.tasks.zeroshot.datasets: expected keys",
    ),
    "a seed in words": (
        changed_cell("config.yaml", "seed", value="one"),
        "config.yaml: seed: expected a whole number, got 'one'",
    ),
    "a limit in words": (
        changed_cell("config.yaml", "limit", value="few"),
        "config.yaml: limit: expected a whole number",
    ),
    "a method that is a list": (
        changed_cell("config.yaml", "method", value=["coop"]),
        "config.yaml: method: expected a text",
    ),
    "a result cut off": (
        put("zeroshot.json", '{"task": '),
        "zeroshot.json: damaged. Delete it and run the same command again",
    ),
    "a result that is a list": (put("zeroshot.json", "[]"), "zeroshot.json: damaged"),
    "a result of brackets": (put("zeroshot.json", "[" * 100_000), "zeroshot.json: damaged"),
    "a result of a newer version": (
        changed_cell("zeroshot.json", "schema_version", value=9),
        "zeroshot.json: written by a newer version",
    ),
    "a list of datasets": (
        changed_cell("zeroshot.json", "datasets", value=[1]),
        "zeroshot.json: datasets: expected keys and values",
    ),
    "a number for a metric": (
        changed_cell("zeroshot.json", "datasets", "set", "metrics", "acc", value=3),
        "datasets.set.metrics.acc: expected keys and values",
    ),
    "a score in words": (
        _metric("value", "good"),
        "datasets.set.metrics.acc.value: expected a number, got 'good'",
    ),
    "a score that is no number": (
        _metric("value", float("nan")),
        "datasets.set.metrics.acc.value: expected a number, got nan",
    ),
    "a bound in words": (
        _metric("ci_low", "x"),
        "datasets.set.metrics.acc.ci_low: expected a number, got 'x'",
    ),
    "a count in words": (_metric("n", "x"), "datasets.set.metrics.acc.n: expected a whole number, got 'x'"),
    "a status cut off": (put("status.json", "{"), "status.json: damaged"),
    "a status that is a number": (
        changed_cell("status.json", "status", value=3),
        "status.json: status: expected a text, got 3",
    ),
    "costs that are a list": (
        changed_cell("efficiency.json", "by_tower", value=[1]),
        "efficiency.json: by_tower: expected keys and",
    ),
    "a history cut off": (put("history.jsonl", '{"step"'), "history.jsonl: damaged"),
    "a history of numbers": (
        put("history.jsonl", "1\n2\n"),
        "history.jsonl: content: expected keys and values, got 1",
    ),
    "a history with steps in words": (
        put("history.jsonl", '{"step": "x"}\n'),
        "history.jsonl: step: expected a number",
    ),
    "an origin that is a text": (
        changed_cell("adapt.json", "imported", value="x"),
        "adapt.json: imported: expected keys and values",
    ),
    "doubts that are a number": (
        changed_cell("adapt.json", "data_notes", value=3),
        "adapt.json: data_notes: expected a list, got 3",
    ),
    "classes that are a number": (
        changed_cell("zeroshot.json", "datasets", "set", "info", value={"classes": 3}),
        "datasets.set.info.classes: expected a list, got 3",
    ),
    "a commit that is a text": (
        changed_cell("provenance.json", "git", value="x"),
        "provenance.json: git: expected keys and values",
    ),
    "reference rows cut off": (
        together(store, files({"results/ceilings.json": "{"})),
        "ceilings.json: expected suite/backbone ->",
    ),
    "reference rows in words": (
        together(
            store,
            files(
                {"results/ceilings.json": '{"toy/tiny": {"title": "a", "datasets": {"set": {"acc": "x"}}}}'}
            ),
        ),
        "(toy/tiny.datasets.set.acc: expected a number, got 'x')",
    ),
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
        if name in ("settings cut off", "a result cut off", "a score in words")
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
    Case(
        "run: results of other settings",
        RUN,
        "finished with other settings (recipe.batch_size: 2 there, 3 now)",
        together(finished, files({"s.yaml": SUITE.replace("batch_size: 2", "batch_size: 3")})),
    ),
    Case(
        "run: results of other templates",
        RUN,
        "finished with other settings (suite.templates: ['a picture of {}.'] there",
        together(finished, files({"s.yaml": SUITE.replace("a picture", "the picture")})),
    ),
]

CASES = [*REPORTS, *COMPARED, *REUSED]

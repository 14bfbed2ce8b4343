"""List methods (with what each can do), tasks, suites, datasets, backbones, tables, or the schema of YAML files.

`list methods` tries every method on two small models, which takes some seconds the first time; --names does not.
`list tables` shows the paper's tables and figures: how many numbers the paper prints, and how many cells each needs per
seed on a suite.
`list schema NAME` prints the JSON Schema of a suite, an experiment, a file for --config (run) or a method's settings.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmark.cli._parser import ArgumentParser, add_plugins, use_plugins
from benchmark.config.experiments import cells_needed, experiments
from benchmark.config.layers import DEFAULT_SUITE, suite_layer
from benchmark.console import Console
from benchmark.errors import ConfigError, unknown
from benchmark.files import (
    ROOT,
    configs,
    default_data_root,
    file_sha256,
    paper_tables,
    read_json,
    read_yaml,
    user_path,
    write_whole,
)
from benchmark.registry import METHODS, REGISTRIES

Rows = list[dict[str, Any]]
SCHEMA = "schema"
PROBED_WITH = ("torch", "timm", "open_clip_torch", "transformers", "peft")
"""Libraries on which it depends what a method can do."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("what", nargs="?", help=" | ".join((*KINDS, SCHEMA)))
    parser.add_argument("name", nargs="?", help="schema: suite | run | experiment | method")
    parser.add_argument("--output", metavar="DIR", help="schema: write <name>.json of all schemas, or of one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--names", action="store_true", help="methods: names and files only, without trying them"
    )
    parser.add_argument("--all", action="store_true", help="methods: members of families too (peft:<tuner>)")
    parser.add_argument("--markdown", action="store_true", help="methods: print the page docs/methods.md")
    parser.add_argument("--suite", help="tables: the suite whose cells are counted (default: phantom)")
    add_plugins(parser, "of them")


def main(args: argparse.Namespace, console: Console) -> int:
    """Print one list.

    Raises:
        ConfigError: unknown kind of list, or flags that do not go together.
        PluginError: a plugin does not exist.
    """
    _check_flags(args)
    use_plugins(args, load=False)
    if args.what == SCHEMA:
        return _schema(args, console)
    if args.what == "methods" and not args.names:
        return _methods(args, console)
    rows = _tables(args.suite) if args.what == "tables" else KINDS[args.what]()
    if args.json:
        console.line(json.dumps(rows, indent=1))
    else:
        cells = ([", ".join(map(str, x)) if isinstance(x, list) else x for x in row.values()] for row in rows)
        console.rows(list(rows[0]) if rows else ["name"], cells, gives_way="source, aliases")
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse words and flags that do not go with what is listed."""
    kinds = (*KINDS, SCHEMA)
    if args.what not in kinds:
        raise ConfigError(
            unknown("list", args.what, kinds) if args.what else f"say what to list: {', '.join(kinds)}"
        )
    if args.name and args.what != SCHEMA:
        raise ConfigError(f"list takes no '{args.name}': only 'list {SCHEMA}' takes a second word")
    goes_with = {
        "suite": "tables",
        "output": SCHEMA,
        "names": "methods",
        "all": "methods",
        "markdown": "methods",
    }
    for flag, what in goes_with.items():
        if getattr(args, flag) and args.what != what:
            raise ConfigError(f"--{flag} goes with 'list {what}'")
    flags = [flag for flag in ("names", "all", "markdown") if getattr(args, flag)]
    if len(flags) + (args.markdown and args.json) > 1:
        raise ConfigError("choose one of --names, --all and --markdown, and --json not with --markdown")


def _methods(args: argparse.Namespace, console: Console) -> int:
    """Print what each method can do; a broken one is a line of its own."""
    place = _cached_at(args)
    found = None if place is None else read_json(place)
    if found is None:
        found = _probed(args, console)
        if place is not None and not any("broken" in row for row in found["rows"]):
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(found)
                write_whole(place, lambda path: path.write_text(text, encoding="utf-8"))
    if args.json:
        console.line(json.dumps(found["rows"], indent=1))
    elif args.markdown:
        console.line(found["page"].rstrip())
    else:
        console.rows(
            found["columns"], found["cells"], right="trained", gives_way="resnet, families, identity, unseen"
        )
        for line in found["remarks"]:
            console.warn(line)
        if found["usable"] and not args.all:
            console.table(f"And with --all: {', '.join(found['usable'])}")
    return 0


def _probed(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Try the methods on two small models."""
    with _progress(console) as progress:
        import torch

        from benchmark.conformance import page

        torch.set_num_threads(1)  # on models this small, threads only wait for each other

        entries = [METHODS.entry(name) for name in METHODS.names()]
        single = [entry.name for entry in entries if not entry.family]
        family = [entry for entry in entries if entry.family and not args.markdown]
        more = {name: reason for entry in family for name, reason in page.members(entry).items()}
        usable = [name for name, reason in more.items() if not reason]
        rows = page.method_rows(single + usable if args.all else single, progress)
    return {
        "rows": rows,
        "columns": page.COLUMNS,
        "cells": [page.cells(row) for row in rows],
        "remarks": page.remarks(rows),
        "usable": usable,
        "page": page.markdown(rows) if args.markdown else "",
    }


def _cached_at(args: argparse.Namespace) -> Path | None:
    """Return the file that keeps what was found with this very code and these libraries; None with other plugins."""
    names = METHODS.names()
    if args.markdown or not all(METHODS.entry(name).origin.startswith("methods/") for name in names):
        return None
    made_of = [str(args.all), *names, *(f"{name} {importlib.metadata.version(name)}" for name in PROBED_WITH)]
    for room in ("benchmark", "methods"):
        made_of += [file_sha256(path) for path in sorted((ROOT / room).rglob("*.py"))]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    return default_data_root() / "methods" / f"{digest}.json"


def _schema(args: argparse.Namespace, console: Console) -> int:
    """Write schemas to a folder, or print one."""
    from benchmark.config.schema import NAMES, schema_text

    if args.name and args.name not in NAMES:
        raise ConfigError(unknown("schema", args.name, NAMES))
    if not args.name and not args.output:
        raise ConfigError(f"say which schema ({', '.join(NAMES)}), or --output DIR for all")
    for name in [args.name] if args.name else NAMES:
        text = schema_text(name)
        if args.output:
            path = user_path(args.output) / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            console.line(str(path))
        else:
            console.line(text.rstrip())
    return 0


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Say on standard error which method is being tried: live on a terminal, one line in a pipe."""
    if not console.live:
        console.note("trying every method on two small models; --names lists without")
        yield lambda name: None
        return
    with console.err.status("loading") as status:
        yield lambda name: status.update(f"trying {name} on two small models (--names lists without)")


def _plugins(kind: str) -> Callable[[], Rows]:
    def rows() -> Rows:
        registry = REGISTRIES[kind]
        entries = [registry.entry(name) for name in registry.names()]
        return [
            {
                "name": x.name,
                "aliases": [*x.aliases],
                "summary": x.summary,
                "source": x.origin.rsplit(":", 1)[0],
            }
            for x in entries
        ]

    return rows


def _suites() -> Rows:
    rows = []
    for path in sorted(configs("suites").glob("*.yaml")):
        suite = read_yaml(path)
        tasks = list(suite.get("tasks") or {})
        title = suite.get("title", "")
        rows.append(
            {"name": path.stem, "title": title, "backbone": suite.get("backbone", ""), "tasks": tasks}
        )
    return rows


def _tables(suite_name: str | None = None) -> Rows:
    """Return the tables and figures of the paper: what each is, the paper's numbers of it, and the cells it needs."""
    with paper_tables().open(encoding="utf-8", newline="") as file:
        numbers = Counter(row["table"] for row in csv.DictReader(file))
    problems: list[str] = []
    suite = suite_layer(suite_name or DEFAULT_SUITE, problems).values
    if problems:
        raise ConfigError(problems)
    backbone = str(suite.get("backbone", ""))
    return [
        {
            "name": item.name,
            "kind": item.kind,
            "title": item.title,
            "numbers": numbers[item.id] if item.name.startswith("table") else 0,
            "cells": cells_needed(item, suite, backbone),
        }
        for item in experiments()
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    **{kind: _plugins(kind) for kind in ("methods", "tasks")},
    "suites": _suites,
    **{kind: _plugins(kind) for kind in ("datasets", "backbones")},
    "tables": _tables,
}

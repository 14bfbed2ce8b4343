"""List methods, tasks, suites, datasets, backbones or tables."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from typing import Any

import rich.table

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError, unknown
from benchmark.layers import read_yaml
from benchmark.paths import configs, paper_tables
from benchmark.registry import REGISTRIES, scan_plugins
from benchmark.settings import words

Rows = list[dict[str, Any]]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("what", nargs="?", help=" | ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_list("--plugins", "Python files or modules with more of them")


def main(args: argparse.Namespace, console: Console) -> int:
    """Print one list.

    Raises:
        ConfigError: unknown kind of list, or a plugin that does not exist.
    """
    if args.what not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(unknown("list", args.what, KINDS) if args.what else f"say what to list: {known}")
    if problems := scan_plugins(words(args.plugins or [])):
        raise PluginError("; ".join(problems))
    rows = KINDS[args.what]()
    if args.json:
        console.line(json.dumps(rows, indent=1))
        return 0
    table = rich.table.Table()
    for column in rows[0] if rows else ("name",):
        table.add_column(column)
    for row in rows:
        table.add_row(*(", ".join(map(str, x)) if isinstance(x, list) else str(x) for x in row.values()))
    console.table(table)
    return 0


def _plugins(kind: str) -> Callable[[], Rows]:
    def rows() -> Rows:
        registry = REGISTRIES[kind]
        entries = [registry.entry(name) for name in registry.names()]
        return [
            {
                "name": x.name,
                "aliases": list(x.aliases),
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


def _tables() -> Rows:
    """Return the tables that the paper reports: id, datasets and how many numbers."""
    found: dict[str, Rows] = {}
    with paper_tables().open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["table"], []).append(row)
    return [
        {"name": name, "datasets": list(dict.fromkeys(row["dataset"] for row in rows)), "numbers": len(rows)}
        for name, rows in found.items()
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    **{kind: _plugins(kind) for kind in ("methods", "tasks")},
    "suites": _suites,
    **{kind: _plugins(kind) for kind in ("datasets", "backbones")},
    "tables": _tables,
}

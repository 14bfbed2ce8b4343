"""Say whether a run can start (data, weights, hardware), what is missing and how to get it, and what it will cost.

It takes the arguments of the run. On a GPU it times training steps; --probe times them on a CPU too, which is slow with
a large backbone. --images compares the images of all datasets.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmark.cli import run
from benchmark.cli._parser import ArgumentParser, given
from benchmark.config.request import Request, load_request
from benchmark.config.run_config import RunConfig
from benchmark.console import Console
from benchmark.layout import GAP
from benchmark.store.cells import cell_name

if TYPE_CHECKING:
    from benchmark.run.preflight import Item

GROUPS = ("data", "weights", "models", "hardware", "cost")
STYLES = {"missing": "red", "wrong": "red", "doubtful": "yellow", "ready": "green", "cost": ""}
SECTIONS = tuple(STYLES)
"""Headings in their order: what is not there, what is wrong, what to know, what is in order, what it costs."""

BEGINS = "looking at data, weights and hardware ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags: those of a run, and two more."""
    run.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--images", action="store_true", help="say which images datasets share, which takes reading them all"
    )
    parser.add_number(
        "--probe",
        int,
        "time this many steps per method (default: 20)",
        low=2,
        nargs="?",
        const=20,
        metavar="STEPS",
    )


def main(args: argparse.Namespace, console: Console) -> int:
    """Print the verdict.

    Returns:
        0 when the run can start, 2 otherwise.

    Raises:
        ConfigError: the request is wrong.
    """
    request = load_request(
        given(args, *run.NO_SETTINGS, "json", "probe", "images"), args.overrides, args.config or ()
    )
    from benchmark.run.preflight import as_json, models

    found = [
        _named(item, config)
        for config in request.configs
        for item in _looked_at(config, request, args.probe or 0, images=args.images)
    ]
    found += [] if request.experiments else [item for config in request.configs for item in models(config)]
    # Configurations of one experiment share data and weights.
    items = sorted(
        dict.fromkeys(found), key=lambda item: (SECTIONS.index(section(item)), GROUPS.index(item.group))
    )
    broken = list(dict.fromkeys(line for config in request.configs for line in config.broken))
    missing = [item for item in items if item.state == "missing"]
    if args.json:
        console.line(json.dumps(as_json(items) | {"broken": broken}, indent=1))
    else:
        _print(items, console)
        for line in broken:
            console.error(line)
        for line in request.skipped:
            console.warn(f"not run: {line}")
        todo: dict[str, Item] = {}
        for item in missing:  # parts of one dataset are made by one command
            todo.setdefault(item.todo or item.found, item)
        for item in todo.values():
            console.error(f"{item.name}: {item.found}" + (f". To do: {item.todo}" if item.todo else ""))
        words = [word for word in args.words if word != "--images"]
        ready = f"the run can start: python run_benchmark.py {shlex.join(words)}".rstrip()
        console.line(ready if not missing else f"{len(missing)} things are missing")
    return 2 if missing or broken else 0


def _looked_at(config: RunConfig, request: Request, probe: int, *, images: bool) -> list[Item]:
    """Return the items of a configuration; of a model that only a row names, its absence alone, which stops nothing."""
    from benchmark.run.preflight import model_item, validate

    if config.backbone in request.named:
        item = model_item(config.backbone, config.pretrained)
        if item.state != "ok":
            return [item]
    return validate(config, probe=probe, images=images)


def _named(item: Item, config: RunConfig) -> Item:
    """Return an item with the variant of its method, and the plan with what it is of."""
    if item.group == "cost" and item.name in config.variants:
        return replace(item, name=cell_name(item.name, config.variants[item.name]))
    if item.name == "plan" and config.variants:
        return replace(
            item, name="plan of " + ", ".join(cell_name(*pair) for pair in config.variants.items())
        )
    return item


def section(item: Item) -> str:
    """Return under which heading an item stands: what stops the run first, what it costs last."""
    if item.state == "missing":
        return "missing" if item.todo else "wrong"
    if item.group == "cost":
        return "cost"
    return "doubtful" if item.state == "note" else "ready"


def _print(items: list[Item], console: Console) -> None:
    """Print a heading per section, a line per item and what to do below it; names stay whole at any width."""
    from rich.padding import Padding
    from rich.text import Text

    last = ""
    for item in items:
        if (heading := section(item)) != last:
            console.table(Text(f"\n{heading}", style=f"bold {STYLES[heading]}"))
            last = heading
        name, todo = f"{item.group}: {item.name}", f"to do: {item.todo}" if item.todo else ""
        short = not todo and len(name) + len(item.found) + GAP <= console.out.width
        console.table(Text(f"{name}  {item.found}" if short else name))
        lines = [] if short else [item.found, *([todo] if todo else [])]
        for line in lines:
            console.table(Padding(Text(line), (0, 0, 0, 4)))

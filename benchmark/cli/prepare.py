"""Turn a folder of downloads into a prepared dataset; without a name, list what can be prepared and where to get it.

key=value words are options of the dataset's reader. The same command again goes on after an interruption, and does
nothing when all is there. Another --crop or --size adds a file beside the others.
"""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path
from typing import Any, get_args

import yaml

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console, duration
from benchmark.errors import ConfigError, PluginError, unknown
from benchmark.paths import default_data_root
from benchmark.registry import DATASETS, scan_plugins
from benchmark.settings import coerce, words

BAD_IMAGE = ("error", "skip")
CROP_WORDS = ("squash", "shortest_crop")
_SHOWN = 12


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("dataset", nargs="?", help="name of the dataset; none lists them")
    parser.add_argument("--raw", metavar="DIR", help="folder of the downloads")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of prepared data sets (default: ~/.cache/medpeft-bench)"
    )
    parser.add_argument("--crop", help=f"{' or '.join(CROP_WORDS)} (default: the dataset's own)")
    parser.add_argument("--size", help="of the fitted images, N or HxW (default: 224)")
    parser.add_argument("--num-workers", help="decoding processes (default: one per core)")
    parser.add_argument(
        "--on-bad-image", help="error or skip: stop at images that cannot be read, or leave them out"
    )
    parser.add_argument(
        "--accept-split", action="store_true", help="go on with an id list that is not the published one"
    )
    parser.add_list("--plugins", "Python files or modules with more datasets")


def main(args: argparse.Namespace, console: Console) -> int:
    """Prepare one dataset, or list all.

    Returns:
        0.

    Raises:
        ConfigError: unknown dataset, flag value or option.
        DataError: missing or damaged files, or an id list that is not the published one.
    """
    if problems := scan_plugins(words(args.plugins or [])):
        raise PluginError("; ".join(problems))
    if args.dataset is None:
        console.table(_listing())
        return 0
    dataset = _dataset(args.dataset)
    request = _request(args)
    if not args.raw:
        raise ConfigError(f"--raw: say where the downloads are. {_source(dataset)}")
    from benchmark.data.prepare import prepare

    signal.signal(signal.SIGTERM, _stop)
    began = time.monotonic()
    data_root = Path(args.data_root).expanduser() if args.data_root else default_data_root()
    with console.board(0) as board:
        board.preparation_started(-1, f"prepare {args.dataset}")
        reporter, plugins = board.reporter(-1), words(args.plugins or [])
        done = prepare(dataset, Path(args.raw), data_root, reporter=reporter, plugins=plugins, **request)
        if note := board.slots[-1].log:
            console.warn(note)
        board.preparation_finished(-1)
    _print_report(done.report, console)
    state = (
        f"prepared in {duration(time.monotonic() - began)}"
        if done.made
        else "was prepared already, nothing to do"
    )
    console.line(f"{done.folder}: {state}")
    return 0


def _dataset(name: str) -> Any:
    from benchmark.data.raw import RawDataset

    found = DATASETS.get(name)
    if isinstance(found, RawDataset):
        return found
    raise ConfigError(f"dataset '{name}' needs no preparation: a suite that names it is enough")


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``prepare`` that flags and key=value words stand for."""
    problems = []
    if args.crop is not None and args.crop not in CROP_WORDS:
        problems.append("--crop: " + unknown("crop", args.crop, CROP_WORDS))
    bad_image = args.on_bad_image or "error"
    if bad_image not in BAD_IMAGE:
        problems.append("--on-bad-image: " + unknown("choice", bad_image, BAD_IMAGE))
    size = re.fullmatch(r"(\d+)(?:x(\d+))?", str(args.size or 224))
    if size is None or int(size[1]) < 1 or size[2] == "0":
        problems.append(f"--size: expected N or HxW, got '{args.size}'")
    workers = None
    try:
        workers = None if args.num_workers is None else coerce(args.num_workers, int)
        if workers is not None and workers < 1:
            raise ValueError("a value of at least 1")
    except ValueError as error:
        problems.append(f"--num-workers: expected {error}, got '{args.num_workers}'")
    options = {}
    for word in args.overrides:
        key, _, value = word.partition("=")
        options[key.strip().replace("-", "_")] = yaml.safe_load(value)
    if problems or size is None:
        raise ConfigError(problems)
    return {
        "crop": args.crop, "size": (int(size[1]), int(size[2] or size[1])), "workers": workers,
        "on_bad_image": bad_image, "accept_split": args.accept_split, "options": options,
    }  # fmt: skip


def _listing() -> Any:
    import rich.table

    from benchmark.data.raw import Access, RawDataset

    order = get_args(Access.__dataclass_fields__["kind"].type) or ("open", "registration", "credentialed")
    table = rich.table.Table(title="run_benchmark.py prepare NAME --raw DIR --data-root DIR")
    for column in ("name", "title", "access", "where", "what to download"):
        table.add_column(column)
    rows = []
    for name in DATASETS.names():
        try:
            found = DATASETS.get(name)
        except PluginError as error:
            rows.append((len(order), (name, f"cannot be imported: {error}", "", "", "")))
            continue
        if isinstance(found, RawDataset):
            access = found.access
            rows.append((order.index(access.kind), (name, found.title, access.kind, access.url, access.how)))
    for _, row in sorted(rows):
        table.add_row(*row)
    return table


def _source(dataset: Any) -> str:
    layout = "; ".join(line.strip() for line in dataset.layout.strip().splitlines())
    return f"Get them at {dataset.access.url} ({dataset.access.kind} access): {dataset.access.how}. Layout: {layout}"


def _print_report(report: dict[str, Any], console: Console) -> None:
    for text, count in report["steps"]:
        console.line(f"  {count:>12,}  {text}")
    for column, values in report["columns"].items():
        listed = ", ".join(f"{value or 'blank'} {count:,}" for value, count in list(values.items())[:_SHOWN])
        console.line(f"  {column}: {listed}")
    for name, facts in report["splits"].items():
        console.line(f"  list '{name}': {facts['count']:,} ids, {facts['status']}")
    for item in report["bad_images"][:_SHOWN]:
        console.line(f"  left out {item['file']}: {item['reason']}")
    console.line(f"  transforms: {', '.join(report['transforms'])}")


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt

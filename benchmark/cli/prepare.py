"""Turn a folder of downloads into a prepared dataset; without a name, list what can be prepared and where to get it.

key=value words are options of the dataset's reader. The same command continues after an interruption, and does nothing
if everything is prepared. Another --crop, --size or --transform adds a file.
"""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path
from typing import Any, get_args

from benchmark.cli._parser import ArgumentParser, add_data_root, add_plugins, data_root, use_plugins
from benchmark.config.layers import key_and_value
from benchmark.console import Console, duration
from benchmark.errors import ConfigError, PluginError, unknown
from benchmark.files import PROGRAM
from benchmark.registry import DATASETS

BAD_IMAGE = ("error", "skip")
CROP_WORDS = ("squash", "shortest_crop", "longest_pad")
_SHOWN = 12


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.takes_settings = True
    parser.add_argument("dataset", nargs="?", help="name of the dataset; none lists them")
    parser.add_argument("--raw", metavar="DIR", help="folder of the downloads")
    add_data_root(parser)
    parser.add_argument("--crop", help=f"{', '.join(CROP_WORDS)} (default: the dataset's own)")
    parser.add_argument("--size", help="of the fitted images, N or HxW (default: 224)")
    parser.add_argument(
        "--transform",
        metavar="NAME",
        help="all of it by name, as `validate` says it for a backbone with its own rule",
    )
    parser.add_number("--num-workers", int, "decoding processes (default: one per core)", low=1, high=256)
    parser.add_argument(
        "--on-bad-image", help="error or skip: stop at images that cannot be read, or leave them out"
    )
    parser.add_number(
        "--max-pixels", int, "refuse image files that declare more pixels (default: 100 million)", low=1
    )
    parser.add_argument(
        "--accept-split", action="store_true", help="go on with an id list that is not the published one"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="take files that tables or links name outside of --raw"
    )
    add_plugins(parser, "datasets")


def main(args: argparse.Namespace, console: Console) -> int:
    """Prepare one dataset, or list all.

    Returns:
        0.

    Raises:
        ConfigError: unknown dataset, flag value or option.
        DataError: missing or damaged files, or an id list that is not the published one.
    """
    use_plugins(args, load=False)
    if args.dataset is None:
        _print_datasets(console)
        return 0
    dataset = _dataset(args.dataset)
    request = _request(args)
    if not args.raw:
        raise ConfigError(f"--raw: say where the downloads are. {_source(dataset)}")
    from benchmark.data.prepare.prepare import prepare

    signal.signal(signal.SIGTERM, _stop)
    began = time.monotonic()
    with console.phase(f"preparing {args.dataset}") as reporter:
        plugins = args.plugins or []
        done = prepare(
            dataset, Path(args.raw), data_root(args), reporter=reporter, plugins=plugins, **request
        )
    _print_report(done.report, console)
    took = f"prepared in {duration(time.monotonic() - began)}"
    console.line(f"{done.folder}: {took if done.made else 'was prepared already, nothing to do'}")
    return 0


def _dataset(name: str) -> Any:
    from benchmark.data.prepare.raw import RawDataset

    found = DATASETS.get(name)
    if isinstance(found, RawDataset):
        return found
    raise ConfigError(f"dataset '{name}' needs no preparation: a suite that names it is enough")


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``prepare`` that flags and key=value words stand for."""
    problems = []
    bad_image = args.on_bad_image or "error"
    if bad_image not in BAD_IMAGE:
        problems.append("--on-bad-image: " + unknown("choice", bad_image, BAD_IMAGE))
    if args.transform and (args.crop or args.size):
        problems.append("--transform: says crop and size too; leave out --crop and --size")
    fitting = _fitting(args, problems)
    options = {}
    for word in args.overrides:
        key, value = key_and_value(word)
        options[".".join(key)] = value
    if problems:
        raise ConfigError(problems)
    return {
        "fitting": fitting, "workers": args.num_workers, "on_bad_image": bad_image,
        "accept_split": args.accept_split, **({"max_pixels": args.max_pixels} if args.max_pixels else {}),
        "options": options, "allow_outside": args.allow_outside,
    }  # fmt: skip


def _fitting(args: argparse.Namespace, problems: list[str]) -> Any:
    """Return what --transform, or --crop and --size say; lines in ``problems`` when it is wrong."""
    from benchmark.backbones.volumes import VolumeFitting
    from benchmark.preprocess import Fitting

    try:
        if args.transform:
            return VolumeFitting.parse(args.transform)
        size = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(args.size or 224))
        if size is None:
            raise ConfigError(f"--size: expected N or HxW, got '{args.size}'")
        return Fitting((int(size[1]), int(size[2] or size[1])), args.crop)
    except ConfigError as error:
        flag = "" if str(error).startswith("--") else "--transform: " if args.transform else "--crop: "
        problems.append(f"{flag}{error}")
        return None


def _print_datasets(console: Console) -> None:
    from benchmark.data.prepare.raw import Access, RawDataset

    order = get_args(Access.__dataclass_fields__["kind"].type) or ("open", "registration", "credentialed")
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
    columns = ("name", "title", "access", "where", "what to download")
    title = f"{PROGRAM} prepare NAME --raw DIR --data-root DIR"
    console.rows(columns, [row for _, row in sorted(rows)], title)


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

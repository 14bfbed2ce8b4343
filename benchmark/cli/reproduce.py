"""Run a stored cell again from its own folder, and compare adapter, history, metrics and predictions bit by bit.

Settings come from its config.yaml, which stores no folders of the machine: give them here. The second run uses a
temporary folder, or --output-dir. Exit code 0: equal; 1: different, with the likely reasons; 2: no such cell.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli._parser import ArgumentParser, add_data_root, data_root
from benchmark.cli.export_adapter import CELL
from benchmark.console import Console
from benchmark.files import user_path
from benchmark.store.cells import Store

UNEXPLAINED = (
    "commit, versions, hardware, weights and threads are the same. Was a file of the cell changed, or the program, "
    "without a commit?"
)

if TYPE_CHECKING:
    from benchmark.run.reproduce import StoredCell
    from benchmark.store.compare import FileDifference

BEGINS = "reading the stored cell ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_needed("cell", f"say which cell: {CELL}", f"folder of a cell: {CELL}")
    parser.add_argument("--output-dir", help="keep the second run in this folder (default: a temporary one)")
    add_data_root(parser)
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<i> (default: what the cell was run on)")
    parser.add_number(
        "--tolerance",
        float,
        "largest difference of two numbers that counts as equal (default: 0)",
        low=0,
        default=0,
    )
    parser.add_list("--files", "files and folders that config.yaml names without their place (weights, CSV)")
    parser.add_list("--plugins", "Python files or modules that the cell was made with")


def main(args: argparse.Namespace, console: Console) -> int:
    """Run one cell again and compare.

    Returns:
        0 equal, 1 different or failed.

    Raises:
        ConfigError: plugins that the cell needs are not named, or there is no such device.
        StoreError: there is no such cell, or it is damaged.
        BenchmarkError: its data or weights are not here.
    """
    from benchmark.run.reproduce import read_cell  # loads torch

    stored = read_cell(
        user_path(args.cell),
        data_root=data_root(args),
        device=args.device,
        plugins=tuple(args.plugins or ()),
        files=[user_path(name).absolute() for name in args.files or []],
    )
    if args.output_dir:
        return _compare(stored, user_path(args.output_dir), args.tolerance, console)
    with tempfile.TemporaryDirectory(prefix="medpeft-bench-") as folder:
        return _compare(stored, Path(folder), args.tolerance, console)


def _compare(stored: StoredCell, output_dir: Path, tolerance: float, console: Console) -> int:
    from benchmark.run.reproduce import run_again, settings_changed
    from benchmark.store.compare import compare_cells, differing_origin

    store = Store(output_dir)
    outcome = run_again(stored, store, console)
    if outcome.status != "done":
        console.error(f"the second run failed: {outcome.error}")
        return 1
    again = store.cell(stored.spec.folder)
    files = compare_cells(stored.folder, again, list(stored.spec.tasks))
    _print(files, stored, console)
    origin = differing_origin(stored.folder, again)
    if settings_changed(stored):
        origin.insert(0, "settings: config.yaml is not as it was written, or of another version")
    return _verdict(files, origin, tolerance, console)


def _print(files: Sequence[FileDifference], stored: StoredCell, console: Console) -> None:
    rows = [(file.name, f"{file.count:,}", f"{file.differing:,}", _result(file)) for file in files]
    columns, title = ("file", "compared", "differing", "result"), f"{stored.spec.folder}: then and now"
    console.rows(columns, rows, title, right="compared, differing")


def _result(file: FileDifference) -> str:
    if not file.differing:
        return "; ".join(("bit-identical", *file.notes))
    if file.reason:
        return f"{file.where}: {file.reason}"
    return f"largest difference {file.largest:.3g}, at {file.where}"


def _verdict(
    files: Sequence[FileDifference], origin: Sequence[str], tolerance: float, console: Console
) -> int:
    """Say whether the runs are equal, and what else differs; return the exit code."""
    off = [file for file in files if not file.within(tolerance)]
    if off:
        console.line(f"different: {len(off)} of {len(files)} files")
    else:
        identical = not any(file.differing for file in files)
        console.line("equal, bit for bit" if identical else f"equal within {tolerance:g}")
    if origin:
        console.line("likely because of:" if off else "although these differ:")
    elif off:
        console.line(UNEXPLAINED)
    for line in origin:
        console.line(f"  {line}")
    return 1 if off else 0

"""Measure what methods cost at the size of a backbone, on synthetic pairs: no data, no download.

efficiency --methods all --backbone random:biomedclip --batch-size 4
efficiency --methods NAME OTHER --backbone random:biomedclip
efficiency --methods all --backbone random:biomedclip --batch-size 64 --device cuda --compile

random:NAME is the architecture of a backbone with random weights. What is measured and how: docs/efficiency.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli._parser import ArgumentParser, add_plugins, use_plugins
from benchmark.console import Console
from benchmark.errors import ConfigError
from benchmark.files import user_path
from benchmark.registry import METHODS

if TYPE_CHECKING:
    from benchmark.efficiency.report import Run
    from benchmark.efficiency.timing import Times
    from benchmark.efficiency.workbench import Workbench


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_list("--methods", "all, names or globs (default: all)")
    add_plugins(parser, "methods or backbones")
    parser.add_argument("--backbone", default="random:biomedclip", help="(default: random:biomedclip)")
    parser.add_argument("--random-weights", action="store_true", help="short for --backbone random:<name>")
    parser.add_number("--batch-size", int, "pairs per step (default: 4)", low=2, default=4)
    parser.add_number("--text-length", int, "tokens of the longest text (default: all that fit)", low=8)
    parser.add_number("--rounds", int, "turns of timing after the warm-up (default: 5)", low=1, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
                        help="arithmetic of the towers (default: auto)")  # fmt: skip
    parser.add_number("--threads", int, "CPU threads (default: OMP_NUM_THREADS, else 1)", low=1)
    parser.add_list(
        "--rates",
        "batch sizes at which pairs/s and the share of the peak are measured (default: 64 256 on a GPU)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also compile the towers' blocks, and say if it pays"
    )
    parser.add_argument("--output-dir", default="results/efficiency", help="(default: results/efficiency)")


def main(args: argparse.Namespace, console: Console) -> int:
    """Measure, print and write; what is measured is written after every round.

    Returns:
        0; 130 when stopped by Ctrl-C.

    Raises:
        ConfigError: a flag makes no sense.
        PluginError: no such method or backbone.
        CellError: torch.compile fails.
    """
    _check(args)
    names = METHODS.expand(args.methods or ["all"])
    bench = _bench(args)
    from benchmark.efficiency import report

    folder = user_path(args.output_dir)
    precision = _precision(args.precision, bench.device)
    command = "run_benchmark.py " + shlex.join(sys.argv[1:])
    run = report.Run(report.surroundings(bench, precision, args.rounds, command))
    measurement = _Measurement(args, bench, precision, run, folder, console)
    try:
        measurement.measure(names)
    except KeyboardInterrupt:
        return _stopped(measurement, console)
    report.show(run, console)
    for path in [*report.write(run, folder), *report.draw(run, folder)]:
        console.line(str(path))
    return 0


@dataclass
class _Measurement:
    """All parts of one call, each written down as soon as it is there."""

    args: argparse.Namespace
    bench: Workbench
    precision: str
    run: Run
    folder: Path
    console: Console

    def measure(self, names: Sequence[str]) -> None:
        """Measure everything that was asked for, in order."""
        self.methods(names)
        self.input_pipeline()
        sizes = rate_sizes(self.args, self.bench.device)
        if sizes:
            self.rates(sizes)
        self.run.complete = True

    def methods(self, names: Sequence[str]) -> None:
        from benchmark.efficiency import costs

        def done(rows: list[dict[str, Any]], times: dict[str, Times]) -> None:
            self.run.rows, self.run.finished = rows, len(next(iter(times.values())).wall)
            self.keep(times)

        rounds, precision = self.args.rounds, self.precision
        costs.measure(self.bench, names, rounds=rounds, precision=precision, told=self.told, done=done)

    def input_pipeline(self) -> None:
        from benchmark.efficiency import throughput

        def done(stages: list[dict[str, Any]], times: dict[str, Times]) -> None:
            self.run.stages, self.run.feeding = stages, throughput.judged(stages, self.run.rows)
            self.keep(times)

        throughput.measure(self.bench, rounds=self.args.rounds, told=self.told, done=done)

    def rates(self, sizes: Sequence[int]) -> None:
        from benchmark.efficiency.throughput import Rates

        def done(rows: list[dict[str, Any]]) -> None:
            self.run.rates = rows
            self.keep({})

        flops = {
            row["method"]: row["step_flops_per_pair_cached"] or row["step_flops_per_pair"]
            for row in self.run.rows
            if row["pairs_per_s"] is not None
        }
        Rates(
            self.bench.backbone, self.bench.text_length, self.precision, self.args.rounds,
            flops, self.args.compile, self.told, done,
        ).measure(sizes)  # fmt: skip

    def told(self, text: str) -> None:
        """Say how far the work is."""
        self.console.err.print(text, markup=False, style="dim")

    def keep(self, times: dict[str, Times]) -> None:
        """Take up times and write everything."""
        from benchmark.efficiency.report import write

        self.run.times |= times
        write(self.run, self.folder)


def rate_sizes(args: argparse.Namespace, device: Any) -> list[int]:
    """Return the batch sizes of the rates: those asked for, else 64 and 256 on a GPU, else the one to be compiled."""
    if args.rates:
        return [int(size) for size in args.rates]
    if device.type == "cuda":
        return [64, 256]
    return [args.batch_size] if args.compile else []


def _stopped(measurement: _Measurement, console: Console) -> int:
    from benchmark.cli import INTERRUPTED
    from benchmark.efficiency import report

    run, folder = measurement.run, measurement.folder
    if not run.rows:
        console.warn("stopped before the first round was done: nothing is written")
        return INTERRUPTED
    report.draw(run, folder)
    console.warn(
        f"stopped: the methods were timed in {run.finished} of {measurement.args.rounds} rounds; "
        f"what was measured is in {folder}"
    )
    return INTERRUPTED


def _check(args: argparse.Namespace) -> None:
    problems = [
        f"--rates: expected batch sizes of at least 2, got '{size}'"
        for size in args.rates or []
        if not size.isdecimal() or int(size) < 2
    ]
    if problems:
        raise ConfigError(problems)
    use_plugins(args, load=True)


def _bench(args: argparse.Namespace) -> Workbench:
    """Load the backbone and make the pairs."""
    import torch

    from benchmark.backbones import load_backbone
    from benchmark.efficiency.workbench import Workbench
    from benchmark.machine import find_devices

    torch.set_num_threads(args.threads or int(os.environ.get("OMP_NUM_THREADS", "1")))
    name = args.backbone
    if args.random_weights and not name.startswith("random:"):
        name = f"random:{name}"
    backbone = load_backbone(name, device=find_devices(args.device)[0])
    room = backbone.text.context_length
    if args.text_length is not None and args.text_length > room:
        raise ConfigError(f"--text-length: '{name}' takes at most {room} tokens, got {args.text_length}")
    return Workbench(backbone, batch_size=args.batch_size, text_length=args.text_length or room)


def _precision(wanted: str, device: Any) -> str:
    from benchmark.backbones.towers.precision import resolve

    return resolve(wanted, device)

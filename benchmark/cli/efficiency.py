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
from benchmark.files import PROGRAM, user_path
from benchmark.machine import find_devices, use_device
from benchmark.registry import METHODS

if TYPE_CHECKING:
    from benchmark.efficiency.report import Measured
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
    wrong = [size for size in args.rates or () if not size.isdecimal() or int(size) < 2]
    if wrong:
        raise ConfigError([f"--rates: expected batch sizes of at least 2, got '{size}'" for size in wrong])
    use_plugins(args, load=True)
    names = METHODS.expand(args.methods or ["all"])
    if unfit := [name for name in names if getattr(METHODS.get(name), "needs_classes", False)]:
        raise ConfigError(
            f"--methods: {', '.join(unfit)} learn from class labels, and costs are those of pairs. Leave them out"
        )
    bench = _bench(args)
    from benchmark.backbones.towers.precision import resolve
    from benchmark.efficiency import report

    folder, precision = user_path(args.output_dir), resolve(args.precision, bench.device)
    command = f"{PROGRAM} " + shlex.join(sys.argv[1:])
    found = report.Measured(report.surroundings(bench, precision, args.rounds, command))
    try:
        _Measurement(args, bench, precision, found, folder, console).measure(names)
    except KeyboardInterrupt:
        return _stopped(found, folder, args.rounds, console)
    report.show(found, console)
    for path in [*report.write(found, folder), *report.draw(found, folder)]:
        console.line(str(path))
    return 0


def _bench(args: argparse.Namespace) -> Workbench:
    """Load the backbone and make the pairs."""
    import torch

    from benchmark.backbones import load_backbone
    from benchmark.efficiency.workbench import Workbench

    torch.set_num_threads(args.threads or int(os.environ.get("OMP_NUM_THREADS", "1")))
    name = args.backbone
    if args.random_weights and not name.startswith("random:"):
        name = f"random:{name}"
    device = find_devices(args.device)[0]
    use_device(device)
    backbone = load_backbone(name, device=device)
    room = backbone.text.context_length
    if args.text_length is not None and args.text_length > room:
        raise ConfigError(f"--text-length: '{name}' takes at most {room} tokens, got {args.text_length}")
    return Workbench(backbone, batch_size=args.batch_size, text_length=args.text_length or room)


@dataclass
class _Measurement:
    """All parts of one call, each written as soon as it is there."""

    args: argparse.Namespace
    bench: Workbench
    precision: str
    found: Measured
    folder: Path
    console: Console

    def measure(self, names: Sequence[str]) -> None:
        """Measure everything that was asked for, in order."""
        from benchmark.efficiency import costs, throughput

        found, rounds = self.found, self.args.rounds

        def methods(rows: list[dict[str, Any]], times: dict[str, Times]) -> None:
            found.rows, found.finished = rows, len(next(iter(times.values())).wall)
            self.keep(times)

        def input_pipeline(stages: list[dict[str, Any]], times: dict[str, Times]) -> None:
            found.stages, found.feeding = stages, throughput.judged(stages, found.rows)
            self.keep(times)

        def rates(rows: list[dict[str, Any]]) -> None:
            found.rates = rows
            self.keep({})

        costs.measure(
            self.bench, names, rounds=rounds, precision=self.precision, told=self.told, done=methods
        )
        throughput.measure(self.bench, rounds=rounds, told=self.told, done=input_pipeline)
        if sizes := rate_sizes(self.args, self.bench.device):
            flops = {
                row["method"]: row["step_flops_per_pair_cached"] or row["step_flops_per_pair"]
                for row in found.rows
                if row["pairs_per_s"] is not None
            }
            throughput.Rates(
                self.bench.backbone, self.bench.text_length, self.precision, rounds, flops,
                self.args.compile, self.told, rates,
            ).measure(sizes)  # fmt: skip
        found.complete = True

    def told(self, text: str) -> None:
        """Say how far the work is."""
        self.console.note(text)

    def keep(self, times: dict[str, Times]) -> None:
        """Take up times and write everything."""
        from benchmark.efficiency.report import write

        self.found.times |= times
        write(self.found, self.folder)


def rate_sizes(args: argparse.Namespace, device: Any) -> list[int]:
    """Return the batch sizes of the rates: those asked for, else 64 and 256 on a GPU, else the one to be compiled."""
    if args.rates:
        return [int(size) for size in args.rates]
    if device.type == "cuda":
        return [64, 256]
    return [args.batch_size] if args.compile else []


def _stopped(found: Measured, folder: Path, rounds: int, console: Console) -> int:
    from benchmark.efficiency import report

    if not found.rows:
        console.warn("stopped before the first round was done: nothing is written")
        return 130
    report.draw(found, folder)
    console.warn(
        f"stopped: the methods were timed in {found.finished} of {rounds} rounds; what was measured is in {folder}"
    )
    return 130

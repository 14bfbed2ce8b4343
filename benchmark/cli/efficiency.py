"""Measure what methods cost at the size of a backbone, on made-up pairs: no data, no download.

efficiency --methods all --backbone random:biomedclip --batch-size 4
efficiency --methods NAME OTHER --backbone random:biomedclip --against naive

random:NAME is the architecture of a backbone with random weights. What is measured and how: docs/efficiency.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError
from benchmark.registry import METHODS, load_plugins
from benchmark.settings import words

if TYPE_CHECKING:
    from benchmark.workbench import Workbench


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_list("--methods", "all, names or globs (default: all)")
    parser.add_list("--plugins", "Python files or modules with more methods or backbones")
    parser.add_argument("--backbone", default="random:biomedclip", help="(default: random:biomedclip)")
    parser.add_argument("--random-weights", action="store_true", help="short for --backbone random:<name>")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs per step (default: 4)")
    parser.add_argument("--text-length", type=int, help="tokens of the longest text (default: all that fit)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of timing after the warm-up (default: 5)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
                        help="arithmetic of the towers (default: auto)")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads (default: OMP_NUM_THREADS, else 1)")
    parser.add_argument(
        "--against", choices=("naive",), help="compare with the plain form of the same methods"
    )
    parser.add_argument("--output-dir", default="results/efficiency", help="(default: results/efficiency)")


def main(args: argparse.Namespace, console: Console) -> int:
    """Measure, print and write.

    Returns:
        0; 1 when a target is not met.

    Raises:
        ConfigError: a flag makes no sense.
        PluginError: no such method or backbone.
        CellError: the plain form computes something else.
    """
    _check(args)
    names = METHODS.expand(words(args.methods or ["all"]))
    bench = _bench(args)
    from benchmark import against, efficiency_report, method_costs

    def told(text: str) -> None:
        console.err.print(text, markup=False, style="dim")

    precision = _precision(args.precision, bench.device)
    rows, times = method_costs.measure(bench, names, rounds=args.rounds, precision=precision, told=told)
    lines: list[against.Verdict] = []
    equal: list[dict[str, Any]] = []
    counts: dict[str, dict[str, Any]] = {}
    if args.against:
        content = against.settings()
        told("compare fast and plain forms in fp64")
        equal = against.differences(bench, content["equal"])
        wanted = against.forms(content, bench.device)
        counts, more = against.measure_forms(bench, wanted, content["targets"], rounds=args.rounds, told=told)
        times |= more
        lines = against.verdicts(content, counts, times, bench=bench, rows=rows)
    run = efficiency_report.Run(
        rows, times, lines, equal, counts,
        efficiency_report.surroundings(bench, precision, args.rounds, "run_benchmark.py " + shlex.join(sys.argv[1:])),
    )  # fmt: skip
    efficiency_report.show(run, console)
    for path in efficiency_report.write(run, Path(args.output_dir).expanduser()):
        console.line(str(path))
    return 1 if any(line.met is False for line in lines) else 0


def _check(args: argparse.Namespace) -> None:
    if args.overrides:
        raise ConfigError(f"efficiency takes no '{args.overrides[0]}', only flags")
    problems = [
        f"--{name.replace('_', '-')}: expected a value of at least {low}, got {value}"
        for name, low in (("batch_size", 2), ("text_length", 8), ("rounds", 1), ("threads", 1))
        if (value := getattr(args, name)) is not None and value < low
    ]
    if problems:
        raise ConfigError(problems)
    if broken := load_plugins(words(args.plugins or [])):
        raise PluginError("; ".join(broken))


def _bench(args: argparse.Namespace) -> Workbench:
    """Load the backbone and make the pairs."""
    import torch

    from benchmark.backbones import load_backbone
    from benchmark.runner import find_devices
    from benchmark.workbench import Workbench

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
    if wanted != "auto":
        return wanted
    from benchmark.against import fast_bf16

    return "bf16" if device.type == "cuda" and fast_bf16(device) else "fp32"

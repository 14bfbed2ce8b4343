"""Compare the fast forms of the methods with the plain ones: first that both compute the same, then what each costs.

``python -m tests.plain`` takes about half an hour at BiomedCLIP's size, a minute with ``--backbone random:tiny``. The
exit code is 1 when a target of ``targets.yaml`` is not met. Targets are judged at the size that the file names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmark.backbones import load_backbone
from benchmark.efficiency import costs, throughput
from benchmark.efficiency.timing import Times
from tests.plain import compare
from tests.plain.bench import PlainBench


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 when no target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.plain", description=__doc__)
    parser.add_argument("--backbone", default="random:biomedclip")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--text-length", type=int, help="tokens of the longest text (default: all that fit)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="a JSON file for everything that was measured")
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backbone = load_backbone(args.backbone, device=torch.device(args.device))
    length = args.text_length or backbone.text.context_length
    bench = PlainBench(backbone, batch_size=args.batch_size, text_length=length)
    found = measure(bench, compare.settings(), rounds=args.rounds)
    for item in found["differences"]:
        print("equal in fp64:", " ".join(f"{key}={value}" for key, value in item.items()))
    for line in found["targets"]:
        print(line)
    if args.output:
        args.output.write_text(
            json.dumps(found | {"targets": [asdict(x) for x in found["targets"]]}, indent=1)
        )
    return 1 if any(line.met is False for line in found["targets"]) else 0


def measure(bench: PlainBench, content: Any, *, rounds: int) -> dict[str, Any]:
    """Return the differences of the forms, and one result per target."""
    told = print if sys.stdout.isatty() else lambda text: None
    differences = compare.differences(bench, content["equal"])
    rows: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    times: dict[str, Times] = {}
    cached = sorted({entry["cached"] for entry in content["targets"] if "cached" in entry})
    costs.measure(
        bench, cached, rounds=rounds, precision="fp32", told=told,
        done=lambda now, taken: (rows.__setitem__(slice(None), now), times.update(taken)),
    )  # fmt: skip
    throughput.measure(
        bench, rounds=rounds, told=told, done=lambda now, _: stages.__setitem__(slice(None), now)
    )
    wanted = compare.forms(content, bench.device)
    times |= compare.measure_forms(bench, wanted, content["targets"], rounds=rounds, told=told)
    targets = compare.target_results(content, times, bench=bench, rows=rows, stages=stages)
    return {"differences": differences, "targets": targets}


if __name__ == "__main__":
    sys.exit(main())

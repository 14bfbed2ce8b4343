"""Checks on a GPU what cannot be judged without one, in under five minutes; writes JSON as it goes.

    python -m tests.device_check --output device.json               # on a machine with a GPU
    python -m tests.device_check --device cpu --short               # tries the check itself

Every part runs in a process of its own, so that one that crashes or hangs costs itself alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BUDGET = 290.0
"""Seconds in all."""
BUSY = 10
"""Times as long a CPU may take, which others may use too, for the short form."""
Found = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all that ran are as they should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.device_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:<i> or cpu (default: cuda:0)")
    parser.add_argument(
        "--short", action="store_true", help="a little of everything, as a test does on a CPU"
    )
    parser.add_argument("--parts", nargs="+", metavar="PART", help="(default: all)")
    parser.add_argument(
        "--output", type=Path, default=Path("device_check.json"), help="(default: device_check.json)"
    )
    args = parser.parse_args(words)
    began, found, slack = time.monotonic(), dict[str, Found](), BUSY if args.short else 1
    for name, limit in limits().items():
        if args.parts and name not in args.parts:
            continue
        left = slack * BUDGET - (time.monotonic() - began)
        found[name] = run(name, args.device, args.short, min(slack * limit, left))
        print(f"{name}: {_line(found[name])}", flush=True)
        bad = [part for part, one in found.items() if not one["ok"]]
        seconds = round(time.monotonic() - began, 1)
        result = {"device": args.device, "ok": not bad, "failed": bad, "seconds": seconds, "parts": found}
        args.output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return int(not all(one["ok"] for one in found.values()) or not found)


def limits() -> dict[str, float]:
    """Return the parts and their limits in seconds."""
    import open_clip  # noqa: F401  (these four take seconds, and would in each part)
    import peft  # noqa: F401
    import timm  # noqa: F401
    import transformers  # noqa: F401

    from tests.device_check.parts import PARTS

    return {name: float(limit) for name, (_, limit) in PARTS.items()}


def run(name: str, device: str, short: bool, limit: float) -> Found:
    """Return what a part found, in a process of its own that ends at its limit."""
    if limit < 5:
        return {"ok": False, "error": "no time left"}
    context = multiprocessing.get_context("fork")  # this process has imported everything, and asked no GPU
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, name, device, short))
    process.start()
    theirs.close()
    found: Found = {"ok": False, "error": f"stopped after {limit:.0f} s"}
    try:
        if ours.poll(limit):
            found = ours.recv()
    except EOFError:
        process.join()
        found = {"ok": False, "error": f"the process ended with exit code {process.exitcode}"}
    if process.is_alive():  # with what it has started: it leads a group of its own
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return found


def work(pipe: Connection, name: str, device: str, short: bool) -> None:
    """Run a part in this process and send what it found."""
    from benchmark.machine import limit_threads, usable_cores, use_device
    from tests.device_check.parts import PARTS, Check

    os.setsid()
    limit_threads(1 if short else usable_cores())
    began = time.perf_counter()
    try:
        use_device(device)
        found = PARTS[name][0](Check(device, short))
    except BaseException as error:
        found = {
            "ok": False,
            "error": f"{type(error).__name__}: {str(error)[:300]}",
            "trace": traceback.format_exc()[-2000:],
        }
    pipe.send(found | {"took": round(time.perf_counter() - began, 1)})


def _line(found: Found) -> str:
    words = "ok" if found["ok"] else f"FAILED {found.get('error', '')} {found.get('bad', '')}".rstrip()
    return f"{words} ({found.get('skipped') or str(found.get('took', '-')) + ' s'})"


if __name__ == "__main__":
    sys.exit(main())

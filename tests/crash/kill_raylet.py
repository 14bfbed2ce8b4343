"""Kill the Ray node of a command in the middle of a run: one line, exit code 1, finished cells kept.

    python -m tests.crash.kill_raylet            # two minutes on two cores

One cell is finished here. Then it and one that trains for hours run with ``--engine ray`` on a node of their own, whose
process (raylet) is killed with SIGKILL while the second trains. The first is then reused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark.files import ROOT
from tests.bad_input.case import small

PATIENCE = 300.0
"""Seconds in which each command has to end."""


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run of the small suite."""
    words = ["--suite", "s.yaml", "--device", "cpu", "--output-dir", "out"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_benchmark.py"), *words, "--data-root", "data", *more],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def raylet_of(parent: int) -> int:
    """Return the process of Ray's node that a command has started."""
    said = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in said.splitlines()[1:]]
    return next(int(pid) for pid, above, name in rows if int(above) == parent and name.startswith("raylet"))


def main() -> int:
    """Kill, look, and go on; return 0 where all is as it should be."""
    with tempfile.TemporaryDirectory(prefix="raylet-") as name:
        folder = Path(name)
        small(folder)
        first = command(folder, "--methods", "zero_shot", "--jobs", "1")
        first.communicate(timeout=PATIENCE)
        long = command(folder, "--methods", "zero_shot,taskres", "--engine", "ray", "recipe.epochs=100000")
        begun = folder / "out/runs/small/tiny/taskres/seed-0/status.json"
        until = time.monotonic() + PATIENCE
        while not begun.exists() and time.monotonic() < until and long.poll() is None:
            time.sleep(0.2)
        os.kill(raylet_of(long.pid), signal.SIGKILL)
        killed = time.monotonic()
        _, said = long.communicate(timeout=PATIENCE)
        errors = [line for line in said.splitlines() if not line.startswith("warning: ")]
        print(f"exit code {long.returncode} after {time.monotonic() - killed:.0f} s", *errors, sep="\n")
        again = command(folder, "--methods", "zero_shot", "--jobs", "1")
        out, _ = again.communicate(timeout=PATIENCE)
        kept = "1 reused" in out
        print("the finished cell is kept" if kept else out)
        one = len(errors) == 1 and errors[0].startswith(
            "error: --engine ray: the node of this command has failed"
        )
        return 0 if (first.returncode, long.returncode, again.returncode) == (0, 1, 0) and one and kept else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Kill a run at random times until it has finished, and compare it with an undisturbed run.

``python -m tests.crash.kill_anywhere --kills 50`` takes about ten minutes. Every kill is a SIGKILL of the whole process
group, from the making of the data to the report; then the same command is given again, with one process or two. In the
end every adapter, history, metric, prediction and report table must equal that of the undisturbed run bit for bit, no
finished cell may have been touched again, and no file may be left over. ``kill_at_writes`` kills at chosen moments.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.equal import RESULTS, differences

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("suite.yaml")
METHODS = ("zero_shot", "taskres", "clip_lora")
SETTINGS = ("--tasks", "zeroshot", "segmentation", "--limit", "64", "--max-steps", "6", "--device", "cpu")
LONGEST_RUN = 900.0


def run_and_kill(
    folder: Path, seeds: Sequence[int], times: Sequence[float], jobs: Sequence[int]
) -> list[str]:
    """Give the command once per time and kill it then, and at last let it finish; return what went wrong.

    A grid that finishes before its kill is kept, and begun again.
    """
    broken: list[str] = []
    finished: dict[Path, str] = {}
    for run, (limit, workers) in enumerate(zip([*times, LONGEST_RUN], jobs, strict=True), start=1):
        code = start(folder, seeds, limit, workers)
        now = _finished(folder / "out")
        broken += [
            f"{file} of a finished cell changed" for file in finished if now.get(file) != finished[file]
        ]
        broken += [f"run {run} ended with exit code {code}"] if code else []
        finished = now
        print(f"run {run}: {'killed after' if code is None else 'finished within'} {limit:.1f} s", flush=True)
        if code is not None and run <= len(times):
            (folder / "out").rename(folder / f"out-{run}")
            (folder / "data").rename(folder / f"data-{run}")
            finished = {}
    return broken


def start(folder: Path, seeds: Sequence[int], limit: float, jobs: int = 2) -> int | None:
    """Start the command; return its exit code, or None if its process group was killed after ``limit`` seconds."""
    command = [
        sys.executable, str(ROOT / "run_benchmark.py"), "--suite", str(SUITE), "--methods", *METHODS, *SETTINGS,
        "--seeds", *map(str, seeds), "--jobs", str(jobs),
        "--output-dir", str(folder / "out"), "--data-root", str(folder / "data"),
    ]  # fmt: skip
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _finished(out: Path) -> dict[Path, str]:
    """Return time and hash of every file of finished cells."""
    cells = [file.parent for file in out.glob("runs/*/*/*/*/status.json") if '"success"' in file.read_text()]
    files = [file for cell in cells for file in cell.rglob("*") if file.suffix in RESULTS]
    return {
        file: f"{file.stat().st_mtime_ns} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print it; return 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill_anywhere", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        plain, killed = Path(home, "undisturbed"), Path(home, "killed")
        plain.mkdir()
        killed.mkdir()
        began = time.monotonic()
        if (code := start(plain, args.seeds, LONGEST_RUN)) or not (plain / "out/report").is_dir():
            print(f"the undisturbed run ended with exit code {code}\n{(plain / 'log.txt').read_text()}")
            return 1
        times = [rng.uniform(0.3, time.monotonic() - began) for _ in range(args.kills)]
        lost = run_and_kill(killed, args.seeds, times, [rng.choice((1, 2)) for _ in range(args.kills + 1)])
        for folder in ("out", "data"):
            for again in sorted(killed.glob(f"{folder}*")):
                lost += [f"{again.name}: {line}" for line in differences(plain / folder, again)]
    print("\n".join(lost) if lost else "nothing lost, nothing repeated: equal bit for bit")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

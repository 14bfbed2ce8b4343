"""Kill a run at random moments until it has finished, and compare it with an undisturbed run.

``python -m tests.crash.kill_anywhere --kills 50`` takes about ten minutes. Every kill is a SIGKILL of the whole process
group, from the making of the data to the report; then the same command is given again, with one process or two. In the
end every adapter, history, metric, prediction and report table must equal that of the undisturbed run bit for bit, no
finished cell may have been touched again, and no file may be left over.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.crash.equal import RESULTS, differences

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("suite.yaml")
METHODS = ("zero_shot", "taskres", "clip_lora")
SETTINGS = ("--tasks", "zeroshot", "segmentation", "--limit", "64", "--max-steps", "6", "--device", "cpu")
LONGEST_RUN = 900.0
LOOK = 0.01
"""Seconds between two looks at the files of a run."""
MOST_CHANGES = (6, 10, 50)
"""A kill waits for one to so many changes of files, one of these numbers."""
MOST_SECONDS = 30.0
"""A kill waits no longer than this for a change."""

Files = dict[str, tuple[int, int]]  # path -> time of change, size


def run_and_kill(folder: Path, seeds: Sequence[int], kills: int, rng: random.Random) -> list[str]:
    """Give the command again and again, killing it ``kills`` times, then let it finish; return what went wrong.

    A grid that finishes before all kills are spent is kept, and begun again.

    Args:
        folder: for output and data.
        seeds: of the grid.
        kills: how often.
        rng: draws the moments: after so many changes of files, or after so many seconds.
    """
    broken: list[str] = []
    finished: dict[Path, str] = {}
    done = runs = 0
    while done <= kills:
        runs += 1
        moment = _Moment(folder, rng) if done < kills else lambda: False
        code = _start(folder, seeds, moment, jobs=rng.choice((1, 2)))
        now = _finished(folder / "out")
        broken += [
            f"{file} of a finished cell changed" for file in finished if now.get(file) != finished[file]
        ]
        finished = now
        done += code is None or done == kills
        if code is None:
            files = {name: at for name, at in _files(folder).items() if not name.endswith("lock")}
            print(
                f"kill {done}, after {max(files, key=lambda name: files[name], default='nothing')}",
                flush=True,
            )
        else:
            broken += [f"run {runs} ended with exit code {code}"] if code else []
            if done < kills:
                (folder / "out").rename(folder / f"out-{runs}")
                (folder / "data").rename(folder / f"data-{runs}")
                finished = {}
    print(f"{kills} kills in {runs} runs")
    return broken


def _start(folder: Path, seeds: Sequence[int], now: Callable[[], bool], jobs: int = 2) -> int | None:
    """Start the command; kill its process group when it is time. Return its exit code, or None if it was killed."""
    command = [
        sys.executable, str(ROOT / "run_benchmark.py"), "--suite", str(SUITE), "--methods", *METHODS, *SETTINGS,
        "--seeds", *map(str, seeds), "--jobs", str(jobs),
        "--output-dir", str(folder / "out"), "--data-root", str(folder / "data"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    until = time.monotonic() + LONGEST_RUN
    while (code := process.poll()) is None and time.monotonic() < until and not now():
        time.sleep(LOOK)
    if code is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code


class _Moment:
    """Says when to kill: a pause after some changes of files, or after some seconds."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.files, self.changed = folder, _files(folder), time.monotonic()
        self.left: float = rng.randint(1, rng.choice(MOST_CHANGES))
        self.pause = rng.choice((0.0, 0.0, rng.uniform(0.0, 0.5)))
        self.until = math.inf
        if rng.random() < 0.2:
            self.left, self.until = math.inf, time.monotonic() + rng.uniform(0.3, 10.0)

    def __call__(self) -> bool:
        """Return whether it is time; to be asked again and again."""
        files, now = _files(self.folder), time.monotonic()
        if files != self.files:
            self.files, self.changed, self.left = files, now, self.left - 1
        quiet = now - self.changed
        return now > self.until or quiet > MOST_SECONDS or (self.left <= 0 and quiet >= self.pause)


def _files(folder: Path) -> Files:
    """Return the files of output and data as they are now; what vanishes while we look is left out."""
    found: Files = {}
    for top in (folder / "out", folder / "data"):
        for path, _, names in os.walk(top):
            for name in names:
                try:
                    at = os.stat(f"{path}/{name}")
                except OSError:
                    continue
                found[f"{path}/{name}"] = (at.st_mtime_ns, at.st_size)
    return found


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
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        return _compare(args.folder or Path(temporary), args.seeds, args.kills, random.Random(args.seed))


def _compare(home: Path, seeds: Sequence[int], kills: int, rng: random.Random) -> int:
    plain, killed = home / "undisturbed", home / "killed"
    for folder in (plain, killed):
        folder.mkdir(parents=True)
    if (code := _start(plain, seeds, lambda: False)) or not (plain / "out/report").is_dir():
        print(f"the undisturbed run ended with exit code {code}; see {plain / 'log.txt'}")
        return 1
    lost = run_and_kill(killed, seeds, kills, rng)
    for folder in ("out", "data"):
        for again in sorted(killed.glob(f"{folder}*")):
            lost += [f"{again.name}: {line}" for line in differences(plain / folder, again)]
    print("\n".join(lost) if lost else "nothing lost, nothing repeated: equal bit for bit")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

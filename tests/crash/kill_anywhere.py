"""Kill a run at random moments until it has finished, and compare it with a run that nobody disturbed.

``python -m tests.crash.kill_anywhere --kills 50`` takes about ten minutes. Every kill is a SIGKILL of the whole process
group, from the making of the data to the report; then the same command is given again, in one process or two. In the
end every adapter, history, metric, prediction and report table must equal that of the undisturbed run bit for bit, no
finished cell may have been touched again, and no file may be left that the undisturbed run has not.
"""

from __future__ import annotations

import argparse
import collections
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
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.equal import RESULTS, differences

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("suite.yaml")
METHODS = ("zero_shot", "taskres", "clip_lora")
TASKS = ("zeroshot", "segmentation")
SETTINGS = ("--limit", "64", "--max-steps", "6", "--device", "cpu")
LONGEST_RUN = 900.0
LOOK = 0.01
"""Seconds between two looks at the files of a run."""
MOST_CHANGES = (6, 10, 50)
"""A kill waits for one to so many changes of files, one of these numbers."""
MOST_SECONDS = 60.0
"""A kill waits no longer than this for a change."""
PHASES = (  # of the file that was written last, or was being written
    ("checkpoint", "training, after a checkpoint"),
    ("/predictions", "evaluating"),
    ("/shared/", "evaluating"),
    ("out/report", "reporting"),
    ("results.csv", "reporting"),
    ("data/features", "caching features"),
    ("data/", "making data"),
    ("adapt", "storing the adapter"),
    ("history", "storing the adapter"),
    ("efficiency.json", "storing the adapter"),
    ("/peft", "storing the adapter"),
    ("config.yaml", "beginning a cell"),
    ("provenance.json", "beginning a cell"),
)
RUNNING, ENDED = "in a cell, before its first file", "between cells"
STARTING, DRAWING = "starting, before any file", "starting, or computing the report"

Files = dict[str, tuple[int, int]]  # name below the folder -> time of change, size


@dataclass
class Story:
    """What was seen on the way.

    Attributes:
        kills: phase -> number of kills that fell into it. halves: kills that left a file half written.
        runs: starts of the command, the last one included. grids: how often the grid was run to its end.
        cells: of the grid. broken: what must not have happened.
    """

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    halves: int = 0
    runs: int = 0
    grids: int = 1
    cells: int = 0
    broken: list[str] = field(default_factory=list)


def command(folder: Path, seeds: Sequence[int], jobs: int) -> list[str]:
    """Return the command whose output and data lie in a folder."""
    return [
        sys.executable, str(ROOT / "run_benchmark.py"), "--suite", str(SUITE), "--methods", *METHODS,
        "--tasks", *TASKS, "--seeds", *map(str, seeds), "--jobs", str(jobs), *SETTINGS,
        "--output-dir", str(folder / "out"), "--data-root", str(folder / "data"),
    ]  # fmt: skip


def run_and_kill(folder: Path, seeds: Sequence[int], kills: int, rng: random.Random) -> Story:
    """Give the command again and again, killing it ``kills`` times, then let it finish.

    A grid that finishes before all kills are spent is kept, and begun again.

    Args:
        folder: for output and data.
        seeds: of the grid.
        kills: how often.
        rng: draws the moments: after so many changes of files, or after so many seconds.
    """
    story, finished = Story(cells=len(METHODS) * len(seeds)), {}
    while sum(story.kills.values()) < kills:
        story.runs += 1
        before = _files(folder)
        ended = _start(folder, seeds, _Moment(folder, rng), jobs=rng.choice((1, 2)))
        finished = _check_finished(folder / "out", finished, story)
        if ended is None:
            _note(story, folder, before)
            continue
        if ended:
            story.broken.append(f"run {story.runs} ended with exit code {ended}")
        story.grids += 1
        (folder / "out").rename(folder / f"finished-{story.runs}")
        (folder / "data").rename(folder / f"data-{story.runs}")
        finished = {}
    story.runs += 1
    code = _start(folder, seeds, lambda: False)
    if code != 0:
        story.broken.append(f"the last run ended with exit code {code}")
    _check_finished(folder / "out", finished, story)
    return story


def _start(folder: Path, seeds: Sequence[int], now: Callable[[], bool], jobs: int = 2) -> int | None:
    """Start the command; kill its process group when it is time. Return its exit code, or None when it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(folder, seeds, jobs), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
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
    """Says when to kill: a pause after some changes of files, or after some seconds.

    Args:
        folder: of output and data.
        rng: draws which, and how many.
    """

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


def _note(story: Story, folder: Path, before: Files) -> None:
    """Count a kill under what the run was doing, as the last file that it has written tells."""
    files = {name: at for name, at in _files(folder).items() if not name.endswith("lock")}
    files = {name: at for name, at in files.items() if before.get(name) != at}
    story.halves += any(".tmp" in name for name in files)
    newest = max(files, key=lambda name: files[name], default="")
    inside = newest.removeprefix(str(folder))
    found = [phase for part, phase in PHASES if part in inside]
    if newest.endswith("status.json"):
        found = [RUNNING if '"running"' in Path(newest).read_text() else ENDED]
    done = len(_finished(folder / "out")) == story.cells
    phase = found[0] if found else "storing results" if inside else DRAWING if done else STARTING
    story.kills[phase] += 1
    print(f"kill {sum(story.kills.values())}: {phase} ({inside})", flush=True)


def _check_finished(out: Path, before: dict[Path, str], story: Story) -> dict[Path, str]:
    """Return hash and time of every file of finished cells; what was finished before must be as it was."""
    now: dict[Path, str] = {}
    for cell in _finished(out):
        for file in sorted(path for path in cell.rglob("*") if path.suffix in RESULTS):
            now[file] = f"{file.stat().st_mtime_ns} {hashlib.sha256(file.read_bytes()).hexdigest()}"
    story.broken += [f"{file} of a finished cell changed" for file in before if now.get(file) != before[file]]
    return now


def _finished(out: Path) -> list[Path]:
    """Return the folders of finished cells."""
    files = out.glob("runs/*/*/*/seed-*/status.json")
    return [status.parent for status in files if '"success"' in status.read_text()]


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
    began = time.monotonic()
    if code := _start(plain, seeds, lambda: False):
        print(f"the undisturbed run ended with exit code {code}; see {plain / 'log.txt'}")
        return 1
    if not (plain / "out/report").is_dir():
        print(f"the undisturbed run wrote no report; see {plain / 'log.txt'}")
        return 1
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    story = run_and_kill(killed, seeds, kills, rng)
    lost = list(story.broken)
    for folder in ("out", "data"):
        for again in (
            killed / folder,
            *sorted(killed.glob(f"{'finished' if folder == 'out' else folder}-*")),
        ):
            lost += [f"{again.name}: {line}" for line in differences(plain / folder, again)]
    print(
        f"{sum(story.kills.values())} kills ({story.halves} left a temporary file) in {story.runs} runs of "
        f"{story.grids} grids, {time.monotonic() - began:.0f} s in all"
    )
    for phase, count in sorted(story.kills.items()):
        print(f"  {count:3} during: {phase}")
    print("\n".join(lost) if lost else "nothing lost, nothing repeated: equal bit for bit")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

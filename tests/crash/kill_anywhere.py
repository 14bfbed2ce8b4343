"""Kill a run at random moments until it has finished, and compare it with a run that nobody disturbed.

``python -m tests.crash.kill_anywhere --kills 50`` takes some minutes. Every kill is a SIGKILL of the whole process
group, from the making of the data to the report; then the same command is given again. In the end every adapter,
history, metric and prediction must equal those of the undisturbed run bit for bit, no finished cell may have been
touched again, and no temporary file may be left.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.difference import compare_cells
from benchmark.store import CellFolder, UnreadableError

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("zero_shot", "taskres", "clip_lora")
TASKS = ("zeroshot",)
SETTINGS = ("--limit", "256", "--max-steps", "6", "--batch-size", "16", "--jobs", "2", "--device", "cpu")
SHORT = ("tasks.zeroshot.bootstrap=20",)
KEPT = (".safetensors", ".npz", ".json", ".yaml", ".jsonl")
LONGEST_RUN = 900.0


@dataclass
class Story:
    """What was seen on the way.

    Attributes:
        kills: phase -> number of kills that fell into it. runs: starts of the command, the last one included.
        broken: what must not have happened.
    """

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    broken: list[str] = field(default_factory=list)


def command(folder: Path, seeds: Sequence[int]) -> list[str]:
    """Return the command whose output and data lie in a folder."""
    return [
        sys.executable, str(ROOT / "run_benchmark.py"), "--methods", *METHODS, "--tasks", *TASKS,
        "--seeds", *map(str, seeds), *SETTINGS, "--output-dir", str(folder / "out"),
        "--data-root", str(folder / "data"), *SHORT,
    ]  # fmt: skip


def run_and_kill(folder: Path, seeds: Sequence[int], kills: int, rng: random.Random, longest: float) -> Story:
    """Give the command again and again, killing it ``kills`` times, then let it finish.

    Args:
        folder: for output and data.
        seeds: of the grid.
        kills: how often.
        rng: draws the moments, evenly in the logarithm of the time since the start.
        longest: latest moment of a kill, in seconds; a run that ends before it starts the folder anew.
    """
    story, finished = Story(), {}
    while sum(story.kills.values()) < kills:
        story.runs += 1
        ended = _start(folder, seeds, wait=longest ** rng.uniform(0.0, 1.0))
        if ended is not None:
            story.broken += [f"run {story.runs} ended with exit code {ended}"] if ended else []
            finished = _begin_again(folder, story)
            continue
        story.kills[_phase(folder / "out")] += 1
        finished = _check_finished(folder / "out", finished, story)
    story.runs += 1
    code = _start(folder, seeds, wait=LONGEST_RUN)
    if code != 0:
        story.broken.append(f"the last run ended with exit code {code}")
    _check_finished(folder / "out", finished, story)
    return story


def _start(folder: Path, seeds: Sequence[int], wait: float) -> int | None:
    """Start the command; kill its process group after a while. Return its exit code, or None when it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(folder, seeds), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _begin_again(folder: Path, story: Story) -> dict[Path, str]:
    """A grid that was finished before all kills were spent: take away its results, and some of the data."""
    _check_finished(folder / "out", {}, story)
    number = story.runs
    (folder / "out").rename(folder / f"finished-{number}")
    if number % 2:
        (folder / "data").rename(folder / f"data-{number}")
    return {}


def _phase(out: Path) -> str:
    """Say what a run was doing, from the files that it left."""
    cells = sorted(out.glob("runs/*/*/*/seed-*"))
    if not cells:
        return "start, data"
    states = [_state(CellFolder(cell)) for cell in cells]
    for word in ("training", "evaluation", "features"):
        if word in states:
            return word
    return "storing, report" if len(cells) >= len(METHODS) else "between cells"


def _state(cell: CellFolder) -> str:
    try:
        status = cell.read_json("status.json").get("status")
    except UnreadableError:
        return "features"
    if status == "success":
        return "done"
    if cell.exists("adapter.safetensors"):
        return "evaluation"
    return "training" if cell.exists("checkpoint/state.pt") else "features"


def _check_finished(out: Path, before: dict[Path, str], story: Story) -> dict[Path, str]:
    """Return hash and time of every file of finished cells; what was finished before must be as it was."""
    now: dict[Path, str] = {}
    for cell in out.glob("runs/*/*/*/seed-*"):
        if _state(CellFolder(cell)) == "done":
            for file in sorted(path for path in cell.rglob("*") if path.suffix in KEPT):
                now[file] = f"{file.stat().st_mtime_ns} {hashlib.sha256(file.read_bytes()).hexdigest()}"
    story.broken += [f"{file} of a finished cell changed" for file in before if now.get(file) != before[file]]
    return now


def differences(plain: Path, killed: Path) -> list[str]:
    """Return what differs between two output folders, in words."""
    lines = []
    names = {cell.relative_to(plain) for cell in plain.glob("runs/*/*/*/seed-*")}
    others = {cell.relative_to(killed) for cell in killed.glob("runs/*/*/*/seed-*")}
    lines += [f"{name} is in one run alone" for name in sorted(map(str, names ^ others))]
    for name in sorted(names & others):
        found = compare_cells(CellFolder(plain / name), CellFolder(killed / name), TASKS)
        lines += [
            f"{name}/{one.name}: {one.differing} differ, at {one.where}" for one in found if one.differing
        ]
    if (plain / "results.csv").read_bytes() != (killed / "results.csv").read_bytes():
        lines.append("results.csv differs")
    return lines


def leftovers(folder: Path) -> list[str]:
    """Return temporary files that a finished run has left."""
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print it; return 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill_anywhere", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        home = args.folder or Path(temporary)
        return _compare(home, args.seeds, args.kills, random.Random(args.seed))


def _compare(home: Path, seeds: Sequence[int], kills: int, rng: random.Random) -> int:
    plain, killed = home / "undisturbed", home / "killed"
    for folder in (plain, killed):
        folder.mkdir(parents=True)
    began = time.monotonic()
    if code := _start(plain, seeds, wait=LONGEST_RUN):
        print(f"the undisturbed run ended with exit code {code}; see {plain / 'log.txt'}")
        return 1
    took = time.monotonic() - began
    print(f"undisturbed: {took:.0f} s", flush=True)
    story = run_and_kill(killed, seeds, kills, rng, longest=took)
    lost = list(story.broken)
    for folder in (killed / "out", *sorted(killed.glob("finished-*"))):
        lost += [f"{folder.name}: {line}" for line in differences(plain / "out", folder)]
    lost += [f"left over: {name}" for name in leftovers(killed)]
    print(f"{sum(story.kills.values())} kills in {story.runs} runs, {time.monotonic() - began:.0f} s in all")
    for phase, count in sorted(story.kills.items()):
        print(f"  {count:3} during {phase}")
    print("\n".join(lost) if lost else "nothing lost, nothing repeated: equal bit for bit")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill a run of one cell before each of its file operations in turn, run it again, and compare.

``python -m tests.crash.kill_at_writes`` takes some minutes. A run puts every file in its place by one rename; before
the n-th of these it kills itself with SIGKILL, for n from 1 to the last. The same command must then finish, with
results equal bit for bit to those of a run that nobody disturbed, and without making again what was finished.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.cli import main as command_line
from benchmark.machine import limit_threads
from tests.crash.equal import differences
from tests.crash.kill_anywhere import SUITE

FINISHED = ("adapt.json", "zeroshot.json", "pixels.npy", "adapter_config.json")
"""Files that are not written again once they are there."""
RENAMED = "renamed.txt"
"""Where a run notes the files that it has put in their places."""


def words(home: Path, *methods: str, report: bool = False) -> list[str]:
    """Return the words of the command."""
    cells = [] if report else [word for method in methods for word in ("--cell", f"{method}/seed-0")]
    return [
        "--suite", str(SUITE), "--methods", *methods, "--tasks", "zeroshot", "--max-steps", "2", "--limit", "64",
        "--batch-size", "32", "--device", "cpu", "--jobs", "1", *cells,
        "--output-dir", str(home / "out"), "--data-root", str(home / "data"),
    ]  # fmt: skip


def start(home: Path, argv: Sequence[str], stop_at: int | None = None) -> int:
    """Run the command in a forked process, which spares the imports; its files and a log go into a folder.

    Args:
        home: the folder.
        argv: words of the command.
        stop_at: number of the rename, from 1, before which it kills itself.

    Returns:
        The number of the process.
    """
    home.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which the command does not need
        process = os.fork()
    if process:
        return process
    try:
        with (home / RENAMED).open("w", buffering=1) as notes, (home / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            _count(notes.write, stop_at)
            code = command_line(argv)
            sys.stdout.flush()
            os._exit(code)
    finally:
        os._exit(70)


def end(process: int) -> int:
    """Wait for a process of :func:`start` and return its exit code, -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _count(note: Callable[[str], object], stop_at: int | None) -> None:
    """Let every rename be noted, and the one with a number be the end."""
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            if done == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
            note(f"{Path(target).name}\n")
            return real(source, target, **more)

        return rename

    os.replace, os.rename = counted(os.replace), counted(os.rename)


def lost(home: Path, plain: Path, argv: Sequence[str], stop_at: int) -> list[str]:
    """Kill a fresh run, run it again, and return what is not as it should be."""
    shutil.rmtree(home, ignore_errors=True)
    code = end(start(home, argv, stop_at))
    problems = [] if code == -signal.SIGKILL else [f"it ended with exit code {code} before the kill"]
    files = (path for name in FINISHED for path in home.rglob(name) if ".tmp" not in str(path))
    before = {path: path.stat().st_mtime_ns for path in files}
    code = end(start(home, argv))
    problems += [f"the second run ended with exit code {code}"] if code else []
    problems += [
        f"{path.name} was made again" for path, at in before.items() if path.stat().st_mtime_ns != at
    ]
    return problems + [line for name in ("out", "data") for line in differences(plain / name, home / name)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons and print them; return 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill_at_writes", description=__doc__)
    parser.add_argument("--method", default="clip_lora")
    parser.add_argument("--report", action="store_true", help="also write the report, which takes longer")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        warm_up(words(Path(folder) / "warm", args.method, report=args.report))
        return compare(Path(folder), args.method, report=args.report)


def compare(folder: Path, method: str, files: Sequence[str] = (), *, report: bool = False) -> int:
    """Kill runs of a method before each rename, or the first of each of ``files``; return 0 when nothing was lost."""
    plain, home = folder / "plain", folder / "killed"
    if code := end(start(plain, words(plain, method, report=report))):
        print(f"the undisturbed run ended with exit code {code}\n{(plain / 'log.txt').read_text()}")
        return 1
    renamed = (plain / RENAMED).read_text().split()
    places = [1 + renamed.index(name) for name in files] or range(1, len(renamed) + 1)
    bad = 0
    for place in places:
        problems = lost(home, plain, words(home, method, report=report), place)
        bad += bool(problems)
        for problem in problems:
            print(f"killed before rename {place} ({renamed[place - 1]}): {problem}", flush=True)
    print(
        f"{bad} of {len(places)} kills, before as many of {len(renamed)} renames, lost or repeated something"
    )
    return 1 if bad else 0


def warm_up(argv: Sequence[str]) -> None:
    """Run a command once in this process: what it imports is there for all processes forked from it."""
    limit_threads(1)
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        command_line(argv)


if __name__ == "__main__":
    sys.exit(main())

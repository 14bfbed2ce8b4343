"""Damage thousands of files and give each to the readers of its kind: it is read, or refused by one line that names it.

``python -m tests.fuzz`` takes half an hour on one core: images in all formats, formats that must be refused, DICOM,
weights, npz and adapters. ``--kinds images,dicom`` runs these alone, ``--count N`` damages N files of each, and
``--only KIND:NUMBER`` repeats one with its traceback. A reader that hangs, dies or takes much memory is caught from
outside. The exit code is 1 when a file was not handled.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz.readers import KINDS, Wrong, attempt, drawn  # noqa: E402

LONGEST = 10.0
"""Seconds of computing that the readers of one file may take."""
PATIENCE = 120.0
"""Seconds after which a process that does not answer is killed: it hangs below Python."""
MOST_MEMORY = 512
"""MiB that the readers of one file may take beside what the process had."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 0 when every file was handled."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, by commas (default: all)")
    parser.add_argument("--count", type=int, help="files of each kind (default: 22,000 in all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="repeat one file, in this process")
    args = parser.parse_args(argv)
    if args.only:
        kind, _, number = args.only.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            name, content = drawn(kind, int(number), args.seed)
            print(name, list(attempt(kind, name, content, Path(folder))))
        return 0
    unhandled = 0
    for kind in args.kinds.split(","):
        unhandled += run(kind, args.count or KINDS[kind].count, args.seed)
    return 1 if unhandled else 0


def run(kind: str, count: int, seed: int) -> int:
    """Damage ``count`` files of a kind in a process that may die; print what became of them, return how many failed."""
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # loads all libraries, of which the processes below are copies
        for name, content in KINDS[kind].originals().items():
            list(attempt(kind, name, content, Path(folder)))
    outcomes: collections.Counter[str] = collections.Counter()
    began, failures, done, peak, slowest = time.monotonic(), [], 0, 0, 0.0
    while done < count:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(theirs, kind, done, count, seed)
        )
        process.start()
        theirs.close()
        while done < count:
            told = _told(ours)
            done += 1
            if isinstance(told, str):
                failures.append(f"{kind}:{done - 1}: {told}")
                break
            found, wrong, peak, seconds = told
            slowest = max(slowest, seconds)
            outcomes.update(found)
            failures += [f"{kind}:{done - 1}: {wrong}"] if wrong else []
        process.kill()
        process.join()
    words = ", ".join(f"{outcomes[word]:,} {word}" for word in ("read", "refused"))
    print(
        f"{kind}: {count:,} files, {words}, {len(failures)} not handled; "
        f"{time.monotonic() - began:.0f} s, the slowest {slowest:.1f} s, at most {peak} MiB",
        *failures,
        sep="\n  ",
        flush=True,
    )
    return len(failures)


def _told(connection: Connection) -> tuple[list[str], str, int, float] | str:
    """Return what a process tells of one file, or how it ended."""
    try:
        return connection.recv() if connection.poll(PATIENCE) else "hangs below Python"
    except EOFError:
        return "its process died"


def _work(connection: Connection, kind: str, start: int, count: int, seed: int) -> None:
    """Try one file after the other and tell of each: outcomes, failure or empty, most memory so far, seconds."""
    signal.signal(signal.SIGPROF, _too_long)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C that print
    before = _memory()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(start, count):
            found: list[str] = []
            wrong = ""
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, LONGEST)
            try:
                found += attempt(kind, *drawn(kind, number, seed), Path(folder))
            except Wrong as error:
                frame = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
                wrong = f"{error} ({frame.filename.rpartition('site-packages/')[2]}:{frame.lineno})"
            signal.setitimer(signal.ITIMER_PROF, 0)
            if (memory := _memory()) - before > MOST_MEMORY:
                wrong = f"takes {memory - before} MiB {wrong}"
            before = max(before, memory)
            connection.send((found, wrong, memory, time.process_time() - began))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"takes more than {LONGEST} seconds")


def _memory() -> int:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    sys.exit(main())

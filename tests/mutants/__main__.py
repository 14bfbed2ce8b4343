"""Apply one mutant after another to a copy of the project and run the tests that must notice it.

``python -m tests.mutants`` runs all of ``table.py`` (some minutes on one core); ``--only WORD`` those whose name holds
a word; ``--list`` prints them. The exit code is 1 when a mutant survives, or when its tests fail without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("benchmark", "methods", "tasks", "tests", "configs", "run_benchmark.py", "pyproject.toml")
TIME_LIMIT = 300


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants; return 0 when all were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="mutants whose name holds this word")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if args.only in mutant.name]
    if args.list:
        print("\n".join(f"{mutant.name}: {mutant.file}" for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return _run(chosen, _copied(Path(folder)))


def _copied(folder: Path) -> Path:
    """Return a copy of the project, in which a fragment can be changed without touching the original."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def _run(mutants: Sequence[Mutant], copy: Path) -> int:
    unchanged = sorted({test for mutant in mutants for test in mutant.tests})
    if mutants and not _pass(copy, unchanged):
        print("the tests fail without any mutant: mend them first")
        return 1
    survivors = []
    for number, mutant in enumerate(mutants, start=1):
        path, began = copy / mutant.file, time.monotonic()
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied(original), encoding="utf-8")
        try:
            noticed = not _pass(copy, mutant.tests)
        finally:
            path.write_text(original, encoding="utf-8")
        word = "noticed" if noticed else "SURVIVED"
        print(
            f"{number:3}/{len(mutants)} {word} {mutant.name} ({time.monotonic() - began:.0f} s)", flush=True
        )
        survivors += [] if noticed else [mutant.name]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants noticed")
    return 1 if survivors else 0


def _pass(copy: Path, tests: Sequence[str]) -> bool:
    """Return whether tests pass in the copy; one that hangs has noticed the mutant too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # no tests collected, or pytest itself failed: nothing was shown
        raise SystemExit(f"{' '.join(command)}\n{done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())

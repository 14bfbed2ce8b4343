"""The cells of a plan as shell commands, for job arrays and other schedulers: one line each, complete in itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmark.files import COMMAND, PROGRAM, ROOT
from benchmark.plan import Plan

_LEFT_OUT = {"--dry-run": 0, "--format": 1, "--cell": 1}
"""Flags that the command of one cell does not take over, and how many words follow them."""


def cell_commands(plan: Plan, words: Sequence[str]) -> list[str]:
    """Return one command per open cell: the user's own words, narrowed to the cell, in the present folder.

    Args:
        plan: whose cells.
        words: of the ``run`` command.
    """
    script = ROOT / PROGRAM
    program = [sys.executable, *([str(script)] if script.is_file() else ["-m", "benchmark.cli"])]
    program += _kept(words, _LEFT_OUT)
    names = [cell.spec.folder.partition("/")[2] for cell in plan.open]  # without the store's "runs/"
    return [
        f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*program, '--cell', name])}" for name in names
    ]


def with_seeds(words: Sequence[str], seeds: str) -> str:
    """Return the user's own command with other seeds, never as a smoke run: finished cells are reused.

    Without seeds the protocol's own are asked for.
    """
    kept = _kept([word for word in words if not word.startswith("seeds=")], {"--seeds": 1, "--smoke": 0})
    return f"{COMMAND} {shlex.join([*kept, *(['--seeds', seeds] if seeds else [])])}"


def _kept(words: Sequence[str], left_out: Mapping[str, int]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag not in left_out:
            yield word
        elif not equals:
            for _ in range(left_out[flag]):
                next(rest, None)

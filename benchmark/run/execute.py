"""Executes one cell under its lock; a cell that fails or crashes does not affect the others."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.console import Reporter, Stopped
from benchmark.errors import BenchmarkError, StoreError, file_fault
from benchmark.plan import CellSpec, cell_state, differing_settings, task_done
from benchmark.registry import load_plugins
from benchmark.store.cells import CellFolder, Store, UnreadableError, digest
from benchmark.store.provenance import provenance, scrub

RunCell = Callable[..., None]
"""Runs a cell: ``(spec, folder, reporter)``, and the world where several processes work together."""
LOCK_PATIENCE = 10.0
"""Seconds after the death of a worker until its lock is free: processes that it forked live a little longer."""
BEGIN_PATIENCE = 2.0
"""Seconds within which a process that holds a cell has written its settings down."""


_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")


@dataclass(frozen=True)
class Outcome:
    """How one cell ended; "busy": another process is running it, "stopped": early, as the run was asked to stop."""

    status: Literal["done", "reused", "busy", "failed", "stopped"]
    error: str = ""
    trace: str = ""


def execute_cell(
    spec: CellSpec,
    store: Store,
    reporter: Reporter,
    run_cell: RunCell | None = None,
    *,
    overwrite: bool = False,
    patience: float = 0.0,
) -> Outcome:
    """Run one cell under its lock, and keep its settings, provenance and status beside the results.

    Any exception of the cell becomes the outcome "failed" and is written to its ``status.json``.

    Args:
        spec: the cell.
        store: where it is kept.
        reporter: told about progress.
        run_cell: the function that runs it; None: :func:`benchmark.run.cell.run_cell`.
        overwrite: also when it is finished.
        patience: seconds to wait for the lock of another process before the outcome is "busy".
    """
    folder = store.cell(spec.folder)
    try:
        with folder.lock(patience) as held:
            return _run_locked(spec, folder, reporter, run_cell, overwrite) if held else _busy(spec, folder)
    except (OSError, StoreError) as error:  # the folder itself cannot be written
        return Outcome("failed", _say(error), traceback.format_exc())


def _busy(spec: CellSpec, folder: CellFolder) -> Outcome:
    """Return the outcome of a cell that another process runs: it failed where that one makes something else of it."""
    until = time.monotonic() + BEGIN_PATIENCE
    while (
        (stored := folder.find_config())
        and not (same := _makes_all(stored, spec))
        and time.monotonic() < until
    ):
        time.sleep(0.1)
    if not stored or same:
        return Outcome("busy")
    differing = "; ".join(differing_settings(spec, folder)[:4]) or "other tasks"
    return Outcome(
        "failed",
        f"another process runs it with {differing}. Wait for its end, or choose another --output-dir",
    )


def _makes_all(stored: Mapping[str, Any], spec: CellSpec) -> bool:
    """Return whether a process that keeps these settings makes all of a cell."""
    there = stored.get("tasks") or {}
    tasks = all(digest(there.get(name)) == digest(scrub(task)) for name, task in spec.tasks.items())
    return stored.get("adapt_hash") == spec.adapt_hash and tasks


def _run_locked(
    spec: CellSpec, folder: CellFolder, reporter: Reporter, run_cell: RunCell | None, overwrite: bool
) -> Outcome:
    if not overwrite and (found := _finished_meanwhile(spec, folder, compare=run_cell is None)):
        return found
    try:
        _begin(spec, folder, overwrite)
        load_plugins(spec.plugins)
        (run_cell or standard())(spec, folder, reporter)
    except Stopped as stopped:
        return Outcome("stopped", str(stopped))
    except (Exception, SystemExit) as error:  # one cell must not take the others with it
        kind = type(error).__name__ if spec.hash_ids else ""
        return mark_failed(folder, _say(error), traceback.format_exc(), instead=kind)
    lacking = [task for task in spec.tasks if not task_done(spec, task, folder)]
    if lacking:
        return mark_failed(folder, _say_lacking(folder, lacking), "", status="partial")
    folder.write_json("status.json", {"status": "success", "error": None})
    return Outcome("done")


def _finished_meanwhile(spec: CellSpec, folder: CellFolder, *, compare: bool = False) -> Outcome | None:
    """Return the outcome of a cell that another process has finished since the plan was made; its files stay.

    Args:
        spec: the cell.
        folder: its folder, locked by this process.
        compare: also with what it would be made of now (benchmark/run/identity.py).
    """
    try:
        done = cell_state(spec, folder)[0] == "done"
        differing = [] if done else differing_settings(spec, folder, held=True)
        if done and compare:
            from benchmark.run.identity import differing as differing_sources  # loads pandas

            differing = differing_sources(spec, folder)
    except BenchmarkError as error:
        return Outcome("failed", _say(error))
    if differing:
        words = "; ".join(differing[:4])
        return Outcome(
            "failed", f"another process finished it with {words if done else f'other settings ({words})'}"
        )
    return Outcome("reused") if done else None


def fail_cell(spec: CellSpec, store: Store, error: str, *, overwrite: bool = False) -> Outcome:
    """Return the outcome of a cell whose process has died, and write the failure into its folder.

    It is "done" when the process died after its last result; and another process that has taken the cell over since is
    left alone.
    """
    folder = store.cell(spec.folder)
    try:
        with folder.lock(LOCK_PATIENCE) as held:
            if held and not overwrite and (found := _finished_meanwhile(spec, folder)):
                return Outcome("done") if found.status == "reused" else found
            return mark_failed(folder, error, "") if held else Outcome("failed", error)
    except (OSError, StoreError):  # the folder itself cannot be written
        return Outcome("failed", error)


def mark_failed(
    folder: CellFolder, error: str, trace: str, status: str = "failed", *, instead: str = ""
) -> Outcome:
    """Write the failure of a cell into its folder, if that can be written, and return it as the outcome.

    Args:
        folder: of the cell.
        error: what went wrong.
        trace: of the exception, or empty.
        status: of the cell.
        instead: kind of error that is written in place of its words, which may name images or patients.
    """
    lines = [] if instead else [scrub(line) for line in trace.splitlines()]
    words = f"{instead}: not stored in words, as hash_ids is on" if instead else scrub(error)
    with contextlib.suppress(OSError):
        folder.write_json("status.json", {"status": status, "error": words, "traceback": lines})
    return Outcome("failed", error, trace)


def standard() -> RunCell:
    """Return the function that runs a cell; a process that only plans never loads it, nor torch with it."""
    from benchmark.run.cell import run_cell

    return run_cell


def _begin(spec: CellSpec, folder: CellFolder, overwrite: bool) -> None:
    """Write the settings of a cell; what was made with other settings goes away."""
    folder.remove_leftovers()
    if not spec.eval_only and (overwrite or folder.stored_hash() != spec.adapt_hash):
        folder.clear()
    config = spec.public()
    with contextlib.suppress(UnreadableError):
        stored = folder.read_config()
        config["tasks"] = {**(stored.get("tasks") or {}), **config["tasks"]}
        config |= {"beside": True} if stored.get("beside") else {}
    folder.write_config({"adapt_hash": spec.adapt_hash, **config})
    origin = folder.imported()
    source = {"imported": origin} if origin else {}
    folder.write_json("provenance.json", provenance(config, spec.adapt_hash) | source)
    folder.write_json("status.json", {"status": "running", "error": None})


def _say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BenchmarkError):
        return text
    if isinstance(error, OSError) and error.filename:
        return file_fault(error)
    kind = f"{type(error).__name__}: {text}".rstrip(": ")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return f"out of memory: lower --jobs or --batch-size, or use a smaller backbone ({kind})"
    return kind


def _say_lacking(folder: CellFolder, tasks: Sequence[str]) -> str:
    reasons = []
    for task in tasks:
        try:
            reason = str(folder.read_json(f"{task}.json").get("error") or "")
        except UnreadableError:
            reason = ""
        reasons.append(f"{task} ({reason})" if reason else task)
    return f"no result for {', '.join(reasons)}"

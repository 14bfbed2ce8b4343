"""Runs the open cells of a plan in worker processes; a cell that fails or crashes loses only itself."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from benchmark.console import Board, Console, QueueReporter, Reporter
from benchmark.errors import BenchmarkError, ConfigError
from benchmark.plan import CellSpec, Plan, cell_state, imported, stored_hash, task_done
from benchmark.provenance import available_memory, provenance, scrub, usable_cores
from benchmark.registry import load_plugins
from benchmark.store import CellFolder, Store, UnreadableError

RunCell = Callable[[CellSpec, CellFolder, Reporter], None]
RUN_CELL = "benchmark.cell:run_cell"
MEMORY_PER_WORKER = 0.8
"""GiB that a worker needs at least (libraries and a small backbone); bounds the default number of workers."""


@dataclass(frozen=True)
class Outcome:
    """How one cell ended; "busy" means that another process is running it."""

    status: Literal["done", "reused", "busy", "failed"]
    error: str = ""
    trace: str = ""


@dataclass
class Summary:
    """Counts of a run; ``failed`` holds (cell, error), ``interrupted`` whether it was stopped."""

    done: int = 0
    reused: int = 0
    busy: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, spec: CellSpec, outcome: Outcome) -> None:
        """Count one cell."""
        if outcome.status == "failed":
            self.failed.append((spec.folder, outcome.error))
        else:
            setattr(self, outcome.status, getattr(self, outcome.status) + 1)


def run_plan(
    plan: Plan,
    store: Store,
    *,
    console: Console,
    jobs: int | None = None,
    debug: bool = False,
    prepare: Callable[[Reporter], None] | None = None,
    run_cell: str = RUN_CELL,
) -> Summary:
    """Run the open cells of a plan, longest first.

    Args:
        plan: what to run.
        store: where the cells are kept.
        console: where progress is shown.
        jobs: cells side by side; None: one per GPU, else one per core as far as memory goes; 1: in this
            process.
        debug: show tracebacks of failed cells.
        prepare: makes what all cells share (data); called once, while the workers start.
        run_cell: ``module:function`` that runs one cell.

    Returns:
        The counts. On Ctrl-C the workers are stopped and ``interrupted`` is set.

    Raises:
        ConfigError: the device does not exist.
        BenchmarkError: ``prepare`` failed.
    """
    summary = Summary(reused=len(plan.cells) - len(plan.open))
    specs = [cell.spec for cell in sorted(plan.open, key=lambda cell: -cell.cost)]
    if not specs:
        return summary
    devices = find_devices(specs[0].device)
    wanted = jobs or (len(devices) if devices[0] != "cpu" else usable_cores())
    # Threads follow from the request alone: a resumed run with fewer cells left computes the same numbers.
    threads = threads_each(wanted)
    fitting = wanted if jobs else min(wanted, max(1, int(available_memory() / MEMORY_PER_WORKER)))
    with console.board(len(specs)) as board:
        grid = _Grid(specs, store, board, summary, plan.overwrite, debug, run_cell, prepare)
        try:
            if wanted == 1:
                grid.run_here(devices[0], threads)
            else:
                grid.run_workers(
                    [devices[i % len(devices)] for i in range(min(fitting, len(specs)))], threads
                )
        except KeyboardInterrupt:
            summary.interrupted = True
    return summary


def execute_cell(
    spec: CellSpec, store: Store, reporter: Reporter, run_cell: RunCell | str, *, overwrite: bool = False
) -> Outcome:
    """Run one cell under its lock, and keep its settings, provenance and status beside the results.

    Any exception of the cell becomes the outcome "failed" and is written to its ``status.json``.
    """
    folder = store.cell(spec.folder)
    with folder.lock() as held:
        if not held:
            return Outcome("busy")
        # Another process may have finished the cell since the plan was made.
        if not overwrite and cell_state(spec, folder)[0] == "done":
            return Outcome("reused")
        try:
            _begin(spec, folder, overwrite)
            load_plugins(spec.plugins)
            (resolve(run_cell) if isinstance(run_cell, str) else run_cell)(spec, folder, reporter)
        except (Exception, SystemExit) as error:  # one cell must not take the others with it
            return mark_failed(folder, _say(error), traceback.format_exc())
        lacking = [task for task in spec.tasks if not task_done(spec, task, folder)]
        if lacking:
            return mark_failed(folder, _say_lacking(folder, lacking), "", status="partial")
        folder.write_json("status.json", {"status": "success", "error": None})
        return Outcome("done")


def mark_failed(folder: CellFolder, error: str, trace: str, status: str = "failed") -> Outcome:
    """Write the failure of a cell into its folder and return it as the outcome."""
    lines = [scrub(line) for line in trace.splitlines()]
    folder.write_json("status.json", {"status": status, "error": scrub(error), "traceback": lines})
    return Outcome("failed", error, trace)


def find_devices(wanted: str) -> list[str]:
    """Return the devices to use for "auto", "cpu", "cuda" (all GPUs) or "cuda:<i>".

    Raises:
        ConfigError: no such GPU here.
    """
    if wanted == "cpu":
        return ["cpu"]
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if wanted == "auto":
        return gpus or ["cpu"]
    if wanted == "cuda" and gpus:
        return gpus
    if wanted not in gpus:
        here = f"here: {', '.join(gpus)}" if gpus else "no CUDA GPU is visible here"
        raise ConfigError(f"--device: '{wanted}' does not exist ({here}). Use --device auto or cpu")
    return [wanted]


def resolve(path: str) -> Any:
    """Return the object behind ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _Grid:
    """One run: cells waiting, workers busy."""

    def __init__(
        self,
        specs: Sequence[CellSpec],
        store: Store,
        board: Board,
        summary: Summary,
        overwrite: bool,
        debug: bool,
        run_cell: str,
        prepare: Callable[[Reporter], None] | None,
    ) -> None:
        self.waiting = list(specs)
        self.store, self.board, self.summary = store, board, summary
        self.overwrite, self.debug, self.run_cell, self.prepare = overwrite, debug, run_cell, prepare

    def run_here(self, device: str, threads: int) -> None:
        """Run all cells in this process, one after another."""
        limit_threads(threads)
        self._prepare()
        while self.waiting:
            spec = replace(self.waiting.pop(0), device=device)
            self.board.cell_started(0, spec.label)
            reporter = self.board.reporter(0)
            self._finish(
                0, spec, execute_cell(spec, self.store, reporter, self.run_cell, overwrite=self.overwrite)
            )

    def run_workers(self, devices: Sequence[str], threads: int) -> None:
        """Run the cells in one process per device entry; a process that dies is replaced."""
        settings = {"run_cell": self.run_cell, "threads": threads, "overwrite": self.overwrite}
        workers = [_Worker(self.store, device, settings) for device in devices]
        try:
            self._prepare()
            while self.waiting or any(worker.spec for worker in workers):
                for slot, worker in enumerate(workers):
                    if worker.spec is None and self.waiting:
                        spec = worker.give(self.waiting.pop(0))
                        self.board.cell_started(slot, spec.label)
                self._listen(workers)
        finally:
            for worker in workers:
                worker.stop()

    def _prepare(self) -> None:
        if self.prepare is not None:
            self.board.preparation_started(-1, "data")
            self.prepare(self.board.reporter(-1))
            self.board.preparation_finished(-1)

    def _listen(self, workers: list[_Worker]) -> None:
        wait([worker.connection for worker in workers if worker.spec], timeout=0.5)
        for slot, worker in enumerate(workers):
            for message in worker.messages():
                if isinstance(message, Outcome) and worker.spec is not None:
                    self._finish(slot, worker.spec, message)
                    worker.spec = None
                elif not isinstance(message, Outcome):
                    self.board.event(slot, message)
            if worker.dead():
                self._replace(slot, worker)

    def _replace(self, slot: int, worker: _Worker) -> None:
        """Fail the cell of a dead worker and start another in its place when cells are left."""
        spec, worker.spec = worker.spec, None
        if spec is not None:
            worker.process.join(timeout=5.0)
            error = f"the worker process died ({_exit_reason(worker.process.exitcode)})"
            self._finish(slot, spec, mark_failed(self.store.cell(spec.folder), error, ""))
        if self.waiting:
            worker.start()

    def _finish(self, slot: int, spec: CellSpec, outcome: Outcome) -> None:
        words = {"busy": "skipped (another process is running it)", "failed": "FAILED"}
        self.summary.add(spec, outcome)
        self.board.cell_finished(slot, words.get(outcome.status, outcome.status), outcome.error)
        if self.debug and outcome.trace:
            self.board.console.line(outcome.trace.rstrip())


class _Worker:
    """A spawned process that runs one cell after another on one device."""

    def __init__(self, store: Store, device: str, settings: Mapping[str, Any]) -> None:
        self.store, self.device, self.settings = store, device, settings
        self.spec: CellSpec | None = None
        self.process: BaseProcess
        self.connection: Connection
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.store.output_dir, dict(self.settings))
        self.process = context.Process(target=worker_main, args=arguments, daemon=False)
        with _for_children(self.settings["threads"]):
            self.process.start()
        theirs.close()
        self.closed = False

    def give(self, spec: CellSpec) -> CellSpec:
        self.spec = replace(spec, device=self.device)
        with contextlib.suppress(OSError):  # a worker that died while idle is noticed by `dead`
            self.connection.send(self.spec)
        return self.spec

    def messages(self) -> Iterator[Any]:
        try:
            while self.spec is not None and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            self.closed = True

    def dead(self) -> bool:
        # Processes that the cell forked may hold the pipe open, so its silence alone does not tell.
        gone = self.closed or (not self.process.is_alive() and not self.connection.poll())
        return self.spec is not None and gone

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(timeout=0.2 if self.spec else 3.0)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def worker_main(connection: Connection, output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Run the cells that arrive on a connection until None arrives; send progress and outcomes back."""
    limit_threads(settings["threads"])
    store = Store(output_dir)
    # Imported while the parent prepares data; a failure is reported with the first cell.
    with contextlib.suppress(Exception):
        resolve(settings["run_cell"])

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            os._exit(1)  # the parent is gone: stop at once, the same command goes on from the files

    while True:
        try:
            spec = connection.recv()
        except (EOFError, OSError):
            return
        if spec is None:
            return
        reporter = QueueReporter(send)
        send(execute_cell(spec, store, reporter, settings["run_cell"], overwrite=settings["overwrite"]))


def threads_each(processes: int) -> int:
    """Return the threads of each of so many processes: the cores shared out, or fewer if OMP_NUM_THREADS says so."""
    share = max(1, usable_cores() // processes)
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wish)) if wish.isdecimal() and int(wish) > 0 else share


def limit_threads(threads: int) -> None:
    """Let the numerical libraries of this process use at most ``threads`` threads."""
    os.environ.update(_thread_variables(threads))
    if torch := sys.modules.get("torch"):  # later imports read the variables
        torch.set_num_threads(threads)


def _thread_variables(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}


@contextlib.contextmanager
def _for_children(threads: int) -> Iterator[None]:
    """Start processes with few threads that leave Ctrl-C to their parent, already while they import."""
    before = dict(os.environ)
    os.environ.update(_thread_variables(threads))
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)


def _begin(spec: CellSpec, folder: CellFolder, overwrite: bool) -> None:
    """Write the settings of a cell; what was made with other settings goes away."""
    if not spec.eval_only and (overwrite or stored_hash(folder) != spec.adapt_hash):
        folder.clear()
    config = spec.public()
    with contextlib.suppress(UnreadableError):
        config["tasks"] = {**(folder.read_config().get("tasks") or {}), **config["tasks"]}
    folder.write_config({"adapt_hash": spec.adapt_hash, **config})
    origin = imported(folder)
    source = {"imported": origin} if origin else {}
    folder.write_json("provenance.json", provenance(config, spec.adapt_hash) | source)
    folder.write_json("status.json", {"status": "running", "error": None})


def _say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _say_lacking(folder: CellFolder, tasks: Sequence[str]) -> str:
    reasons = []
    for task in tasks:
        try:
            reason = str(folder.read_json(f"{task}.json").get("error") or "")
        except UnreadableError:
            reason = ""
        reasons.append(f"{task} ({reason})" if reason else task)
    return f"no result for {', '.join(reasons)}"


def _exit_reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"{name}, often too little memory" if name == "SIGKILL" else name

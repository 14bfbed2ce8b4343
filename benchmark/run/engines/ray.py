"""Runs cells as tasks of a Ray cluster: Ray places them, and restarts the cells of a lost worker."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmark import machine
from benchmark.console import QueueReporter
from benchmark.errors import ConfigError, LostError, StoreError
from benchmark.machine import threads_of, usable_cores
from benchmark.plan import CellSpec
from benchmark.run.engines.grid import Cluster, Grid
from benchmark.run.execute import Outcome, RunCell, execute_cell, fail_cell
from benchmark.store.cells import Store

RETRIES = 3
"""How often a cell is started again whose worker died; it goes on from its checkpoint."""
LOCK_PATIENCE = 60.0
"""Seconds that a cell waits for its lock: the worker that lost it may not be quite gone."""
LISTEN_INTERVAL = 0.5
"""Seconds between two looks at the tasks."""
CONNECT_SECONDS = 10.0
"""Seconds in which the head of a cluster has to answer."""
OBJECT_STORE = 80 * 2**20
"""Bytes of Ray's shared memory where we start it: cells exchange files, not objects."""


@dataclass(frozen=True)
class Needs:
    """What a cell takes of the cluster: cores, GPUs, and the threads that it computes with."""

    cpus: float
    gpus: float
    threads: int

    @property
    def device(self) -> str:
        """The device of a task: Ray shows it no GPU but its own."""
        return "cuda:0" if self.gpus else "cpu"


@dataclass(frozen=True)
class Order:
    """What a task must know beside its cell.

    Attributes:
        folder: working folder of the command.
        output_dir: folder of the results.
        flag: a file in it that exists while the run is to go on.
        seen: what a machine that shares the folders sees: ``flag``, a file like it in the folder of the data, and the
            working folder.
    """

    folder: Path
    output_dir: Path
    flag: Path
    seen: tuple[Path, ...]
    run_cell: RunCell | None
    overwrite: bool
    threads: int

    def unseen(self) -> Path | None:
        """Return what this machine does not see."""
        return next((path for path in self.seen if not path.exists()), None)


def run(grid: Grid, cluster: Cluster, jobs: int | None) -> None:
    """Run the cells that wait.

    Args:
        grid: the run.
        cluster: which cluster, and what a cell takes of it.
        jobs: cells side by side; None: as many as the cluster has room for.

    Raises:
        ConfigError: the cluster does not answer, or cannot give what a cell takes.
        StoreError: a node does not see the folders.
        LostError: the node of this command has failed.
    """
    spec = grid.waiting[0]
    data_root, output_dir = spec.data_root.absolute(), grid.store.output_dir.absolute()
    with _connected(cluster.address):
        needs = _needs(spec, cluster)
        _warn_if_nowhere(needs, grid)
        with _token(output_dir, needed=True) as flag, _token(data_root) as data:
            order = Order(
                Path.cwd(), output_dir, flag, (flag, data, Path.cwd()), grid.run_cell, grid.overwrite,
                needs.threads,
            )  # fmt: skip
            grid.waiting = [replace(x, device=needs.device, data_root=data_root) for x in grid.waiting]
            try:
                _Tasks(grid, needs, order).run(jobs or len(grid.waiting))
            except RayError as error:
                raise LostError(
                    f"--engine ray: the node of this command has failed ({type(error).__name__}). Finished cells are "
                    "kept: start Ray again and run the same command"
                ) from None


class _Tasks:
    """The tasks of one run, as the command sees them; a cell's slot on the board is its place in the plan."""

    def __init__(self, grid: Grid, needs: Needs, order: Order) -> None:
        self.grid, self.order = grid, order
        self.cells: list[CellSpec] = []
        self.running: dict[Any, int] = {}
        self.begun: dict[int, int] = {}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self.mailbox: Any = ray.remote(**options)(_Mailbox).remote()
        self.task: Any = ray.remote(
            num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=RETRIES, retry_exceptions=False
        )(run_remotely)

    def run(self, side_by_side: int) -> None:
        self.grid.prepare()
        try:
            while self.running or self.grid.waiting:
                while self.grid.waiting and len(self.running) < side_by_side:
                    self._submit(self.grid.waiting.pop(0))
                done, _ = ray.wait(list(self.running), timeout=LISTEN_INTERVAL)
                self._read_mail()
                for task in done:
                    self._finish(task)
                if self.grid.stopping():
                    self._ask_to_stop()
        finally:
            with contextlib.suppress(RayError):  # of a node that is gone
                for task in self.running:
                    ray.cancel(task, force=True)

    def _submit(self, spec: CellSpec) -> None:
        self.running[self.task.remote(spec, len(self.cells), self.order, self.mailbox)] = len(self.cells)
        self.cells.append(spec)

    def _read_mail(self) -> None:
        for slot, message in ray.get(self.mailbox.take.remote()):
            if message[0] == "begin":
                self._begin(slot)
            else:
                self.grid.board.event(slot, message)

    def _begin(self, slot: int) -> None:
        self.begun[slot] = self.begun.get(slot, 0) + 1
        if slot in self.grid.board.slots:
            self.grid.board.console.line(f"{self.cells[slot].label}: its worker was lost; started again")
        elif slot in self.running.values():
            self.grid.board.cell_started(slot, self.cells[slot].label)
        if self.begun[slot] > RETRIES + 1:  # Ray does not count those that it stopped for want of memory
            ray.cancel(next(task for task, place in self.running.items() if place == slot), force=True)

    def _finish(self, task: Any) -> None:
        slot = self.running.pop(task)
        spec = self.cells[slot]
        outcome = self._outcome(task, slot)
        if slot not in self.grid.board.slots:
            if outcome.status == "stopped":  # before it began
                return
            self.grid.board.cell_started(slot, spec.label)
        self.grid.finish(slot, spec, outcome)

    def _outcome(self, task: Any, slot: int) -> Outcome:
        try:
            result: Outcome | str = ray.get(task)
        except RayError as error:
            lost = self.begun.get(slot, 0) > RETRIES
            if self.grid.stop.asked or (isinstance(error, TaskCancelledError) and not lost):
                return Outcome("stopped")
            reason = f"its worker was lost {RETRIES + 1} times ({type(error).__name__})"
            if isinstance(error, TaskCancelledError | OutOfMemoryError):  # only these do not count as retries
                reason += (
                    ": Ray stops workers where memory is nearly used up. Free some, or raise --cpus-per-cell"
                )
            if isinstance(error, RayTaskError):
                reason = f"the worker could not run it: {type(error.cause).__name__}: {error.cause}"
            return fail_cell(
                self.cells[slot], self.grid.store, " ".join(reason.split()), overwrite=self.grid.overwrite
            )
        if isinstance(result, str) and not self.grid.stop.asked:
            raise StoreError(result)
        return Outcome("stopped") if isinstance(result, str) else result

    def _ask_to_stop(self) -> None:
        """Let running cells end after their step; those that have not begun do not begin."""
        self.order.flag.unlink(missing_ok=True)
        for task, slot in self.running.items():
            if slot not in self.begun:
                ray.cancel(task)


class _Mailbox:
    """An actor beside the command that keeps the workers' messages until the command takes them."""

    def __init__(self) -> None:
        self._letters: list[tuple[int, tuple[Any, ...]]] = []

    def put(self, slot: int, message: tuple[Any, ...]) -> None:
        self._letters.append((slot, message))

    def take(self) -> list[tuple[int, tuple[Any, ...]]]:
        letters, self._letters = self._letters, []
        return letters


def run_remotely(spec: CellSpec, slot: int, order: Order, mailbox: Any) -> Outcome | str:
    """Run one cell on the machine that Ray chose for it.

    Returns:
        How it ended; a text says that this machine does not see the folders, and nothing was done.
    """
    if path := order.unseen():
        node = ray.util.get_node_ip_address()
        return (
            f"--engine ray: node {node} does not see {path}: the working folder, --data-root and --output-dir must lie "
            "where all nodes share them, under one name"
        )
    os.chdir(order.folder)
    machine.limit_threads(order.threads)
    last: list[Any] = []

    def send(message: tuple[Any, ...]) -> None:
        last[:] = [mailbox.put.remote(slot, message)]

    send(("begin",))
    outcome = execute_cell(
        spec, Store(order.output_dir), QueueReporter(send, _gone(order.flag)), order.run_cell,
        overwrite=order.overwrite, patience=LOCK_PATIENCE,
    )  # fmt: skip
    ray.wait(last, timeout=10.0)  # the last words arrive before the outcome does
    return outcome


def _gone(path: Path) -> Callable[[], bool]:
    """Return a function that tells whether a file is gone, looking at most once a second."""
    looked, found = 0.0, True

    def gone() -> bool:
        nonlocal looked, found
        if found and time.monotonic() - looked >= 1.0:
            looked, found = time.monotonic(), path.exists()
        return not found

    return gone


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Join the cluster while the block runs; without an address a Ray of this machine alone is started."""
    if ray.is_initialized():
        yield
        return
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    _join(address or os.environ.get("RAY_ADDRESS") or "local")
    if in_main:  # Ray has set its own
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    elif address != "auto":
        _check_address(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"--ray-address {address}: {reason}") from None


def _check_address(address: str) -> None:
    """Try the address first: Ray itself takes minutes to say that nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(
            f"--ray-address: expected HOST:PORT of the cluster's head, or auto on one of its machines, got '{address}'"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--ray-address: no Ray cluster answers at '{address}' ({reason})") from None


def _needs(spec: CellSpec, cluster: Cluster) -> Needs:
    if spec.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {spec.device}: Ray hands out the GPUs. Use --device cuda, cpu or auto")
    gpus = cluster.gpus
    if gpus is None:
        found = spec.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        gpus = 1.0 if found or spec.device == "cuda" else 0.0
    if gpus > 1:
        raise ConfigError(f"--gpus-per-cell {gpus:g}: a cell takes one GPU or a share of it, such as 0.25")
    if spec.device != "auto" and (spec.device == "cpu") != (gpus == 0):
        raise ConfigError(f"--gpus-per-cell {gpus:g} contradicts --device {spec.device}")
    cpus = cluster.cpus if cluster.cpus is not None else 1.0 + spec.num_workers
    return Needs(cpus, gpus, threads_of(int(cpus) - spec.num_workers))


def _warn_if_nowhere(needs: Needs, grid: Grid) -> None:
    """Say that no node has what a cell takes: Ray then waits, for one may join."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= needs.cpus and node.get("GPU", 0) >= needs.gpus for node in nodes):
        grid.board.console.warn(
            f"no node of the Ray cluster has {needs.cpus:g} cores and {needs.gpus:g} GPUs for a cell: waiting for "
            "one. --cpus-per-cell and --gpus-per-cell ask for less"
        )


@contextlib.contextmanager
def _token(folder: Path, *, needed: bool = False) -> Iterator[Path]:
    """Keep a file in a shared folder while the block runs; the folder itself stands for one that cannot be written."""
    token = folder / f".ray-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        if needed or not folder.is_dir():
            reason = error.strerror or type(error).__name__
            raise StoreError(f"--engine ray: {folder} cannot be written ({reason})") from None
        yield folder
        return
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)

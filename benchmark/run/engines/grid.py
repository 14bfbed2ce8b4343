"""The state of a run that all engines share: waiting cells, and what is printed and counted when one starts or ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmark.console import Board, Reporter, Stop
from benchmark.errors import LostError
from benchmark.files import DELETED, working_folder
from benchmark.plan import CellSpec
from benchmark.run.execute import Outcome, RunCell
from benchmark.store.cells import Store

_WORDS = {"busy": "skipped (another process is running it)", "failed": "FAILED"}


@dataclass
class Grid:
    """The state of one run.

    Attributes:
        waiting: cells that have not begun, longest first.
        store: where the cells are kept. board: where progress is shown. summary: counts what ended.
        run_cell: runs one cell; None: the standard function.
        overwrite: run finished cells again. debug: show tracebacks of failed cells.
        make_shared: makes what all cells share.
        told: each cell that has been done. A fault of it is a warning: results are safe in the store.
        stop: whether the run was asked to stop. announced: whether that was said.
    """

    waiting: list[CellSpec]
    store: Store
    board: Board
    summary: Summary
    run_cell: RunCell | None = None
    overwrite: bool = False
    debug: bool = False
    make_shared: Callable[[Reporter], None] | None = None
    stop: Stop = field(default_factory=Stop)
    told: Callable[[CellSpec], None] | None = None
    announced: bool = field(default=False, init=False)

    def prepare(self) -> None:
        """Make what all cells share."""
        if self.make_shared is not None:
            with self.board.preparing("reading data", self.stopping) as reporter:
                self.make_shared(reporter)

    def finish(self, slot: int, spec: CellSpec, outcome: Outcome) -> None:
        """Count a cell that has ended and say how.

        Raises:
            LostError: the folder of the results has gone, so no other cell can be kept.
        """
        gone = working_folder() is None and not self.store.output_dir.is_absolute()
        if gone and outcome.status == "failed":
            raise LostError(DELETED)
        self.summary.add(spec, outcome)
        self.board.cell_finished(slot, _WORDS.get(outcome.status, outcome.status), outcome.error)
        if self.debug and outcome.trace:
            self.board.console.line(outcome.trace.rstrip())
        if self.told is not None and outcome.status == "done":
            try:
                self.told(spec)
            except Exception as error:  # trackers of others may raise anything
                self.board.console.warn(f"not logged: {spec.label}: {type(error).__name__}: {error}")

    def stopping(self) -> bool:
        """Return whether the run was asked to stop; no cell begins any more, which is said the first time."""
        if not self.stop.asked:
            return False
        self.waiting.clear()
        self.summary.interrupted = True
        if not self.announced:
            self.announced = True
            self.board.console.warn("stopping: running cells end after their current step. Again: at once")
        return True


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
        elif outcome.status == "stopped":
            self.interrupted = True
        else:
            setattr(self, outcome.status, getattr(self, outcome.status) + 1)


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that cells run on, and what each of them takes of it.

    Attributes:
        address: ``HOST:PORT`` of its head, or "auto": the one that this machine belongs to; None: that of the variable
            ``RAY_ADDRESS``, else a Ray of this machine alone, which is started.
        cpus: cores of a cell; None: one, and one for each process that loads data.
        gpus: GPUs of a cell, a share such as 0.25 for small ones; None: one where the cluster has GPUs.
    """

    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None

"""One run as every engine sees it: the cells that wait, and what is said and counted when one begins or ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmark.console import Board, Reporter
from benchmark.plan import CellSpec
from benchmark.runner import Outcome, Summary
from benchmark.stop import Stop
from benchmark.store import Store

_WORDS = {"busy": "skipped (another process is running it)", "failed": "FAILED"}


@dataclass
class Grid:
    """The state of one run.

    Attributes:
        waiting: cells that have not begun, longest first.
        store: where the cells are kept. board: where progress is shown. summary: counts what ended.
        run_cell: ``module:function`` that runs one cell.
        overwrite: run finished cells again. debug: show tracebacks of failed cells.
        make_shared: makes what all cells share.
        stop: whether the run was asked to stop. announced: whether that was said.
    """

    waiting: list[CellSpec]
    store: Store
    board: Board
    summary: Summary
    run_cell: str
    overwrite: bool = False
    debug: bool = False
    make_shared: Callable[[Reporter], None] | None = None
    stop: Stop = field(default_factory=Stop)
    announced: bool = field(default=False, init=False)

    def prepare(self) -> None:
        """Make what all cells share."""
        if self.make_shared is not None:
            self.board.preparation_started(-1, "data")
            self.make_shared(self.board.reporter(-1, self.stopping))
            self.board.preparation_finished(-1)

    def finish(self, slot: int, spec: CellSpec, outcome: Outcome) -> None:
        """Count a cell that has ended and say how."""
        self.summary.add(spec, outcome)
        self.board.cell_finished(slot, _WORDS.get(outcome.status, outcome.status), outcome.error)
        if self.debug and outcome.trace:
            self.board.console.line(outcome.trace.rstrip())

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

"""Output for people: rich progress with ETA on a terminal, plain lines otherwise.

Information goes to standard output, warnings and errors to standard error. rich honours ``NO_COLOR``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.segment import Segment

from benchmark.layout import Fitted, visible

PLAIN_INTERVAL = 20.0
"""Seconds between two progress lines of one cell when the output is not a terminal."""
WORTH_TELLING = 1.0
"""Seconds from which on it is said how long a phase took."""
PREPARATION = -1
"""Slot of the work that is done for all cells."""
SEND_INTERVAL = 0.2
"""Seconds between two progress messages of a worker process to its parent."""
Part = tuple[float, float] | None
"""From which share to which share of a cell's training a stage goes; None: it is no training."""
TRAINING = 0.8
"""Share of a cell's time that its training is taken to need, until cells have ended."""


class Reporter:
    """Receives the progress of long work. This one tells nobody and never stops."""

    def start(self, stage: str, total: int, part: Part = None) -> None:
        """Begin a stage of ``total`` steps; ``part`` says which part of a cell's training it is, as two shares."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Say that ``n`` more steps of the stage are done; ``note`` holds for example the loss.

        Raises:
            Stopped: the run was asked to stop.
        """

    def log(self, line: str) -> None:
        """Say one line; the last one of a cell is shown as its outcome."""

    def stopping(self) -> bool:
        """Return whether the run was asked to stop; code with work to save asks this before it calls `advance`."""
        return False


NullReporter = Reporter


class QueueReporter(Reporter):
    """Passes reports on as ``(kind, *values)`` tuples, from worker to parent; progress is sent at intervals.

    Args:
        send: takes one message.
        stopping: tells whether the run was asked to stop.
    """

    def __init__(
        self, send: Callable[[tuple[Any, ...]], None], stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._send, self._stopping = send, stopping
        self._steps, self._sent_at = 0, 0.0

    def start(self, stage: str, total: int, part: Part = None) -> None:
        """Send the beginning of a stage."""
        self._steps, self._sent_at = 0, 0.0
        self._send(("start", stage, total, part) if part else ("start", stage, total))

    def advance(self, n: int = 1, note: str = "") -> None:
        """Send the steps since the last message, a few times a second; raise Stopped when the run is to stop."""
        if self.stopping():
            raise Stopped
        self._steps += n
        now = time.monotonic()
        if now - self._sent_at >= SEND_INTERVAL:
            self._send(("advance", self._steps, note))
            self._steps, self._sent_at = 0, now

    def log(self, line: str) -> None:
        """Send one line."""
        self._send(("log", line))

    def stopping(self) -> bool:
        """Return whether the run was asked to stop."""
        return self._stopping()


@dataclass
class _Stage:
    """How far one cell is."""

    label: str
    stage: str = ""
    total: int = 0
    steps: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)
    stage_began: float = 0.0
    shown: float = field(default_factory=time.monotonic)
    log: str = ""
    aloud: bool = False
    """Lines are printed at once: nothing else would show them."""
    part: Part = None
    share: float = 0.0
    """How much of the cell is done, as far as its training tells."""

    @property
    def left(self) -> str:
        """The time left of its stage; empty before its first step."""
        seconds = time.monotonic() - self.stage_began
        return duration(seconds * (self.total / self.steps - 1)) if 0 < self.steps <= self.total else ""


class Board:
    """The state of a running grid, one slot per worker; `PlainBoard` and `RichBoard` show it."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.finished = console, total, 0
        self.slots: dict[int, _Stage] = {}
        self._costs: dict[str, float] = {}
        self._whole, self._done, self._began = float(max(total, 1)), 0.0, 0.0

    def weigh(self, costs: Sequence[tuple[str, float]]) -> None:
        """Say what each cell costs compared with others, by its label; else all cost the same."""
        self._costs, self._whole = dict(costs), sum(cost for _, cost in costs)

    @property
    def share(self) -> float:
        """How much of all cells is done, 0 to 1; it moves with the steps of those that run."""
        running = sum(
            self._cost(cell) * cell.share for slot, cell in self.slots.items() if slot != PREPARATION
        )
        return min(1.0, (self._done + running) / self._whole)

    @property
    def progress(self) -> str:
        """That in per cent, with the time left of all cells from their first step on."""
        share, seconds = self.share, time.monotonic() - self._began
        left = f", {duration(seconds * (1 / share - 1))} left" if self._began and 0 < share < 1 else ""
        return f"{self.finished}/{self.total} cells, {100 * share:.0f} %{left}"

    def _cost(self, cell: _Stage) -> float:
        return self._costs.get(cell.label, 1.0)

    def cell_started(self, slot: int, label: str) -> None:
        """Say that a slot begins a cell."""
        self._began = self._began or time.monotonic()
        self._open(slot, _Stage(label))

    def cell_finished(self, slot: int, outcome: str, detail: str = "") -> None:
        """Say how the cell of a slot ended, in a few words; without ``detail`` its last log line is shown."""
        cell = self._close(slot)
        self.finished, self._done = self.finished + 1, self._done + self._cost(cell)
        detail = detail or cell.log
        seconds = duration(time.monotonic() - cell.began)
        text = f"[{self.finished}/{self.total}] {cell.label} {outcome} in {seconds}"
        self.console.line(f"{text}: {' '.join(detail.split())}" if detail else text)

    @contextlib.contextmanager
    def preparing(self, label: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[Reporter]:
        """Show work for all cells while the block runs, and yield its reporter."""
        self._open(PREPARATION, _Stage(label, aloud=True))
        yield self.reporter(PREPARATION, stopping)
        cell = self._close(PREPARATION)
        if (seconds := time.monotonic() - cell.began) >= WORTH_TELLING:
            self.console.line(f"{cell.label} done in {duration(seconds)}")

    def event(self, slot: int, message: tuple[Any, ...]) -> None:
        """Take one message of `QueueReporter`."""
        cell = self.slots.get(slot)
        if cell is None:
            return
        kind, *values = message
        if kind == "start":
            cell.stage, cell.total, cell.steps, cell.note = values[0], values[1], 0, ""
            cell.stage_began, cell.part = time.monotonic(), values[2] if len(values) > 2 else None
        elif kind == "advance":
            cell.steps, cell.note = cell.steps + values[0], values[1] or cell.note
            if cell.part is not None and cell.total:
                low, high = cell.part
                cell.share = TRAINING * (low + (high - low) * min(1.0, cell.steps / cell.total))
        elif cell.aloud:
            self.console.warn(values[0])
        else:
            cell.log = values[0]
        self.show(slot, cell)

    def reporter(self, slot: int, stopping: Callable[[], bool] = lambda: False) -> Reporter:
        """Return a reporter for work done in this process; ``stopping`` tells whether the run was asked to stop."""
        return QueueReporter(lambda message: self.event(slot, message), stopping)

    def show(self, slot: int, cell: _Stage) -> None:
        """Show the progress of one slot."""

    def close(self) -> None:
        """End the display."""

    def _open(self, slot: int, cell: _Stage) -> None:
        self.slots[slot] = cell

    def _close(self, slot: int) -> _Stage:
        return self.slots.pop(slot)


class PlainBoard(Board):
    """Lines for logs and pipes: one when a cell starts and ends, and now and then one in between."""

    def cell_started(self, slot: int, label: str) -> None:
        """Print the start of a cell."""
        super().cell_started(slot, label)
        self.console.line(f"[{self.finished}/{self.total}] {label} started")

    def _open(self, slot: int, cell: _Stage) -> None:
        super()._open(slot, cell)
        if slot == PREPARATION:
            self.console.line(f"{cell.label} ...")

    def show(self, slot: int, cell: _Stage) -> None:
        """Print how far a cell is, at most every `PLAIN_INTERVAL` seconds."""
        now = time.monotonic()
        if now - cell.shown < PLAIN_INTERVAL or not cell.stage:
            return
        cell.shown = now
        note = f" {cell.note}" if cell.note else ""
        all_of_it = f" ({self.progress})" if self._began else f", {cell.left} left" * bool(cell.left)
        self.console.line(f"  {cell.label}: {cell.stage} {cell.steps}/{cell.total}{note}{all_of_it}")


class RichBoard(Board):
    """Live bars: all cells, and below it one bar per worker with its stage, note and time left."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"),
            console=console.out, transient=True,
        )  # fmt: skip
        self._all = self._progress.add_task("all cells", total=1.0, note="", visible=total > 0)
        self._bars: dict[int, TaskID] = {}
        self._progress.start()

    def _open(self, slot: int, cell: _Stage) -> None:
        super()._open(slot, cell)
        self._bars[slot] = self._progress.add_task(escape(cell.label), total=None, note="")

    def _close(self, slot: int) -> _Stage:
        self._progress.remove_task(self._bars.pop(slot))
        return super()._close(slot)

    def cell_finished(self, slot: int, outcome: str, detail: str = "") -> None:
        """Print the outcome of a cell above the bars."""
        super().cell_finished(slot, outcome, detail)
        self._progress.update(self._all, completed=self.share, note=self.progress)

    def show(self, slot: int, cell: _Stage) -> None:
        """Move the bar of a cell, and that of all cells."""
        bar, name = self._bars[slot], escape(f"{cell.label} {cell.stage}")
        count = f"{cell.steps}/{cell.total}" if cell.total else ""
        words = filter(None, (count, f"{cell.left} left" if cell.left else "", escape(cell.note)))
        self._progress.update(
            bar, description=name, total=cell.total or None, completed=cell.steps, note="  ".join(words)
        )
        self._progress.update(self._all, completed=self.share, note=self.progress)

    def close(self) -> None:
        """Remove all bars."""
        self._progress.stop()


class Screen(rich.console.Console):
    """A stream for people: whatever is printed, no control character of it reaches a terminal raw.

    Attributes:
        lost: why nothing can be written to it any more.
    """

    lost: OSError | None = None

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Yield the parts of anything that is printed, control characters as escapes; styles are not text."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(visible(part.text), part.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print; what cannot be written is dropped, and work goes on."""
        try:
            super().print(*objects, **how)
        except OSError as error:
            self.lose(error)

    def on_broken_pipe(self) -> None:
        """Let `print` know that the reader of the output has gone."""
        raise BrokenPipeError

    def lose(self, error: OSError) -> None:
        """Write nothing any more; what waits to be written is dropped."""
        self.lost, self.quiet = error, True
        with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
            number, nowhere = self.file.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


class Console:
    """The output of every verb.

    Args:
        force_terminal: None asks the stream; tests say so.
    """

    def __init__(self, *, force_terminal: bool | None = None) -> None:
        self.out = Screen(
            force_terminal=force_terminal, markup=False, highlight=False, emoji=False, soft_wrap=True
        )
        if not self.live:  # a pipe has no width; tables take what they need
            self.out.width = 200
        self.err = Screen(stderr=True, highlight=False, emoji=False, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether bars can be drawn."""
        return self.out.is_terminal and not self.out.is_dumb_terminal

    def line(self, text: str) -> None:
        """Print one line without markup."""
        self.out.print(visible(text), markup=False)

    def note(self, text: str) -> None:
        """Print one line beside an output that other programs read."""
        self.err.print(visible(text), markup=False, style="dim")

    def warn(self, text: str) -> None:
        """Print one warning line."""
        self.err.print(f"warning: {_one_line(text)}", markup=False, style="yellow")

    def error(self, text: str) -> None:
        """Print one error line."""
        self.err.print(f"error: {_one_line(text)}", markup=False, style="red")

    def rows(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        title: str = "",
        right: str = "",
        gives_way: str = "",
    ) -> None:
        """Print a table of plain texts.

        Args:
            columns: heads; the first one is of names, which are never folded.
            rows: a text or other value per column.
            title: above the table.
            right: heads of columns that are aligned to the right, by commas; their texts are not folded either.
            gives_way: heads of columns that are left out where there is no room, the first one first, by commas.
        """
        shown = ([visible(str(value)) for value in row] for row in rows)
        leaving = tuple(filter(None, gives_way.split(", ")))
        self.table(Fitted.of(columns, shown, visible(title), {*right.split(", ")}, gives_way=leaving))

    def table(self, content: Any) -> None:
        """Print a rich table, or sentences without markup in lines that end between words."""
        content = visible(content) if isinstance(content, str) else content
        self.out.print(content, soft_wrap=False, markup=False)

    def new_board(self, total: int) -> Board:
        """Return what shows the progress of ``total`` cells here."""
        return RichBoard(self, total) if self.live else PlainBoard(self, total)

    @contextlib.contextmanager
    def phase(self, label: str) -> Iterator[Reporter]:
        """Show work that is no cell's while the block runs, and yield its reporter: the label comes at once."""
        with self.board(0) as board, board.preparing(label) as reporter:
            yield reporter

    @contextlib.contextmanager
    def board(self, total: int) -> Iterator[Board]:
        """Show the progress of ``total`` cells while the block runs."""
        board = self.new_board(total)
        try:
            yield board
        finally:
            board.close()

    def ended(self) -> OSError | None:
        """Write what waits to be written, and return why standard output could not take all."""
        if not self.out.lost:
            try:
                self.out.file.flush()
            except OSError as error:
                self.out.lose(error)
        return self.out.lost


def duration(seconds: float) -> str:
    """Return a time span for people: ``8.5 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


class Stopped(KeyboardInterrupt):
    """A cell has ended early because the run was asked to stop; the text says how far it is saved."""


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as requests while the block runs; signals reach the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Ask to stop; the second time is a KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

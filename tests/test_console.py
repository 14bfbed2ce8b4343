"""Progress is bars on a terminal and few plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
import rich.console
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchmark import console as module
from benchmark.console import Console, PlainBoard, QueueReporter, RichBoard, duration


@pytest.fixture
def plain():
    console = Console(force_terminal=False)
    console.out = rich.console.Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    return console


def lines(console):
    return console.out.file.getvalue().splitlines()


def test_plain_board_prints_start_and_outcome_only(plain):
    with plain.board(2) as board:
        assert isinstance(board, PlainBoard)
        board.cell_started(0, "coop seed 0")
        reporter = board.reporter(0)
        reporter.start("adapt", 100)
        for _ in range(100):
            reporter.advance(note="loss 1.0")
        reporter.log("rsna acc 50.0 [bold]")
        board.cell_finished(0, "done")
    assert lines(plain)[0] == "[0/2] coop seed 0 started"
    assert lines(plain)[1].startswith("[1/2] coop seed 0 done in ")
    assert lines(plain)[1].endswith(": rsna acc 50.0 [bold]")
    assert len(lines(plain)) == 2


def test_plain_board_shows_progress_after_a_while(plain, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL", 0.0)
    board = PlainBoard(plain, 1)
    board.cell_started(0, "coop seed 0")
    board.event(0, ("start", "adapt", 10))
    board.event(0, ("advance", 4, "loss 2.0"))
    assert "coop seed 0: adapt 4/10 loss 2.0, 0.0 s left" in lines(plain)[-1]


def test_rich_board_draws_and_removes_bars():
    console = Console(force_terminal=True)
    console.out = rich.console.Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    with console.board(1) as board:
        assert isinstance(board, RichBoard)
        with board.preparing("data"):
            pass
        board.cell_started(0, "coop seed 0")
        board.event(0, ("start", "adapt", 10))
        board.event(0, ("advance", 4, "loss [x]"))
        board.cell_finished(0, "done")
    assert "coop seed 0 done" in console.out.file.getvalue()


def test_messages_of_a_cell_that_has_ended_are_dropped(plain):
    PlainBoard(plain, 1).event(5, ("advance", 1, ""))
    assert lines(plain) == []


def test_queue_reporter_thins_out_progress():
    sent = []
    reporter = QueueReporter(sent.append)
    reporter.start("adapt", 1000)
    for _ in range(1000):
        reporter.advance()
    assert sent[0] == ("start", "adapt", 1000)
    assert 1 < len(sent) < 20


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert Console(force_terminal=True).out.no_color


def test_whatever_is_printed_has_no_control_characters(capsys):
    """Tables, boards, renderables of the report and help: what rich renders is escaped in one place."""
    bad = "films\x1b[2J\x1b]0;t\x07\u202e\udc80"
    console = Console(force_terminal=False)
    table = Table(title=bad, caption=bad)
    table.add_column(bad)
    table.add_row(bad)
    console.table(table)
    console.table(Group(Text(bad), Padding(bad, 1)))
    console.out.print(bad)
    console.err.print(bad)
    with console.board(1) as board:
        board.cell_started(0, bad)
        board.cell_finished(0, "done", bad)
    said = "".join(capsys.readouterr())
    assert said.count("\\x1b[2J") >= 8
    assert all(x.isprintable() or x in "\n\t" for x in said)


def test_control_characters_reach_no_terminal(plain, capsys):
    plain.line("a\x1b[31m\x07 b\u202e")
    plain.rows(["name"], [["films\x1b[2J"]])
    plain.error("no file x\x1b]0;t\x07\udc80")
    shown = "\n".join(lines(plain)) + "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "a\\x1b[31m\\x07 b\\u202e" in shown

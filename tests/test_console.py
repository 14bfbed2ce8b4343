"""Progress is bars on a terminal and few plain lines elsewhere."""

from __future__ import annotations

import io
import json

import pytest
import rich.console
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchmark import console as module
from benchmark.cli import main
from benchmark.console import Console, PlainBoard, QueueReporter, RichBoard, duration
from tests.bad_input.case import RUN, small


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
    assert lines(plain)[-1].startswith("  coop seed 0: adapt 4/10 loss 2.0 (0/1 cells, 0 %")


def test_the_share_of_all_cells_moves_with_steps_and_gives_the_time_left(plain, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    board = PlainBoard(plain, 3)
    board.weigh([("a", 6.0), ("b", 3.0), ("c", 1.0)])
    board.cell_started(0, "a")
    board.event(0, ("start", "load backbone", 1))
    assert board.progress == "0/3 cells, 0 %"  # nothing is known before the first step
    board.event(0, ("start", "adapt, epoch 1", 10, (0.0, 0.5)))
    now[0] += 24.0
    board.event(0, ("advance", 5, ""))
    # a quarter of the training, which is 0.8 of a cell that is 0.6 of all: 0.12 of all in 24 s
    assert board.share == pytest.approx(0.12)
    assert board.progress == "0/3 cells, 12 %, 2 min 56 s left"
    board.event(0, ("start", "adapt, epoch 2", 10, (0.5, 1.0)))
    board.event(0, ("advance", 10, ""))
    board.event(0, ("start", "zero-shot", 100))
    board.event(0, ("advance", 50, ""))
    assert board.share == pytest.approx(0.48)  # tasks do not move it
    board.cell_finished(0, "done")
    assert board.share == pytest.approx(0.6)
    for name in ("b", "c"):
        board.cell_started(0, name)
        board.cell_finished(0, "done")
    assert board.share == pytest.approx(1.0)
    assert board.progress == "3/3 cells, 100 %"


def test_a_phase_is_named_at_once_and_its_time_told_where_it_is_long(plain, monkeypatch):
    with plain.phase("reading data") as reporter:
        assert lines(plain) == ["reading data ..."]
        reporter.start("hash images", 2)
    assert lines(plain) == ["reading data ..."]
    monkeypatch.setattr(module, "WORTH_TELLING", 0.0)
    with plain.phase("writing report"):
        pass
    assert lines(plain)[-1].startswith("writing report done in ")


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
    shown = console.out.file.getvalue()
    assert "coop seed 0 done" in shown
    assert "1/1 cells, 100 %" in shown


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


def test_names_with_control_characters_reach_no_terminal_raw(tmp_path, monkeypatch, capsys, recwarn):
    """A title, a class and a column of one's own through check, run, report, comparison and lists."""
    monkeypatch.chdir(tmp_path)
    small(tmp_path)
    bad = "Edema\x1b[2J\x1b]0;t\x07\u202e\x9b"
    for name in ("films.csv", "s.yaml"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("Edema", json.dumps(bad) if name == "s.yaml" else bad))
    with (tmp_path / "s.yaml").open("a") as file:
        file.write(f"title: {json.dumps(bad)}\n")
    for words in (
        "validate --suite s.yaml --methods zero_shot --data-root data",
        RUN,
        "report --output-dir out",
        f"list suites --suite {bad}",
        f"list methods --{bad}",
        f"compare zero_shot {bad} --output-dir out",
        f"{RUN} --seeds {bad}",
        f"{RUN} recipe.{bad}=1",
    ):
        assert main(words.split(" ")) == (2 if bad in words else 0)
    said = "".join(capsys.readouterr())
    assert said.count("Edema\\x1b[2J") >= 6
    assert all(x.isprintable() or x in "\n\t" for x in said)
    assert not recwarn.list

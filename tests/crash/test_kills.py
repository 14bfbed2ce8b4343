"""Runs that are killed, stopped or doubled: the same command goes on and ends with the same results."""

from __future__ import annotations

import csv
import json
import os
import signal
import time

import pytest

from benchmark.store.cells import RESULT_COLUMNS
from tests.crash.equal import differences
from tests.crash.kill_at_writes import compare, end, start, warm_up, words

PAIR = ("zero_shot", "taskres")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What one undisturbed run of two cells leaves."""
    home = tmp_path_factory.mktemp("plain")
    warm_up(words(home, *PAIR))
    return home


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_a_run_killed_before_a_file_is_in_its_place_ends_bit_identically(tmp_path, capfd):
    code = compare(tmp_path, "taskres", files=("state.pt", "adapt.json", "zeroshot.json"))
    assert code == 0, capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("given", [(PAIR, PAIR), (PAIR[:1], PAIR[1:])], ids=["same", "other"])
def test_two_processes_on_one_folder_leave_what_one_leaves(plain, tmp_path, given):
    codes = [end(process) for process in [start(tmp_path, words(tmp_path, *methods)) for methods in given]]
    assert codes == [0, 0], (tmp_path / "log.txt").read_text()
    for folder in ("out", "data"):
        assert differences(plain / folder, tmp_path / folder) == []
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == RESULT_COLUMNS
    assert {row[2] for row in rows[1:]} == set(PAIR)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_told_to_stop_says_how_to_go_on_and_does_so(plain, tmp_path, number):
    (tmp_path / "data").symlink_to(plain / "data")
    process = start(tmp_path, words(tmp_path, *PAIR))
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/runs/*/*/*/seed-0/config.yaml")) and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process, number)
    code, said = end(process), (tmp_path / "log.txt").read_text()
    assert code == 130, said
    assert "stopping: running cells end after their current step. Again: at once" in said
    assert "stopped: finished cells are kept" in said
    assert "The same command goes on from there" in said
    assert end(start(tmp_path, words(tmp_path, *PAIR))) == 0
    assert differences(plain / "out", tmp_path / "out") == []


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_its_cell_alone(plain, tmp_path):
    (tmp_path / "data").symlink_to(plain / "data")
    assert end(start(tmp_path, [*words(tmp_path, *PAIR), "--lr", "1e30", "--max-steps", "4"])) == 1
    said = (tmp_path / "log.txt").read_text()
    assert "taskres/seed-0: the loss became nan before step" in said
    assert "lower --lr" in said
    states = {
        path.parent.parent.name: json.loads(path.read_text())["status"]
        for path in tmp_path.glob("out/runs/*/*/*/*/status.json")
    }
    assert states == {"zero_shot": "success", "taskres": "failed"}

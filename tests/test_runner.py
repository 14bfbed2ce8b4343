"""Cells fail alone, crashes included, and the same plan goes on with what is missing."""

from __future__ import annotations

import io
import json

import pytest
import rich.console

from benchmark import runner
from benchmark.config import load_config
from benchmark.console import Console
from benchmark.errors import ConfigError
from benchmark.plan import make_plan
from benchmark.runner import execute_cell, find_devices, run_plan
from benchmark.store import Store


@pytest.fixture
def run(flags, world):
    """A function that plans and runs the fakes: (summary, printed lines, store)."""

    def run_fakes(jobs=1, seeds="0,1", prepare=None, **more):
        config = load_config(flags | {"seeds": seeds} | more)
        store = Store(config.output_dir)
        console = Console(force_terminal=False)
        console.out = rich.console.Console(file=io.StringIO(), width=300, highlight=False, soft_wrap=True)
        plan = make_plan(config, store)
        summary = run_plan(
            plan, store, console=console, jobs=jobs, prepare=prepare, run_cell="fake_cells:run_cell"
        )
        return summary, console.out.file.getvalue(), store

    return run_fakes


def counts(summary):
    return summary.done, summary.reused, len(summary.failed)


def status(store, method, seed=0):
    return store.cell(f"runs/fakes/tiny/{method}/seed-{seed}").read_json("status.json")


def test_cells_run_once_and_are_reused(run):
    prepared = []
    summary, text, store = run(prepare=lambda reporter: prepared.append(reporter.start("draw", 1)))
    assert counts(summary) == (3, 0, 0)
    assert "rsna acc 50.0" in text
    assert status(store, "fake_one")["status"] == "success"
    assert len(prepared) == 1
    summary, text, _ = run(prepare=lambda reporter: prepared.append(1))
    assert counts(summary) == (0, 3, 0)
    assert text == ""
    assert len(prepared) == 1  # nothing to run, nothing to prepare


def test_an_exception_fails_its_cell_only(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "raise")
    summary, text, store = run()
    assert counts(summary) == (2, 0, 1)
    assert "fake_one seed 0 FAILED" in text
    found = status(store, "fake_one")
    assert found["status"] == "failed"
    assert found["error"] == "RuntimeError: boom in file.py"
    assert "/home" not in json.dumps(found)


def test_a_failed_cell_is_tried_again(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "raise")
    run()
    monkeypatch.delenv("TROUBLE_fake_one")
    summary, _, store = run()
    assert counts(summary) == (1, 2, 0)
    assert status(store, "fake_one")["status"] == "success"


def test_a_cell_without_results_is_not_called_done(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "nothing")
    summary, _, store = run()
    assert summary.failed == [("runs/fakes/tiny/fake_one/seed-0", "no result for fake_task")]
    assert status(store, "fake_one")["status"] == "partial"


def test_interrupt_stops_and_the_same_plan_goes_on(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_two", "interrupt")  # the cheaper method runs last
    summary, _, store = run()
    assert summary.interrupted
    assert counts(summary) == (2, 0, 0)
    assert status(store, "fake_two")["status"] == "running"
    monkeypatch.delenv("TROUBLE_fake_two")
    summary, _, _ = run()
    assert not summary.interrupted
    assert counts(summary) == (1, 2, 0)


def test_a_worker_that_dies_loses_only_its_cell(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "exit")
    summary, text, store = run(jobs=2, seeds="0,1,2")
    assert counts(summary) == (3, 0, 1)
    assert "the worker process died (exit code 7)" in text
    assert status(store, "fake_one")["error"] == "the worker process died (exit code 7)"


def test_two_jobs_use_two_processes(run):
    summary, _, store = run(jobs=2, seeds="0,1,2,3")
    assert counts(summary) == (5, 0, 0)
    lines = [cell.inside("ran.txt").read_text().split() for cell in store.cells()]
    assert {device for _, _, device in lines} == {"cpu"}
    assert len({pid for pid, _, _ in lines}) in (1, 2)
    assert all(int(threads) >= 1 for _, threads, _ in lines)


def test_a_cell_held_by_another_process_is_left_alone(flags, world):
    store = Store(world / "out")
    spec = make_plan(load_config(flags), store).cells[0].spec
    with store.cell(spec.folder).lock() as held:
        assert held
        assert execute_cell(spec, store, None, "fake_cells:run_cell").status == "busy"


def test_a_cell_finished_meanwhile_is_not_run_again(flags, world, run):
    spec = make_plan(load_config(flags), Store(world / "out")).cells[0].spec
    _, _, store = run()
    assert execute_cell(spec, store, None, "fake_cells:run_cell").status == "reused"


def test_overwrite_starts_from_an_empty_folder(run):
    _, _, store = run()
    folder = store.cell("runs/fakes/tiny/fake_one/seed-0")
    folder.write_json("leftover.json", {})
    summary, _, _ = run(overwrite=True, lr="9e-3")
    assert counts(summary) == (3, 0, 0)
    assert not folder.exists("leftover.json")
    assert folder.read_config()["recipe"]["lr"] == 9e-3


def test_missing_gpu_is_one_clear_line():
    assert find_devices("cpu") == ["cpu"]
    with pytest.raises(ConfigError, match="--device: 'cuda:99' does not exist"):
        find_devices("cuda:99")


@pytest.mark.parametrize(
    ("wish", "expected"), [("", 4), ("1", 1), ("3", 3), ("16", 4), ("many", 4), ("0", 4)]
)
def test_threads_are_the_share_of_the_cores_or_what_the_user_allows(monkeypatch, wish, expected):
    monkeypatch.setattr(runner, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert runner.threads_each(2) == expected

"""Cells fail alone, crashes included, and the same plan goes on with what is missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rich.console

from benchmark import machine
from benchmark.config.load import load_config
from benchmark.console import Console
from benchmark.errors import ConfigError
from benchmark.files import ROOT
from benchmark.plan import make_plan
from benchmark.run import execute
from benchmark.run.engines.grid import Cluster
from benchmark.run.engines.start import run_plan
from benchmark.run.execute import execute_cell, fail_cell
from benchmark.store.cells import Store
from tests.standins import SLOW_CELLS, lines, once, total


@pytest.fixture
def run(flags, world):
    """A function that plans and runs the fakes: (summary, printed lines, store)."""

    def run_fakes(jobs=1, seeds="0,1", prepare=None, cells="fake_cells", **more):
        config = load_config(flags | {"seeds": seeds} | more)
        store = Store(config.output_dir)
        console = Console(force_terminal=False)
        console.out = rich.console.Console(file=io.StringIO(), width=300, highlight=False, soft_wrap=True)
        plan = make_plan(config, store)
        summary = run_plan(
            plan,
            store,
            console=console,
            jobs=jobs,
            prepare=prepare,
            run_cell=importlib.import_module(cells).run_cell,
        )
        return summary, console.out.file.getvalue(), store

    return run_fakes


def fake():
    return importlib.import_module("fake_cells").run_cell


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


def test_a_cell_without_results_is_not_called_done(run, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "nothing")
    summary, _, store = run()
    assert summary.failed == [("runs/fakes/tiny/fake_one/seed-0", "no result for fake_task")]
    assert status(store, "fake_one")["status"] == "partial"


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
        assert execute_cell(spec, store, None, fake()).status == "busy"


def test_a_cell_finished_meanwhile_is_not_run_again(flags, world, run):
    spec = make_plan(load_config(flags), Store(world / "out")).cells[0].spec
    _, _, store = run()
    assert execute_cell(spec, store, None, fake()).status == "reused"


def test_overwrite_starts_from_an_empty_folder(run):
    _, _, store = run()
    folder = store.cell("runs/fakes/tiny/fake_one/seed-0")
    folder.write_json("leftover.json", {})
    summary, _, _ = run(overwrite=True, lr="9e-3")
    assert counts(summary) == (3, 0, 0)
    assert not folder.exists("leftover.json")
    assert folder.read_config()["recipe"]["lr"] == 9e-3


def test_a_cell_finished_meanwhile_with_other_settings_is_left_alone(flags, world, run):
    store = Store(world / "out")
    spec = make_plan(load_config(flags | {"lr": "9e-3"}), store).cells[0].spec
    run()
    kept = store.cell(spec.folder).inside("ran.txt").read_text()
    outcome = execute_cell(spec, store, None, fake())
    assert outcome.status == "failed"
    assert (
        "another process finished it with other settings (recipe.lr: 0.0005 there, 0.009 now" in outcome.error
    )
    assert store.cell(spec.folder).inside("ran.txt").read_text() == kept
    assert status(store, "fake_one")["status"] == "success"


def test_a_cell_killed_after_its_last_result_is_brought_to_its_end(flags, world, run):
    _, _, store = run()
    folder = store.cell("runs/fakes/tiny/fake_one/seed-0")
    folder.write_json("status.json", {"status": "running", "error": None})
    folder.inside(".history.jsonl.abc.tmp").write_text("half a fi")
    summary, _, _ = run()
    assert counts(summary) == (1, 2, 0)
    assert status(store, "fake_one")["status"] == "success"
    assert list(folder.path.rglob("*.tmp")) == []


def test_a_dead_worker_fails_its_cell_unless_that_is_finished_or_taken_over(flags, world, run, monkeypatch):
    monkeypatch.setattr(execute, "LOCK_PATIENCE", 0.0)
    _, _, store = run(seeds="0")
    spec = make_plan(load_config(flags), store).cells[0].spec
    assert fail_cell(spec, store, "it died").status == "done"
    folder = store.cell(spec.folder)
    folder.remove("fake_task.json")
    with folder.lock():
        assert fail_cell(spec, store, "it died").status == "failed"
    assert status(store, "fake_one")["status"] == "success"
    assert fail_cell(spec, store, "it died").status == "failed"
    assert status(store, "fake_one")["error"] == "it died"


@pytest.fixture
def slow(world):
    """Cells of four steps that take their time."""
    (world / "slow_cells.py").write_text(SLOW_CELLS)
    (world / "trouble.json").write_text('{"seconds": 0.5}')


@pytest.mark.parametrize(("jobs", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_stopped_run_ends_after_the_step_and_goes_on_from_there(run, world, slow, jobs, number):
    store = Store(world / "out")

    def stop():
        os.kill(os.getpid(), number)
        if number == signal.SIGTERM:  # a cluster's manager sends it to every process of a job
            for begun in lines(store, "begun.txt").values():
                os.kill(int(begun[0].split()[0]), number) if jobs > 1 else None

    with once(lambda: len(lines(store, "steps.txt")) == jobs, stop):
        summary, text, _ = run(jobs=jobs, cells="slow_cells")
    (world / "trouble.json").write_text("{}")
    assert summary.interrupted
    assert summary.failed == []
    assert " stopped in " in text
    begun = len(lines(store, "begun.txt"))
    assert begun < 3
    assert text.count(" stopped in ") == begun - summary.done
    again, _, _ = run(jobs=jobs, cells="slow_cells")
    assert counts(again) == (3 - summary.done, summary.done, 0)
    assert all(steps == ["1", "2", "3", "4"] for steps in lines(store, "steps.txt").values())


def test_a_second_signal_stops_at_once(run, world, slow):
    (world / "trouble.json").write_text('{"seconds": 30}')
    store = Store(world / "out")

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    with once(lambda: total(store, "begun.txt") == 2, twice):
        summary, _, _ = run(jobs=2, cells="slow_cells")
    assert summary.interrupted
    assert time.monotonic() - began < 25


DRIVER = """
import json
import sys
from benchmark.config.load import load_config
from benchmark.console import Console
from benchmark.plan import make_plan
from benchmark.run.engines.start import run_plan
from benchmark.store.cells import Store
from slow_cells import run_cell

if __name__ == "__main__":
    config = load_config(json.loads(sys.argv[1]))
    plan = make_plan(config, Store(config.output_dir))
    run_plan(plan, Store(config.output_dir), console=Console(), jobs=2, run_cell=run_cell)
"""


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_workers_end_with_their_parent_and_nothing_is_lost(run, flags, world, slow):
    store = Store(world / "out")
    (world / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{world}"}
    words = [sys.executable, "driver.py", json.dumps(flags | {"seeds": "0,1"})]
    process = subprocess.Popen(words, cwd=world, env=environment, stdout=subprocess.DEVNULL)
    with process, once(lambda: len(lines(store, "steps.txt")) == 2, process.kill):
        process.wait(timeout=60)
    pids = [line.split()[0] for line in sum(lines(store, "begun.txt").values(), [])]
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    (world / "trouble.json").write_text("{}")
    summary, _, _ = run(cells="slow_cells")
    assert counts(summary) == (3, 0, 0)
    assert all(len(steps) in (4, 5) for steps in lines(store, "steps.txt").values())


def test_without_ray_one_line_says_how_to_install_it(flags, world, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "benchmark.run.engines.ray", raising=False)
    store = Store(world / "out")
    plan = make_plan(load_config(flags), store)
    with pytest.raises(ConfigError, match=r'Ray is not installed. pip install -e "\.\[cluster\]"'):
        run_plan(plan, store, console=Console(), cluster=Cluster())


@pytest.mark.parametrize(
    ("wish", "expected"), [("", 4), ("1", 1), ("3", 3), ("16", 4), ("many", 4), ("0", 4)]
)
def test_threads_are_the_share_of_the_cores_or_what_the_user_allows(monkeypatch, wish, expected):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert machine.threads_each(2) == expected

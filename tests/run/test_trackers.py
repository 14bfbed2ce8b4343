"""Trackers get the curves and scores of a finished cell, each through its real library, offline."""

from __future__ import annotations

import importlib
import json
import time

import pytest

from benchmark.cli import main
from benchmark.config.load import load_config
from benchmark.errors import ConfigError
from benchmark.plan import make_plan
from benchmark.run.execute import execute_cell
from benchmark.run.loggers import TRACKERS, log_cell, trackers
from benchmark.store.cells import Store
from tests.test_plan import _Silent


@pytest.fixture
def cell(flags, world):
    store = Store(world / "out")
    spec = make_plan(load_config(flags), store).cells[0].spec
    execute_cell(spec, store, _Silent(), importlib.import_module("fake_cells").run_cell)
    store.cell(spec.folder).write_history(
        [{"epoch": 0, "step": 0, "auroc": 0.5}, {"epoch": 1, "step": 2, "auroc": 0.75}]
    )
    return spec, store


def test_tensorboard_reads_the_curves_and_scores(cell):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec, store = cell
    log_cell(spec, store, trackers(["tensorboard"], store.output_dir))
    folder = store.output_dir / "logs/tensorboard/fakes/tiny/fake_one/seed-0"
    events = EventAccumulator(str(folder)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("adapt/auroc")] == [(0, 0.5), (2, 0.75)]
    assert events.Scalars("fake_task/rsna/acc")[0].value == 0.5


@pytest.mark.filterwarnings("ignore")  # of the library
def test_mlflow_reads_the_curves_scores_and_settings(cell, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec, store = cell
    log_cell(spec, store, trackers(["mlflow"], store.output_dir))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("medpeft-bench").experiment_id])
    assert run.info.run_name == "fakes/tiny/fake_one/seed-0"
    assert run.data.metrics["fake_task/rsna/acc"] == 0.5
    assert run.data.params["method"] == "fake_one"
    assert [one.value for one in client.get_metric_history(run.info.run_id, "adapt/auroc")] == [0.5, 0.75]


@pytest.mark.filterwarnings("ignore")  # of the library
@pytest.mark.timeout(120)
def test_wandb_keeps_a_run_offline(cell, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec, store = cell
    log_cell(spec, store, trackers(["wandb"], store.output_dir))
    (kept,) = store.output_dir.glob("logs/wandb/wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 60  # a process of the library writes it
    wanted = (b"fakes/tiny/fake_one/seed-0", b"adapt/auroc")
    while time.monotonic() < until and not all(word in kept.read_bytes() for word in wanted):
        time.sleep(0.1)
    assert [word for word in wanted if word not in kept.read_bytes()] == []


def test_a_run_sends_its_cells_and_a_fault_of_a_tracker_loses_nothing(
    flags, world, stand_in, monkeypatch, capsys
):
    kept: list[tuple[str, dict[str, object]]] = []

    class Mine:
        def __init__(self, folder):
            self.folder = folder

        def log(self, cell):
            kept.append((cell.name, dict(cell.scores)))
            if "fake_two" in cell.name:
                raise RuntimeError("no network")

    monkeypatch.setitem(TRACKERS, "mine", Mine)
    stand_in(importlib.import_module("fake_cells").run_cell)
    words = [
        "--suite",
        flags["suite"],
        "--plugins",
        flags["plugins"][0],
        "--methods",
        "fake_*",
        "--jobs",
        "1",
    ]
    assert main([*words, "--output-dir", flags["output_dir"], "--device", "cpu", "--log", "mine"]) == 0
    assert sorted(name for name, _ in kept) == ["fakes/tiny/fake_one/seed-0", "fakes/tiny/fake_two/seed-0"]
    assert kept[0][1] == {"fake_task/rsna/acc": 0.5}
    assert "not logged: fake_two seed 0: RuntimeError: no network" in capsys.readouterr().err
    config = (world / "out/runs/fakes/tiny/fake_one/seed-0/config.yaml").read_text()
    assert "mine" not in config


def test_an_unknown_or_missing_tracker_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--log: unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        trackers(["tensorbord"], tmp_path)

    def absent(folder):
        raise ModuleNotFoundError("x", name="wandb")

    monkeypatch.setitem(TRACKERS, "wandb", absent)
    with pytest.raises(
        ConfigError, match=r'--log wandb: wandb is not installed. pip install "medpeft-bench\[wandb\]"'
    ):
        trackers(["wandb"], tmp_path)


def test_the_program_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("medpeft-bench ")
    assert json.dumps(capsys.readouterr().err) == '""'

"""Cells as tasks of a Ray cluster of three nodes on this machine: nothing is lost or done twice when a node dies."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path

import pytest
import rich.console

from benchmark.config.load import load_config
from benchmark.console import Console
from benchmark.errors import ConfigError, LostError, StoreError
from benchmark.plan import make_plan
from benchmark.run.engines.grid import Cluster
from benchmark.run.engines.start import ray_engine, run_plan
from benchmark.store.cells import Store
from tests.standins import SLOW_CELLS, lines, once, total

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra 'cluster'", allow_module_level=True)
ray_engine()  # before any other import of Ray: it silences it
engine = importlib.import_module("benchmark.run.engines.ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SEEDS = "0,1,2,3,4"
CELL_COUNT = 6  # one method draws nothing, so it has one seed


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and two nodes with a core and a (made-up) GPU each."""
    from ray.cluster_utils import Cluster as RayCluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    Path("/tmp/ray").mkdir(
        exist_ok=True
    )  # Ray writes the address of a cluster there, but does not make the folder
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "include_log_monitor": False}
    made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **small})
    made.nodes = [made.add_node(wait=False, num_cpus=1, num_gpus=1, **small) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(flags, world):
    """A function that plans and runs the fakes on a cluster or here: (summary, printed lines, store)."""
    (world / "slow_cells.py").write_text(SLOW_CELLS)

    def run_fakes(address=None, trouble=None, seeds=SEEDS, output_dir="out", prepare=None, **more):
        (world / "trouble.json").write_text(json.dumps(trouble or {}))
        needs = {key: more.pop(key) for key in ("cpus", "gpus") if key in more}
        config = load_config(flags | {"seeds": seeds, "output_dir": output_dir, "data_root": "data"} | more)
        store = Store(config.output_dir)
        console = Console(force_terminal=False)
        console.out = rich.console.Console(file=io.StringIO(), width=300, highlight=False, soft_wrap=True)
        summary = run_plan(
            make_plan(config, store), store, console=console, jobs=None if address else 1, prepare=prepare,
            run_cell=importlib.import_module("slow_cells").run_cell,
            cluster=Cluster(address, **needs) if address else None,
        )  # fmt: skip
        return summary, console.out.file.getvalue(), store

    return run_fakes


def files(store):
    """Return all files below a store but the notes, with the content of those that must be alike."""
    notes = ("begun.txt", "steps.txt", "done.txt", "doomed.txt")
    found = {}
    for path in sorted(store.output_dir.rglob("*")):
        if path.is_file() and path.name not in notes:
            text = path.read_text()
            found[str(path.relative_to(store.output_dir))] = "" if path.name == "provenance.json" else text
    return found


def test_a_stopped_run_and_a_dead_node_lose_and_repeat_nothing(run, world, cluster):
    _, _, alone = run(output_dir="alone")
    store, prepared = Store(Path("out")), []
    with once(lambda: total(store, "steps.txt") >= 2, lambda: os.kill(os.getpid(), signal.SIGINT)):
        summary, text, _ = run(cluster.address, {"seconds": 0.8}, prepare=lambda _: prepared.append(1))
    assert summary.interrupted
    assert summary.failed == []
    assert " stopped in " in text
    assert len(lines(store, "begun.txt")) < CELL_COUNT

    victim = cluster.nodes.pop()
    kill = partial(cluster.remove_node, victim, allow_graceful=False)
    with once(lambda: total(store, "doomed.txt") == 1, kill):
        summary, text, _ = run(
            cluster.address, {"doomed": victim.node_id}, prepare=lambda _: prepared.append(1)
        )
    assert len(prepared) == 2
    assert (summary.done + summary.reused, summary.failed) == (CELL_COUNT, [])
    assert not summary.interrupted
    assert text.count("its worker was lost; started again") == 1
    assert " is well" in text
    assert set(map(len, lines(store, "done.txt").values())) == {1}
    # a step that was made but not yet kept is made again
    assert {len(steps) for steps in lines(store, "steps.txt").values()} <= {4, 5}
    store.rebuild_results_csv()
    alone.rebuild_results_csv()
    assert files(store) == files(alone)


def test_a_node_that_does_not_share_the_folders_is_named_and_nothing_is_written(
    run, world, cluster, monkeypatch
):
    kept = engine._token

    def elsewhere(folder, needed=False):
        return kept(folder, needed=needed) if needed else contextlib.nullcontext(Path("/nowhere/data"))

    monkeypatch.setattr(engine, "_token", elsewhere)
    with pytest.raises(
        StoreError, match=r"--engine ray: node [\d.]+ does not see /nowhere/data: the working"
    ):
        run(cluster.address)
    assert list((world / "out").rglob("*")) == []


def test_a_cell_that_kills_its_workers_fails_and_the_others_share_a_gpu(run, cluster):
    bad = "runs/fakes/tiny/fake_one/seed-0"
    summary, text, store = run(cluster.address, {"exit": bad}, device="auto", seeds="0,1", cpus=0.5, gpus=0.5)
    assert summary.done == 2
    assert summary.failed == [(bad, "its worker was lost 4 times (WorkerCrashedError)")]
    assert store.cell(bad).read_json("status.json")["status"] == "failed"
    assert [line.split(" ", 1)[1] for line in lines(store, "begun.txt")[bad]] == ["cuda:0 0"] * 4
    assert lines(store, "done.txt").keys() == lines(store, "begun.txt").keys() - {bad}


@pytest.mark.parametrize(
    ("device", "needs", "line"),
    [
        ("cuda:1", Cluster(), "Ray hands out the GPUs. Use --device cuda, cpu or auto"),
        ("auto", Cluster(gpus=2), "--gpus-per-cell 2: a cell takes one GPU or a share of it"),
        ("cpu", Cluster(gpus=0.5), "--gpus-per-cell 0.5 contradicts --device cpu"),
        ("cuda", Cluster(gpus=0), "--gpus-per-cell 0 contradicts --device cuda"),
    ],
)
def test_needs_that_cannot_be_are_refused(flags, world, device, needs, line):
    spec = make_plan(load_config(flags | {"device": device}), Store(world / "out")).cells[0].spec
    with pytest.raises(ConfigError, match=line):
        engine._needs(spec, needs)


def test_a_cell_takes_a_core_for_itself_and_for_each_process_that_loads_data(flags, world, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    given = flags | {"device": "cuda", "num_workers": 2}
    spec = make_plan(load_config(given), Store(world / "out")).cells[0].spec
    assert engine._needs(spec, Cluster()) == engine.Needs(cpus=3, gpus=1, threads=1)
    assert engine._needs(spec, Cluster(cpus=6, gpus=0.25)) == engine.Needs(cpus=6, gpus=0.25, threads=4)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://head:10001", "expected HOST:PORT of the cluster's head"),
        ("head", "expected HOST:PORT of the cluster's head"),
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line_at_once(run, address, line):
    with pytest.raises(ConfigError, match=line):
        run(address)


def test_the_death_of_the_commands_own_node_is_one_line(flags, world, monkeypatch):
    from ray.exceptions import LocalRayletDiedError

    def tasks(*_):
        raise LocalRayletDiedError

    for name in ("_connected", "_warn_if_nowhere"):
        monkeypatch.setattr(engine, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(engine, "_needs", lambda *_: engine.Needs(1, 0, 1))
    monkeypatch.setattr(engine, "_Tasks", tasks)
    config = load_config(flags)
    store = Store(config.output_dir)
    with pytest.raises(
        LostError, match=r"the node of this command has failed \(LocalRayletDiedError\). Finished"
    ):
        run_plan(
            make_plan(config, store), store, console=Console(force_terminal=False), cluster=Cluster("auto")
        )  # fmt: skip

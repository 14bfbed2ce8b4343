"""A grid of cells in two processes: one set of files, one line for a failure, and the whole command under torchrun."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import yaml

from benchmark.config.run_config import Recipe
from benchmark.console import Console, Reporter, Stopped
from benchmark.errors import CellError, ConfigError
from benchmark.files import ROOT
from benchmark.plan import CellSpec
from benchmark.run.engines import torchrun as together
from benchmark.run.engines.grid import Grid, Summary
from benchmark.store.cells import CellFolder, Store
from benchmark.world import ALONE, World
from tests.pair import Pair


def spec(root: Path, seed: int, trouble: str = "", **changes: Any) -> CellSpec:
    values: dict[str, Any] = {
        "suite_name": "small", "suite": {}, "backbone": "tiny", "pretrained": None, "method": "fake",
        "options": {"trouble": trouble}, "seed": seed, "recipe": Recipe(batch_size=4), "tasks": {}, "data_root": root,
    }  # fmt: skip
    return CellSpec(**values | changes)


def cell(one: CellSpec, folder: CellFolder, reporter: Reporter, world: World) -> None:
    """Stand for a cell: meet, and fail where the option says so."""
    reporter.start("adapt", 1)
    world.wait()
    what, _, rank = one.options["trouble"].partition(" ")
    if rank == str(world.rank):
        raise Stopped if what == "stop" else RuntimeError("boom")
    if what == "early":  # the others go on to a meeting, or to the end
        world.wait()
    with folder.inside(f"ran-{world.rank}.txt").open("a") as file:
        file.write("once\n")


def run(world: World, out: Path, specs: list[CellSpec], fail: str = "") -> tuple[Summary, str]:
    def prepare(reporter: Reporter) -> None:
        if fail:
            raise ConfigError(fail)

    console = Console(force_terminal=False)
    console.out = rich.console.Console(file=io.StringIO(), width=300)
    grid = Grid(
        list(specs),
        Store(out),
        console.board(len(specs)).__enter__(),
        Summary(),
        cell,
        make_shared=prepare,
    )
    together.run(grid, None, world)
    return grid.summary, console.out.file.getvalue()


def status(out: Path, seed: int) -> Any:
    return Store(out).cell(f"runs/small/tiny/fake/seed-{seed}").read_json("status.json")


def test_a_cell_that_fails_anywhere_fails_once_and_the_others_run(both: Pair, tmp_path: Path) -> None:
    troubles = ("", "early 1", "late 1", "early 0", "")
    specs = [spec(tmp_path, seed, trouble) for seed, trouble in enumerate(troubles)]
    for summary, _ in both(run, tmp_path / "out", specs):
        assert summary.done == 2
        assert [error for _, error in summary.failed] == ["RuntimeError: boom"] * 3
    assert [status(tmp_path / "out", seed)["status"] for seed in range(5)] == [
        "success", "failed", "failed", "failed", "success",
    ]  # fmt: skip
    assert status(tmp_path / "out", 2)["error"] == "RuntimeError: boom"
    again = both(run, tmp_path / "out", [spec(tmp_path, 0), spec(tmp_path, 1)])
    assert {(summary.reused, summary.done) for summary, _ in again} == {(1, 1)}
    assert (tmp_path / "out/runs/small/tiny/fake/seed-0/ran-1.txt").read_text() == "once\n"


def test_a_cell_of_another_run_is_left_alone(both: Pair, tmp_path: Path) -> None:
    one = spec(tmp_path, 0)
    with Store(tmp_path).cell(one.folder).lock() as held:
        assert held
        assert [summary.busy for summary, _ in both(run, tmp_path, [one])] == [1, 1]


def test_a_stop_that_the_first_process_hears_ends_the_run_in_both(both: Pair, tmp_path: Path) -> None:
    found = both(run, tmp_path, [spec(tmp_path, 0, "stop 0")])
    assert [summary.interrupted for summary, _ in found] == [True, True]
    assert status(tmp_path, 0)["status"] == "running"


def test_preparation_that_fails_ends_the_run_in_both(both: Pair, tmp_path: Path) -> None:
    found = both(run, tmp_path, [spec(tmp_path, 0)], "no such file")
    assert [str(error) for error in found] == ["no such file"] * 2


def test_requests_that_do_not_go_with_several_processes(both: Pair, tmp_path: Path) -> None:
    found = both(run, tmp_path, [spec(tmp_path, 0, recipe=Recipe(batch_size=3))])
    line = "--batch-size 3 is the batch of all 2 processes together and must be a multiple of 2"
    assert [str(error) for error in found] == [line] * 2
    with pytest.raises(ConfigError, match="--jobs: torchrun's processes"):
        together._check([spec(tmp_path, 0)], ALONE, 2)


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together.machine, "on_this_machine", lambda: (1, 2))
    monkeypatch.setattr(together, "find_devices", lambda wanted: ["cuda:0", "cuda:1"])
    assert together._device("auto") == "cuda:1"
    monkeypatch.setattr(together, "find_devices", lambda wanted: ["cuda:0"])
    with pytest.raises(
        ConfigError, match="started 2 processes here, each needs a GPU of its own, and there is 1"
    ):
        together._device("cuda:0")
    monkeypatch.setattr(together, "find_devices", lambda wanted: ["cpu"])
    assert together._device("auto") == "cpu"


def test_a_hash_tells_local_negatives_of_several_processes(tmp_path: Path) -> None:
    def hash_of(negatives: Any, processes: int) -> str:
        return spec(tmp_path, 0, recipe=Recipe(negatives=negatives), processes=processes).adapt_hash

    assert hash_of("global", 2) == hash_of("global", 1)
    assert len({hash_of("local", 1), hash_of("local", 2), hash_of("local", 4)}) == 3


def join(world: World, wrong_in: tuple[int, ...]) -> tuple[str, str]:
    """Join as the command does, and fail in some processes; return the error and what was printed."""
    console = Console(force_terminal=False)
    console.out = rich.console.Console(file=io.StringIO(), width=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together.machine, "launched", lambda: True)
        patch.setattr("benchmark.run.training.distributed.ProcessGroup", lambda: world)
        patch.setattr(type(world), "leave", lambda self: None)
        try:
            with together.joined(console):
                console.line("planned")
                if world.rank in wrong_in:
                    raise ConfigError("not so")
        except ConfigError as error:
            return str(error), console.out.file.getvalue()
        except CellError as error:
            return f"told: {error}", console.out.file.getvalue()
    return "", console.out.file.getvalue()


@pytest.mark.parametrize(
    ("wrong_in", "errors"),
    [((), ("", "")), ((0, 1), ("not so", "not so")), ((1,), ("told: not so", "not so"))],
)
def test_one_process_speaks_and_what_ends_one_ends_all(
    both: Pair, wrong_in: tuple[int, ...], errors: tuple[str, str]
) -> None:
    assert both(join, wrong_in) == [(errors[0], "planned\n"), (errors[1], "")]


# ---------------------------------------------------------------------------------------------- the whole command
def torchrun(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, str(ROOT / "run_benchmark.py"), *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_gives_the_files_and_results_of_one_process(tmp_path: Path) -> None:
    from benchmark.cli import main  # here, as the pair imports this file as well
    from tests.run.test_cell import SUITE

    suite = {**SUITE, "tasks": {name: SUITE["tasks"]["zeroshot"] for name in ("zeroshot", "transclip")}}
    suite["methods"] = {"taskres": {"recipe": {"lr": 1e30}}}  # its loss does not stay finite
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    words = ["--suite", str(tmp_path / "small.yaml"), "--device", "cpu", "--max-steps", "4", "--batch-size", "16",
             "--tasks", "zeroshot,transclip", "--data-root", str(tmp_path / "data"), "recipe.eps=1e-3",
             "methods.clip_lora.lora_dropout=0", "--methods", "clip_lora,taskres",
             "--cell", "clip_lora/seed-0"]  # fmt: skip
    assert main([*words, "--jobs", "1", "--output-dir", str(tmp_path / "one")]) == 0
    done = torchrun([*words, "--cell", "taskres/seed-0", "--output-dir", str(tmp_path / "two")], tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("[2/2]") == 1  # one process speaks for both
    assert "2 cells: 1 done, 0 reused, 1 failed" in done.stdout
    assert done.stderr.count("became nan") == 1

    one, two = (CellFolder(tmp_path / name / "runs/small/tiny/clip_lora/seed-0") for name in ("one", "two"))
    files = [
        sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*")) for folder in (one, two)
    ]
    assert files[0] == files[1]
    state = two.read_tensors("adapter.safetensors")
    for name, value in one.read_tensors("adapter.safetensors").items():
        assert float((state[name] - value).abs().max()) < 1e-5, name
    for name in ("predictions/zeroshot-siim.npz", "predictions/transclip-siim.npz"):
        ours, expected = (folder.read_npz(name)["similarity"] for folder in (two, one))
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert [folder.read_config()["processes"] for folder in (one, two)] == [1, 2]
    assert [folder.read_json("efficiency.json")["processes"] for folder in (one, two)] == [1, 2]
    for ours, expected in zip(two.read_history(), one.read_history(), strict=True):
        assert ours["val_auroc"] == pytest.approx(expected["val_auroc"], abs=1e-3)

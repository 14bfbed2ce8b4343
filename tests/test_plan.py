"""The plan reuses finished cells, and refuses to mix results of different settings."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json

import pytest

from benchmark.config.cell_settings import settings_key
from benchmark.config.load import load_config
from benchmark.errors import StoreError
from benchmark.files import ROOT
from benchmark.plan import CellSpec, make_plan
from benchmark.registry import TASKS
from benchmark.run.execute import execute_cell
from benchmark.store.cells import Store

STILL = """
name: still
backbone: tiny
corpus: {dataset: phantom, part: mimic, n: 1536}
templates: ["a chest X-ray image of {}."]
validation:
  {task: zeroshot, dataset: phantom, part: nih, n: 3000, kind: multiclass, exclusive: true, metric: auroc,
   classes: [Effusion, Edema]}
tasks:
  zeroshot:
    datasets:
      rsna: {dataset: phantom, part: rsna, kind: binary, classes: [No Finding, Pneumonia], positive: Pneumonia}
recipe: {epochs: 4, batch_size: 64, warmup_epochs: 0.5, eval_batch_size: 128}
methods:
  clip_adapter: {recipe: {lr: 1.0e-2}}
  clip_lora: {recipe: {lr: 3.0e-3}, options: {r: 8}}
"""
HASHES = {
    "clip_lora 0": "426502d9c7b1",
    "clip_lora 1": "b56d543bba82",
    "clip_adapter 0": "1a998d26636c",
    "clip_adapter 1": "60a51877202e",
}


@pytest.fixture
def finished(flags, world):
    """The store after all cells of the fakes have run."""
    store = Store(world / "out")
    for cell in make_plan(load_config(flags), store).cells:
        execute_cell(cell.spec, store, _Silent(), importlib.import_module("fake_cells").run_cell)
    return store


class _Silent:
    def start(self, stage, total, part=None): ...
    def advance(self, n=1, note=""): ...
    def log(self, line): ...
    def stopping(self): ...


def plan(flags, store, *overrides, **more):
    return make_plan(load_config(flags | more, overrides), store)


def test_one_cell_per_method_and_seed_but_one_for_deterministic_methods(flags, world):
    cells = plan(flags, Store(world / "out"), seeds="0,1,2").cells
    assert [cell.spec.folder for cell in cells] == [
        "runs/fakes/tiny/fake_one/seed-0",
        "runs/fakes/tiny/fake_one/seed-1",
        "runs/fakes/tiny/fake_one/seed-2",
        "runs/fakes/tiny/fake_two/seed-0",
    ]
    assert {cell.state for cell in cells} == {"todo"}
    assert cells[0].cost == 2.0


def test_deterministic_methods_have_more_seeds_where_a_task_draws(flags, world, monkeypatch):
    config = load_config(flags | {"seeds": "0,1,2"})
    monkeypatch.setattr(TASKS.get("fake_task"), "draws", True, raising=False)
    cells = make_plan(config, Store(world / "out")).cells
    assert [cell.spec.seed for cell in cells if cell.spec.method == "fake_two"] == [0, 1, 2]


def test_spec_survives_json(flags, world):
    spec = plan(flags, Store(world)).cells[0].spec
    again = CellSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.adapt_hash == spec.adapt_hash


def test_finished_cells_are_reused(flags, finished):
    assert [cell.state for cell in plan(flags, finished).cells] == ["done", "done"]
    assert plan(flags, finished).open == []


def test_settings_that_change_no_result_do_not_matter(flags, finished):
    same = plan(
        flags, finished, "log_every=3", "micro_batch=8", num_workers="2", device="cpu", data_root="/x"
    )
    assert same.open == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": "7e-3"}, "recipe.lr"),
        ({"limit": "4"}, "limit: None there, 4 now"),
        ({"overrides": "methods.fake_one.depth=9"}, "options.depth: 3 there, 9 now"),
        ({"overrides": "corpus.n=16"}, "suite.corpus.n: 32 there, 16 now"),
        ({"overrides": "tasks.fake_task.depth=9"}, "tasks.fake_task.depth: 2 there, 9 now"),
    ],
)
def test_other_settings_go_beside_as_a_variant_named_by_them(flags, finished, change, named):
    overrides = [change.pop("overrides")] if "overrides" in change else []
    found = plan(flags, finished, *overrides, **change)
    assert any(named in line and "--overwrite" in line for line in found.notes)
    key = named.partition(":")[0].removeprefix("options.").removeprefix("suite.")
    spec = found.cells[0].spec
    assert (spec.variant.partition("=")[0], found.cells[0].state, spec.beside) == (key, "todo", True)
    assert spec.folder == f"runs/fakes/tiny/fake_one+{spec.variant}/seed-0"
    execute_cell(spec, finished, _Silent(), importlib.import_module("fake_cells").run_cell)
    again = plan(flags, finished, *overrides, **change).cells[0]
    assert (again.state, again.spec.variant) == ("done", spec.variant)
    assert plan(flags, finished).open == []  # the method's own results are as they were
    replaced = plan(flags, finished, *overrides, overwrite=True, **change)
    assert all((cell.state, cell.spec.variant) == ("todo", "") for cell in replaced.cells)
    assert replaced.notes == ()


def test_seeds_of_a_method_stay_together(flags, finished):
    found = plan(flags, finished, seeds="0,1", lr="7e-3", methods=["fake_one"]).cells
    assert [cell.spec.cell for cell in found] == ["fake_one+recipe.lr=0.007"] * 2
    alone = plan(flags, finished, seeds="1", lr="7e-3", methods=["fake_one"]).cells
    assert [cell.spec.cell for cell in alone] == ["fake_one+recipe.lr=0.007"]  # seed 0 has the name
    assert [cell.spec.cell for cell in plan(flags, finished, seeds="1", methods=["fake_one"]).cells] == [
        "fake_one"
    ]


def test_a_method_that_trains_nothing_takes_no_part_in_recipes(flags, finished):
    found = {
        cell.spec.cell: cell.state
        for cell in plan(flags, finished, "corpus.n=16", lr="7e-3", batch_size="4").cells
    }
    assert found.pop("fake_two") == "done"
    assert list(found.values()) == ["todo"]
    limited = plan(flags, finished, limit="4", methods=["fake_two"]).cells[0]
    assert (limited.spec.cell, limited.state) == ("fake_two+limit=4", "todo")


def test_a_variant_of_many_settings_has_a_name_that_fits_a_folder(flags, finished):
    words = [f"templates=['{'x' * 90} {{}}.']", "corpus.n=16", "recipe.lr=0.5"]
    spec = plan(flags, finished, *words, methods=["fake_one"]).cells[0].spec
    assert len(spec.variant) <= 100
    assert spec.variant.rpartition(",")[2].startswith("more=")
    other = plan(flags, finished, words[0].replace("x", "y"), *words[1:], methods=["fake_one"]).cells[0].spec
    assert other.variant != spec.variant


def test_rows_of_experiments_keep_their_names(flags, finished):
    config = dataclasses.replace(load_config(flags | {"lr": "7e-3"}), beside=False)
    with pytest.raises(
        StoreError, match=r"finished with other settings \(recipe.lr: 0.0005 there, 0.007 now"
    ):
        make_plan(config, finished)


def test_a_missing_task_leaves_the_adapter(flags, finished):
    finished.cell("runs/fakes/tiny/fake_one/seed-0").remove("fake_task.json")
    first = plan(flags, finished).cells[0]
    assert (first.state, first.missing) == ("partial", ("fake_task",))


def test_a_damaged_result_is_made_again(flags, finished):
    finished.cell("runs/fakes/tiny/fake_one/seed-0").inside("fake_task.json").write_text("{")
    assert plan(flags, finished).cells[0].state == "partial"


def test_a_newer_result_is_refused(flags, finished):
    cell = finished.cell("runs/fakes/tiny/fake_one/seed-0")
    cell.write_json("fake_task.json", {"schema_version": 2})
    with pytest.raises(StoreError, match="newer version"):
        plan(flags, finished)


def test_eval_only_needs_an_adapter(flags, finished, world):
    assert all(cell.state == "partial" for cell in plan(flags, finished, eval_only=True).cells)
    with pytest.raises(StoreError, match="--eval-only: no adapter"):
        plan(flags, Store(world / "empty"), eval_only=True)


def test_config_in_the_store_names_no_folder_of_this_machine(flags, finished, world):
    folder = finished.cell("runs/fakes/tiny/fake_one/seed-0")
    for name in ("config.yaml", "provenance.json"):
        assert str(world) not in folder.inside(name).read_text()
    assert folder.read_config()["plugins"] == ["plugin.py"]


def test_unsafe_names_become_one_folder(flags, world):
    spec = dataclasses.replace(plan(flags, Store(world)).cells[0].spec, method="peft:dora", backbone="a/../b")
    assert spec.folder == "runs/fakes/a-..-b/peft-dora/seed-0"


def test_a_variant_is_a_cell_of_its_own(flags, finished):
    base = plan(flags, finished).cells[0].spec
    config = dataclasses.replace(load_config(flags), variants={"fake_one": "depth=9,recipe.lr=0.1"})
    spec = make_plan(config, finished).cells[0].spec
    assert spec.folder == "runs/fakes/tiny/fake_one+depth=9,recipe.lr=0.1/seed-0"
    assert spec.label == "fake_one+depth=9,recipe.lr=0.1 seed 0"
    assert (spec.public()["method"], spec.public()["variant"]) == ("fake_one", "depth=9,recipe.lr=0.1")
    assert spec.adapt_hash == base.adapt_hash  # the name changes no result
    execute_cell(spec, finished, _Silent(), importlib.import_module("fake_cells").run_cell)
    finished.rebuild_results_csv()
    with finished.output_dir.joinpath("results.csv").open() as file:
        named = [row["method"] for row in csv.DictReader(file)]
    assert named == ["fake_one", "fake_one+depth=9,recipe.lr=0.1", "fake_two"]


def test_hashes_of_the_same_settings_have_not_changed(write):
    # the same since before variants, shares of the corpus, related suites and the start as a candidate were there
    suite = write("still.yaml", STILL)
    flags = {"suite": suite, "methods": ["clip_lora", "clip_adapter"], "tasks": "zeroshot", "seeds": "0,1"}
    cells = make_plan(load_config(flags), Store(ROOT / "nothing")).cells
    found = {f"{cell.spec.method} {cell.spec.seed}": cell.spec.task_hash("zeroshot") for cell in cells}
    assert found == HASHES


def test_several_configurations_plan_a_shared_cell_once_with_the_tasks_of_all(flags, world):
    store, config = Store(world / "out"), load_config(flags)
    more = dataclasses.replace(config, task_options={"other_task": {"datasets": {}}})
    cells = make_plan([config, more], store).cells
    assert [cell.spec.cell for cell in cells] == ["fake_one", "fake_two"]
    assert cells[0].missing == ("fake_task", "other_task")
    other = load_config(flags, ["methods.fake_one.depth=9"])
    with pytest.raises(
        StoreError, match="fake_one/seed-0 is asked for with different settings .*depth: 3 once, 9 now"
    ):
        make_plan([config, other], store)


def test_rows_are_runs_of_the_same_settings_whatever_their_seed(flags, world):
    store = Store(world / "out")
    cells = plan(flags, store, seeds="0,1", methods=["fake_one"]).cells
    one, same = (cell.spec.public() for cell in cells)
    other = plan(flags, store, "methods.fake_one.depth=9", methods=["fake_one"]).cells[0].spec.public()
    assert settings_key(one) == settings_key(same) != settings_key(other)

"""Recipes: the authors' own in configs/methods/, what lies above what, what the plan says, and batches of one pair."""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys

import pytest
import rich.console
import yaml

from benchmark.cli import main
from benchmark.cli import run as run_verb
from benchmark.cli._plan_tables import recipe_table
from benchmark.config import layers
from benchmark.config.load import load_config
from benchmark.config.request import load_request
from benchmark.errors import ConfigError
from benchmark.files import ROOT, configs
from benchmark.plan import make_plan
from benchmark.registry import METHODS
from benchmark.store.cells import Store
from tests.bad_input.case import TRAIN, small

SGD = {"optimiser": "sgd", "weight_decay": 5e-4, "logit_scale": "frozen", "select": "last"}
AUTHORS = {  # read off the authors' repositories once more, apart from the files
    "ace_lora": {
        "optimiser": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "epochs": 40,
        "logit_scale": "linear",
    },
    "clip_adapter": {**SGD, "lr": 2e-3},
    "clip_lora": {"optimiser": "adamw", "lr": 2e-4, "weight_decay": 1e-2, "warmup_epochs": 0},
    "cocoop": {**SGD, "lr": 2e-3},
    "coop": {**SGD, "lr": 2e-3},
    "full_ft": {"optimiser": "adamw", "lr": 1e-5, "weight_decay": 0.1, "epochs": 10, "grad_clip": None},
    "maple": {**SGD, "lr": 2.6e-3},
    "mma": {**SGD, "lr": 1.5e-3},
    "mmrl": {"optimiser": "adamw", "lr": 1e-3, "weight_decay": 5e-4, "warmup_epochs": 0},
    "taskres": {**SGD, "optimiser": "adam", "lr": 2e-4},
}
OPTIONS = {
    "clip_lora": {"r": 2, "lora_dropout": 0.25},
    "coop": {"n_ctx": 16},
    "maple": {"prompt_depth": 3},
    "mma": {"adapter_scale": 0.001, "scale_gradients": True},
}
SHALLOW = {"maple": {"prompt_depth": 2}}  # the embedded text tower has two blocks
SUITES = ("radiology", "histopathology", "phantom")


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_has_a_file_with_its_source(name):
    values = yaml.safe_load(configs("methods", f"{name}.yaml").read_text())
    assert len(values["source"]) > 10
    assert ("authors" in values.get("recipe", {})) == (name in AUTHORS)


@pytest.mark.parametrize("suite", SUITES)
def test_with_the_authors_recipe_values_are_those_of_the_sources(suite):
    flags = {"suite": suite, "backbone": "random:biomedclip"}
    common = load_config(flags)
    config = load_config(flags, ["recipe=authors"])
    for name, wanted in AUTHORS.items():
        assert {key: getattr(config.recipes[name], key) for key in wanted} == wanted
        assert config.recipes[name].loss == common.recipes[name].loss  # what is learnt is the suite's
        assert config.recipes[name].batch_size == (
            64 if name == "ace_lora" else common.recipes[name].batch_size
        )
        options = {**OPTIONS.get(name, {}), **(SHALLOW.get(name, {}) if suite == "phantom" else {})}
        assert {key: config.options[name][key] for key in options} == options
    assert config.recipes["coop"].epochs == common.recipes["coop"].epochs
    assert config.options["ace_lora"] == common.options["ace_lora"]
    assert config.notes == ()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes the settings file of a method."""

    def write(name, text):
        path = tmp_path / "methods" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def found(*parts):
        return tmp_path.joinpath(*parts) if parts[0] == "methods" else configs(*parts)

    monkeypatch.setattr(layers, "configs", found)
    return write


FILE = """
source: Somebody et al., table 3
recipe: {common: {eps: 1e-6, lr: 7e-4}, authors: {lr: 3e-4, optimiser: sgd}}
options: {common: {sizes: [5]}, authors: {depth: 7}}
"""


def test_the_authors_recipe_lies_over_the_suite_and_below_the_user(flags, own, write):
    own("fake_one", FILE)
    common, authors = load_config(flags), load_config(flags, ["recipe=authors"])
    recipe = common.recipes["fake_one"]
    assert (recipe.lr, recipe.optimiser, recipe.eps, recipe.epochs) == (5e-4, "adamw", 1e-6, 3)
    assert common.options["fake_one"] == {"depth": 3, "sizes": [5]}
    recipe = authors.recipes["fake_one"]
    assert (recipe.lr, recipe.optimiser, recipe.eps, recipe.epochs) == (3e-4, "sgd", 1e-6, 3)
    assert authors.options["fake_one"] == {"depth": 7, "sizes": [5]}
    path = write(
        "mine.yaml", "recipe: {eps: 1e-5}\nmethods: {fake_one: {recipe: {authors: {betas: [0.8, 0.9]}}}}\n"
    )
    words = ["recipe_name=authors", "methods.fake_one.depth=8"]
    mine = load_config(flags | {"lr": "1e-2"}, words, str(path))
    recipe = mine.recipes["fake_one"]
    assert (recipe.lr, recipe.eps, recipe.betas, recipe.optimiser) == (1e-2, 1e-5, (0.8, 0.9), "sgd")
    assert mine.options["fake_one"]["depth"] == 8


FAKES = ("--suite", "suite.yaml", "--plugins", "plugin.py", "--output-dir", "out", "--device", "cpu")


def test_methods_without_an_authors_recipe_are_named_in_one_line(world, capsys):
    assert main([*FAKES, "--methods", "fake_one,fake_two", "--dry-run", "recipe=authors"]) == 0
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(
        "warning: recipe=authors: no authors' recipe of fake_one (configs/methods/fake_one.yaml"
    )
    assert "fake_two" not in line  # trains nothing
    assert "lr 0.0005" in out


def printed(flags, *words, width=200):
    config = load_config(flags, list(words))
    shown = rich.console.Console(file=io.StringIO(), width=width)
    shown.print(recipe_table(make_plan(config, Store(configs("nowhere"))), [config]))
    return shown.file.getvalue()


def words_of(table):
    """Return the words of a table without its lines."""
    return " ".join(re.sub("[^\x20-\x7e]", " ", table).split())


def test_the_plan_says_what_each_cell_uses_and_from_where():
    flags = {"suite": "radiology", "backbone": "random:biomedclip", "seeds": "0,1"}
    text = printed(flags | {"methods": "zero_shot,coop,maple,full_ft"}, "methods.coop.n_ctx=8")
    said = words_of(text)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "zero_shot trains nothing" in said
    lines = (
        "lr 0.001, 40 epochs, batch 64, adamw, 1 epoch of warm-up, cosine, weight decay 0.01, precision auto, loss "
        "label_guided",
        "lr 1e-05, 10 epochs, batch 64, adamw, 1 epoch of warm-up, cosine, weight decay 0.1, precision auto, loss "
        "label_guided; grad_clip=1",
    )
    for line in lines:
        assert line in said
    assert "options: n_ctx=8" in said
    assert "from suite.methods (lr, weight_decay, grad_clip, epochs), suite, defaults" in said
    said = words_of(printed(flags | {"methods": "mma,full_ft", "lr": "2e-3"}, "recipe=authors"))
    assert "lr 0.002, 40 epochs, batch 64, sgd" in said
    assert "from --lr, authors, suite" in said
    assert "options: adapter_scale=0.001, scale_gradients=true" in said


def test_cells_with_the_same_recipe_share_a_line():
    text = printed(
        {"suite": "radiology", "backbone": "random:biomedclip", "methods": "coop,maple", "seeds": "0,1"}
    )
    assert text.count("lr 0.001") == 1
    names = [line.split()[0] for line in text.splitlines() if line[:1].isalpha()]
    assert [name for name in names if name in ("coop", "maple")] == ["coop", "maple"]


def test_an_ablation_refuses_the_authors_recipes():
    """Its rows share one recipe, which each method's own would replace."""
    files = [str(configs("experiments", "table_5.yaml"))]
    with pytest.raises(ConfigError) as caught:
        load_request({}, ["recipe=authors"], files)
    assert caught.value.problems == [
        "recipe: authors would replace what table 5 sets in LoRA, LoRA + label guidance. Leave it out"
    ]
    load_request({}, ["recipe=authors"], [str(configs("experiments", "table_1.yaml"))])


# ------------------------------------------------------------------ batches of one pair
def test_a_batch_of_one_pair_is_refused_before_anything_is_made(world):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_benchmark.py"), *FAKES, "--methods", "fake_*", "--batch-size", "1"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: --batch-size: a batch of 1 pair leaves nothing to compare it with, so that the contrastive loss is "
        "always zero. Take at least 2\n"
    )
    assert not (world / "out").exists()
    assert main([*FAKES, "--methods", "fake_two", "--batch-size", "1", "--dry-run"]) == 0  # trains nothing


def test_so_is_one_pair_per_process_with_local_negatives(flags, monkeypatch):
    monkeypatch.setattr("benchmark.config.load.processes", lambda: 16)
    assert load_config(flags).recipes["fake_one"].batch_size == 16
    with pytest.raises(ConfigError) as caught:
        load_config(flags, ["recipe.negatives=local"])
    (line,) = caught.value.problems
    assert line.startswith(
        "suite.yaml:recipe.batch_size: with negatives=local each of 16 processes compares 1 of 16 pairs"
    )
    assert line.endswith("Take at least 32, or negatives=global")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--limit 3",
            "warning: corpus 'csv' has 3 pairs, less than two batches of 2: an epoch is one step, which leaves ",
        ),
        ("--limit 4", ""),
        ("--limit 1 --methods zero_shot", ""),
    ],
)
def test_a_corpus_of_less_than_two_batches_warns_once_before_the_first_cell(
    words, says, world, stand_in, monkeypatch, capsys
):
    small(world)
    prepare = run_verb._prepare
    stand_in(importlib.import_module("fake_cells").run_cell)
    monkeypatch.setattr(run_verb, "_prepare", prepare)
    assert main([*TRAIN.split(), "--seeds", "0,1", *words.split()]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "batches" in line]
    assert len(lines) == bool(says)
    assert all(line.startswith(says) for line in lines)

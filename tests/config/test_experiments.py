"""Experiments: their files, and what their rows become on a suite."""

from __future__ import annotations

import csv

import pytest

from benchmark.config.experiments import (
    cells_needed,
    experiments,
    named_backbones,
    read_experiment,
    read_suite,
    resolve,
    variant_text,
)
from benchmark.config.load import load_config
from benchmark.config.request import load_request
from benchmark.errors import ConfigError
from benchmark.files import ROOT, configs, paper_tables
from benchmark.registry import METHODS, TASKS, load_plugins

FAKES = {
    "name": "fakes",
    "backbone": "tiny",
    "backbones": ["tiny", "tiny_b"],
    "related": {"far": "gone", "second": "tiny_b", "self": "fakes"},
    "corpus": {"dataset": "phantom", "part": "mimic", "n": 40},
    "tasks": {"fake_task": {}},
    "recipe": {"batch_size": 16, "lr": 2e-3},
    "methods": {"fake_one": {"recipe": {"lr": 5e-4}, "options": {"depth": 3}}},
}
HEAD = "experiment:\n  id: X.1\n  kind: table\n  tasks: {fake_task: [acc]}\n"


@pytest.fixture
def rows(world, write):
    """A function that resolves rows given as YAML on the suite FAKES."""
    load_plugins([str(world / "plugin.py")])

    def resolved(text: str, backbone: str = "tiny", head: str = HEAD):
        problems: list[str] = []
        experiment = read_experiment(write("mine.yaml", head + text), problems)
        assert problems == []
        return resolve(experiment, FAKES, backbone)

    return resolved


def row(rows, **keys):
    listed = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return rows(f"  rows:\n    - {{title: a, {listed}}}\n")[0]


# ------------------------------------------------------------------ variants
def test_the_canonical_text_is_sorted_and_typed():
    assert (
        variant_text({"topk": 3, "apply_to": "none", "recipe.lr": 1e-3})
        == "apply_to=none,recipe.lr=0.001,topk=3"
    )
    assert variant_text({"a": True, "b": None, "c": [1, 2]}) == "a=true,b=none,c=1-2"
    assert variant_text({}) == ""


@pytest.mark.parametrize(
    ("method", "changes", "cell"),
    [
        ("fake_one", "{}", "fake_one"),
        ("Fake-One+", "{depth: 4}", "fake_one+depth=4"),
        ("fake_one", "{depth: 3}", "fake_one"),  # the suite's own
        ("fake_two", "{recipe.lr: 2e-3}", "fake_two"),  # text, as YAML 1.1 reads it
        ("fake_one", "{recipe.lr: 2e-3}", "fake_one+recipe.lr=0.002"),
        ("fake_one", "{sizes: [1, 2]}", "fake_one"),  # the plugin's own
        ("fake_one", "{corpus.fraction: 1}", "fake_one"),
        ("fake_one", "{corpus.fraction: 0.5, depth: 3}", "fake_one+corpus.fraction=0.5"),
    ],
)
def test_a_change_to_what_holds_anyway_is_no_variant(rows, method, changes, cell):
    found = row(rows, method=method, set=changes)
    assert (found.cell, found.reason) == (cell, "")


def test_a_row_can_take_the_recipe_of_another_method(rows):
    assert row(rows, method="fake_two", recipe_of="fake_one").cell == "fake_two+recipe.lr=0.0005"
    assert row(rows, method="fake_one", recipe_of="fake_one").cell == "fake_one"
    found = row(rows, method="fake_two", recipe_of="fake_one", set="{recipe.lr: 2e-3}")
    assert found.cell == "fake_two"  # what is set is stronger


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"method": "fake_one", "backbone": "kda"}, "no backbone 'kda' is known here"),
        ({"method": "fake_one", "backbone": "bmc-clip"}, "suite 'fakes' is made for tiny, tiny_b"),
        ({"method": "fake_one", "suite": "far"}, "the related suite 'gone' is not in configs/suites"),
        ({"method": "fake_one", "suite": "near"}, "suite 'fakes' has no related suite for 'near'"),
        ({"method": "fake_oen"}, "unknown method 'fake_oen'. Did you mean 'fake_one'?"),
        ({"method": "fake_one", "set": "{dept: 3}"}, "rows.a.set.dept: unknown method key 'dept'. Did you"),
        ({"method": "fake_one", "set": "{recipe.lr: -1}"}, "rows.a.set.recipe.lr: expected a value greater than 0"),
        ({"method": "fake_one", "set": "{data.x: 1}"}, "rows.a.set.data.x: expected an option, recipe.<key> or"),
        ({"method": "fake_one", "set": "{corpus.fraction: 0.3}"}, "30% of 40 pairs are less than one batch of 16"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_run_says_why(rows, keys, reason):
    assert reason in row(rows, **keys).reason


def test_enough_pairs_for_one_batch_are_enough(rows):
    assert row(rows, method="fake_one", set="{corpus.fraction: 0.4}").reason == ""
    assert row(rows, method="fake_one", set="{corpus.fraction: 0.3, recipe.batch_size: 12}").reason == ""


# ------------------------------------------------------------------ rows
def test_titles_name_the_backbone_and_differences_follow_them(rows):
    found = rows(
        """
  rows:
    - {paper_row: BMC-CLIP, title: "{backbone} (frozen)", backbone: second, method: fake_two}
    - {title: "{backbone} + one", backbone: second, method: fake_one}
    - {title: gain, difference: ["{backbone} + one", "{backbone} (frozen)"]}
"""
    )
    assert [item.title for item in found] == ["tiny_b (frozen)", "tiny_b + one", "gain"]
    assert [item.backbone for item in found[:2]] == ["tiny_b", "tiny_b"]
    assert found[0].paper_row == "BMC-CLIP"
    assert found[2].difference == ("tiny_b + one", "tiny_b (frozen)")
    assert (found[2].method, found[0].difference) == ("", None)


def test_rows_run_on_the_chosen_backbone_unless_they_name_one(rows):
    text = (
        "  rows:\n    - {title: a, method: fake_one}\n    - {title: b, method: fake_one, backbone: second}\n"
    )
    assert [item.backbone for item in rows(text, backbone="random")] == ["random", "tiny_b"]


def test_a_sweep_is_one_row_per_value_after_the_others(rows):
    found = rows(
        "  rows: [{title: base, method: fake_two}]\n"
        "  sweep: {method: fake_one, option: depth, values: [1, 3, 9]}\n",
        head=HEAD.replace("table", "curve"),
    )
    assert [item.title for item in found] == ["base", "depth = 1", "depth = 3", "depth = 9"]
    assert [item.cell for item in found] == ["fake_two", "fake_one+depth=1", "fake_one", "fake_one+depth=9"]
    assert [item.value for item in found] == [None, 1, 3, 9]


def test_a_related_suite_brings_its_own_backbone_and_settings():
    histology = next(item for item in experiments() if item.name == "table_3")
    chosen = read_suite("radiology")
    rows = resolve(histology, chosen, "biomedclip")
    assert {item.suite_name for item in rows} == {"histopathology"}
    assert [item.backbone for item in rows if not item.reason][-2:] == ["biomedclip", "biomedclip"]
    chosen_elsewhere = resolve(histology, chosen, "random:biomedclip")
    assert chosen_elsewhere[-1].backbone == "random:biomedclip"


# ------------------------------------------------------------------ files
def test_every_problem_of_a_file_is_told_with_its_place(write):
    text = """
        experiment:
          id: X
          kind: tabel
          titel: A
          tasks: {fake_task: acc}
        """
    found: list[str] = []
    assert read_experiment(write("mine.yaml", text), found) is None
    assert len(found) == 3
    assert any("mine.yaml:experiment.kind: expected one of" in line for line in found)
    assert any("unknown key 'titel'. Did you mean 'title'?" in line for line in found)


# ------------------------------------------------------------------ the project's own
def test_the_files_are_named_after_what_they_make():
    stems = {path.stem for path in configs("experiments").glob("*.yaml")}
    assert {item.name for item in experiments()} == stems
    assert [item.name for item in experiments()][:9] == [*(f"table_{k}" for k in range(1, 9)), "table_A1"]
    assert experiments()[8].label == "table A.1"


def test_every_number_of_the_paper_has_its_row():
    with paper_tables().open(encoding="utf-8") as file:
        printed = {(item["table"], item["row_method"]) for item in csv.DictReader(file)}
    tables = [item for item in experiments() if item.kind == "table"]
    # rows of our own have no name in a paper
    ours = {(item.id, line.paper_row) for item in tables for line in item.rows if line.paper_row}
    # TransCLIP stands in columns of its own; A.1 and A.2 describe datasets
    elsewhere = {item for item in printed if item[0] in ("A.1", "A.2")} | {("A.4", "TransCLIP")}
    assert printed - elsewhere == ours
    paper_order = {table: [] for table, _ in printed}
    with paper_tables().open(encoding="utf-8") as file:
        for item in csv.DictReader(file):
            paper_order[item["table"]].append(item["row_method"])
    for item in tables:
        named = filter(None, (line.paper_row for line in item.rows))
        rows = list(dict.fromkeys(named))  # a model may have two forms
        assert rows == [name for name in dict.fromkeys(paper_order.get(item.id, [])) if name in rows], (
            item.name
        )


@pytest.mark.parametrize("suite", ["phantom", "radiology", "radiology_openi", "histopathology", "ct_rate"])
def test_our_rows_name_what_exists_and_are_right_on_every_suite(suite):
    chosen = read_suite(suite)
    for item in experiments():
        assert all(TASKS.resolve(task) for task in item.tasks)
        assert all(METHODS.resolve(line.method) for line in item.rows if line.method)
        for found in resolve(item, chosen, chosen["backbone"]):
            # a reason is that something is not here, never that a row is written wrongly
            assert not found.reason or found.reason.startswith(
                (
                    "no backbone",
                    "suite '",
                    "the related suite",
                    f"suite '{suite}' is made for",
                )
            ), (item.name, found)


def test_medct_vlm_counts_what_the_paper_prints():
    """The 1.67 M of the paper: q, k and v of both towers at r = 24 (counted in tests/backbones/test_ct_clip.py)."""
    item = next(item for item in experiments() if item.name == "medct_vlm")
    found = {line.title: line for line in resolve(item, read_suite("ct_rate"), "ct_clip")}
    assert not any(line.reason for line in found.values())
    assert found["LoRA, r = 24 (count of the paper, sites inferred)"].cell == "clip_lora+r=24"
    assert found["LoRA, r = 16"].cell == "clip_lora+r=16"
    assert found["one LoRA as large as MoLRE's experts"].cell == "molre+experts=1,r=48"
    assert item.label == "table medct_vlm"


def test_the_ablations_share_cells_and_one_recipe():
    by_name = {item.name: item for item in experiments()}
    radiology, phantom = read_suite("radiology"), read_suite("phantom")
    cells = {name: [x.cell for x in resolve(by_name[name], radiology, "biomedclip")] for name in by_name}
    assert cells["table_5"] == [
        "zero_shot", "clip_lora+recipe.loss=clip", "ace_lora+recipe.loss=clip", "clip_lora", "ace_lora",
    ]  # fmt: skip
    assert cells["table_A3"][0] == "clip_lora"  # the paper prints the same numbers in Tables 1, 5 and A.3
    assert all("ace_lora" in cells[f"table_{name}"] for name in ("1", "2", "5", "6", "7", "A3"))
    assert all("ace_lora" in cells[f"figure_{name}"] for name in ("A2", "A3", "A4"))
    # on the embedded suite CLIP-LoRA has a learning rate of its own
    rates = {name: phantom["methods"][name]["recipe"]["lr"] for name in ("ace_lora", "clip_lora")}
    own = "" if rates["clip_lora"] == rates["ace_lora"] else f"+recipe.lr={rates['ace_lora']:g}"
    assert resolve(by_name["table_A3"], phantom, "tiny")[0].cell == f"clip_lora{own}"


def test_cells_are_counted_without_importing_methods():
    phantom = read_suite("phantom")
    for item in experiments():
        found = [row for row in resolve(item, phantom, "tiny") if row.method and not row.reason]
        wanted = len({(row.suite_name, row.backbone, row.cell) for row in found})
        assert cells_needed(item, phantom, "tiny") == wanted, item.name


def test_a_suite_as_a_cell_holds_it_resolves_alike():
    phantom = read_suite("phantom")
    stored = phantom | {"tasks": {"zeroshot": phantom["tasks"]["zeroshot"] | {"bootstrap": 1000}}}
    item = next(item for item in experiments() if item.name == "table_5")
    assert resolve(item, stored, "tiny") == resolve(item, phantom, "tiny")
    assert resolve(item, {"name": "old"}, "tiny")[0].cell == "zero_shot"


def test_the_page_tells_every_experiment_and_its_example_is_one(write):
    page = (ROOT / "docs/reproduce.md").read_text()
    assert [item.name for item in experiments() if f"`{item.name}`" not in page] == []
    block = page.split("A file of your own has the same form:")[1].split("A row of `rows:`")[0]
    problems: list[str] = []
    item = read_experiment(write("mine.yaml", block), problems)
    assert problems == []
    cells = [found.cell for found in resolve(item, read_suite("phantom"), "tiny")]
    assert cells == ["clip_lora+lora_dropout=0.0", "clip_lora", "clip_lora+lora_dropout=0.3"]


def test_weights_of_models_that_rows_name():
    words = ["weights.mgca=/w/resnet_50.ckpt", "weights.pmc-clip=/w/checkpoint.pt"]
    flags = {"suite": "radiology", "methods": "zero_shot", "tasks": "zeroshot"}
    assert load_config(flags, words).pretrained is None
    assert load_config(flags | {"backbone": "mgca-r50"}, words).pretrained == "/w/resnet_50.ckpt"
    assert load_config(flags | {"backbone": "pmc-clip:heads=8"}, words).pretrained == "/w/checkpoint.pt"
    mine = flags | {"backbone": "mgca-r50", "pretrained": "/w/mine.ckpt"}
    assert load_config(mine, words).pretrained == "/w/mine.ckpt"
    path = str(configs("experiments", "table_2.yaml"))
    found = load_request({"suite": "radiology"}, words, [path])
    weights = {one.backbone: one.pretrained for one in found.configs}
    assert weights["mgca-r50"] == "/w/resnet_50.ckpt"
    assert weights["pmc-clip:heads=32"] == "/w/checkpoint.pt"
    assert weights["gloria"] is weights["biomedclip"] is None
    assert {"gloria", "mgca-vit", "biovil-t"} <= found.named
    with pytest.raises(ConfigError, match="weights.mgac: unknown backbone 'mgac'. Did you mean 'mgca'"):
        load_config(flags, ["weights.mgac=x"])


def test_backbones_that_tables_name_on_a_suite():
    names = named_backbones(read_suite("radiology"))
    assert names[:4] == ["convirt", "gloria", "mgca-r50", "mgca-vit"]
    assert "bmc-clip" in names
    assert named_backbones(read_suite("phantom")) == ["tiny_b"]
    assert {"plip", "quiltnet"} <= set(named_backbones(read_suite("histopathology")))

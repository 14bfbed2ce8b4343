"""A table never mixes: seeds with other settings are rows of their own, results made of other things stand apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.report.agreement import comparable
from benchmark.report.collect import collect_blocks
from benchmark.report.model import Block, Row
from benchmark.report.paper import load_paper
from benchmark.report.significance.comparisons import block_tests
from tests.report.conftest import write_report

ACC = ("zeroshot", "rsna", "acc")
OTHER = ("zeroshot", "chexpert_5x200", "acc")


pytestmark = pytest.mark.usefixtures("plain_titles")


def block_of(folder: Path, **wanted: Any) -> Block:
    (block,) = collect_blocks(folder, load_paper(), **wanted)
    return block


def row_of(folder: Path, cell: str, **wanted: Any) -> Row:
    (row,) = [row for row in block_of(folder, **wanted).rows if row.cell == cell]
    return row


# --- settings -----------------------------------------------------------------------------------------------


def test_seeds_with_other_settings_are_rows_of_their_own(tmp_path, write_cell):
    write_cell("clip_lora", 0, (0.40, 0.7), options={"r": 4})
    write_cell("clip_lora", 1, (0.50, 0.7), options={"r": 16})
    write_cell("clip_lora", 2, (0.44, 0.7), options={"r": 4})
    write_report(tmp_path, formats=["md"])
    text = (tmp_path / "report" / "table_1.md").read_text()
    assert r"| clip\_lora (r=4)\* |" in text
    assert r"| clip\_lora (r=16)\* |" in text
    rows = {row.title: row for row in block_of(tmp_path).rows}
    four, sixteen = rows["clip_lora (r=4)"], rows["clip_lora (r=16)"]
    assert four.scores[OTHER].value == pytest.approx(0.42)
    assert sixteen.scores[OTHER].value == pytest.approx(0.50)
    assert (four.cell, sixteen.cell) == ("clip_lora", "clip_lora+r=16")
    assert "seed 1 with r=16; other seeds ran with other settings" in text


def test_a_limited_run_and_a_seed_of_equal_settings_are_no_rows_of_their_own(tmp_path, write_cell):
    write_cell("clip_lora", 0, recipe={"lr": 0.001, "log_every": 20})
    write_cell("clip_lora", 1, recipe={"lr": 0.001, "log_every": 5})
    write_cell("clip_lora", 2, limit=64, recipe={"lr": 0.001})
    (row,) = block_of(tmp_path).rows
    assert (row.title, row.scores[ACC].seeds) == ("clip_lora", 2)


# --- identity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"rsna": "r-other"}, "other labels or texts in RSNA"),
        ({"rsna": "other-r"}, "other images in RSNA"),
        ({"corpus": "other-other"}, "other images in the corpus; other labels or texts in the corpus"),
        ({"validation": "v-other"}, "other labels or texts in the validation set"),
        ({"weights": "other"}, "other weights of the backbone"),
        ({"numbers": 2}, "version 2 of the numbers, not 1; version 2 of the numbers in training, not 1"),
    ],
)
def test_a_row_made_of_other_things_is_marked_and_left_out(tmp_path, write_cell, made, words):
    write_cell("zero_shot", 0, (0.35, 0.6), parameters=0, made={})
    write_cell("coop", 0, (0.50, 0.7), made={})
    write_cell("mma", 0, (0.45, 0.7), made={})
    write_cell("taskres", 0, (0.90, 0.9), made=made)
    row = row_of(tmp_path, "taskres")
    assert [note.text for note in row.notes] == [f"made with {words}: not compared"]
    assert row.scores[ACC].apart
    assert row.scores[OTHER].apart is ("RSNA" not in words)
    tests = block_tests(block_of(tmp_path))
    assert tests.against("taskres", ACC) is None
    best = tests.best(ACC)
    assert best.cell == "coop"
    write_report(tmp_path, formats=["md", "tex", "csv"])
    text = (tmp_path / "report" / "table_1.md").read_text()
    assert "100.0(d) [97.0, 103.0]" in text
    assert "**60.0** [57.0, 63.0]" in text
    assert f"made with {words}: not compared." in text.replace("\\", "")
    assert "100.0(d)" in (tmp_path / "report" / "table_1.tex").read_text()


def test_seeds_made_of_other_things_are_left_out_of_the_mean(tmp_path, write_cell):
    write_cell("zero_shot", 0, parameters=0, made={})
    for seed, acc in enumerate((0.50, 0.54, 0.90)):
        write_cell("coop", seed, (acc, 0.7), made={"corpus": "new-c"} if acc == 0.90 else {})
    row = row_of(tmp_path, "coop")
    score = row.scores[ACC]
    assert (score.value, score.seeds, score.apart) == (pytest.approx(0.62), 2, False)
    assert [note.text for note in row.notes] == ["seed 2 made with other images in the corpus: left out"]


def test_what_was_made_by_an_older_program_agrees_with_its_like_alone(tmp_path, write_cell):
    write_cell("zero_shot", 0, parameters=0)
    write_cell("coop", 0)
    assert not any(score.apart for row in block_of(tmp_path).rows for score in row.scores.values())
    write_cell("mma", 0, made={})
    (note,) = row_of(tmp_path, "mma").notes
    assert note.text.startswith("made with version 1 of the numbers, not 0")


def test_the_baseline_says_what_the_others_must_be_made_of_else_most_rows_else_the_newest(
    tmp_path, write_cell
):
    write_cell("coop", 0, made={"rsna": "r-old"}, created="2026-01-01")
    write_cell("mma", 0, made={"rsna": "r-new"}, created="2026-01-02")
    assert row_of(tmp_path, "coop").scores[ACC].apart
    write_cell("maple", 0, made={"rsna": "r-old"}, created="2026-01-01")
    assert row_of(tmp_path, "mma").scores[ACC].apart
    assert row_of(tmp_path, "coop", baseline="mma").scores[ACC].apart
    write_cell("zero_shot", 0, parameters=0, made={"rsna": "r-new", "corpus": "trains-nothing"})
    rows = {row.cell: row for row in block_of(tmp_path).rows}
    assert {cell for cell, row in rows.items() if row.scores[ACC].apart} == {"coop", "maple"}
    assert not rows["mma"].scores[OTHER].apart


def test_a_sweep_over_the_corpus_and_an_unranked_row_are_not_judged(tmp_path, write_cell):
    write_cell("coop", 0, made={})
    write_cell("mma", 0, limit=64, made={"corpus": "first-64"})
    write_cell("coop", 0, variant="corpus.fraction=0.5", made={"corpus": "half-half"})
    (found,) = [block_of(tmp_path)]
    assert not any(score.apart for row in (*found.rows, *found.variants) for score in row.scores.values())


def test_images_are_fitted_to_a_backbone_but_labels_are_not(tmp_path, write_cell):
    write_cell("zero_shot", 0, parameters=0, made={})
    write_cell("zero_shot", 0, parameters=0, backbone="other", made={"rsna": "fitted-r", "weights": "own"})
    write_cell(
        "coop", 0, backbone="other", made={"rsna": "fitted-new", "weights": "own", "corpus": "fitted-c"}
    )
    blocks = collect_blocks(tmp_path, load_paper())
    rows = comparable([row for block in blocks for row in block.rows], None)
    assert [row.scores[ACC].apart for row in rows] == [True, False, False]
    (coop,) = (row for row in rows if row.method == "coop")
    assert [note.text for note in coop.notes] == ["made with other labels or texts in RSNA: not compared"]

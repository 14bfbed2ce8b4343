from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from benchmark.cli import main
from benchmark.errors import ConfigError, StoreError
from benchmark.report import collect
from benchmark.report.paper import load_paper
from benchmark.report.report import read_report
from tests.report.conftest import COMPARABLE, SUITE, write_report

TITLES = {"zero_shot": "BiomedCLIP", "clip_lora": "CLIP-LoRA", "ace_lora": "ACE-LoRA", "full_ft": "Full FT"}


@pytest.fixture(autouse=True)
def _titles(monkeypatch, choose_experiments):
    """Titles of the paper without importing the methods, and the main table alone."""
    choose_experiments()
    monkeypatch.setattr(collect, "method_titles", lambda name: (TITLES.get(name, name),) * 2)


@pytest.fixture
def store(tmp_path, write_cell):
    """Two methods with two seeds, one ahead; a failed seed, a partial one, and the zero-shot model."""
    write_cell("ace_lora", 0, (0.50, 0.80), parameters=969_217, flops=4e9, curve=(0.5, 0.7, 0.8))
    write_cell("ace_lora", 1, (0.54, 0.82), parameters=969_217, flops=4e9, curve=(0.5, 0.7, 0.8))
    write_cell("clip_lora", 0, (0.44, 0.76), parameters=442_369)
    write_cell(
        "clip_lora", 1, (0.46, 0.78), parameters=442_369, status="partial", error="segmentation failed"
    )
    write_cell("clip_lora", 2, (0.99, 0.99), status="failed", error="loss is not finite at step 7")
    write_cell("zero_shot", 0, (0.35, 0.67), parameters=0, step=None, flops=None, curve=())
    write_cell("user_method", 0, (0.30, 0.60), parameters=77)
    return tmp_path


def _markdown_rows(path: Path, part: int = 0) -> dict[str, list[str]]:
    """Rows of a table of a file by their first cell."""
    tables = [text for text in path.read_text().split("\n\n") if text.startswith("|")]
    lines = tables[part].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_csv_holds_means_over_seeds_as_fractions_and_what_failed(store):
    write_report(store, formats=["csv"])
    frame = pd.read_csv(store / "report" / "table_1.csv").set_index("title")
    methods = ["BiomedCLIP", "CLIP-LoRA", "ACE-LoRA", "user_method"]
    assert list(frame.index) == [*methods, "Always the most frequent class"]
    ace = frame.loc["ACE-LoRA"]
    assert ace["chexpert_5x200_acc"] == pytest.approx(0.52)
    assert ace["chexpert_5x200_acc_sd"] == pytest.approx(0.04 / 2**0.5)
    assert ace["chexpert_5x200_acc_ci_low"] == pytest.approx(0.49)
    assert ace["rsna_auroc"] == pytest.approx(0.91)
    assert ace["chexpert_5x200_acc_n"] == 1000
    assert ace["trainable_parameters"] == 969_217
    assert ace["by_tower_text"] == 12_000
    majority = frame.loc["Always the most frequent class"]
    assert (majority["kind"], majority["rsna_acc"]) == ("reference", 0.77)
    assert frame["rsna_auroc_paper"].isna().all()
    assert frame["rsna_auroc_difference"].isna().all()
    assert (frame.loc[methods, "difference_reason"] == "the images are generated").all()
    lora = frame.loc["CLIP-LoRA"]  # failed runs stay out of means
    assert lora["chexpert_5x200_acc"] == pytest.approx(0.45)
    assert lora["seeds"] == 2
    assert "seed 1 is partial (segmentation failed)" in lora["notes"]
    assert "seed 2 failed (loss is not finite at step 7)" in lora["notes"]


def test_markdown_marks_best_and_second_with_units_and_n_and_has_the_costs_below(store):
    write_report(store, formats=["md"])
    text = (store / "report" / "table_1.md").read_text()
    rows = _markdown_rows(store / "report" / "table_1.md")
    heads = rows["Method"]
    acc = heads.index("CheXpert 5x200 ACC [%], n = 1000")
    assert heads[acc - 1 : acc + 2 : 2] == [
        "CheXpert 5x200 ACC paper [%], n = 1000",
        "CheXpert 5x200 ACC difference [points], n = 1000",
    ]
    assert rows["ACE-LoRA"][acc] == "**52.0** +- 2.8 [49.0, 55.0]"
    assert rows[r"CLIP-LoRA\*"][acc].startswith("<u>45.0</u>")
    assert rows["BiomedCLIP"][acc] == "35.0 [32.0, 38.0]"
    assert rows["ACE-LoRA"][acc - 1] == rows["ACE-LoRA"][acc + 1] == ""
    assert rows["Always the most frequent class"][heads.index("RSNA ACC [%], n = 1000")] == "77.0"
    assert "and for differences are blank: the images are generated." in text
    assert "loss is not finite at step 7" in text
    rows = _markdown_rows(store / "report" / "table_1.md", part=1)  # costs
    heads = rows["Method"]
    assert list(rows)[2:] == ["BiomedCLIP", "CLIP-LoRA", "ACE-LoRA", "user\\_method"]
    shown = {head: rows["ACE-LoRA"][heads.index(head)] for head in heads}
    assert shown["Trainable parameters all"] == "969 K"
    assert shown["Trainable parameters text"] == "12.0 K"
    assert shown["Training step [ms]"] == "20.0"
    assert shown["GFLOPs per pair training step"] == "4.00"
    assert shown["Inference FLOPs, frozen = 1 merged"] == "-"
    assert "FLOPs: multiply-add = 2." in text


def test_methods_that_were_kept_as_they_began_are_named(tmp_path, write_cell):
    for seed, step in enumerate((0, 40, 0)):
        write_cell("ace_lora", seed, best={"epoch": step // 20, "step": step})
        write_cell("clip_lora", seed, best={"epoch": 2, "step": 40})
    write_cell("zero_shot", 0, best=None)
    write_report(tmp_path, formats=["md"])
    lines = [
        line for line in (tmp_path / "report/table_1.md").read_text().splitlines() if "first step" in line
    ]
    assert len(lines) == 1
    said = (
        "ACE-LoRA: the weights before the first step were kept, as validation saw no gain (2 of 3 seed(s))."
    )
    assert said in lines[0]


def test_differences_appear_where_the_suite_says_they_mean_something(tmp_path, write_cell):
    write_cell("ace_lora", 0, (0.50, 0.80), suite=COMPARABLE)
    write_report(tmp_path, formats=["md", "csv"])
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv")
    assert frame.loc[0, "chexpert_5x200_acc_paper"] == pytest.approx(0.498)
    assert frame.loc[0, "chexpert_5x200_acc_difference"] == pytest.approx(0.50 - 0.498)
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    at = rows["Method"].index("CheXpert 5x200 ACC paper [%], n = 1000")
    assert rows["ACE-LoRA"][at : at + 3] == ["49.80", "50.0 [47.0, 53.0]", "+0.2"]


def test_data_that_are_not_as_published_are_named_and_not_compared(tmp_path, write_cell):
    cell = write_cell("ace_lora", 0, (0.50, 0.80), suite=COMPARABLE)
    stored = cell.read_json("zeroshot.json")
    stored["datasets"]["chexpert_5x200"]["info"] = {"data_notes": ["not the published split (test: 10 ids)"]}
    cell.write_json("zeroshot.json", stored)
    write_report(tmp_path, formats=["md", "csv"])
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv")
    assert frame["chexpert_5x200_acc_difference"].isna().all()
    assert frame["chexpert_5x200_acc_paper"].isna().all()
    assert frame.loc[0, "rsna_acc_paper"] == pytest.approx(0.7954)
    text = (tmp_path / "report" / "table_1.md").read_text()
    assert "Blank for CheXpert 5x200: the data were prepared differently (doubts below)." in text
    assert "CheXpert 5x200: not the published split (test: 10 ids)." in text


def test_the_papers_numbers_are_left_blank_for_another_backbone_and_for_limited_runs(tmp_path, write_cell):
    suite = COMPARABLE | {"backbone": "tiny"}
    write_cell("ace_lora", suite=suite, backbone="huge")
    write_cell("ace_lora", suite=suite)
    write_cell("clip_lora", suite=suite, limit=10)
    (other, own) = read_report(tmp_path).rendered
    assert "blank: the suite stands for the paper's with backbone tiny, not huge." in other.caption
    frame = read_report(tmp_path).frames()["1"].set_index(["backbone", "method"])
    assert pd.isna(frame.loc[("huge", "ace_lora"), "rsna_acc_paper"])
    assert frame.loc[("tiny", "ace_lora"), "rsna_acc_paper"] == pytest.approx(0.7954)
    assert pd.isna(frame.loc[("tiny", "clip_lora"), "rsna_acc_paper"])
    assert "Table 1" in own.caption


def test_a_suite_without_counterpart_in_the_paper_has_no_paper_columns(tmp_path, write_cell):
    write_cell("ace_lora", suite={"name": "own"})
    write_report(tmp_path, formats=["md"])
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    assert not [head for head in rows["Method"] if "paper" in head]
    assert "chexpert\\_5x200 ACC [%], n = 1000" in rows["Method"]


def test_limited_runs_are_marked_and_never_ranked(tmp_path, write_cell):
    write_cell("ace_lora", 0, (0.90, 0.95), limit=64)
    write_cell("clip_lora", 0, (0.40, 0.70))
    write_cell("full_ft", 0, (0.45, 0.72))
    write_cell("full_ft", 1, (0.99, 0.99), limit=64)
    write_report(tmp_path, formats=["md", "csv"])
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    at = rows["Method"].index("CheXpert 5x200 ACC [%], n = 1000")
    assert rows[r"ACE-LoRA\*"][at].startswith("90.0")
    assert rows[r"Full FT\*"][at].startswith("**45.0**")
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv").set_index("title")
    assert not frame.loc["ACE-LoRA", "ranked"]
    assert "limited to 64 samples: not comparable" in frame.loc["ACE-LoRA", "notes"]
    assert "limited to 64 samples are left out" in frame.loc["Full FT", "notes"]


def test_a_method_whose_runs_all_failed_keeps_its_row(tmp_path, write_cell):
    write_cell("ace_lora", 0, None, status="failed", error="out of memory")
    write_cell("clip_lora", 0, None, status="running")
    write_cell("full_ft", 0)
    write_report(tmp_path, formats=["md"])
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    at = rows["Method"].index("CheXpert 5x200 ACC [%], n = 1000")
    assert rows[r"ACE-LoRA\*"][at] == "failed"
    assert rows[r"CLIP-LoRA\*"][at] == "-"
    assert "seed 0 failed (out of memory)" in (tmp_path / "report" / "table_1.md").read_text()
    assert "seed 0 is unfinished" in (tmp_path / "report" / "table_1.md").read_text()


def test_a_store_without_any_result_still_gives_a_report(tmp_path, write_cell):
    write_cell("ace_lora", 0, None, status="failed", error="no", curve=())
    written = write_report(tmp_path)
    assert not [path for path in written if path.suffix == ".png"]
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_damaged_result_is_noted_and_the_rest_reported(store):
    (store / "runs/toy/tiny/user_method/seed-0/zeroshot.json").write_text("{half")
    write_report(store, formats=["md"])
    text = (store / "report" / "table_1.md").read_text()
    assert "unreadable" in text
    assert "**52.0**" in text


def test_several_backbones_and_suites_become_blocks_that_are_ranked_apart(store, write_cell):
    write_cell("ace_lora", 0, (0.2, 0.5), backbone="other")
    write_cell("clip_lora", 0, (0.1, 0.4), backbone="other")
    write_cell("ace_lora", 0, (0.7, 0.9), suite={**SUITE, "name": "second", "title": "Second"})
    write_report(store, formats=["md", "csv"])
    text = (store / "report" / "table_1.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### Second, backbone tiny",
        "### Toy suite, backbone other",
        "### Toy suite, backbone tiny",
    ]
    assert "**20.0**" in text
    write_report(store, suite="toy", formats=["csv"])
    assert set(pd.read_csv(store / "report" / "table_1.csv")["suite"]) == {"toy"}


def test_the_ceiling_is_a_separate_last_row(store):
    entry = {
        "title": "Linear probe (supervised ceiling)",
        "datasets": {"rsna": {"acc": 0.99, "auroc": 0.995}},
    }
    (store / "ceilings.json").write_text(json.dumps({"toy/tiny": entry}))
    write_report(store, formats=["md", "csv"])
    rows = _markdown_rows(store / "report" / "table_1.md")
    assert list(rows)[-1] == "Linear probe (supervised ceiling)"
    assert rows["Linear probe (supervised ceiling)"][rows["Method"].index("RSNA ACC [%], n = 1000")] == "99.0"
    frame = pd.read_csv(store / "report" / "table_1.csv")
    assert frame.iloc[-1]["kind"] == "reference"
    (store / "ceilings.json").write_text('{"toy/tiny": []}')
    with pytest.raises(StoreError, match=r"ceilings\.json: expected"):
        write_report(store, formats=["md"])


def test_latex_is_balanced_and_escaped(tmp_path, write_cell):
    suite = {**SUITE, "title": r"50% of A&B_{x} \ ~ ^ # $"}
    write_cell("ace_lora", 0, suite=suite)
    write_cell("clip_lora", 0, (0.3, 0.6), suite=suite)
    write_cell("under_score", 0, None, suite=suite, status="failed", error="bad {brace")
    write_report(tmp_path, formats=["tex"])
    text = (tmp_path / "report" / "table_1.tex").read_text()
    assert r"50\% of A\&B\_\{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \$" in text
    bare = re.sub(r"\\[{}%&$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{") == 4
    assert r"\textbf{40.0}" in text
    assert r"\underline{30.0}" in text
    assert r"under\_score*" in text
    assert r"\scriptsize [37.0, 43.0]" in text
    for table in text.split(r"\begin{table*}")[1:]:
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        columns = table.split(r"\begin{tabular}{")[1].split("}")[0]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body[1:]} == {len(columns)}


def test_means_over_datasets_need_every_dataset(tmp_path, write_cell):
    write_cell("ace_lora", 0, (0.50, 0.80))
    write_cell("ace_lora", 1, (0.54, 0.80))
    cell = write_cell("clip_lora", 0, (0.40, 0.70))
    task = cell.read_json("zeroshot.json")
    del task["datasets"]["rsna"]
    cell.write_json("zeroshot.json", task)
    (block,) = collect.collect_blocks(tmp_path, load_paper())
    lora, ace = block.rows
    mean = ace.mean_over(block.keys("acc", "zeroshot"))
    assert mean.value == pytest.approx((0.52 + 0.62) / 2)
    assert mean.sd == pytest.approx(0.04 / 2**0.5)
    assert lora.mean_over(block.keys("acc", "zeroshot")) is None


def test_efficiency_csv_averages_every_number_of_the_cells(store):
    write_report(store, formats=["csv"])
    frame = pd.read_csv(store / "report" / "efficiency.csv").set_index("method")
    assert frame.loc["ace_lora", "wall_time_s"] == 61.5
    assert frame.loc["ace_lora", "by_tower_text"] == 12_000
    assert frame.loc["ace_lora", "step_flops_per_pair"] == 4e9
    assert pd.isna(frame.loc["zero_shot", "step_flops_per_pair"])
    assert "schema_version" not in frame.columns


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_screen_shows_value_interval_parameters_and_time(store, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(read_report(store).console())
    text = console.export_text()
    for expected in ("52.0", "49.0-55.0", "969 K", "20.0", "n=1000", "seed 2 failed"):
        assert expected in text
    assert "0.52" not in text


def test_unknown_tables_formats_and_baselines_are_named(store):
    with pytest.raises(ConfigError, match=r"unknown table '9'.* Known: 1, all"):
        write_report(store, tables=["9"])
    with pytest.raises(ConfigError, match="unknown format 'docx'"):
        write_report(store, formats=["docx"])
    with pytest.raises(ConfigError, match=r"--baseline: unknown method 'ace'.* Did you mean 'ace_lora'"):
        write_report(store, baseline="ace")


def test_the_command_writes_the_tables_that_are_asked_for(store, capsys):
    words = ["--output-dir", str(store), "--tables", "1", "--formats", "md", "--baseline", "clip_lora"]
    assert main(["report", *words]) == 0
    assert (store / "report" / "table_1.md").is_file()
    assert not (store / "report" / "table_1.csv").exists()
    assert str(store / "report" / "table_1.md") in capsys.readouterr().out.replace("\n", "")
    asked = ["--formats", "csv", "--smallest-difference", "2"]
    assert main(["report", "--output-dir", str(store), *asked]) == 0
    assert set(pd.read_csv(store / "report" / "table_1.csv")["smallest_difference"].dropna()) == {0.02}
    assert main(["report", "--output-dir", str(store), "--baseline", "nothing"]) == 2
    assert "error: --baseline: unknown method 'nothing'" in capsys.readouterr().err


def test_a_file_for_config_adds_a_table(store, capsys):
    mine = store / "mine.yaml"
    mine.write_text("""
experiment:
  id: mine
  kind: table
  title: Two of them
  tasks: {zeroshot: [acc]}
  rows:
    - {title: without, method: zero_shot}
    - {title: with, method: ace_lora}
    - {title: gain, difference: [with, without]}
""")
    words = ["report", "--output-dir", str(store), "--formats", "md,csv", "--config", str(mine)]
    assert main(words) == 0
    assert _markdown_rows(store / "report" / "table_mine.md")["gain"][0] == "+17.0"
    assert pd.read_csv(store / "report" / "table_mine.csv")["title"].tolist()[:3] == [
        "without",
        "with",
        "gain",
    ]
    mine.write_text("experiment: {id: mine, kind: tabel}")
    assert main(words) == 2
    assert "mine.yaml:experiment.kind" in capsys.readouterr().err


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(StoreError, match="no runs of suite 'x' to report. Run the benchmark"):
        write_report(tmp_path, suite="x")


def test_the_same_store_gives_the_same_files(tmp_path, write_cell):
    for name in ("zero_shot", "clip_lora", "ace_lora"):  # costs are drawn of three methods or more
        write_cell(name)
    first = {path.name: path.read_bytes() for path in write_report(tmp_path)}
    second = {path.name: path.read_bytes() for path in write_report(tmp_path)}
    assert first == second
    assert {"index.html", "table_1.csv", "table_1.md", "table_1.tex", "efficiency.csv"} <= set(first)
    for stem in ("figure_efficiency", "figure_training"):
        assert first[f"{stem}.png"][:8] == b"\x89PNG\r\n\x1a\n"
        assert first[f"{stem}.pdf"][:5] == b"%PDF-"

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from benchmark.errors import ConfigError, StoreError
from benchmark.report import collect, console_table, write_report
from benchmark.report.paper import load_paper
from tests.report.conftest import SUITE, WriteCell

TITLES = {"zero_shot": "BiomedCLIP", "clip_lora": "CLIP-LoRA", "ace_lora": "ACE-LoRA", "full_ft": "Full FT"}


@pytest.fixture(autouse=True)
def _titles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles of the paper without importing the methods."""
    monkeypatch.setattr(collect, "method_titles", lambda name: (TITLES.get(name, name),) * 2)


@pytest.fixture
def store(tmp_path: Path, write_cell: WriteCell) -> Path:
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


def _markdown_rows(path: Path) -> dict[str, list[str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_csv_holds_means_over_seeds_as_fractions(store: Path) -> None:
    write_report(store, formats=["csv"])
    frame = pd.read_csv(store / "report" / "table_1.csv").set_index("title")
    assert list(frame.index) == ["BiomedCLIP", "CLIP-LoRA", "ACE-LoRA", "user_method"]
    ace = frame.loc["ACE-LoRA"]
    assert ace["chexpert_5x200_acc"] == pytest.approx(0.52)
    assert ace["chexpert_5x200_acc_sd"] == pytest.approx(0.04 / 2**0.5)
    assert ace["chexpert_5x200_acc_ci_low"] == pytest.approx(0.49)
    assert ace["rsna_auroc"] == pytest.approx(0.91)
    assert ace["rsna_auroc_paper"] == pytest.approx(0.8719)
    assert ace["trainable_parameters"] == 969_217
    assert frame["chexpert_5x200_acc_difference"].isna().all()
    assert (frame["difference_reason"] == "the images are generated").all()
    assert pd.isna(frame.loc["user_method", "rsna_acc_paper"])


def test_failed_runs_stay_out_of_means_and_all_troubles_are_noted(store: Path) -> None:
    write_report(store, formats=["csv"])
    lora = pd.read_csv(store / "report" / "table_1.csv").set_index("title").loc["CLIP-LoRA"]
    assert lora["chexpert_5x200_acc"] == pytest.approx(0.45)
    assert lora["seeds"] == 2
    assert "seed 1 is partial (segmentation failed)" in lora["notes"]
    assert "seed 2 failed (loss is not finite at step 7)" in lora["notes"]


def test_markdown_marks_best_and_second_and_shows_the_papers_number_apart(store: Path) -> None:
    write_report(store, formats=["md"])
    text = (store / "report" / "table_1.md").read_text()
    rows = _markdown_rows(store / "report" / "table_1.md")
    heads = rows["Method"]
    acc, paper = heads.index("CheXpert 5x200 ACC"), heads.index("CheXpert 5x200 paper ACC")
    assert rows["ACE-LoRA"][acc] == "**52.0** +- 2.8 [49.0, 55.0]"
    assert rows[r"CLIP-LoRA\*"][acc].startswith("<u>45.0</u>")
    assert rows["BiomedCLIP"][acc] == "35.0 [32.0, 38.0]"
    assert rows["ACE-LoRA"][paper] == "49.80"
    assert rows["Always the most frequent class"][heads.index("RSNA ACC")] == "77.0"
    assert rows["ACE-LoRA"][heads.index("Trainable")] == "969 K"
    assert rows["ACE-LoRA"][heads.index("Step")] == "20 ms"
    assert "Differences from the paper are left blank: the images are generated." in text
    assert "loss is not finite at step 7" in text


def test_differences_appear_where_the_suite_says_they_mean_something(
    tmp_path: Path, write_cell: WriteCell
) -> None:
    suite = copy.deepcopy(SUITE)
    suite["paper"]["comparable"] = True  # type: ignore[index]
    write_cell("ace_lora", 0, (0.50, 0.80), suite=suite)
    write_report(tmp_path, formats=["md", "csv"])
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv")
    assert frame.loc[0, "chexpert_5x200_acc_difference"] == pytest.approx(0.50 - 0.498)
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    assert rows["ACE-LoRA"][rows["Method"].index("CheXpert 5x200 paper ACC")] == "49.80 (+0.2)"


def test_data_that_are_not_as_published_are_named_and_not_compared(
    tmp_path: Path, write_cell: WriteCell
) -> None:
    suite = copy.deepcopy(SUITE)
    suite["paper"]["comparable"] = True  # type: ignore[index]
    cell = write_cell("ace_lora", 0, (0.50, 0.80), suite=suite)
    stored = cell.read_json("zeroshot.json")
    stored["datasets"]["chexpert_5x200"]["info"] = {"data_notes": ["not the published split (test: 10 ids)"]}
    cell.write_json("zeroshot.json", stored)
    write_report(tmp_path, formats=["md", "csv"])
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv")
    assert frame["chexpert_5x200_acc_difference"].isna().all()
    assert frame.loc[0, "chexpert_5x200_acc_paper"] == pytest.approx(0.498)
    text = (tmp_path / "report" / "table_1.md").read_text()
    assert "CheXpert 5x200: not the published split (test: 10 ids)." in text


def test_a_suite_without_counterpart_in_the_paper_has_no_paper_columns(
    tmp_path: Path, write_cell: WriteCell
) -> None:
    write_cell("ace_lora", suite={"name": "own"})
    write_report(tmp_path, formats=["md"])
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    assert not [head for head in rows["Method"] if "paper" in head]
    assert "chexpert\\_5x200 ACC" in rows["Method"]


def test_limited_runs_are_marked_and_never_ranked(tmp_path: Path, write_cell: WriteCell) -> None:
    write_cell("ace_lora", 0, (0.90, 0.95), limit=64)
    write_cell("clip_lora", 0, (0.40, 0.70))
    write_cell("full_ft", 0, (0.45, 0.72))
    write_cell("full_ft", 1, (0.99, 0.99), limit=64)
    write_report(tmp_path, formats=["md", "csv"])
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    assert rows[r"ACE-LoRA\*"][0].startswith("90.0")
    assert rows[r"Full FT\*"][0].startswith("**45.0**")
    frame = pd.read_csv(tmp_path / "report" / "table_1.csv").set_index("title")
    assert not frame.loc["ACE-LoRA", "ranked"]
    assert "limited to 64 samples: not comparable" in frame.loc["ACE-LoRA", "notes"]
    assert "limited to 64 samples are left out" in frame.loc["Full FT", "notes"]


def test_a_method_whose_runs_all_failed_keeps_its_row(tmp_path: Path, write_cell: WriteCell) -> None:
    write_cell("ace_lora", 0, None, status="failed", error="out of memory")
    write_cell("clip_lora", 0, None, status="running")
    write_cell("full_ft", 0)
    write_report(tmp_path)
    rows = _markdown_rows(tmp_path / "report" / "table_1.md")
    assert rows[r"ACE-LoRA\*"][0] == "-"
    assert "out of memory" in (tmp_path / "report" / "index.html").read_text()
    assert "seed 0 is unfinished" in (tmp_path / "report" / "table_1.md").read_text()


def test_a_store_without_any_result_still_gives_a_report(tmp_path: Path, write_cell: WriteCell) -> None:
    write_cell("ace_lora", 0, None, status="failed", error="no", curve=())
    written = write_report(tmp_path)
    assert not [path for path in written if path.suffix == ".png"]
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_damaged_result_is_noted_and_the_rest_reported(store: Path) -> None:
    (store / "runs/toy/tiny/user_method/seed-0/zeroshot.json").write_text("{half")
    write_report(store, formats=["md"])
    text = (store / "report" / "table_1.md").read_text()
    assert "unreadable" in text
    assert "**52.0**" in text


def test_several_backbones_and_suites_become_blocks_that_are_ranked_apart(
    store: Path, write_cell: WriteCell
) -> None:
    write_cell("ace_lora", 0, (0.2, 0.5), backbone="other")
    write_cell("clip_lora", 0, (0.1, 0.4), backbone="other")
    write_cell("ace_lora", 0, (0.7, 0.9), suite={**SUITE, "name": "second", "title": "Second"})
    write_report(store, formats=["md", "csv"])
    text = (store / "report" / "table_1.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### Second, backbone tiny",
        "### Toy suite, backbone other",
        "### Toy suite, backbone tiny",
    ]
    assert "**20.0**" in text
    write_report(store, suite="toy", formats=["csv"])
    assert set(pd.read_csv(store / "report" / "table_1.csv")["suite"]) == {"toy"}


def test_the_ceiling_is_a_separate_last_row(store: Path) -> None:
    entry = {
        "title": "Linear probe (supervised ceiling)",
        "datasets": {"rsna": {"acc": 0.99, "auroc": 0.995}},
    }
    (store / "ceilings.json").write_text(json.dumps({"toy/tiny": entry}))
    write_report(store, formats=["md", "csv"])
    rows = _markdown_rows(store / "report" / "table_1.md")
    assert list(rows)[-1] == "Linear probe (supervised ceiling)"
    assert rows["Linear probe (supervised ceiling)"][rows["Method"].index("RSNA ACC")] == "99.0"
    frame = pd.read_csv(store / "report" / "table_1.csv")
    assert frame.iloc[-1]["kind"] == "reference"
    (store / "ceilings.json").write_text('{"toy/tiny": []}')
    with pytest.raises(StoreError, match=r"ceilings\.json: expected"):
        write_report(store, formats=["md"])


def test_latex_is_balanced_and_escaped(tmp_path: Path, write_cell: WriteCell) -> None:
    suite = {**SUITE, "title": r"50% of A&B_{x} \ ~ ^ # $"}
    write_cell("ace_lora", 0, suite=suite)
    write_cell("clip_lora", 0, (0.3, 0.6), suite=suite)
    write_cell("under_score", 0, None, suite=suite, status="failed", error="bad {brace")
    write_report(tmp_path, formats=["tex"])
    text = (tmp_path / "report" / "table_1.tex").read_text()
    assert r"50\% of A\&B\_\{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \$" in text
    bare = re.sub(r"\\[{}%&$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert r"\textbf{40.0}" in text
    assert r"\underline{30.0}" in text
    assert r"under\_score*" in text
    assert r"\scriptsize [37.0, 43.0]" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body[1:]} == {len(columns)}


class _Tags(HTMLParser):
    """Counts what is open and collects scripts and images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_self_contained_and_escapes_everything_from_the_store(
    tmp_path: Path, write_cell: WriteCell
) -> None:
    evil = "<script>alert('x')</script>"
    suite = copy.deepcopy(SUITE) | {"title": f"Suite {evil} $x^2$"}
    suite["tasks"]["zeroshot"]["datasets"]["rsna"]["title"] = f"RSNA {evil}"  # type: ignore[index]
    write_cell("ace_lora", 0, suite=suite, dirty=True)
    write_cell("clip_lora", 0, suite=suite, status="partial", error=evil)
    write_report(tmp_path)
    text = (tmp_path / "report" / "index.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in text
    assert len(tags.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "0123456789 with changes" in text
    assert "1 of 2 runs were made with uncommitted changes" in text
    assert "61 s" in text


def test_means_over_datasets_need_every_dataset(tmp_path: Path, write_cell: WriteCell) -> None:
    write_cell("ace_lora", 0, (0.50, 0.80))
    write_cell("ace_lora", 1, (0.54, 0.80))
    cell = write_cell("clip_lora", 0, (0.40, 0.70))
    task = cell.read_json("zeroshot.json")
    del task["datasets"]["rsna"]
    cell.write_json("zeroshot.json", task)
    (block,) = collect.collect_blocks(tmp_path, load_paper())
    lora, ace = block.rows
    mean = ace.mean_over(block.keys("acc"))
    assert mean is not None
    assert mean.value == pytest.approx((0.52 + 0.62) / 2)
    assert mean.sd == pytest.approx(0.04 / 2**0.5)
    assert lora.mean_over(block.keys("acc")) is None


def test_html_lists_every_run_and_marks_the_best(store: Path) -> None:
    write_report(store, formats=["html"])
    text = (store / "report" / "index.html").read_text()
    runs = text.split("<h2>Runs</h2>")[1]
    assert runs.count("<tr>") == 1 + 7
    assert "loss is not finite at step 7" in runs
    assert '<span class="best">52.0</span> <small>&plusmn; 2.8</small>' in text
    assert '<td class="paper">49.80</td>' in text


def test_figures_are_written_as_png_and_pdf(store: Path) -> None:
    written = write_report(store, formats=["html"])
    names = {path.name for path in written}
    for stem in ("figure_efficiency", "figure_training"):
        assert {f"{stem}.png", f"{stem}.pdf"} <= names
        assert (store / "report" / f"{stem}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (store / "report" / f"{stem}.pdf").read_bytes()[:5] == b"%PDF-"
    assert all(path.is_file() for path in written)


def test_efficiency_csv_averages_every_number_of_the_cells(store: Path) -> None:
    write_report(store, formats=["csv"])
    frame = pd.read_csv(store / "report" / "efficiency.csv").set_index("method")
    assert frame.loc["ace_lora", "wall_time_s"] == 61.5
    assert frame.loc["ace_lora", "by_tower_text"] == 12_000
    assert frame.loc["ace_lora", "step_flops_per_pair"] == 4e9
    assert pd.isna(frame.loc["zero_shot", "step_flops_per_pair"])
    assert "schema_version" not in frame.columns


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_screen_shows_value_interval_parameters_and_time(store: Path, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(store))
    text = console.export_text()
    for expected in ("52.0", "49.0-55.0", "969 K", "20 ms", "seed 2 failed"):
        assert expected in text
    assert "0.52" not in text


def test_unknown_tables_and_formats_are_named_together(store: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_report(store, tables=["9"], formats=["docx"])
    assert len(caught.value.problems) == 2
    assert "unknown table '9'" in caught.value.problems[0]


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no runs of suite 'x' to report. Run the benchmark"):
        write_report(tmp_path, suite="x")


def test_the_same_store_gives_the_same_files(tmp_path: Path, write_cell: WriteCell) -> None:
    write_cell("ace_lora", curve=())
    first = {path.name: path.read_bytes() for path in write_report(tmp_path)}
    second = {path.name: path.read_bytes() for path in write_report(tmp_path)}
    assert first == second

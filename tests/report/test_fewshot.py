"""Tables and figures of few-shot runs, of results that are written down here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmark.report.model import Block
from benchmark.report.report import read_report
from benchmark.report.tables import fewshot
from benchmark.store.cells import Store
from tests.report.test_screen import rendered

ACC = {"acc": {"head": "ACC", "headline": True}, "balanced_acc": {"head": "bal. ACC"}}


def finished(
    out: Path,
    method: str,
    support: dict[str, Any],
    seed: int,
    scores: dict[str, float],
    *,
    clean: dict[str, float | None] | None = None,
    **suite: Any,
) -> None:
    """Write one cell down as a run leaves it.

    Args:
        clean: dataset -> score of its clean test, None where no image is left; datasets without leaks have none.
    """
    variant = ",".join(
        f"{key}={value}" for key, value in support.items() if value not in ("standard", "strict")
    )
    folder = Store(out).cell(f"runs/few/tiny/{method}+{variant}/seed-{seed}")
    config = {"suite_name": "few", "backbone": "tiny", "method": method, "variant": variant, "seed": seed}
    whole = {"name": "few", "templates": ["{}"], "support": support, **suite}
    tasks = {"zeroshot": {"datasets": {name: {} for name in scores}}}
    folder.write_config(
        {**config, "suite": whole | {"tasks": tasks}, "tasks": tasks, "recipe": {}, "options": {}}
    )
    folder.write_json("status.json", {"status": "success"})
    folder.write_json("adapt.json", {"labels": 5 * support["shots"]})
    datasets = {}
    for name, value in scores.items():
        one = {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 100}
        metrics, info = dict.fromkeys(ACC, one) | {"majority_acc": {"value": 0.25, "n": 100}}, {}
        if clean and name in clean:
            metrics |= {f"{metric}_clean": one | {"value": clean[name]} for metric in ACC}
            info = {"clean": {"n": 90, "left_out": 10}, "data_notes": ["10 of 100 images are near copies"]}
        datasets[name] = {"n": 100, "kind": "multiclass", "info": info, "metrics": metrics}
    declared = ACC | {f"{metric}_clean": {"head": f"{said['head']} clean"} for metric, said in ACC.items()}
    folder.write_json(
        "zeroshot.json", {"task": "zeroshot", "status": "success", "metrics": declared, "datasets": datasets}
    )


def of(protocol: str, dataset: str, shots: int) -> dict[str, Any]:
    drawn = {"sampling": "standard", "selection": "strict"} if shots else {}
    return {"protocol": protocol, "dataset": dataset, "shots": shots, **drawn}


@pytest.fixture
def curves(tmp_path: Path) -> Path:
    published = {"fewshot": {"published": ["biomedcoop11"]}}
    for name in ("a", "b"):
        finished(tmp_path, "zero_shot", of("fewshot", name, 0), 0, {name: 0.4}, **published)
        for shots, gain in ((1, 0.0), (16, 0.2)):
            for seed in range(3):
                for method, value in (("coop", 0.5), ("clap", 0.6)):
                    score = {name: value + gain + seed / 100}
                    finished(tmp_path, method, of("fewshot", name, shots), seed, score, **published)
    return tmp_path


def rows_of(table: Any) -> dict[str, list[str]]:
    return {row[0].text: [f"{cell.text} {cell.detail}".strip() for cell in row[1:]] for row in table.rows}


def test_scores_stand_against_shots_with_labels_ranks_and_a_test(curves: Path) -> None:
    (table,) = [one for one in read_report(curves).rendered if one.table == "fewshot"]
    heads = [column.full for column in table.columns]
    assert heads[1:4] == ["1 shot ACC [%]", "1 shot bal. ACC [%]", "1 shot labels"]
    found = rows_of(table)
    # (0.5 + 0.51 + 0.52) / 3, over two datasets alike; sd 1 point
    assert found["CoOp"][:3] == ["51.0 (1.0)", "51.0 (1.0)", "5"]
    assert found["CoOp"][3:6] == ["71.0 (1.0)", "71.0 (1.0)", "80"]
    assert found["Zero-shot"][:3] == ["40.0", "40.0", "0"]
    assert found["CLAP"][-2:] == ["1.00", "-"]
    assert found["CoOp"][-2] == "2.00"
    assert found["CoOp"][-1].startswith("p")
    (first, *_) = [
        row
        for row in table.references
        if row[0].text.startswith("CLIP-Adapter (published: HealthX-Lab/BiomedCoOp")
    ]
    assert first[1].text == "44.66"
    floor = [cell.text for cell in table.references[0]]
    assert floor[:7] == ["Always the most frequent class", "25.0", "", "", "25.0", "", ""]
    assert "Test images: 100; 95 % half-width of an accuracy of 50 %: 9.8 points" in table.caption
    assert "not measured here" in table.caption
    assert [one.table for one in read_report(curves).rendered] == ["fewshot"]  # no empty table of all methods


def test_every_seed_stands_in_the_file_and_the_figure_is_drawn(curves: Path) -> None:
    files = read_report(curves).write()
    names = {path.name for path in files}
    assert {"table_fewshot.md", "table_fewshot.csv", "figure_fewshot-a.png", "figure_fewshot-b.png"} <= names
    with (curves / "report" / "table_fewshot.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 2 + 2 * 2 * 3 * 2
    assert {row["labels"] for row in found} == {"0", "5", "80"}
    page = (curves / "report" / "index.html").read_text(encoding="utf-8")
    assert "No scores yet" not in page
    assert '<details id="tables" open>' in page  # there is no answer above it
    with (curves / "report" / "efficiency.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"zero_shot", "coop", "clap"}


def test_the_last_screen_shows_accuracies_with_their_spread_where_there_is_room(curves: Path) -> None:
    report = read_report(curves)
    (clap,) = [line for line in rendered(report, 120).splitlines() if line.startswith("CLAP")]
    assert clap.split()[1:] == ["61.0", "(1.0)", "81.0", "(1.0)", "1.00"]  # accuracy alone, and the rank
    (clap,) = [line for line in rendered(report, 40).splitlines() if line.startswith("CLAP")]
    assert clap.split()[1:] == ["61.0", "81.0", "1.00"]


def test_both_harmonic_means_are_labelled(tmp_path: Path) -> None:
    for seed, (base, new) in enumerate(((0.8, 0.4), (0.6, 0.6))):
        finished(tmp_path, "coop", of("base_to_new", "a", 16), seed, {"a-base": base, "a-new": new})
    (table,) = fewshot.fewshot_tables(read_report(tmp_path).blocks)
    heads = ["base [%]", "new [%]", "H [%]", "H of means [%]", "labels"]
    assert [column.head for column in table.columns[1:]] == heads
    (cells,) = rows_of(table).values()
    assert [cell.text for cell in table.references[0]][1:4] == ["25.0", "25.0", ""]
    # H of 80 and 40 is 53.33, of 60 and 60 it is 60: mean 56.67; of the means 70 and 50 it is 58.33
    assert [cell.partition(" ")[0] for cell in cells] == ["70.0", "50.0", "56.7", "58.3", "80"]


def test_base_and_new_are_ranked_by_h_over_datasets_and_seeds(tmp_path: Path) -> None:
    for seed in range(6):
        for name, gain in (("a", 0.0), ("b", 0.1)):
            low = {
                f"{name}-base": 0.9 + gain / 2,
                f"{name}-new": 0.2 + seed / 100,
            }  # the better mean, the worse H
            high = {f"{name}-base": 0.5 + gain, f"{name}-new": 0.5 + seed / 50}
            finished(tmp_path, "coop", of("base_to_new", name, 16), seed, low)
            finished(tmp_path, "kgcoop", of("base_to_new", name, 16), seed, high)
    (table,) = fewshot.fewshot_tables(read_report(tmp_path).blocks)
    found = rows_of(table)
    assert (found["KgCoOp"][-2], found["CoOp"][-2]) == ("1.00", "2.00")
    # all twelve pairs have one sign: p = 2 / 2^12
    assert (found["KgCoOp"][-1], found["CoOp"][-1]) == ("-", "p < 0.001")
    assert "by H, 1 is best" in table.caption


def test_the_clean_test_stands_beside_the_published_one(tmp_path: Path) -> None:
    """Dataset a: 10 of 100 images leak; b: none; c: all, so that no clean test is left."""
    for seed in range(2):
        for name, clean in (("a", {"a": 0.5}), ("b", None), ("c", {"c": None})):
            finished(tmp_path, "clap", of("fewshot", name, 4), seed, {name: 0.7}, clean=clean)
    (table,) = fewshot.fewshot_tables(read_report(tmp_path).blocks)
    heads = ["ACC [%]", "bal. ACC [%]", "ACC clean [%]", "bal. ACC clean [%]", "labels"]
    assert [column.head for column in table.columns[1:]] == heads
    # (0.5 + 0.7) / 2: a dataset without leaks counts whole, one without a clean image not at all
    assert rows_of(table)["CLAP"][:4] == ["70.0 (0.0)", "70.0 (0.0)", "60.0 (0.0)", "60.0 (0.0)"]
    assert "Clean: without" in table.caption
    assert [doubt.text for doubt in table.doubts] == ["10 of 100 images are near copies"] * 2  # of a and of c
    clean = {(row["dataset"], row["acc_clean"]) for row in table.records if "acc_clean" in row}
    assert clean == {("a", 0.5), ("b", 0.7)}


def test_source_and_other_datasets_have_means_of_their_own(tmp_path: Path) -> None:
    for seed in range(3):
        for method, far in (("coop", 0.3), ("kgcoop", 0.4)):
            found = {"a": 0.9 - far, "b": far, "c": far + 0.2}
            finished(tmp_path, method, of("cross_dataset", "a", 16), seed, found)
    (table,) = fewshot.fewshot_tables(read_report(tmp_path).blocks)
    heads = ["source ACC [%]", "source bal. ACC [%]", "others ACC [%]", "others bal. ACC [%]", "labels"]
    assert [column.head for column in table.columns[1:6]] == heads
    found = rows_of(table)
    assert (found["CoOp"][0], found["CoOp"][2]) == ("60.0 (0.0)", "40.0 (0.0)")
    assert (found["KgCoOp"][-2], found["CoOp"][-2]) == ("1.00", "2.00")  # by the others
    assert "Source: the dataset" in table.caption


def test_halves_have_a_clean_test_too(tmp_path: Path) -> None:
    finished(
        tmp_path, "coop", of("base_to_new", "a", 16), 0, {"a-base": 0.8, "a-new": 0.4}, clean={"a-base": 0.6}
    )
    (table,) = fewshot.fewshot_tables(read_report(tmp_path).blocks)
    assert [column.head for column in table.columns[5:9]] == [
        "base clean [%]", "new clean [%]", "H clean [%]", "H of means clean [%]",
    ]  # fmt: skip
    assert rows_of(table)["CoOp"][:8] == ["80.0", "40.0", "53.3", "53.3", "60.0", "40.0", "48.0", "48.0"]


def test_halves_of_a_dataset_have_titles_of_their_own() -> None:
    tasks = {
        "zeroshot": {"datasets": {"a-new": {"title": "A", "subset": "new"}, "b": {"title": "B"}, "c": {}}}
    }
    block = Block("few", "tiny", {"tasks": tasks}, ())
    titles = [block.dataset_title(name, "zeroshot") for name in ("a-new", "b", "c")]
    assert titles == ["A (new classes)", "B", "c"]


def test_published_numbers_name_their_source() -> None:
    rows = fewshot.published()
    assert len(rows) > 800
    assert all(row["source"] and row["file"] and row["dataset_group"] for row in rows)

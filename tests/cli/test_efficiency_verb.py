"""The efficiency verb, on the smallest backbone."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from benchmark.backbones import Tower, load_backbone
from benchmark.cli import efficiency, main
from benchmark.cli._parser import ArgumentParser
from benchmark.cli.efficiency import _Measurement
from benchmark.efficiency import throughput
from benchmark.efficiency.timing import Times
from benchmark.efficiency.workbench import Candidate, Form, MadeUpTokenizer, Workbench, shared_copy
from benchmark.errors import CellError


@pytest.fixture
def peak(monkeypatch) -> None:
    monkeypatch.setattr(throughput, "matrix_peak", lambda device, precision: 1e12)


@pytest.fixture(autouse=True)
def few_images(monkeypatch) -> None:
    monkeypatch.setattr(throughput, "SAMPLES", 16)
    monkeypatch.setattr(throughput, "BATCH", 8)
    monkeypatch.setattr(throughput, "WORKERS", (0,))


def run(tmp_path, *words: str) -> int:
    base = [
        "efficiency",
        "--backbone",
        "random:tiny",
        "--batch-size",
        "2",
        "--text-length",
        "16",
        "--rounds",
        "1",
    ]
    return main([*base, "--device", "cpu", "--output-dir", str(tmp_path), *words])


def test_figures_are_printed_and_written(tmp_path, capsys, peak) -> None:
    assert run(tmp_path, "--methods", "clip_lora,taskres", "--rates", "2") == 0
    printed = capsys.readouterr().out
    assert "CLIP-LoRA" in printed
    assert "the fastest step that takes images (CLIP-LoRA) needs" in printed
    assert "measured here with a large matrix product" in printed
    with (tmp_path / "efficiency.csv").open() as file:
        lora, taskres = csv.DictReader(file)
    assert int(lora["trainable_image"]) + int(lora["trainable_text"]) + 1 == int(lora["trainable_parameters"])
    assert (lora["cached_towers"], taskres["cached_towers"]) == ("", "image text")
    assert float(taskres["step_flops_per_pair_cached"]) < 0.01 * float(taskres["step_flops_per_pair"])
    assert float(lora["inference_overhead_merged"]) == 1 < float(lora["inference_overhead"])
    content = json.loads((tmp_path / "efficiency.json").read_text())
    assert content["complete"]
    assert content["finished_rounds"] == 1
    assert content["input_pipeline"]["fastest"] == "CLIP-LoRA"
    assert len({len(one["wall"]) for one in content["seconds"].values()}) == 1
    assert content["packages"]["torch"]
    assert [row["method"] for row in content["rates"]] == ["clip_lora", "taskres"]
    tables = {f"{name}.csv" for name in ("efficiency", "input_pipeline", "rates")}
    figures = {f"figure_efficiency.{kind}" for kind in ("png", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == {"efficiency.json"} | tables | figures


def stopping(after: str, monkeypatch) -> None:
    """Raise what Ctrl-C raises once a line of progress has been said."""
    right = _Measurement.told

    def told(self, text: str) -> None:
        right(self, text)
        if after in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Measurement, "told", told)


def test_a_stop_leaves_whole_files_and_one_line(tmp_path, capsys, monkeypatch) -> None:
    stopping("write a file of made-up images", monkeypatch)
    (tmp_path / "rates.csv").write_text("of an earlier run")
    assert run(tmp_path, "--methods", "clip_lora", "--rounds", "2") == 130
    said = capsys.readouterr()
    assert (
        f"warning: stopped: the methods were timed in 2 of 2 rounds; what was measured is in {tmp_path}"
        in said.err
    )
    assert said.out == ""
    content = json.loads((tmp_path / "efficiency.json").read_text())
    assert not content["complete"]
    assert [len(one["wall"]) for one in content["seconds"].values()] == [2] * len(content["seconds"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "efficiency.csv", "efficiency.json", "figure_efficiency.png", "figure_efficiency.pdf"
    }  # fmt: skip


def test_a_stop_before_the_first_round_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    stopping("warm-up 2 of", monkeypatch)
    assert run(tmp_path, "--methods", "taskres") == 130
    assert "warning: stopped before the first round was done: nothing is written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- rates
def measured(sizes: list[int], *, flop: float = 1.0, compiled: bool = False) -> list[dict]:
    found: list[list[dict]] = []
    backbone = load_backbone("random:tiny")
    flops_of = {"clip_lora": flop}
    throughput.Rates(backbone, 16, "fp32", 1, flops_of, compiled, lambda text: None, found.append).measure(
        sizes
    )
    return found[-1]


def test_rates_follow_from_the_time_of_a_step(peak) -> None:
    rows = measured([2, 4], flop=5e8)
    assert [(row["title"], row["batch_size"], row["form"]) for row in rows] == [
        ("CLIP-LoRA", 2, "eager"),
        ("CLIP-LoRA", 4, "eager"),
    ]
    for row in rows:
        pairs = row["batch_size"] / row["step_time_p50_s"]
        assert row["pairs_per_s"] == pytest.approx(pairs)
        assert row["flops_per_s"] == pytest.approx(pairs * 5e8)
        assert row["share_of_peak"] == pytest.approx(pairs * 5e8 / 1e12)
        assert row["paper_training_s"] == pytest.approx(9_600_000 / pairs)
        assert row["step_memory_bytes"] > 0


def test_a_batch_that_does_not_fit_is_a_row_too(monkeypatch, peak) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(throughput, "Candidate", full)
    rows = measured([2, 4], compiled=True)
    assert [(row["batch_size"], row["form"]) for row in rows] == [
        (2, "eager"), (2, "compiled"), (4, "eager"), (4, "compiled")
    ]  # fmt: skip
    assert {(row["pairs_per_s"], row["share_of_peak"], row["note"]) for row in rows} == {
        (None, None, "out of memory")
    }


def test_compiling_pays_where_its_slowest_round_beats_the_fastest_one() -> None:
    eager = Times(wall=[[1.0], [1.2]])
    assert throughput.pays(eager, Times(wall=[[0.5], [0.6]])) == "pays: 2.00x"
    assert throughput.pays(eager, Times(wall=[[2.2], [2.2]])) == "does not pay: 0.50x"
    assert throughput.pays(eager, Times(wall=[[1.1], [1.1]])) == "makes no difference beyond the noise: 1.00x"


def test_compiled_and_eager_steps_are_timed_side_by_side(monkeypatch, peak) -> None:
    compiled = []
    monkeypatch.setattr(Tower, "compile_blocks", lambda self: compiled.append(self.kind))
    rows = measured([2], compiled=True)
    assert [row["form"] for row in rows] == ["eager", "compiled"]
    assert compiled == ["image", "text"]
    assert (rows[0]["note"], rows[1]["note"][-1]) == ("", "x")


def test_a_compiler_that_fails_is_one_clear_line(monkeypatch, peak) -> None:
    def fails(self) -> None:
        raise TorchDynamoException("no C++ compiler\nand a long story")

    monkeypatch.setattr(Tower, "compile_blocks", fails)
    with pytest.raises(CellError, match=r"--compile: torch.compile fails here \(no C\+\+ compiler\)"):
        measured([2], compiled=True)


def test_the_peak_counts_two_operations_per_multiply_add(monkeypatch) -> None:
    times = {"product": Times(wall=[[0.5], [0.25], [1.0]])}
    monkeypatch.setattr(throughput, "in_turns", lambda *_, **__: times)
    assert throughput.matrix_peak(torch.device("cpu"), "fp32", side=100) == 2 * 100**3 / 0.25


@pytest.mark.parametrize(
    ("words", "device", "sizes"),
    [
        ([], "cpu", []),
        (["--compile"], "cpu", [4]),
        ([], "cuda", [64, 256]),
        (["--rates", "8,16"], "cuda", [8, 16]),
    ],
)
def test_sizes_of_the_rates(words, device, sizes) -> None:
    parser = ArgumentParser("efficiency", "")
    efficiency.add_arguments(parser)
    assert efficiency.rate_sizes(parser.read(words), torch.device(device)) == sizes


# ---------------------------------------------------------------------------------------------- input pipeline
def test_stages_of_the_input_pipeline_beside_the_fastest_method_that_takes_images(monkeypatch) -> None:
    monkeypatch.setattr(throughput, "WORKERS", (0, 1))
    found: list = []
    bench = Workbench(load_backbone("random:tiny"), batch_size=2, text_length=16)
    throughput.measure(bench, rounds=1, told=lambda text: None, done=lambda rows, _: found.extend(rows))
    kinds = [
        f"{kind}_{stage}"
        for kind in ("grey", "colour")
        for stage in ("handed_over", "input", "loader_0", "loader_1")
    ]
    assert [row["name"] for row in found] == ["texts_tokenised", "texts_kept", *kinds]
    assert all(row["slowest_round"] <= row["per_second"] <= row["fastest_round"] for row in found)


def test_the_loader_keeps_up_when_it_brings_what_the_fastest_step_needs() -> None:
    stages = [
        {"name": "grey_handed_over", "per_second": 9e9},
        {"name": "grey_loader_0", "per_second": 50.0},
        {"name": "grey_loader_2", "per_second": 90.0},
        {"name": "colour_loader_0", "per_second": 30.0},
    ]
    methods = [
        {"title": "A", "pairs_per_s": 40.0, "cached_towers": ""},
        {"title": "B", "pairs_per_s": 60.0, "cached_towers": "text"},
        {"title": "C", "pairs_per_s": 1e6, "cached_towers": "image text"},
        {"title": "D", "pairs_per_s": None, "cached_towers": ""},
    ]
    assert throughput.judged(stages, methods) == {
        "fastest": "B",
        "needs": 60.0,
        "brings": {"grey": 90.0, "colour": 30.0},
        "keeps_up": {"grey": True, "colour": False},
    }
    assert throughput.judged(stages, methods[2:]) == {}


@pytest.mark.parametrize("name", ["full_ft", "ace_lora", "cocoop"])
def test_steps_change_no_weight(name) -> None:
    bench = Workbench(load_backbone("random:tiny"), batch_size=2, text_length=16)
    before = bench.backbone.fingerprint()
    candidate = Candidate(bench, Form(name))
    state = candidate.method.trainable_state()
    candidate.step()
    assert bench.backbone.fingerprint() == before
    assert all(torch.equal(value, state[key]) for key, value in candidate.method.trainable_state().items())
    assert all(value.grad is None for value in candidate.method.parameters())


def test_copies_share_memory_but_not_gradients() -> None:
    backbone = load_backbone("random:tiny")
    copied = shared_copy(backbone)
    for one, other in zip(backbone.parameters(), copied.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one is not other
    copied.requires_grad_(True)
    assert not any(value.requires_grad for value in backbone.parameters())


def test_texts_are_as_long_as_asked_for() -> None:
    backbone = load_backbone("random:tiny")
    backbone.tokenizer = None
    bench = Workbench(backbone, batch_size=3, text_length=16)
    assert isinstance(backbone.tokenizer, MadeUpTokenizer)
    ace, lora, half = (bench.build(Form("ace_lora")), bench.build(Form("clip_lora")), 0.5)
    lengths = backbone.text.lengths(bench.batch(lora).token_ids).tolist()
    assert lengths[0] == 16
    assert all(8 <= length <= 16 for length in lengths)
    assert bench.batch(lora).token_ids.shape == (3, 16)
    assert bench.batch(lora, text=half).token_ids.shape == (3, 8)
    assert bench.batch(ace).token_ids.shape == (3, backbone.text.context_length)


def test_what_pairs_do_not_teach_has_no_costs_of_pairs(tmp_path, capsys) -> None:
    assert run(tmp_path, "--methods", "coop,clap") == 2
    assert "clap learn from class labels, and costs are those of pairs" in capsys.readouterr().err

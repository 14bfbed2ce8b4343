"""The efficiency verb, on the smallest backbone."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from benchmark import against
from benchmark.backbones import load_backbone
from benchmark.cli import main
from benchmark.workbench import Candidate, Form, MadeUpTokenizer, Workbench, shared_copy
from methods.naive import hypergraph

CONTENT = {
    "backbone": "random:tiny",
    "text_length": 16,
    "forms": {
        "plain": {"method": "ace_lora", "plain": True},
        "fast": {"method": "ace_lora"},
        "impossible": {"method": "ace_lora", "precision": "fast_bf16"},
    },
    "equal": [{"method": "ace_lora", "options": {"lora_dropout": 0.0}}],
    "targets": [
        {"number": 1, "what": "never", "of": "fast", "against": "plain", "quantity": "step_time", "faster": 1000},
        {"number": 2, "what": "always", "of": "fast", "against": "plain", "quantity": "step_flops", "share": 1},
        {"number": 3, "what": "gpu", "of": "fast", "quantity": "pairs_per_s", "at_least": 1, "device": "cuda"},
        {"number": 4, "what": "no", "of": "impossible", "against": "plain", "quantity": "saved_bytes", "share": 1},
        {"number": 5, "what": "cached", "cached": "taskres", "faster": 1},
        {"number": 6, "what": "elsewhere", "test": "tests/test_x.py"},
    ],
}  # fmt: skip


@pytest.fixture
def small_targets(monkeypatch) -> None:
    monkeypatch.setattr(against, "settings", lambda: CONTENT)
    monkeypatch.setattr(against, "fast_bf16", lambda device: False)


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


def test_figures_are_printed_and_written(tmp_path, capsys, small_targets) -> None:
    assert run(tmp_path, "--methods", "clip_lora,taskres", "--against", "naive") == 1
    printed = capsys.readouterr().out
    assert "CLIP-LoRA" in printed
    assert "NOT met" in printed
    with (tmp_path / "efficiency.csv").open() as file:
        lora, taskres = csv.DictReader(file)
    assert int(lora["trainable_image"]) + int(lora["trainable_text"]) + 1 == int(lora["trainable_parameters"])
    assert (lora["cached_towers"], taskres["cached_towers"]) == ("", "image text")
    assert float(taskres["step_flops_per_pair_cached"]) < 0.01 * float(taskres["step_flops_per_pair"])
    assert float(lora["inference_overhead_merged"]) == 1 < float(lora["inference_overhead"])
    content = json.loads((tmp_path / "efficiency.json").read_text())
    assert [line["met"] for line in content["targets"]] == [False, True, None, None, True, None]
    assert [line["measured"] is None for line in content["targets"]] == [False] * 3 + [True, False, True]
    assert content["differences"][0]["gradients"] < 1e-9
    assert content["packages"]["torch"]
    assert set(content["forms"]) == {"plain", "fast"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".png", ".pdf"}


def test_a_plain_form_that_computes_something_else_is_an_error(monkeypatch) -> None:
    torch.manual_seed(0)
    bench = Workbench(load_backbone("random:tiny"), batch_size=2, text_length=16)
    right = hypergraph.incidence_matrix
    monkeypatch.setattr(hypergraph, "incidence_matrix", lambda *args: 1.001 * right(*args))
    with pytest.raises(
        against.CellError, match=r"ace_lora .* fast and plain form differ by .* \(allowed 1e-05\)"
    ):
        against.differences(bench, CONTENT["equal"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batch-size", "1"], "--batch-size: expected a value of at least 2, got 1"),
        (["--text-length", "100"], "--text-length: 'random:tiny' takes at most 64 tokens, got 100"),
        (["--methods", "copo"], "unknown method 'copo'. Did you mean 'coop'?"),
        (["loss=clip"], "efficiency takes no 'loss=clip', only flags"),
        (["--against", "nave"], "--against: invalid choice: 'nave'"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, capsys, words, line) -> None:
    assert run(tmp_path, *words) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert len(error.splitlines()) == 1


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
    assert bench.batch(bench.build(Form("clip_lora", plain=True))).token_ids.shape == (3, 64)

"""What must be told of fast and plain forms: equality, costs, and targets that are met or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmark.backbones import load_backbone
from benchmark.efficiency import throughput
from benchmark.efficiency.timing import Times
from benchmark.run.cost import flops
from tests.plain import __main__ as command
from tests.plain import compare, hypergraph, pieces
from tests.plain.bench import PlainBench, PlainForm

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
        {"number": 3, "what": "gpu", "of": "fast", "quantity": "pairs_per_s", "at_least": 1, "device": "cuda"},
        {"number": 4, "what": "no", "of": "impossible", "against": "plain", "quantity": "step_time", "faster": 1},
        {"number": 5, "what": "cached", "cached": "taskres", "faster": 1},
        {"number": 7, "what": "graph", "of": "fast", "against": "plain", "quantity": "graph_text_time", "faster": 0},
        {"number": 8, "what": "fed", "input": "grey_handed_over", "at_least": 1},
    ],
}  # fmt: skip


def small_bench(pairs: int = 2) -> PlainBench:
    return PlainBench(load_backbone("random:tiny"), batch_size=pairs, text_length=16)


def test_targets_are_met_or_not_and_say_where_they_are_judged(monkeypatch) -> None:
    monkeypatch.setattr(compare, "fast_bf16", lambda device: False)
    for name, value in (("SAMPLES", 16), ("BATCH", 8), ("WORKERS", (0,))):
        monkeypatch.setattr(throughput, name, value)
    found = command.measure(small_bench(), CONTENT, rounds=1)
    lines = found["targets"]
    assert [line.met for line in lines] == [False, None, None, True, True, True]
    assert [line.number for line in lines if line.measured is None] == [4]
    assert (lines[1].target, lines[1].note) == ("", "1 or more on cuda")
    assert found["differences"][0]["gradients"] < 1e-9


def test_plain_forms_get_texts_of_the_context_length() -> None:
    bench = small_bench(3)
    assert bench.batch(bench.build(PlainForm("clip_lora", plain=True))).token_ids.shape == (3, 64)


def test_pieces_are_a_forward_and_backward_pass_that_leaves_nothing() -> None:
    bench = small_bench()
    assert pieces(bench.build(PlainForm("clip_lora")), None) == {}
    costs = {}
    for plain in (False, True):
        method = bench.build(PlainForm("ace_lora", plain=plain)).train()
        calls = pieces(method, bench.batch(method))
        assert list(calls) == ["graph_image", "graph_text"]
        calls["graph_image"]()  # the towers run in the first call alone
        costs[plain] = flops(calls["graph_image"])
        assert all(value.grad is None for value in method.parameters())
    assert 0 < 5 * costs[False] < costs[True]


def test_every_token_through_the_last_block_changes_the_cost_alone() -> None:
    bench = small_bench()
    losses, costs = [], []
    for every in (False, True):
        method = bench.build(PlainForm("clip_lora", {"lora_dropout": 0.0}, every_token=every)).train()
        batch = bench.batch(method)
        losses.append(method.loss(batch))
        costs.append(flops(lambda method=method, batch=batch: method.loss(batch).backward()))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    assert costs[0] < 0.9 * costs[1]


def test_a_plain_form_that_computes_something_else_is_an_error(monkeypatch) -> None:
    torch.manual_seed(0)
    bench = small_bench()
    right = hypergraph.incidence_matrix
    monkeypatch.setattr(hypergraph, "incidence_matrix", lambda *args: 1.001 * right(*args))
    with pytest.raises(
        compare.CellError, match=r"ace_lora .* fast and plain form differ by .* \(allowed 1e-05\)"
    ):
        compare.differences(bench, CONTENT["equal"])


@pytest.mark.parametrize(
    ("device", "pairs"), [("cpu", 1 + (4 + 8) / 2 / 0.5), ("cuda", 1 + (40 + 80) / 2 / 2)]
)
def test_cached_features_are_judged_per_pair_by_the_time_that_counts(device: str, pairs: float) -> None:
    many = compare.RUN_PAIRS
    times = {
        "taskres|step": Times([[99.0]], [[99.0]]),
        "taskres|step_of_a_run": Times(wall=[[2.0 * many]], cpu=[[0.5 * many]]),
        "frozen|image": Times(wall=[[40.0]], cpu=[[4.0]]),
        "frozen|text": Times(wall=[[80.0]], cpu=[[8.0]]),
    }
    bench = SimpleNamespace(device=torch.device(device), batch_size=2)
    rows = {"taskres": {"cached_towers": "image text"}}
    measured = compare._Measured(times, bench, rows, {})
    assert measured.cached("taskres") == (pytest.approx(pairs), None)
    assert measured.cached("coop") == (None, None)

"""Turns, medians and kept bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmark.efficiency import timing
from benchmark.efficiency.timing import Times, in_turns, ratio, saved_bytes, step_memory

CPU = torch.device("cpu")


def test_things_take_turns_in_alternating_order(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_ROUND_SECONDS", 0.0)  # one call per round
    order: list[str] = []
    told: list[str] = []
    times = in_turns(
        {name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, device=CPU, told=told.append
    )
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert [line.rpartition(" ")[0] for line in told[:3]] == [
        "warm-up 1 of 3: a 0.0",
        "warm-up 2 of 3: b 0.0",
        "warm-up 3 of 3: c 0.0",
    ]
    assert [line.partition(",")[0] for line in told[3:]] == [
        f"round {number} of 3 done" for number in (1, 2, 3)
    ]
    assert ["left" in line for line in told[3:]] == [True, True, False]
    assert [len(times["b"].wall), len(times["b"].cpu)] == [3, 3]


def test_whole_rounds_are_handed_over_and_stay_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_ROUND_SECONDS", 0.0)
    given: list[dict[str, Times]] = []
    calls: list[str] = []

    def stops() -> None:
        calls.append("b")
        if len(calls) == 4:  # the warm-up and two rounds are over
            raise KeyboardInterrupt

    things = {"a": lambda: None, "b": stops, "c": lambda: None}
    with pytest.raises(KeyboardInterrupt):
        in_turns(things, rounds=5, device=CPU, done=given.append)
    assert [[len(times[name].wall) for name in "abc"] for times in given] == [[1, 1, 1], [2, 2, 2]]


def test_short_things_are_called_several_times_a_round(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_MOST_CALLS", 7)
    times = in_turns({"quick": lambda: None}, rounds=2, device=CPU)
    assert [len(calls) for calls in times["quick"].wall] == [7, 7]


def test_a_slow_round_moves_neither_median_nor_ratio() -> None:
    fast = Times(wall=[[1.0, 1.0], [9.0, 11.0], [1.0, 3.0]], cpu=[[1.0], [1.0], [1.0]])
    slow = Times(wall=[[2.0], [20.0], [6.0]], cpu=[[3.0], [3.0], [4.0]])
    assert fast.rounds == [1.0, 10.0, 2.0]
    assert fast.median == 2.0
    assert fast.spread == (1.0, 10.0)
    assert fast.p95 == pytest.approx(10.5)
    assert ratio(slow, fast, cpu=False) == (2.0, 2.0, 3.0)
    assert ratio(slow, fast, cpu=True) == (3.0, 3.0, 4.0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kept_bytes_count_each_block_once_and_no_parameter(device: str) -> None:
    layer = nn.Linear(6, 4, bias=False, device=device)
    inputs = torch.zeros(5, 6, device=device, requires_grad=True)

    def run() -> torch.Tensor:
        hidden = inputs * 1.0
        return (layer(hidden) + layer(hidden[:3]).sum()).square()

    hidden, squared = 5 * 6 * 4, 5 * 4 * 4
    assert saved_bytes(run, besides=layer) == hidden + squared
    assert step_memory(run, lambda: None, layer) == hidden + squared


def test_nothing_is_kept_without_gradients() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    assert saved_bytes(lambda: layer(torch.zeros(5, 6)).square(), besides=layer) == 0

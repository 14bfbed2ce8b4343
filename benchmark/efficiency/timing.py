"""Timing on a noisy machine: things are timed in turns in one process, and only medians and ratios count.

Round r runs the things in order, round r + 1 in reverse, so that a slow minute of the machine hits all of them alike.
CPU time beside wall time tells a busy machine from slow code. What autograd keeps for the backward pass is counted in
bytes and does not depend on the machine at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.console import duration
from benchmark.run.training.clock import wait_for

_ROUND_SECONDS, _MOST_CALLS = 0.05, 200


@dataclass
class Times:
    """Durations of one thing in seconds; a list per round, a value per call.

    Attributes:
        wall: by the clock on the wall. cpu: of this process, all its threads.
    """

    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)

    @property
    def rounds(self) -> list[float]:
        """The median of each round."""
        return [float(np.median(calls)) for calls in self.wall]

    @property
    def median(self) -> float:
        """The median of the rounds' medians."""
        return float(np.median(self.rounds))

    @property
    def cpu_median(self) -> float:
        """The same of CPU time."""
        return float(np.median([np.median(calls) for calls in self.cpu]))

    @property
    def p95(self) -> float:
        """The 95th percentile of all calls."""
        return float(np.percentile(np.concatenate([np.asarray(calls) for calls in self.wall]), 95))

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest round."""
        return min(self.rounds), max(self.rounds)


def ratio(slow: Times, fast: Times, *, cpu: bool) -> tuple[float, float, float]:
    """Return how many times faster ``fast`` is: the median of the rounds' ratios, their minimum and maximum.

    Ratios are taken within a round, where both ran at nearly the same time. ``cpu`` compares CPU time, which other
    processes disturb less.
    """
    pairs = zip(*((times.cpu if cpu else times.wall) for times in (slow, fast)), strict=True)
    ratios = [float(np.median(first) / np.median(second)) for first, second in pairs]
    return float(np.median(ratios)), min(ratios), max(ratios)


def in_turns(
    things: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    told: Callable[[str], None] = lambda line: None,
    done: Callable[[dict[str, Times]], None] = lambda times: None,
) -> dict[str, Times]:
    """Time several things in turns; each is called before, to warm up.

    Args:
        things: what to call, by name. Short ones are called several times a round.
        rounds: turns.
        device: whose work is waited for.
        told: called with a line about how far it is.
        done: called after each round with the times of all whole rounds so far, which are then the receiver's.
    """
    calls = _warmed_up(things, device, told)
    times = {name: Times() for name in things}
    started = time.perf_counter()
    for number in range(1, rounds + 1):
        for name in _order(list(things), number):
            measured = [_timed(things[name], device) for _ in range(calls[name])]
            times[name].wall.append([wall for wall, _ in measured])
            times[name].cpu.append([cpu for _, cpu in measured])
        each = (time.perf_counter() - started) / number
        left = f", about {duration(each * (rounds - number))} left" if number < rounds else ""
        told(f"round {number} of {rounds} done{left}")
        done({name: Times(list(one.wall), list(one.cpu)) for name, one in times.items()})
    return times


def _warmed_up(
    things: Mapping[str, Callable[[], object]], device: torch.device, told: Callable[[str], None]
) -> dict[str, int]:
    """Call everything; return how often each is called in a round."""
    calls = {}
    for number, (name, thing) in enumerate(things.items(), start=1):
        seconds = _timed(thing, device)[0]
        told(f"warm-up {number} of {len(things)}: {name.replace('|', ' ')} {duration(seconds)}")
        if seconds < _ROUND_SECONDS:  # the first call tells little about a short one
            seconds = _timed(thing, device)[0]
        calls[name] = max(1, min(_MOST_CALLS, int(_ROUND_SECONDS / max(seconds, 1e-9))))
    return calls


def _order(names: list[str], number: int) -> Iterator[str]:
    return iter(names) if number % 2 else reversed(names)


def _timed(thing: Callable[[], object], device: torch.device) -> tuple[float, float]:
    wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    thing()
    wait_for(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def saved_bytes(run: Callable[[], object], *, besides: nn.Module, also: Sequence[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass of one call.

    Every memory block counts once, however many tensors look into it; the parameters and buffers of ``besides`` and
    the tensors ``also``, which are there anyway, do not count. Works on the meta device too.
    """
    there = {_block(value) for value in (*besides.parameters(), *besides.buffers(), *also)}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(value: Tensor) -> Tensor:
        if _block(value) not in there:
            kept[_block(value)] = value.untyped_storage()  # held, so that its address is not used again
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        result: Any = run()
    del result
    return sum(block.nbytes() for block in kept.values())


def _block(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def step_memory(
    run: Callable[[], object], step: Callable[[], object], model: nn.Module, copies: Sequence[Tensor] = ()
) -> int:
    """Return the peak memory of one training step: on a GPU allocated, elsewhere kept for the backward pass.

    Args:
        run: the forward pass alone.
        step: all of it.
        model: what trains. On a GPU its weights are in the figure, and what else lies there is not.
        copies: of its weights, made once, which stand in for them during a step.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return saved_bytes(run, besides=model, also=copies)
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    wait_for(device)
    own = {_block(value): value.untyped_storage().nbytes() for value in (*model.parameters(), *copies)}
    return int(torch.cuda.max_memory_allocated(device)) - before + sum(own.values())

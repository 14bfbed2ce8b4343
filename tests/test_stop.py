"""Stopping: once, after the step, with everything kept; twice, at once."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch

from benchmark.console import NullReporter, QueueReporter, Stop, Stopped
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.trainer import Trainer
from tests.small import CPU, RECIPE, batches, method

STEPS = 6  # of the recipe: three epochs of two steps


class StopsAfter(NullReporter):
    """Asks to stop when it has been asked so many times."""

    def __init__(self, count):
        self.left = count

    def stopping(self):
        self.left -= 1
        return self.left < 0

    def advance(self, n=1, note=""):
        if self.stopping():
            raise Stopped


def train(name, folder, reporter, validate=lambda _: {"auroc": 0.5}, log_every=20):
    wrapped = method(name)
    recipe = dataclasses.replace(RECIPE, log_every=log_every)
    outcome = Trainer(
        wrapped, batches(wrapped), recipe, validate=validate, metric="auroc",
        checkpoint=Checkpoint(folder / "state.pt", "k"), device=CPU, reporter=reporter,
    ).run()  # fmt: skip
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in outcome.history]
    return wrapped.trainable_state(), rows


@pytest.mark.parametrize(("name", "log_every"), [("clip_lora", 20), ("taskres", 1)])
def test_a_run_stopped_after_each_of_its_steps_ends_bit_identically(tmp_path, name, log_every):
    whole, expected = train(name, tmp_path / "whole", NullReporter(), log_every=log_every)
    stops = []
    for _ in range(4 * STEPS):
        torch.manual_seed(99)  # the random state must come from the checkpoint
        try:
            state, rows = train(name, tmp_path / "parts", StopsAfter(1), log_every=log_every)
            break
        except Stopped as stopped:
            stops.append(str(stopped))
    assert "kept up to step 3 of 6" in stops  # in the middle of the second epoch
    assert stops[-1] == "kept up to step 6 of 6"
    assert rows == expected
    for key, value in whole.items():
        assert torch.equal(state[key], value), key


def test_a_stop_during_validation_keeps_the_steps_before_it(tmp_path):
    _, expected = train("taskres", tmp_path / "whole", NullReporter())
    calls = []

    def stops(_):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        return {"auroc": 0.5}

    with pytest.raises(Stopped, match="kept up to step 2 of 6"):
        train("taskres", tmp_path / "parts", NullReporter(), stops)
    assert train("taskres", tmp_path / "parts", NullReporter())[1] == expected


def test_the_first_signal_asks_and_the_second_interrupts():
    stop = Stop()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_progress_ends_a_stage_that_keeps_nothing():
    sent, stop = [], Stop()
    reporter = QueueReporter(sent.append, lambda: stop.asked)
    reporter.start("decode", 10)
    reporter.advance()
    stop.ask()
    with pytest.raises(Stopped):
        reporter.advance()
    assert [message[0] for message in sent] == ["start", "advance"]

"""The training loop: schedule, selection, resuming, faults; batches that keep labels with their samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import methods
from benchmark.backbones.towers.precision import autocast
from benchmark.config.run_config import Recipe
from benchmark.conformance.small_models import made
from benchmark.console import NullReporter
from benchmark.errors import CellError, DataError
from benchmark.registry import METHODS
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.gradients import backward
from benchmark.run.training.trainer import Adaptation, Trainer, learning_rate_factor, make_optimiser
from methods.base import Method
from tests.small import CPU, RECIPE, batches, corpus, frozen, method


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def trainer(
    wrapped: Method,
    folder: Path,
    validate: Callable[[Method], dict[str, float]],
    recipe: Recipe = RECIPE,
    key: str = "k",
    of: Any = None,
) -> Trainer:
    return Trainer(
        wrapped,
        of or batches(wrapped),
        recipe,
        validate=validate,
        metric="auroc",
        checkpoint=Checkpoint(folder / "state.pt", key),
        device=CPU,
        reporter=NullReporter(),
    )


def constant(_: Method) -> dict[str, float]:
    return {"auroc": 0.5}


def sequence(*scores: float) -> Callable[[Method], dict[str, float]]:
    rest = list(scores)
    return lambda _: {"auroc": rest.pop(0)}


def adapted(name: str, folder: Path, **options: object) -> tuple[Method, Adaptation]:
    wrapped = method(name, **options)
    return wrapped, trainer(wrapped, folder, constant).run()


def test_learning_rate_by_hand() -> None:
    # the authors' schedule: warm-up 2 of 8 steps (tests/golden: six_steps)
    factors = [learning_rate_factor(step, warmup=2, total=8, schedule="cosine") for step in range(6)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.9330127, 0.75, 0.5])
    assert learning_rate_factor(7, warmup=2, total=8, schedule="constant") == 1.0
    assert learning_rate_factor(0, warmup=0, total=4, schedule="cosine") == 1.0
    assert learning_rate_factor(8, warmup=2, total=8, schedule="cosine") == pytest.approx(0.0)


def test_loss_falls_and_history_has_a_row_per_epoch(tmp_path: Path) -> None:
    _, outcome = adapted("clip_lora", tmp_path, lora_dropout=0.0)
    assert [row["epoch"] for row in outcome.history] == [0, 1, 2, 3]
    assert [row["step"] for row in outcome.history] == [0, 2, 4, 6]
    losses = [row["train_loss"] for row in outcome.history[1:]]
    assert outcome.history[0]["train_loss"] is None
    assert losses[-1] < losses[0]
    assert len(outcome.step_seconds) == 6
    assert all(s > 0 for s in outcome.step_seconds)


def test_steps_in_which_no_pair_was_compared_are_counted(tmp_path: Path) -> None:
    """Where all labels of a batch agree, the label-guided loss leaves out every other pair and is zero."""
    wrapped, data = method("clip_adapter"), corpus()
    alike = dataclasses.replace(data, labels=np.zeros_like(data.labels))
    outcome = trainer(wrapped, tmp_path, constant, of=batches(wrapped, alike)).run()
    assert [row.get("empty_steps") for row in outcome.history] == [None, 2, 2, 2]
    _, outcome = adapted("clip_adapter", tmp_path / "b")
    assert not any("empty_steps" in row for row in outcome.history)


class Slow:
    """Batches that take 5 s each, by a clock that nothing else moves."""

    def __init__(self, of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._of, self.steps = 0.0, of, of.steps
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def epoch(self, *which: int) -> Iterator[Any]:
        for batch in self._of.epoch(*which):
            self.now += 5.0
            yield batch


def test_a_step_lasts_until_the_next_one_and_tells_what_it_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = method("taskres")
    slow, loss = Slow(batches(wrapped), monkeypatch), wrapped.loss

    def two_seconds(batch: Any) -> torch.Tensor:
        slow.now += 2.0
        return loss(batch)

    monkeypatch.setattr(wrapped, "loss", two_seconds)
    outcome = trainer(wrapped, tmp_path, constant, dataclasses.replace(RECIPE, max_steps=5), of=slow).run()
    assert outcome.step_seconds == [7.0] * 5
    assert outcome.step_waits == [5.0] * 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_this_run_not_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks, kept, blocks, size = [], [], 8000, 50_000
    for number, needed in enumerate((blocks, 0)):
        wrapped = method("taskres")
        loss = wrapped.loss

        def large(batch: Any, needed: int = needed, loss: Any = loss) -> torch.Tensor:
            freed = []
            for _ in range(needed):
                freed.append(torch.ones(size, dtype=torch.uint8))
                kept.append(torch.ones(1))  # lies between, so that a C library keeps what is freed
            return loss(batch)

        monkeypatch.setattr(wrapped, "loss", large)
        peaks.append(trainer(wrapped, tmp_path / str(number), constant).run().peak_memory)
    assert peaks[0] > peaks[1] + blocks * size // 2


@pytest.mark.parametrize(("select", "kept"), [("best", 2), ("best_or_start", 0), ("last", 3)])
def test_the_best_epoch_by_validation_is_kept(tmp_path: Path, select: str, kept: int) -> None:
    wrapped = method("taskres")
    states = []

    def validate(current: Method) -> dict[str, float]:
        states.append(current.trainable_state())
        return {"auroc": [0.9, 0.5, 0.7, 0.6][len(states) - 1]}

    outcome = trainer(wrapped, tmp_path, validate, dataclasses.replace(RECIPE, select=select)).run()
    assert outcome.best["epoch"] == kept  # the start, epoch 0, is kept only where the recipe allows it
    assert (outcome.best["step"] == 0) == (kept == 0)
    for name, value in wrapped.trainable_state().items():
        assert torch.equal(value, states[kept][name])


@pytest.mark.parametrize("name", ["clip_lora", "ace_lora", "cocoop", "taskres"])
def test_an_interrupted_run_ends_bit_identically(tmp_path: Path, name: str) -> None:
    whole, expected = adapted(name, tmp_path / "whole")

    calls = []

    def stops(_: Method) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:  # after the second epoch's steps, before its checkpoint
            raise StoppedError
        return {"auroc": 0.5}

    first = method(name)
    with pytest.raises(StoppedError):
        trainer(first, tmp_path / "parts", stops).run()
    second = method(name)
    torch.manual_seed(99)  # the random state must come from the checkpoint
    outcome = trainer(second, tmp_path / "parts", constant).run()
    for key, value in whole.trainable_state().items():
        assert torch.equal(second.trainable_state()[key], value), key
    for ours, row in zip(outcome.history, expected.history, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {
            k: v for k, v in row.items() if k != "seconds"
        }


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    wrapped = method("taskres")
    trainer(wrapped, tmp_path, constant, key="old").run()
    outcome = trainer(method("taskres"), tmp_path, constant, key="new").run()
    assert len(outcome.history) == 4
    assert Checkpoint(tmp_path / "state.pt", "new").load() is not None
    assert Checkpoint(tmp_path / "state.pt", "old").load() is None


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"not a checkpoint")
    assert Checkpoint(path, "k").load() is None
    assert len(trainer(method("taskres"), tmp_path, constant).run().history) == 4
    path.write_bytes(path.read_bytes()[:200])
    assert Checkpoint(path, "k").load() is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    wrapped = method("taskres")
    original, calls = wrapped.loss, []

    def loss(batch: object) -> torch.Tensor:
        calls.append(1)
        return original(batch) * (float(value) if len(calls) == 4 else 1.0)

    monkeypatch.setattr(wrapped, "loss", loss)
    with pytest.raises(
        CellError, match=rf"became {value} before step 4 \(epoch 2, learning rate .*lower --lr"
    ):
        trainer(wrapped, tmp_path, constant).run()


def test_out_of_memory_halves_what_the_towers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int | None] = []

    def fails(wrapped: Method, batch: object, micro: int | None, *_: object) -> torch.Tensor:
        taken.append(micro)
        if micro is None or micro > 4:
            raise torch.OutOfMemoryError
        return torch.ones(())

    monkeypatch.setattr("benchmark.run.training.trainer.backward", fails)
    trainer(method("taskres"), tmp_path, constant).run()
    assert taken[:4] == [None, 8, 4, 4]
    monkeypatch.setattr(
        "benchmark.run.training.trainer.backward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(CellError, match="out of memory with 1 pairs at a time"):
        trainer(method("taskres"), tmp_path / "b", constant).run()


def test_the_logit_scale_never_decays_and_stays_below_100(tmp_path: Path) -> None:
    wrapped = method("clip_lora")
    groups = make_optimiser(wrapped, RECIPE).param_groups
    without = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert [p.shape for p in without] == [torch.Size([])]
    wrapped.logit_scale.set(99.9)
    wrapped.logit_scale.value.data.add_(3.0)
    wrapped.logit_scale.clamp()
    assert float(wrapped.logit_scale().detach()) == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_step_of_each_optimiser_is_the_one_of_its_paper(name: str) -> None:
    """Two steps on one residual, by hand: the decay is a part of the gradient but for AdamW."""
    wrapped = method("taskres")
    recipe = dataclasses.replace(
        RECIPE, optimiser=name, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8
    )
    optimiser = make_optimiser(wrapped, recipe)
    (weight,) = (value for key, value in wrapped.trainable_parameters().items() if key != "logit_scale.value")
    with torch.no_grad():
        weight.fill_(2.0)
    expected, first, second = 2.0, 0.0, 0.0
    for step in (1, 2):
        weight.grad = torch.full_like(weight, 3.0)
        optimiser.step()
        slope = 3.0 + (0.0 if name == "adamw" else 0.5 * expected)
        if name == "sgd":
            first = slope if step == 1 else 0.9 * first + slope
            expected -= 0.1 * first
            continue
        expected -= 0.1 * 0.5 * expected if name == "adamw" else 0.0
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        expected -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)) ** 0.5 + 1e-8)
    assert weight[0].item() == pytest.approx(expected, rel=1e-5)


def test_full_fine_tuning_decays_matrices_only() -> None:
    wrapped = method("full_ft")
    decayed = {name for name in wrapped.trainable_parameters() if wrapped.decays(name)}
    assert any(name.endswith("attn.qkv.weight") for name in decayed)
    for part in ("bias", "LayerNorm", "norm1", "embeddings", "pos_embed", "cls_token", "logit_scale"):
        assert not any(part in name.split(".") for name in decayed), part


def test_precision_auto_is_fp32_on_a_cpu() -> None:
    with autocast("auto", CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_what_is_computed_in_fp32_has_its_gradients_in_fp32(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    wrapped = method("taskres")
    batch, loss_of = next(batches(wrapped).epoch(1)), wrapped.loss_of

    def in_fp32(*args: Any) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return loss_of(*args)

    monkeypatch.setattr(wrapped, "loss_of", in_fp32)
    gradients = []
    for precision in ("fp32", "bf16"):
        wrapped.zero_grad()
        with autocast(precision, CPU):
            backward(wrapped, batch, micro_batch, torch.amp.GradScaler("cpu", enabled=False))
        gradients.append([value.grad.clone() for value in wrapped.trainable_parameters().values()])
    assert all(map(torch.equal, *gradients))


# ---------------------------------------------------------------------------------------------- a GPU's time
WAITS = {
    "aten::nonzero",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
}
"""Operations whose result decides what is done next: the program waits until a GPU has caught up."""


def waiting(events: Iterable[Any]) -> list[str]:
    """Return which of a profile's operations wait; the optimiser's count of steps is kept on the CPU."""

    def above(event: Any) -> Iterator[str]:
        while event is not None:
            yield event.name
            event = event.cpu_parent

    return [
        event.name
        for event in events
        if event.name in WAITS and not any(name.startswith("Optimizer.step") for name in above(event))
    ]


@pytest.mark.parametrize("name", [name for name in METHODS.names(extras=False) if name != "zero_shot"])
def test_a_step_between_two_log_points_waits_for_nothing(name: str, tmp_path: Path) -> None:
    # texts of the other family are not padded with a mask, which is looked at on a CPU alone
    built, batch = made(functools.partial(methods.build, name), "open_clip")
    for kind in {"image", "text"} - built.adapts:
        inputs = batch.images if kind == "image" else batch.token_ids
        setattr(batch, f"{kind}_features", getattr(built.backbone, kind).features(inputs))
    batch.token_ids = built.backbone.trim(batch.token_ids)
    recipe = dataclasses.replace(RECIPE, log_every=3, grad_clip=1.0)
    stepping = trainer(built.train(), tmp_path, constant, recipe, of=SimpleNamespace(steps=3))
    with torch.autograd.profiler.profile() as profile:
        stepping._step(batch)
    assert waiting(profile.function_events) == []


def test_a_wait_is_seen() -> None:
    with torch.autograd.profiler.profile() as profile:
        values = torch.arange(3)
        values[values > 0]
        bool((values == 0).all())
    assert set(waiting(profile.function_events)) == {
        "aten::nonzero",
        "aten::is_nonzero",
        "aten::_local_scalar_dense",
    }


# ---------------------------------------------------------------------------------------------- batches
def test_inputs_and_labels_stay_together() -> None:
    wrapped = method("clip_lora")
    data = corpus()
    for batch in batches(wrapped, data, seed=3).epoch(1):
        for row in range(batch.size):
            source = int(np.flatnonzero((data.pixels == _pixels(wrapped, batch.images[row])).all((1, 2)))[0])
            expected = wrapped.backbone.tokenize([data.texts[source]])[0]
            width = batch.token_ids.shape[1]
            assert torch.equal(batch.token_ids[row], expected[:width])
            assert (expected[width:] == 0).all()
            assert torch.equal(batch.labels[row], torch.from_numpy(data.labels[source]))


def _pixels(wrapped: Method, image: torch.Tensor) -> np.ndarray:
    spec = wrapped.backbone.input_spec
    return ((image[0] * spec.std[0] + spec.mean[0]) * 255).round().numpy().astype(np.uint8)


def test_epochs_visit_every_pair_in_an_order_of_seed_and_number() -> None:
    wrapped = method("taskres")
    data = corpus(32)

    def order(seed: int, epoch: int) -> list[torch.Tensor]:
        return [batch.text_features for batch in batches(wrapped, data, seed=seed).epoch(epoch)]

    first = order(0, 1)
    assert sum(len(part) for part in first) == 32
    assert torch.equal(torch.cat(first).sort(0).values, torch.cat(order(1, 5)).sort(0).values)
    assert all(torch.equal(a, b) for a, b in zip(first, order(0, 1), strict=True))
    assert not torch.equal(first[0], order(0, 2)[0])
    assert not torch.equal(first[0], order(1, 1)[0])


@pytest.mark.parametrize("name", ["taskres", "clip_adapter", "coop", "mmrl"])
def test_training_from_the_cache_equals_training_from_live_towers(name: str) -> None:
    wrapped = method(name).eval()
    made = batches(wrapped)
    rows = np.arange(16)
    cached, live = made.batch(rows), made.batch(rows, cached=False)
    live.frozen_image = live.frozen_text = None
    assert cached.image_features is not None or cached.frozen_image is not None
    torch.testing.assert_close(wrapped.loss(cached), wrapped.loss(live), atol=1e-5, rtol=0)


def test_texts_are_padded_as_the_method_asks() -> None:
    rows = np.arange(4)
    assert batches(method("clip_lora")).batch(rows).token_ids.shape[1] < 64
    assert batches(method("ace_lora")).batch(rows).token_ids.shape[1] == 64
    assert batches(method("ace_lora", text_graph="masked")).batch(rows).token_ids.shape[1] < 64


def test_a_corpus_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="8 pairs, fewer than one batch of 16"):
        batches(method("taskres"), corpus(8))


# ---------------------------------------------------------------------------------------------- feature cache
def test_frozen_features_are_the_towers_own_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, data = method("taskres"), corpus(20)
    backbone = wrapped.backbone
    features = frozen(backbone, tmp_path).of_images(data.pixels, data.digest)
    live = backbone.image.features(backbone.input_spec.to_input(data.pixels))
    torch.testing.assert_close(features, live, atol=1e-5, rtol=0)
    assert len(list(tmp_path.iterdir())) == 1

    monkeypatch.setattr(backbone.image, "features", lambda *_a, **_k: pytest.fail("computed twice"))
    assert torch.equal(frozen(backbone, tmp_path).of_images(data.pixels, data.digest), features)


def test_other_weights_or_data_have_other_features(tmp_path: Path) -> None:
    first, data = method("taskres").backbone, corpus(20)
    frozen(first, tmp_path).of_images(data.pixels, data.digest)
    frozen(first, tmp_path).of_images(corpus(20, seed=1).pixels, "other")
    with torch.no_grad():
        next(first.model.visual.parameters()).add_(1e-3)
    frozen(first, tmp_path).of_images(data.pixels, data.digest)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_feature_file_is_made_again(tmp_path: Path) -> None:
    backbone, data = method("taskres").backbone, corpus(20)
    features = frozen(backbone, tmp_path).of_texts(backbone.tokenize(data.texts))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(frozen(backbone, tmp_path).of_texts(backbone.tokenize(data.texts)), features)
    assert path.stat().st_size > 50

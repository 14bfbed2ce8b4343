"""Class labels supervise: batches of labelled images, the loss by hand, training; a method bound to its classes."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import methods
from benchmark.conformance.checks import CHECKS
from benchmark.conformance.small_models import FAMILIES, loss_of, moved, with_classes
from benchmark.console import NullReporter
from benchmark.data.batches import ClassBatches
from benchmark.errors import ConfigError
from benchmark.files import ROOT
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.trainer import Trainer
from methods.base import Method
from methods.supervision import Classes
from tests.small import CPU, RECIPE, frozen, images, method

PER_CLASS = functools.partial(methods.build, "taskres", rows="per_class", n_classes=3)
OF_CLASSES = ("trained tensors rec", "frozen tensors", "order", "classes supervise", "parts", "step in bf16")


def batches(wrapped: Method, *, count: int = 24, size: int = 16, **how: Any) -> ClassBatches:
    support = images(count=count)
    texts = [f"an image of {name}." for name in support.classes for _ in range(2)]
    prompts = wrapped.backbone.trim(wrapped.backbone.tokenize(texts).long()).unflatten(0, (3, 2))
    how = {"batch_size": size, "seed": 0, "device": CPU} | how
    classes = Classes(prompts, wrapped.backbone.text.features(prompts.flatten(0, 1)).unflatten(0, (3, 2)))
    return ClassBatches(wrapped, support, frozen(wrapped.backbone), classes=classes, **how)


def test_an_epoch_of_several_passes_takes_every_image_that_often() -> None:
    made = batches(method("taskres"), size=12, passes=3)
    seen = torch.cat([batch.image_features for batch in made.epoch(1)])
    assert made.steps == 6
    assert torch.unique(seen, dim=0, return_counts=True)[1].tolist() == [3] * 24
    once, again = (batches(method("taskres"), size=12, passes=1).epoch(number) for number in (1, 1))
    assert all(torch.equal(one.labels, two.labels) for one, two in zip(once, again, strict=True))


def test_labels_travel_with_their_images() -> None:
    made = batches(method("clip_lora"))
    support = images()
    spec = method("clip_lora").backbone.input_spec
    (batch,) = made.epoch(1)
    assert made.steps == 1
    assert batch.size == 16
    assert batch.image_features is None
    rows = [
        next(i for i in range(24) if torch.equal(spec.to_input(support.pixels[i : i + 1], CPU)[0], image))
        for image in batch.images
    ]
    assert batch.labels.tolist() == [i % 3 for i in rows]
    assert torch.equal(made.batch(torch.arange(2).numpy()).labels, torch.tensor([0, 1]))


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    made = batches(method("taskres"), count=6)
    (batch,) = made.epoch(1)
    assert batch.size == 6
    assert batch.images is None  # the frozen image tower is asked once
    assert batch.supervision.features.shape[:2] == (3, 2)
    parts = batch.split(4)
    assert [part.size for part in parts] == [4, 2]
    assert all(part.supervision is batch.supervision for part in parts)


def test_the_loss_is_cross_entropy_over_all_classes() -> None:
    wrapped = method("zero_shot")
    (batch,) = batches(wrapped, count=6).epoch(1)
    text = functional.normalize(wrapped.encode_text(batch.supervision.prompts.flatten(0, 1)), dim=-1)
    classes = functional.normalize(text.unflatten(0, (3, 2)).mean(dim=1), dim=-1)
    logits = wrapped.logit_scale() * functional.normalize(batch.image_features, dim=-1) @ classes.T
    by_hand = -logits.log_softmax(dim=1)[torch.arange(6), batch.labels].mean()
    assert float(loss_of(wrapped, batch)) == pytest.approx(float(by_hand), abs=1e-5)
    assert torch.allclose(batch.supervision.frozen(), classes, atol=1e-6)


@pytest.mark.parametrize("name", ["coop", "clip_adapter"])
def test_a_run_lowers_the_loss(name: str, tmp_path: Path) -> None:
    wrapped = method(name)
    outcome = Trainer(
        wrapped,
        batches(wrapped, size=24),
        dataclasses.replace(RECIPE, epochs=6),
        validate=lambda _: {"auroc": 0.5},
        metric="auroc",
        checkpoint=Checkpoint(tmp_path / "state.pt", "k"),
        device=CPU,
        reporter=NullReporter(),
    ).run()
    losses = [row["train_loss"] for row in outcome.history[1:]]
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("check", [name for name in CHECKS if any(word in name for word in OF_CLASSES)])
def test_residuals_per_class_are_learnt_from_labels(check: str) -> None:
    CHECKS[check](PER_CLASS, FAMILIES[1])


def test_a_bound_method_refuses_other_classes() -> None:
    wrapped, batch = moved(PER_CLASS, FAMILIES[1])
    assert wrapped.class_bound
    assert with_classes(wrapped, batch).supervision.prepared(wrapped).shape[0] == 3
    with pytest.raises(ConfigError, match="bound to its 3 classes"):
        wrapped.prepare_classes(batch.token_ids[:, None])


def test_the_code_on_the_page_fits_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "fewshot.md").read_text(encoding="utf-8"), re.S
    )
    exec(code, {})
    assert len(capsys.readouterr().out.split(",")) == 12

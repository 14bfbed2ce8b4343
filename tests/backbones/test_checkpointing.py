"""Checkpointed blocks: the same loss and gradients, random masks included, from far fewer bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import methods
from benchmark.backbones import Tower
from benchmark.conformance.small_models import FAMILIES, move, small_backbone, small_batch
from benchmark.efficiency.timing import saved_bytes
from methods.base import Method

CASES = [
    ("clip_lora", {"lora_dropout": 0.2, "params": ("q", "k", "v", "o", "up", "down")}),
    ("ace_lora", {"lora_dropout": 0.2}),
    ("ace_lora", {"lora_dropout": 0.2, "params": ("q", "v", "down")}),
    ("mma", {}),
    ("maple", {}),
    ("full_ft", {}),
]
methods_ = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
families = pytest.mark.parametrize("family", FAMILIES)


def built(name: str, family: str, **options: Any) -> tuple[Method, Any]:
    torch.manual_seed(0)
    method = methods.build(name, small_backbone(family).double(), **options).double().train()
    if name != "full_ft":
        move(method)
    batch = small_batch(method.backbone)
    batch.images = batch.images.double()
    return method, batch


def towers(method: Method) -> tuple[Tower, Tower]:
    return method.backbone.image, method.backbone.text


def step(method: Method, batch: Any) -> list[torch.Tensor]:
    method.zero_grad()
    torch.manual_seed(1)
    loss = method.loss(batch)
    torch.rand(1)  # what others draw in between does not matter
    loss.backward()
    return [loss.detach(), *(value.grad.clone() for value in method.trainable_parameters().values())]


@methods_
@families
def test_loss_and_gradients_are_the_same(name: str, options: dict[str, Any], family: str) -> None:
    method, batch = built(name, family, **options)
    plain = step(method, batch)
    state = torch.get_rng_state()
    for tower in towers(method):
        tower.checkpointing = True
    for ours, expected in zip(step(method, batch), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "most"), [("clip_lora", 0.25), ("ace_lora", 0.30)])
@pytest.mark.parametrize("kind", ["image", "text"])
@families
def test_a_fraction_of_the_bytes_is_kept(name: str, most: float, kind: str, family: str) -> None:
    """A block keeps its input: 1 of its 12 to 16 tensors of that size (LoRA's masks are bytes).

    An opened last block, one of three or four here, also keeps queries, keys and values.
    """
    method, batch = built(name, family, lora_dropout=0.2)
    tower, given = getattr(method.backbone, kind), batch.images if kind == "image" else batch.token_ids
    kept = []
    for tower.checkpointing in (False, True):
        run = {"clip_lora": lambda: tower.features(given)}.get(
            name, lambda: method.chosen_graph_of(tower, given)
        )
        kept.append(saved_bytes(run, besides=method))
    assert kept[1] < most * kept[0]


def test_nothing_is_wrapped_without_gradient_or_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = built("clip_lora", FAMILIES[0])

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("benchmark.backbones.towers.base.checkpoint", never)
    method.loss(batch).backward()
    for tower in towers(method):
        tower.checkpointing = True
    with torch.no_grad():
        method.eval().similarity(batch.images, batch.token_ids)
    with pytest.raises(AssertionError):
        method.train().loss(batch)

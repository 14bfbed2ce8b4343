"""Frozen weights that are cast once: the bits of autocast, from fewer bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import methods
from benchmark.precision import TrainingArithmetic, autocast, resolve
from benchmark.registry import METHODS
from benchmark.small_models import FAMILIES, move, small_backbone, small_batch
from benchmark.timing import saved_bytes
from methods.base import Method

CPU = torch.device("cpu")
NAMES = [name for name in METHODS.names(extras=False) if name != "zero_shot"] + [
    "peft:lora",
    "peft:dora",
    "peft:ia3",
]


def built(name: str, family: str) -> tuple[Method, Any]:
    torch.manual_seed(0)
    method = methods.build(name, small_backbone(family)).train()
    if name != "full_ft":
        move(method)
    return method, small_batch(method.backbone)


def step(method: Method, batch: Any, context: contextlib.AbstractContextManager[Any]) -> list[torch.Tensor]:
    method.zero_grad()
    torch.manual_seed(1)
    with context:
        loss = method.loss(batch)
        loss.backward()
    values = method.trainable_parameters().values()
    return [loss.detach(), *(value.grad.clone() for value in values if value.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_has_the_bits_of_autocast_and_leaves_the_weights(name: str, family: str) -> None:
    method, batch = built(name, family)
    before = {key: (value.dtype, value.data_ptr()) for key, value in method.backbone.model.named_parameters()}
    arithmetic = TrainingArithmetic("bf16", CPU, method.backbone.model)
    expected = step(method, batch, autocast("bf16", CPU))
    for _ in range(2):  # the second one uses the copies of the first
        ours = step(method, batch, arithmetic())
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    after = {key: (value.dtype, value.data_ptr()) for key, value in method.backbone.model.named_parameters()}
    assert after == before


def test_weights_come_back_after_an_error() -> None:
    method, _ = built("clip_lora", FAMILIES[0])
    with contextlib.suppress(ZeroDivisionError), TrainingArithmetic("bf16", CPU, method.backbone.model)():
        assert torch.bfloat16 in {value.dtype for value in method.backbone.model.parameters()}
        raise ZeroDivisionError
    assert {value.dtype for value in method.backbone.model.parameters()} == {torch.float32}


def test_nothing_is_cast_in_fp32() -> None:
    method, _ = built("clip_lora", FAMILIES[0])
    with TrainingArithmetic("fp32", CPU, method.backbone.model)():
        assert {value.dtype for value in method.backbone.model.parameters()} == {torch.float32}


def test_no_step_keeps_copies_of_frozen_weights() -> None:
    method, batch = built("clip_lora", FAMILIES[0])
    arithmetic = TrainingArithmetic("bf16", CPU, method.backbone.model)

    def kept(context: Callable[[], contextlib.AbstractContextManager[Any]], **there: Any) -> int:
        def loss() -> torch.Tensor:
            with context():
                return method.loss(batch)

        return saved_bytes(loss, besides=method, **there)

    copies = sum(copy.nbytes for copy in arithmetic.copies)
    linear = [module for module in method.backbone.model.modules() if type(module) is torch.nn.Linear]
    assert copies == 2 * sum(module.weight.numel() for module in linear)
    saved = kept(lambda: autocast("bf16", CPU)) - kept(arithmetic, also=arithmetic.copies)
    assert saved > 0.8 * copies


def test_auto_is_resolved_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("auto", CPU) == resolve("fp32", CPU) == "fp32"
    assert resolve("bf16", CPU) == "bf16"
    for has_it, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it: has_it)
        assert resolve("auto", torch.device("cuda")) == expected

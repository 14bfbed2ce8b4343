"""Towers under autocast: frozen weights are cast once with the same bits, and what follows the towers is fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import methods
from benchmark.backbones.towers.precision import TrainingArithmetic, autocast, resolve, similarity
from benchmark.conformance.small_models import FAMILIES, move, small_backbone, small_batch
from benchmark.data.samples import Batch
from benchmark.efficiency.timing import saved_bytes
from benchmark.registry import METHODS
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
    assert copies == 2 * sum(value.numel() for module in linear for value in module.parameters())
    saved = kept(lambda: autocast("bf16", CPU)) - kept(arithmetic, also=arithmetic.copies)
    assert saved > 0.8 * copies


def test_auto_is_resolved_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("auto", CPU) == resolve("fp32", CPU) == "fp32"
    assert resolve("bf16", CPU) == "bf16"
    for has_it, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, **_: has_it)
        assert resolve("auto", torch.device("cuda")) == expected


# ---------------------------------------------------------------------- what follows the towers
def is_rounded(values: Tensor) -> bool:
    """Return whether values are bf16 numbers, whatever their type: few fp32 numbers are."""
    values = values[values.isfinite()]
    return values.dtype != torch.float32 or bool((values.bfloat16() == values).float().mean() > 0.5)


class WhatIsCompared(TorchFunctionMode):
    """Keeps what losses take the softmax of."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("cross_entropy", "log_softmax"):
            self.logits.append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["zero_shot", *NAMES])
def test_no_method_rounds_cosines_or_logits_under_autocast(name: str) -> None:
    method, _ = built(name, FAMILIES[0])
    batch = small_batch(method.backbone, 64)
    with TrainingArithmetic("bf16", CPU, method.backbone.model)(), WhatIsCompared() as seen:
        loss = method.loss(Batch(batch.images[:8], batch.token_ids[:8], batch.labels[:8]))
    assert seen.logits
    assert not any(map(is_rounded, (loss[None], *seen.logits)))
    method.eval()
    with torch.no_grad(), autocast("bf16", CPU):
        assert not is_rounded(method.similarity(batch.images[:8], batch.token_ids[:8]))
        cosines = method.classify(Batch(batch.images), method.prepare_classes(batch.token_ids[:6, None]))
    first, second = cosines.topk(2, dim=1).values.unbind(1)
    assert (first > second).all()
    assert len(cosines.unique()) > 0.99 * cosines.numel()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_attention_row_of_the_graph_is_the_same_under_autocast(family: str, kind: str) -> None:
    backbone = small_backbone(family)
    tower, batch = getattr(backbone, kind), small_batch(backbone)
    sequence = tower.enter(tower.embed(batch.images if kind == "image" else batch.token_ids))
    shape = (len(sequence.tokens), tower.num_heads, sequence.tokens.shape[1], 8)
    queries, keys = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with autocast("bf16", CPU):
        row = tower._row(queries, keys, sequence)
    assert torch.equal(row, tower._row(queries, keys, sequence))


def test_heads_compute_in_fp32() -> None:
    method, _ = built("clip_adapter", FAMILIES[0])
    features = torch.randn(3, method.backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    with autocast("bf16", CPU):
        adapted = method.from_image_features(features)
    assert torch.equal(adapted, method.from_image_features(features))


def test_products_of_features_are_fp32_at_least() -> None:
    left, right = (torch.randn(4, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected, coarse = left @ right.T, left.bfloat16().float() @ right.T
    with autocast("bf16", CPU):
        assert torch.equal(similarity(left, right), expected)
        assert torch.equal(similarity(left.bfloat16(), right), coarse)
        double = [value.double().requires_grad_() for value in (left, right)]
        assert torch.autograd.gradcheck(similarity, double)

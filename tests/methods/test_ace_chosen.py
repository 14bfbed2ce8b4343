"""ACE-LoRA with a last block for the tokens that reach the loss: the loss and gradients of all tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import methods
from benchmark.conformance.small_models import move, small_backbone, small_batch
from benchmark.data.samples import Batch
from benchmark.run.training.gradients import backward
from methods.layers.hypergraph import Incidence
from tests.methods.watch import both_families


def built(family: str, **options: Any) -> tuple[Any, Batch]:
    """Return a method in fp64 away from its start, in training, and pairs; one text has two real words."""
    torch.manual_seed(0)
    method = methods.build("ace_lora", small_backbone(family).double(), **options).double().train()
    move(method)
    batch = small_batch(method.backbone)
    assert batch.images is not None
    assert batch.token_ids is not None
    batch.images = batch.images.double()
    batch.token_ids[0, 3:] = 0
    batch.token_ids[0, 3] = 79
    return method, batch


def loss_and_gradients(method: Any, run: Callable[[], Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    method.zero_grad()
    loss = run()
    if loss.requires_grad:
        loss.backward()
    named = method.trainable_parameters().items()
    assert all(value.grad is not None for _, value in named)
    return [loss.detach(), *(value.grad.clone() for _, value in named)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@both_families
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.0, "text_graph": "masked"},
        {"text_graph": "masked", "topk": 3},
        {"params": ("q", "v", "o"), "lora_dropout": 0.3},  # draws behind attention: all tokens, as before
        {"params": ("q", "v", "o", "down"), "lora_dropout": 0.0},
        {"position": "bottom"},
        {"use_lora": False},
        *({"incidence": incidence} for incidence in get_args(Incidence)[1:]),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_all_tokens(family: str, options: dict[str, Any]) -> None:
    method, batch = built(family, **options)
    few = loss_and_gradients(method, lambda: method.loss(batch))
    method.chosen_graph_of = method.graph_of
    assert_same(few, loss_and_gradients(method, lambda: method.loss(batch)))


@both_families
@pytest.mark.parametrize("kind", ["image", "text"])
def test_one_token_and_its_neighbours_twice_over_carry_gradient(family: str, kind: str) -> None:
    method, batch = built(family, topk=3)
    given = batch.images if kind == "image" else batch.token_ids
    graph = method.chosen_graph_of(getattr(method.backbone, kind), given)
    assert graph.tokens.shape[1] == 1 + 3 + 9
    assert graph.row.shape == (6, 3)


@both_families
def test_parts_of_a_batch_choose_as_in_their_first_pass(family: str) -> None:
    method, batch = built(family, lora_dropout=0.2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    few = loss_and_gradients(method, lambda: backward(method, batch, 2, scaler))
    method.chosen_graph_of = method.graph_of
    assert_same(few, loss_and_gradients(method, lambda: backward(method, batch, 2, scaler)))


def test_evaluation_computes_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = built("timm+bert")

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(method, "chosen_graph_of", never)
    method.eval().similarity(batch.images, batch.token_ids).sum().backward()
    with torch.no_grad():
        method.train().similarity(batch.images, batch.token_ids)
    with pytest.raises(AssertionError):
        method.loss(batch)


@both_families
@torch.no_grad()
def test_a_masked_graph_of_short_texts_does_not_depend_on_their_padding(family: str) -> None:
    """Three real words and fewer: k is min(k, real tokens - 2), whatever the width of the batch."""
    method, _ = built(family, text_graph="masked")
    method.eval()
    for words in (1, 2, 3, 4):
        ids = torch.zeros(1, 24, dtype=torch.long)
        ids[0, : words + 2] = torch.tensor([2, *range(30, 30 + words), 79])
        alone = method.encode_text(ids[:, : words + 2])
        torch.testing.assert_close(method.encode_text(ids), alone, rtol=1e-10, atol=1e-12)

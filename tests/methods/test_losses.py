"""Contrastive losses: hand-worked cases and invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.errors import ConfigError
from methods.losses import Objective, clip_loss, focal_loss, label_mask
from methods.supervision import Findings
from tests.small import batches, corpus, method

NAN = float("nan")


def test_clip_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = [math.log(math.exp(2) + 1) - 2, math.log(math.exp(1) + math.exp(3)) - 3]
    columns = [math.log(math.exp(2) + math.exp(1)) - 2, math.log(1 + math.exp(3)) - 3]
    assert clip_loss(logits).item() == pytest.approx((sum(rows) / 2 + sum(columns) / 2) / 2, abs=1e-6)


def test_masked_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, 0.5], [0.0, 0.0, 1.0]])
    labels = torch.tensor(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    )  # 0 and 1 show the same: that pair is left out
    keep = [[0, 2], [1, 2], [0, 1, 2]]
    rows = [math.log(sum(math.exp(logits[i, j]) for j in keep[i])) - logits[i, i].item() for i in range(3)]
    columns = [math.log(sum(math.exp(logits[i, j]) for i in keep[j])) - logits[j, j].item() for j in range(3)]
    expected = (sum(rows) / 3 + sum(columns) / 3) / 2
    assert Objective()(logits, labels).item() == pytest.approx(expected, abs=1e-6)


def test_uncertain_and_missing_count_as_negative() -> None:
    labels = torch.tensor([[1.0, -1.0, NAN], [1.0, 0.0, 0.0], [0.0, -1.0, NAN], [NAN, 0.0, 0.0]])
    expected = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    assert torch.equal(label_mask(labels), expected)


def test_a_sample_without_labels_is_never_left_out() -> None:
    labels = torch.tensor([[NAN, NAN], [NAN, NAN], [0.0, 0.0], [0.0, NAN]])
    mask = label_mask(labels)
    assert mask[0].all()
    assert mask[1].all()
    assert not mask[2, 3]
    assert not mask[3, 2]


def test_shared_positive_rule() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    mask = label_mask(labels, "shared_positive")
    assert not mask[0, 1]
    assert mask[2, 3]
    assert mask[0, 2]


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_mask_is_symmetric_keeps_the_diagonal_and_the_loss_ignores_order(
    size: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 2, (size, width), generator=generator).float()
    logits = torch.randn(size, size, generator=generator)
    mask = label_mask(labels)
    assert torch.equal(mask, mask.T)
    assert mask.diagonal().all()
    order = torch.randperm(size, generator=generator)
    permuted = Objective()(logits[order][:, order], labels[order])
    assert permuted.item() == pytest.approx(Objective()(logits, labels).item(), abs=1e-5)


def test_all_labels_equal_leaves_nothing_to_learn() -> None:
    logits = torch.randn(5, 5, requires_grad=True)
    loss = Objective()(logits, torch.ones(5, 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(5, 5))


def test_distinct_labels_are_the_plain_loss() -> None:
    logits = torch.randn(4, 4)
    assert Objective()(logits, torch.eye(4)).item() == clip_loss(logits).item()
    assert Objective("clip")(logits, torch.ones(4, 2)).item() == clip_loss(logits).item()
    assert Objective()(logits, None).item() == clip_loss(logits).item()


@pytest.mark.parametrize("wrong", [{"name": "mse"}, {"match": "near"}])
def test_unknown_choices_are_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Objective(**wrong)


# --- findings -------------------------------------------------------------------------------------------------


def test_focal_loss_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    right = [0.5, 1 / (1 + math.exp(2))]
    # a positive weighs by the share of negatives, a negative by that of positives
    parts = [-weight * (1 - p) ** 2 * math.log(p) for weight, p in zip((0.9, 0.4), right, strict=True)]
    assert focal_loss(logits, labels, torch.tensor([0.1, 0.4])).item() == pytest.approx(
        sum(parts) / 2, abs=1e-6
    )


def test_focal_loss_without_focus_is_weighted_cross_entropy_and_leaves_unknown_out() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(18).reshape(6, 3) % 2).float()
    shares = torch.full((3,), 0.5)
    plain = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert focal_loss(logits, labels, shares, gamma=0.0).item() == pytest.approx(plain.item(), abs=1e-6)
    unknown = torch.cat([labels, torch.full((2, 3), NAN)])
    more = torch.cat([logits, torch.full((2, 3), 9.0)])
    assert focal_loss(more, unknown, shares).item() == pytest.approx(
        focal_loss(logits, labels, shares).item(), abs=1e-6
    )


def test_focal_loss_has_gradients_where_answers_are_certain() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[0.0, 0.0]]), torch.tensor([0.5, 0.5])).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] > 0


@pytest.mark.parametrize("name", ["clip_lora", "taskres"])
def test_methods_learn_findings(name: str) -> None:
    wrapped = method(name, loss="focal")
    made = batches(wrapped)
    batch = next(iter(made.epoch(0)))
    assert isinstance(batch.supervision, Findings)
    assert batch.supervision.prompts.prompts.shape[:2] == (8, 1)
    assert batch.supervision.shares.tolist() == pytest.approx([0.25] * 4)
    optimiser = torch.optim.Adam(wrapped.trainable_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = batch.supervision.loss(wrapped, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_corpus_without_labels_has_no_findings() -> None:
    wrapped = method("taskres", loss="focal")
    with pytest.raises(ConfigError, match="loss=focal learns findings, and corpus 'small' has no labels"):
        batches(wrapped, replace(corpus(), labels=None, label_names=()))

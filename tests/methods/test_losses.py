"""Contrastive losses: hand-worked cases and invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.losses import Objective, clip_loss, label_mask

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

"""The hypergraph: a case worked by hand, and the sheet's invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from methods.layers.hypergraph import HypergraphNetwork, incidence, refine, refine_all


def sample(
    count: int, seed: int = 0, batch: int = 2, width: int = 8
) -> tuple[Tensor, Tensor, HypergraphNetwork]:
    """Return unit tokens, a row of scores and a network in float64."""
    torch.manual_seed(seed)
    tokens = functional.normalize(torch.randn(batch, count, width, dtype=torch.float64), dim=-1)
    return tokens, torch.randn(batch, count - 1, dtype=torch.float64), HypergraphNetwork(width, 4).double()


def test_incidence_by_hand() -> None:
    angles = torch.tensor([0.0, 0.0, 0.5, 1.2], dtype=torch.float64)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    row = torch.tensor([[0.1, 0.7, 0.3]], dtype=torch.float64)
    matrix = incidence(tokens, row, topk=1)[0]
    # k = 1: token 0 takes token 2 (score 0.7); 1 takes 2 (angle 0.5 away), 2 takes 1, 3 takes 2; weights are 1
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.float64)
    assert torch.equal(matrix, expected)


def test_weights_are_a_softmax_over_the_kept_scores() -> None:
    tokens, row, _ = sample(6)
    matrix = incidence(tokens, row, topk=2)
    best = row[0].topk(2)
    weights = torch.tensor([math.exp(v) for v in best.values])
    assert torch.allclose(matrix[0, 0, best.indices + 1], weights.double() / weights.sum(), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 12), st.integers(1, 5), st.integers(0, 1000))
def test_invariants(count: int, topk: int, seed: int) -> None:
    tokens, row, network = sample(count, seed)
    matrix, k = incidence(tokens, row, topk=topk), min(topk, count - 2)
    ones = torch.ones(2, count, dtype=torch.float64)
    assert torch.allclose(matrix.diagonal(dim1=1, dim2=2), ones)
    assert torch.equal(matrix[:, 1:, 0], matrix[:, 0, 1:])
    sums = matrix.sum(dim=2)
    assert torch.allclose(sums[:, 0], 2 * ones[:, 0])
    assert torch.allclose(sums[:, 1:], 2 + matrix[:, 0, 1:])
    off = (matrix != 0).sum(dim=2) - 1
    assert (off[:, 0] == k).all()
    assert (off[:, 1:] == k + (matrix[:, 0, 1:] != 0).long()).all()

    full = refine_all(network, tokens, row, topk=topk)[:, 0]
    assert torch.allclose(refine(network, tokens, row, topk=topk), full, atol=1e-9)

    order = torch.randperm(count - 1)
    moved = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    assert torch.allclose(refine(network, moved, row[:, order], topk=topk), full, atol=1e-9)


def test_global_mode_has_the_gradients_of_the_full_mode() -> None:
    tokens, row, network = sample(9)
    results = []
    for form in (refine, lambda *a, **k: refine_all(*a, **k)[:, 0]):
        x, a = tokens.clone().requires_grad_(), row.clone().requires_grad_()
        network.zero_grad()
        form(network, x, a, topk=3).square().sum().backward()
        results.append([x.grad, a.grad, *(p.grad for p in network.parameters())])
    for ours, full in zip(*results, strict=True):
        assert torch.allclose(ours, full, atol=1e-9)


def test_gradient_reaches_few_tokens() -> None:
    tokens, row, network = sample(60, batch=1)
    x = tokens.clone().requires_grad_()
    refine(network, x, row, topk=3).sum().backward()
    touched = int((x.grad.abs().sum(-1) > 0).sum())
    assert 1 < touched <= 1 + 3 + 9


def test_masked_tokens_change_nothing() -> None:
    tokens, row, network = sample(9)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[:, 6:] = False
    short = refine(network, tokens[:, :6], row[:, :5], topk=3)
    noise = tokens.clone()
    noise[:, 6:] = functional.normalize(torch.randn(2, 3, 8, dtype=torch.float64), dim=-1)
    assert torch.allclose(refine(network, noise, row, topk=3, keep=keep), short, atol=1e-12)
    assert torch.allclose(refine_all(network, noise, row, topk=3, keep=keep)[:, 0], short, atol=1e-12)


def test_two_real_tokens_give_finite_values() -> None:
    tokens, row, network = sample(6)
    keep = torch.tensor([[True, True, False, False, False, False]] * 2)
    assert refine(network, tokens, row, topk=3, keep=keep).isfinite().all()


def test_too_few_tokens_are_refused() -> None:
    tokens, row, network = sample(2)
    with pytest.raises(ValueError, match="at least 3 tokens"):
        refine(network, tokens, row, topk=1)


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = HypergraphNetwork(512, 128)
    assert network.edge.down.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert network.edge.up.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)

"""The hypergraph and its ablation variants: cases worked by hand or by explicit loops, and what must hold."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from methods.layers.hypergraph import (
    Bottleneck,
    HypergraphNetwork,
    Incidence,
    incidence,
    neighbours,
    refine,
    refine_all,
)

KINDS: tuple[Incidence, ...] = get_args(Incidence)
every_kind = pytest.mark.parametrize("kind", KINDS)


def sample(
    count: int, seed: int = 0, batch: int = 2, width: int = 8, kind: Incidence = "attention"
) -> tuple[Tensor, Tensor, HypergraphNetwork]:
    """Return unit tokens, a row of scores and a network in float64."""
    torch.manual_seed(seed)
    tokens = functional.normalize(torch.randn(batch, count, width, dtype=torch.float64), dim=-1)
    network = HypergraphNetwork(width, 4, kind).double()
    return tokens, torch.randn(batch, count - 1, dtype=torch.float64), network


def test_incidence_by_hand() -> None:
    angles = torch.tensor([0.0, 0.0, 0.5, 1.2], dtype=torch.float64)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    row = torch.tensor([[0.1, 0.7, 0.3]], dtype=torch.float64)
    matrix = incidence(tokens, row, topk=1)[0]
    # k = 1: token 0 takes token 2 (score 0.7); 1 takes 2 (angle 0.5 away), 2 takes 1, 3 takes 2; weights are 1
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.float64)
    assert torch.equal(matrix, expected)


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


@every_kind
@pytest.mark.parametrize("masked", [False, True])
def test_global_mode_has_the_values_and_gradients_of_the_full_mode(kind: Incidence, masked: bool) -> None:
    tokens, row, network = sample(9, kind=kind)
    tokens = tokens * torch.linspace(0.5, 1.0, 9, dtype=torch.float64)[:, None]  # averaged tokens are shorter
    keep = torch.arange(9).expand(2, -1) < torch.tensor([[4], [8]]) if masked else None
    results = []
    for form in (refine, lambda *a, **k: refine_all(*a, **k)[:, 0]):
        x, a = tokens.clone().requires_grad_(), row.clone().requires_grad_()
        network.zero_grad()
        output = form(network, x, a, topk=1 if kind == "gnn" else 3, keep=keep)
        output.square().sum().backward()
        results.append([output, x.grad, a.grad, *(p.grad for p in network.parameters())])
    for ours, full in zip(*results, strict=True):
        assert (ours is None) == (full is None)
        assert ours is None or torch.allclose(ours, full, atol=1e-9)


def loops(value: Tensor) -> list:
    """Return a tensor's entries as nested lists of scalars that keep their gradient."""
    return [loops(part) for part in value] if value.ndim else value


def dot(left: list, right: list) -> Tensor:
    return sum((a * b for a, b in zip(left, right, strict=True)), torch.zeros((), dtype=torch.float64))


def lrelu(value: Tensor) -> Tensor:
    return value if value > 0 else 0.2 * value


def bottleneck(network: Bottleneck, inputs: list) -> list:
    """Return W2 lrelu(W1 x + b1) + b2, value by value."""
    weights = [loops(getattr(network, name).weight) for name in ("down", "up")]
    biases = [loops(getattr(network, name).bias) for name in ("down", "up")]
    hidden = [lrelu(dot(line, inputs) + bias) for line, bias in zip(weights[0], biases[0], strict=True)]
    return [dot(line, hidden) + bias for line, bias in zip(weights[1], biases[1], strict=True)]


def by_loops(network: HypergraphNetwork, tokens: Tensor, row: Tensor, topk: int, kind: Incidence) -> list:
    """Return the global token's output of one sample ``[N, E]``, ``[N-1]``, entry by entry from the definitions."""
    x, first, count = loops(tokens), loops(row), len(tokens)
    zero = torch.zeros((), dtype=torch.float64)
    matrix = [[zero] * count for _ in range(count)]
    for i in range(count):
        scores = {}
        for j in range(1, count):
            if i == 0:
                scores[j] = first[j - 1]
            elif i != j:
                scores[j] = dot(x[i], x[j]) / (dot(x[i], x[i]).sqrt() * dot(x[j], x[j]).sqrt())
        kept = sorted(scores, key=lambda j: -scores[j].item())[:topk]
        if kind == "gat":
            maps, u = loops(network.score.P.weight), loops(network.score.u.weight[0])
            mapped = [[dot(line, token) for line in maps] for token in x]
            scores = {j: lrelu(dot(u, mapped[i] + mapped[j])) for j in kept}
        if kind == "gatv2":
            maps, u = loops(network.score.P.weight), loops(network.score.u.weight[0])
            scores = {j: dot(u, [lrelu(dot(line, x[i] + x[j])) for line in maps]) for j in kept}
        total = sum((scores[j].exp() for j in kept), zero)
        for j in kept:
            matrix[i][j] = scores[j].exp() / total
        matrix[i][i] = zero + 1
    for i in range(1, count):
        matrix[i][0] = matrix[0][i]
    columns = [list(column) for column in zip(*x, strict=True)]
    edges = [bottleneck(network.edge, [dot(line, column) for column in columns]) for line in matrix]
    if kind == "gnn_one_stage":
        return bottleneck(network.node, edges[0])
    vertex = [dot([line[0] for line in matrix], list(column)) for column in zip(*edges, strict=True)]
    return bottleneck(network.node, vertex)


@every_kind
def test_values_and_gradients_are_those_of_the_definition(kind: Incidence) -> None:
    tokens, row, _ = sample(6, batch=1, width=3)
    tokens = tokens * torch.linspace(0.4, 1.0, 6, dtype=torch.float64)[:, None]  # cosines take no notice
    network = HypergraphNetwork(3, 2, kind).double()
    topk = 1 if kind == "gnn" else 2
    results = []
    for written_out in (False, True):
        x, a = tokens.clone().requires_grad_(), row.clone().requires_grad_()
        network.zero_grad()
        if written_out:
            output = torch.stack(by_loops(network, x[0], a[0], topk, kind))
        else:
            output = refine(network, x, a, topk=topk)[0]
        (output * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sum().backward()
        gradients = {name: value.grad for name, value in network.named_parameters()}
        results.append({"output": output.detach(), "x": x.grad, "a": a.grad, **gradients})
    ours, expected = results
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(ours[name], value, atol=1e-10, rtol=1e-8)
    learned = {"gat", "gatv2"}
    assert (ours["a"] is None or not ours["a"].any()) == (kind in learned or kind == "gnn")
    if kind in learned:
        assert ours["score.P.weight"].any()
        assert ours["score.u.weight"].any()


@every_kind
def test_count_of_trained_values(kind: Incidence) -> None:
    counted = sum(value.numel() for value in HypergraphNetwork(8, 4, kind).parameters())
    extra = {"gat": 8 * 4 + 2 * 4, "gatv2": 16 * 4 + 4}.get(kind, 0)
    assert counted == HypergraphNetwork.count(8, 4, kind) == 2 * (8 * 4 + 4 + 4 * 8 + 8) + extra


def test_gradient_reaches_few_tokens() -> None:
    tokens, row, network = sample(60, batch=1)
    x = tokens.clone().requires_grad_()
    refine(network, x, row, topk=3).sum().backward()
    touched = int((x.grad.abs().sum(-1) > 0).sum())
    assert 1 < touched <= 1 + 3 + 9


@pytest.mark.parametrize(("real", "kept"), [(6, 4), (5, 3), (4, 2), (3, 1), (2, 0)])
def test_a_sample_has_two_neighbours_less_than_real_tokens(real: int, kept: int) -> None:
    tokens, row, network = sample(9)
    keep = torch.arange(9).expand(2, -1) < real
    matrix = incidence(tokens, row, topk=4, keep=keep)
    assert (
        (matrix[:, :real] != 0).sum(dim=2) - 1 == kept + (matrix[:, :real, 0] != 0) - torch.eye(real)[0]
    ).all()
    near = neighbours(tokens, row, topk=4, keep=keep)
    assert near.first.sum(dim=1).tolist() == [kept] * 2
    if real > 2:
        short = refine(network, tokens[:, :real], row[:, : real - 1], topk=4)
        assert torch.allclose(refine(network, tokens, row, topk=4, keep=keep), short, atol=1e-12)
        assert torch.allclose(refine_all(network, tokens, row, topk=4, keep=keep)[:, 0], short, atol=1e-12)


def test_too_few_tokens_are_refused() -> None:
    tokens, row, network = sample(2)
    with pytest.raises(ValueError, match="at least 3 tokens"):
        refine(network, tokens, row, topk=1)


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = HypergraphNetwork(512, 128)
    assert network.edge.down.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert network.edge.up.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)

"""The one-layer hypergraph module of ACE-LoRA (arXiv 2603.17079; `ACE-LoRA: loss.py`).

Vertices are the N tokens of one sample; every token is the centre of one hyperedge that joins it with its k nearest
tokens. Row 0 (the global token) takes its neighbours from the last block's attention, the other rows from cosine
similarity. Only the global token's output reaches the loss, and it depends on k + 1 hyperedges alone, that is on
1 + k + k k tokens at most: :func:`neighbours` chooses them, :func:`refine_chosen` needs no others, :func:`refine` is
both; :func:`incidence` and :func:`refine_all` are the full form, for figures and tests.

The paper's ablation ("GAT", "GATv2", "GNN" in place of the hypergraph) has no public code. Here neighbours are always
chosen by attention and cosine; GAT and GATv2 change the weights of the kept entries alone, "gnn" is the case of one
neighbour (a hyperedge joins two vertices), and "gnn_one_stage" leaves out the way back from hyperedges to vertices.

Shape letters: B batch, N tokens, E embedding width, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import tokens_at

Incidence = Literal["attention", "gat", "gatv2", "gnn", "gnn_one_stage"]


class Bottleneck(nn.Module):
    """f(x) = W2 lrelu(W1 x + b1) + b2 with slope 0.2, ``[..., E]`` -> ``[..., E]``.

    Weights start Kaiming normal (std sqrt(2 / fan_in)), biases at PyTorch's uniform default.

    Args:
        width: E. hidden: width of the bottleneck.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.kaiming_normal_(self.down.weight)
        nn.init.kaiming_normal_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the transformed tokens."""
        return self.up(functional.leaky_relu(self.down(inputs), 0.2))


class EdgeScore(nn.Module):
    """Learned score of a neighbour j of a centre i, in place of its attention or cosine.

    GAT (arXiv 1710.10903): lrelu(u [P x_i ; P x_j]), P ``[m, E]``, u ``[2 m]``. GATv2 (arXiv 2105.14491):
    u lrelu(P [x_i ; x_j]), P ``[m, 2 E]``, u ``[m]``. Slope 0.2, no biases, Glorot start, as in both papers.

    Args:
        width: E. hidden: m. kind: which of the two.
    """

    def __init__(self, width: int, hidden: int, kind: Literal["gat", "gatv2"]) -> None:
        super().__init__()
        pair = 2 if kind == "gatv2" else 1
        self.P = nn.Linear(pair * width, hidden, bias=False)
        self.u = nn.Linear(2 * hidden // pair, 1, bias=False)
        self.kind = kind
        nn.init.xavier_uniform_(self.P.weight)
        nn.init.xavier_uniform_(self.u.weight)

    def forward(self, centres: Tensor, neighbours: Tensor) -> Tensor:
        """Return scores ``[..., k]`` of ``neighbours`` ``[..., k, E]`` around ``centres`` ``[..., E]``."""
        centres = centres[..., None, :].expand_as(neighbours)
        if self.kind == "gatv2":
            pairs = self.P(torch.cat([centres, neighbours], dim=-1))
            return self.u(functional.leaky_relu(pairs, 0.2)).squeeze(-1)
        pairs = torch.cat([self.P(centres), self.P(neighbours)], dim=-1)
        return functional.leaky_relu(self.u(pairs), 0.2).squeeze(-1)


class HypergraphNetwork(nn.Module):
    """What one tower trains: vertices to hyperedges (edge), back (node), and the scores of GAT and GATv2.

    Args:
        width: E. hidden: width of the bottlenecks. incidence: see the module docstring; "gnn" is built like
            "attention", its one neighbour is the caller's ``topk``.
    """

    def __init__(self, width: int, hidden: int, incidence: Incidence = "attention") -> None:
        super().__init__()
        self.edge, self.node = Bottleneck(width, hidden), Bottleneck(width, hidden)
        self.score = EdgeScore(width, hidden, incidence) if incidence in ("gat", "gatv2") else None
        self.one_stage = incidence == "gnn_one_stage"

    @staticmethod
    def count(width: int, hidden: int, incidence: Incidence) -> int:
        """Return the trained values: 2 (2 E m + m + E), + E m + 2 m for GAT, + 2 E m + m for GATv2."""
        score = {"gat": width * hidden + 2 * hidden, "gatv2": 2 * width * hidden + hidden}
        return 2 * (2 * width * hidden + hidden + width) + score.get(incidence, 0)


@dataclass(frozen=True)
class Neighbours:
    """The tokens that the global token's output depends on; nothing here has a gradient.

    Attributes:
        positions: ``[B, 1 + k + k k]``: the global token, its neighbours T_0, and for each of these its own T_n.
        first: bool ``[B, k]``, False where T_0 has fewer than k members; such an entry has weight 0.
        second: bool ``[B, k, k]``, the same of each T_n.
    """

    positions: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def neighbours(tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None) -> Neighbours:
    """Choose the neighbours of the global token, and theirs; arguments as for :func:`refine`."""
    k, others = _count(tokens.shape[1], topk), tokens[:, 1:]
    outside = None if keep is None else ~keep[:, 1:]
    if outside is not None:
        row = row.masked_fill(outside, float("-inf"))
    values, first = row.topk(k, dim=-1)  # T_0: [B, k]
    in_first = values > float("-inf")
    if keep is not None:
        in_first &= _within(keep, k)
    unit = functional.normalize(others, dim=-1)
    cosines = tokens_at(unit, first) @ unit.transpose(1, 2)  # [B, k, N-1]
    cosines = cosines.scatter(2, first[..., None], float("-inf"))  # a token is not its own neighbour
    if outside is not None:
        cosines = cosines.masked_fill(outside[:, None, :], float("-inf"))
    values, second = cosines.topk(k, dim=-1)
    chosen = torch.cat([torch.full_like(first[:, :1], -1), first, second.flatten(1)], dim=1)
    return Neighbours(chosen + 1, in_first, values > float("-inf"))


def _count(num_tokens: int, topk: int) -> int:
    if num_tokens < 3:
        raise ValueError(f"the hypergraph needs at least 3 tokens, got {num_tokens}")
    return min(topk, num_tokens - 2)


def _within(keep: Tensor, k: int) -> Tensor:
    """Return which of k neighbours, best first, a sample has: bool ``[B, k]``, min(k, real tokens - 2) of them."""
    return torch.arange(k, device=keep.device) < (keep.sum(dim=1, keepdim=True) - 2)


def _weights(
    values: Tensor, allowed: Tensor, score: EdgeScore | None, centres: Tensor, around: Tensor
) -> Tensor:
    """Return the softmax of the kept entries ``[..., k]``, by their values or their score; the others get 0."""
    if score is not None:
        values = score(centres, around)
    return values.masked_fill(~allowed, torch.finfo(values.dtype).min).softmax(dim=-1) * allowed


def refine(
    network: HypergraphNetwork, tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None
) -> Tensor:
    """Return the global token's output ``[B, E]``, not normalised.

    Args:
        network: what the tower trains.
        tokens: ``[B, N, E]``, global token first.
        row: ``[B, N-1]`` scores of the global token towards the others.
        topk: number of neighbours k (at most N - 2 are taken).
        keep: bool ``[B, N]``; tokens marked False are nobody's neighbour, and a sample with n others has at most
            n - 2 neighbours. None lets all take part, padding included, as the authors' code does.
    """
    near = neighbours(tokens, row, topk=topk, keep=keep)
    first = near.positions[:, 1 : 1 + near.first.shape[1]]
    return refine_chosen(network, tokens_at(tokens, near.positions), row.gather(1, first - 1), near)


def refine_chosen(network: HypergraphNetwork, tokens: Tensor, row: Tensor, near: Neighbours) -> Tensor:
    """Return what :func:`refine` does, from the chosen tokens alone.

    Args:
        network: what the tower trains.
        tokens: ``[B, 1 + k + k k, E]`` at ``near.positions``.
        row: ``[B, k]`` scores of the global token towards its neighbours.
        near: what was chosen.
    """
    k = row.shape[1]
    start, centres, around = tokens.split([1, k, k * k], dim=1)
    start, around = start[:, 0], around.unflatten(1, (k, k))  # x_0; x_t: [B, k, k, E]
    weights = _weights(row, near.first, network.score, start, centres)[..., None]  # A[0, n_j]
    if network.one_stage:
        return network.node(network.edge(start + (weights * centres).sum(dim=1)))

    unit = functional.normalize(centres, dim=-1)[:, :, None]
    cosines = (unit * functional.normalize(around, dim=-1)).sum(dim=-1)
    second = _weights(cosines, near.second, network.score, centres, around)  # A[n_j, t]
    around = (second[..., None] * around).sum(dim=2)

    centre_edge = network.edge(start + (weights * centres).sum(dim=1))  # e_0
    other_edges = network.edge(weights * start[:, None] + centres + around)  # e_j
    return network.node(centre_edge + (weights * other_edges).sum(dim=1))


def incidence(
    tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None, score: EdgeScore | None = None
) -> Tensor:
    """Return the whole incidence matrix A ``[B, N, N]``; arguments as for :func:`refine`, ``score`` the network's.

    Row 0 sums to 2, row i >= 1 to 2 + A[0, i]; the diagonal is 1 and column 0 mirrors row 0.
    """
    batch, count, _ = tokens.shape
    k = _count(count, topk)
    unit = functional.normalize(tokens, dim=-1)
    scores = unit @ unit.transpose(1, 2)
    scores = torch.cat([functional.pad(row, (1, 0))[:, None], scores[:, 1:]], dim=1)
    eye = torch.eye(count, dtype=torch.bool, device=tokens.device)
    excluded = eye.expand(batch, -1, -1).clone()
    excluded[:, :, 0] = True
    if keep is not None:
        excluded |= ~keep[:, None, :]
    values, positions = scores.masked_fill(excluded, float("-inf")).topk(k, dim=-1)
    allowed = values > float("-inf")
    if keep is not None:
        allowed &= _within(keep, k)[:, None]
    weights = _weights(values, allowed, score, tokens, tokens_at(tokens, positions))
    matrix = torch.zeros_like(scores).scatter(2, positions, weights)
    mirrored = matrix[:, 0, 1:, None]
    matrix = matrix.masked_fill(eye, 1.0)
    return torch.cat([matrix[:, :1], torch.cat([mirrored, matrix[:, 1:, 1:]], dim=2)], dim=1)


def refine_all(
    network: HypergraphNetwork, tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None
) -> Tensor:
    """Return every token's output ``[B, N, E]``: f_n(A^T f_e(A X)); arguments as for :func:`refine`."""
    matrix = incidence(tokens, row, topk=topk, keep=keep, score=network.score)
    edges = network.edge(matrix @ tokens)
    return network.node(edges if network.one_stage else matrix.transpose(1, 2) @ edges)

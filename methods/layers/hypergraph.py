"""The one-layer hypergraph module of ACE-LoRA (arXiv 2603.17079; `ACE-LoRA: loss.py`).

Vertices are the N tokens of one sample; every token is the centre of one hyperedge that joins it with its k nearest
tokens. Row 0 (the global token) takes its neighbours from the last block's attention, the other rows from cosine
similarity. Only the global token's output reaches the loss, and it depends on k + 1 hyperedges alone: :func:`refine`
computes just these; :func:`incidence` and :func:`refine_all` are the full form, for figures and tests.

Shape letters: B batch, N tokens, E embedding width, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class HypergraphNetwork(nn.Module):
    """The two bottlenecks of one tower: vertices to hyperedges (edge) and back (node)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.edge, self.node = Bottleneck(width, hidden), Bottleneck(width, hidden)


def _keep_largest(scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return positions and softmax weights of the ``topk`` largest entries; -inf entries get weight 0."""
    values, positions = scores.topk(topk, dim=-1)
    allowed = values > float("-inf")
    weights = values.masked_fill(~allowed, torch.finfo(values.dtype).min).softmax(dim=-1)
    return positions, weights * allowed


def _gather(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return ``tokens[b, positions[b, ...]]``: tokens ``[B, N, E]``, positions ``[B, ...]`` -> ``[B, ..., E]``."""
    flat = positions.flatten(1)
    picked = tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1]))
    return picked.unflatten(1, positions.shape[1:])


def _neighbours(num_tokens: int, topk: int) -> int:
    if num_tokens < 3:
        raise ValueError(f"the hypergraph needs at least 3 tokens, got {num_tokens}")
    return min(topk, num_tokens - 2)


def refine(
    network: HypergraphNetwork, tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None
) -> Tensor:
    """Return the global token's output ``[B, E]``, not normalised.

    Args:
        network: the tower's two bottlenecks.
        tokens: ``[B, N, E]``, global token first.
        row: ``[B, N-1]`` scores of the global token towards the others.
        topk: number of neighbours k (at most N - 2 are taken).
        keep: bool ``[B, N]``; tokens marked False are nobody's neighbour. None lets all take part, padding included,
            as the authors' code does.
    """
    k = _neighbours(tokens.shape[1], topk)
    others = tokens[:, 1:]
    outside = None if keep is None else ~keep[:, 1:]
    if outside is not None:
        row = row.masked_fill(outside, float("-inf"))
    first, first_weights = _keep_largest(row, k)  # T_0 and A[0, n_j]: [B, k]
    centres = _gather(others, first)  # x_{n_j}: [B, k, E]

    unit = functional.normalize(others, dim=-1)
    cosines = _gather(unit, first) @ unit.transpose(1, 2)  # [B, k, N-1]
    cosines = cosines.scatter(2, first[..., None], float("-inf"))  # a token is not its own neighbour
    if outside is not None:
        cosines = cosines.masked_fill(outside[:, None, :], float("-inf"))
    second, second_weights = _keep_largest(cosines, k)  # A[n_j, t]: [B, k, k]
    around = (second_weights[..., None] * _gather(others, second)).sum(dim=2)

    start = tokens[:, 0]
    weights = first_weights[..., None]
    centre_edge = network.edge(start + (weights * centres).sum(dim=1))  # e_0
    other_edges = network.edge(weights * start[:, None] + centres + around)  # e_j
    return network.node(centre_edge + (weights * other_edges).sum(dim=1))


def incidence(tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None) -> Tensor:
    """Return the whole incidence matrix A ``[B, N, N]``; arguments as for :func:`refine`.

    Row 0 sums to 2, row i >= 1 to 2 + A[0, i]; the diagonal is 1 and column 0 mirrors row 0.
    """
    batch, count, _ = tokens.shape
    k = _neighbours(count, topk)
    unit = functional.normalize(tokens, dim=-1)
    scores = unit @ unit.transpose(1, 2)
    scores = torch.cat([functional.pad(row, (1, 0))[:, None], scores[:, 1:]], dim=1)
    eye = torch.eye(count, dtype=torch.bool, device=tokens.device)
    excluded = eye.expand(batch, -1, -1).clone()
    excluded[:, :, 0] = True
    if keep is not None:
        excluded |= ~keep[:, None, :]
    positions, weights = _keep_largest(scores.masked_fill(excluded, float("-inf")), k)
    matrix = torch.zeros_like(scores).scatter(2, positions, weights)
    mirrored = matrix[:, 0, 1:, None]
    matrix = matrix.masked_fill(eye, 1.0)
    return torch.cat([matrix[:, :1], torch.cat([mirrored, matrix[:, 1:, 1:]], dim=2)], dim=1)


def refine_all(
    network: HypergraphNetwork, tokens: Tensor, row: Tensor, *, topk: int, keep: Tensor | None = None
) -> Tensor:
    """Return every token's output ``[B, N, E]``: f_n(A^T f_e(A X)); arguments as for :func:`refine`."""
    matrix = incidence(tokens, row, topk=topk, keep=keep)
    return network.node(matrix.transpose(1, 2) @ network.edge(matrix @ tokens))

"""The hypergraph with all its vertices, hyperedges and incidence matrices, of which the loss uses one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones import Tower
from benchmark.errors import ConfigError
from methods.ace_lora import AceLoRA, Graph

_NEVER = float("-inf")


class WholeHypergraph(AceLoRA):
    """ACE-LoRA that refines every token; in evaluation it looks at one sample at a time."""

    def setup(self) -> None:
        """Refuse what has no plain form here, then go on as usual."""
        if self.options.incidence != "attention":
            raise ConfigError(f"incidence: the plain form knows attention, got {self.options.incidence}")
        super().setup()

    def graph_of(self, tower: Tower, inputs: Tensor) -> Graph:
        """Return tokens and attention row of images ``[B, C, H, W]`` or token ids ``[B, L]``."""
        if self.training:
            return super().graph_of(tower, inputs)
        graphs = [super(WholeHypergraph, self).graph_of(tower, item[None]) for item in inputs]
        keep = None if graphs[0].keep is None else torch.cat([graph.keep for graph in graphs])  # type: ignore[misc]
        return Graph(
            torch.cat([graph.tokens for graph in graphs]), torch.cat([graph.row for graph in graphs]), keep
        )

    def refined(self, kind: str, graph: Graph) -> Tensor:
        """Return the refined unit-norm global feature ``[B, E]``."""
        network: Any = self.graphs[kind]
        keep = graph.keep if self.options.text_graph == "masked" else None
        matrix = incidence_matrix(graph.tokens, graph.row, self.options.topk, keep)
        hyperedges = network.edge(matrix @ graph.tokens)
        vertices = network.node(matrix.transpose(1, 2) @ hyperedges)
        return functional.normalize(vertices, dim=-1)[:, 0]


def incidence_matrix(tokens: Tensor, row: Tensor, topk: int, keep: Tensor | None = None) -> Tensor:
    """Return A ``[B, N, N]`` of tokens ``[B, N, E]``, the first one global.

    Args:
        tokens: vertices.
        row: ``[B, N-1]`` scores of the global token towards the others.
        topk: neighbours of every token.
        keep: bool ``[B, N]``, False where a token is nobody's neighbour.
    """
    count = tokens.shape[1]
    unit = functional.normalize(tokens, dim=-1)
    scores = unit @ unit.transpose(1, 2)  # S[i, j] = cos(x_i, x_j)
    first = torch.cat([torch.zeros_like(row[:, :1]), row], dim=1)
    scores = torch.cat([first[:, None], scores[:, 1:]], dim=1)  # S[0, j] = a_j
    itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
    barred = itself.clone()
    barred[1:, 0] = True
    barred = barred.expand_as(scores) if keep is None else barred | ~keep[:, None, :]
    scores = scores.masked_fill(barred, _NEVER)
    best = scores.topk(min(topk, count - 2), dim=-1)
    # softmax over the kept entries alone; a row whose every entry is barred stays empty
    allowed = best.values > _NEVER
    if keep is not None:  # min(k, real tokens - 2) of them, best first
        places = torch.arange(best.values.shape[-1], device=tokens.device)
        allowed = allowed & (places < keep.sum(dim=1)[:, None, None] - 2)
    exponentials = (best.values - best.values[..., :1].clamp(min=torch.finfo(row.dtype).min)).exp() * allowed
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
    matrix = torch.zeros_like(scores).scatter(2, best.indices, weights)
    matrix = torch.where(itself, torch.ones_like(matrix), matrix)  # A[i, i] = 1
    mirrored = matrix[:, :1].transpose(1, 2)  # A[i, 0] = A[0, i]
    return torch.cat([mirrored, matrix[:, :, 1:]], dim=2)

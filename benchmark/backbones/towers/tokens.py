"""The token sequence that passes through a tower's blocks, what a method may change in it, and what a pass returns.

Shape letters: B batch, N tokens, D tower width, H heads, h x w patch grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def tokens_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return ``tokens[b, positions[b, ...]]``: tokens ``[B, N, ...]``, positions ``[B, ...]``."""
    rows = torch.arange(len(tokens), device=tokens.device)
    return tokens[rows.view(-1, *[1] * (positions.ndim - 1)), positions]


@dataclass(frozen=True)
class TokenSequence:
    """Tokens on their way through a tower.

    Attributes:
        tokens: ``[B, N, D]``.
        keep: bool ``[B, N]``, False where a token is padding that nobody may attend to; None when all tokens count.
        pooled_at: position of the global token: an int when it is the same in every row, else a tensor ``[B]``.
        content_at: position of the first token after the start or class token that came from the input.
    """

    tokens: Tensor
    keep: Tensor | None
    pooled_at: int | Tensor
    content_at: int = 1

    def with_tokens(self, tokens: Tensor) -> TokenSequence:
        """Return the same sequence with other token values of the same shape."""
        return replace(self, tokens=tokens)

    def global_at(self) -> Tensor:
        """Return the position of the global token in every row, ``[B]``."""
        if isinstance(self.pooled_at, Tensor):
            return self.pooled_at
        return torch.full((len(self.tokens),), self.pooled_at, device=self.tokens.device)

    def at(self, positions: Tensor) -> TokenSequence:
        """Return the tokens at ``positions`` ``[B, m]`` alone, of which the first is the global one."""
        keep = None if self.keep is None else tokens_at(self.keep, positions)
        return TokenSequence(tokens_at(self.tokens, positions), keep, pooled_at=0)

    def insert(self, vectors: Tensor, at: int = 1) -> TokenSequence:
        """Insert ``vectors`` ([n, D] for all rows, or [B, n, D]) before position ``at``; they can be attended to."""
        batch, count = len(self.tokens), vectors.shape[-2]
        new = vectors.to(self.tokens.dtype).expand(batch, -1, -1)
        tokens = torch.cat([self.tokens[:, :at], new, self.tokens[:, at:]], dim=1)
        keep = self.keep
        if keep is not None:
            keep = torch.cat([keep[:, :at], keep.new_ones(batch, count), keep[:, at:]], dim=1)
        pooled_at = self.pooled_at
        if isinstance(pooled_at, Tensor):
            pooled_at = torch.where(pooled_at >= at, pooled_at + count, pooled_at)
        elif pooled_at >= at:
            pooled_at += count
        content_at = self.content_at + count if self.content_at >= at else self.content_at
        return TokenSequence(tokens, keep, pooled_at, content_at)

    def append(self, vectors: Tensor) -> TokenSequence:
        """Append ``vectors`` at the end of every row."""
        return self.insert(vectors, at=self.tokens.shape[1])

    def overwrite(self, vectors: Tensor, at: int = 1) -> TokenSequence:
        """Replace the tokens from position ``at`` on by ``vectors``; what blocks wrote there is discarded."""
        count = vectors.shape[-2]
        new = vectors.to(self.tokens.dtype).expand(len(self.tokens), -1, -1)
        at = at % self.tokens.shape[1]
        return self.with_tokens(torch.cat([self.tokens[:, :at], new, self.tokens[:, at + count :]], dim=1))


@dataclass(frozen=True)
class TowerOutput:
    """What a pass through a tower returns.

    Attributes:
        sequence: tokens after the final norm, before projection, ``[B, N, D]``, with mask and pooling position.
        taps: for each requested block, image towers: feature map ``[B, D, *grid]``; text towers: ``[B, N, D]``.
        global_row: ``[B, N]`` head mean of the last block's attention row of the global token, when requested:
            image towers scaled scores before softmax, text towers probabilities after it (padding exactly 0).
        positions: ``[B, m]`` where the tokens of ``sequence`` stand among all, when the last block computed only
            those that were chosen; else None.
    """

    sequence: TokenSequence
    taps: dict[int, Tensor]
    global_row: Tensor | None
    positions: Tensor | None = None


Choose = Callable[[TokenSequence, Tensor], Tensor]
"""Choose tokens by all of them (after the final norm) and the global token's row ``[B, N]``: their positions
``[B, m]``, the global token's first. Called without gradient."""

"""Learned vectors among the tokens of a tower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone, Intervention, TokenSequence, Tower
from benchmark.errors import ConfigError
from benchmark.settings import setting
from methods.base import Method

AUTO_WORDS = "a photo of a"


class InsertedPrompt(Intervention):
    """Insert vectors after the first token of the embedded input, so that they get positions like words.

    Args:
        vectors: ``[n, D]``, or ``[B, n, D]`` for vectors of each row.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Insert the vectors at position 1."""
        return sequence.insert(self._vectors, at=1)


class PromptAround(Intervention):
    """Insert vectors around the words of a text: before them, and behind them in front of the last piece.

    Args:
        vectors: ``[n, D]``. before: how many of them stand before the words.
    """

    def __init__(self, vectors: Tensor, *, before: int) -> None:
        self._vectors, self._before = vectors, before

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Insert all vectors at position 1, then bring the words of each row to their place."""
        longer, count, before = sequence.insert(self._vectors, at=1), len(self._vectors), self._before
        batch, length, _ = longer.tokens.shape
        end: Tensor | int = length - 1 if longer.keep is None else longer.keep.sum(dim=1)[:, None] - 1
        steps = torch.arange(length, device=longer.tokens.device).expand(batch, -1)
        words = (end - steps[:, :1] - count - 2).clamp(min=0)  # without start token, last piece and end token
        source = torch.where(steps <= count + words, steps - words, steps)  # vectors behind the words
        source = torch.where(steps <= before + words, steps + count - before, source)
        source = torch.where(steps <= before, steps, source)
        tokens = longer.tokens.gather(1, source[..., None].expand_as(longer.tokens))
        return replace(longer, tokens=tokens, content_at=1 + before)


class BlockTokens(Intervention):
    """Give blocks their own tokens after the first one: inserted at the first such block, overwritten at the others.

    Args:
        tokens: block index -> ``[n, D]``. What earlier blocks wrote at these positions is discarded.
        inserted: whether the tokens stand in the sequence before the first such block already.
        at: position of the tokens; negative counts from the end.
    """

    def __init__(self, tokens: Mapping[int, Tensor], *, inserted: bool = False, at: int = 1) -> None:
        self._tokens, self._at = tokens, at
        self._first = None if inserted else min(tokens, default=None)

    def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Insert or overwrite the tokens of this block."""
        if index not in self._tokens:
            return sequence
        if index == self._first:
            return sequence.insert(self._tokens[index], at=self._at)
        return sequence.overwrite(self._tokens[index], at=self._at)


def word_pieces(backbone: Backbone, phrase: str) -> Tensor:
    """Return the ids of a phrase's pieces, without start and end token."""
    ids = backbone.tokenize([phrase])[:1]
    return ids[0, 1 : int(backbone.text.lengths(ids)[0]) - 1]


def initial_context(backbone: Backbone, count: int, phrase: str, *, cut: bool = False) -> Tensor:
    """Return the start value of ``count`` context vectors, ``[count, D]``.

    Args:
        backbone: whose word table and tokenizer are used.
        count: number of vectors.
        phrase: words to start from (rows of the word table); "auto" tries "a photo of a"; "" draws N(0, 0.02^2).
        cut: take the first ``count`` pieces of a longer phrase (MaPLe) instead of asking for exactly as many (CoOp).

    Raises:
        ConfigError: if a given phrase has another number of pieces: vectors would silently be lost.
    """
    automatic = phrase == "auto"
    words = AUTO_WORDS if automatic else phrase
    if words and not (automatic and backbone.tokenizer is None):
        pieces = word_pieces(backbone, words).to(next(backbone.parameters()).device)
        if len(pieces) == count or (cut and len(pieces) > count):
            return backbone.text.word_embeddings(pieces[:count]).detach().clone().float()
        if not automatic:
            raise ConfigError(
                f"ctx_init: '{phrase}' is {len(pieces)} word pieces for this tokenizer but n_ctx is {count}; "
                f"set n_ctx={len(pieces)}"
            )
    return torch.randn(count, backbone.text.width) * 0.02


@dataclass(frozen=True)
class ContextOptions:
    """Options of a learned context in the authors' spelling."""

    n_ctx: int = setting(4, "context vectors", low=1)
    ctx_init: str = setting(
        "auto",
        'words that they start from; "auto" takes "a photo of a" where the tokenizer makes exactly n_ctx pieces of it '
        'and draws N(0, 0.02^2) otherwise; "" always draws',
    )


class ContextMethod(Method):
    """Base of methods that learn one context in front of the words of a text."""

    adapts = frozenset({"text"})
    Options = ContextOptions

    def setup(self) -> None:
        """Create the context."""
        context = initial_context(self.backbone, self.options.n_ctx, self.options.ctx_init)
        self.text = nn.ParameterDict({"ctx": nn.Parameter(context)})

    def text_interventions(self) -> Iterable[Intervention]:
        """Insert the context between the start token and the words."""
        return (InsertedPrompt(self.text["ctx"]),)

    def text_ids(self, token_ids: Tensor) -> Tensor:
        """Make room for the context."""
        return self.backbone.text.make_room(token_ids, self.options.n_ctx)

    def expected_parameters(self) -> int:
        """Return n_ctx * text width."""
        return int(self.options.n_ctx) * self.backbone.text.width

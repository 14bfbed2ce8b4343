"""Text towers of the medical models: a BERT or RoBERTa, its pooling and a head.

:class:`BertTower` is the towers' view of it. Pooling that is more than one token of the last layer is a subclass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from open_clip.hf_model import ClsLastHiddenStatePooler
from torch import Tensor, nn

from benchmark.backbones.medical.heads import AttentionPool, Bank, Shapes, head, width_behind
from benchmark.backbones.medical.records import WORD_TABLE, TextSide
from benchmark.backbones.medical.visual import heads_of
from benchmark.backbones.towers.base import Intervention, TokenSequence
from benchmark.backbones.towers.hf_bert import HFBertTower

_LAYERS_SUMMED = 4


class Text(nn.Module):
    """A text encoder: ``transformer``, ``proj`` (the head) and what its pooling needs.

    Attributes:
        proj: layers on what is pooled; with sentences on each token in front of pooling.
        bank, pool: prototypes of sentences and attention over them, for "sentences".
    """

    def __init__(self, transformer: Any, side: TextSide, shapes: Shapes) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooler = ClsLastHiddenStatePooler()  # what the view of a BERT expects; subclasses pool otherwise
        self.proj = head(side.head, "text.proj", shapes)
        self.output_dim = width_behind(self.proj, int(transformer.config.hidden_size))
        if side.pool == "sentences":
            count, width = shapes["text.bank.weight"]
            self.bank = Bank(count, width, side.bank)
            self.pool = AttentionPool(width, side.heads)


class BertTower(HFBertTower):
    """Tower over :class:`Text` that pools the first token, optionally through BERT's dense layer and tanh."""

    def __init__(self, text: Text, side: TextSide) -> None:
        super().__init__(text, side.max_length)
        self._pooler: Any = text.transformer.pooler if side.pool == "pooler" else None
        self.attends_padding = not side.masked

    def attention_mask(self, sequence: TokenSequence) -> Tensor | None:
        """Return the key mask, or None where padding is attended to."""
        return None if self.attends_padding else super().attention_mask(sequence)

    def head_norm(self, pooled: Tensor) -> Tensor:
        """Apply BERT's pooler to the first token, where the model uses it."""
        return pooled if self._pooler is None else self._pooler.activation(self._pooler.dense(pooled))

    def piece_features(
        self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return what pooling starts from: values ``[B, N, D]`` of the pieces, and bool ``[B, N]`` of the real ones."""
        sequence = self.forward(inputs, interventions=interventions).sequence
        return sequence.tokens, real(sequence)


class SummedTower(BertTower):
    """Pools the sum of the last four layers: its mean over all positions, padding counted as zero (GLoRIA).

    The published model sums the pieces of words first, which leaves the mean as it is.
    """

    def piece_features(
        self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the last four layers."""
        last = range(max(0, self.depth - _LAYERS_SUMMED), self.depth)
        output = self.forward(inputs, interventions=interventions, taps=last)
        return torch.stack([output.taps[index] for index in last]).sum(dim=0), real(output.sequence)

    def features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return features ``[B, E]``, not normalised."""
        pieces, keep = self.piece_features(inputs, interventions=interventions)
        return self.project((pieces * keep[..., None]).sum(dim=1) / self.context_length)


@dataclass(frozen=True)
class SentenceTokens(TokenSequence):
    """Tokens that know their sentence.

    Attributes:
        sentence: int ``[B, N]``, 0 for the first; -1 for the start token and padding.
    """

    sentence: Tensor = torch.empty(0, dtype=torch.long)

    def insert(self, vectors: Tensor, at: int = 1) -> SentenceTokens:
        """Insert vectors; they belong to the sentence that follows, at the end to the one before."""
        longer = super().insert(vectors, at)
        count, length = vectors.shape[-2], self.sentence.shape[1]
        own = self.sentence[:, min(at, length - 1)].clamp(min=0)[:, None].expand(-1, count)
        sentence = torch.cat([self.sentence[:, :at], own, self.sentence[:, at:]], dim=1)
        return SentenceTokens(longer.tokens, longer.keep, longer.pooled_at, longer.content_at, sentence)


class SentenceTower(BertTower):
    """Pools sentences: mean of a sentence's tokens, its prototype from a bank, attention over the prototypes (PRIOR).

    Attributes:
        full_stop: id of the piece that ends a sentence; None: every text is one sentence. The end token counts to the
            last sentence, the start token to none, as where the model is evaluated.
    """

    def __init__(self, text: Text, side: TextSide) -> None:
        super().__init__(text, side)
        self._text = text
        self.full_stop: int | None = None

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed token ids ``[B, N]`` as word vectors that know their sentence."""
        plain, lengths = super().embed(inputs), self.lengths(inputs)[:, None]
        steps = torch.arange(inputs.shape[1], device=inputs.device)[None]
        ends = inputs == -1 if self.full_stop is None else inputs == self.full_stop
        ends = ends & (steps < lengths - 2)  # the last words and the end token stay together
        sentence = ends.long().cumsum(dim=1) - ends.long()
        sentence = sentence.masked_fill((steps == 0) | (steps >= lengths), -1)
        return SentenceTokens(plain.tokens, plain.keep, plain.pooled_at, plain.content_at, sentence)

    def prototypes(
        self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return the prototypes of the sentences ``[B, S, E]``, and bool ``[B, S]`` of those that are there."""
        sequence: Any = self.forward(inputs, interventions=interventions).sequence
        count = max(1, int(sequence.sentence.max()) + 1)
        numbers = torch.arange(count, device=inputs.device)
        member = (sequence.sentence[:, None] == numbers[:, None]).to(sequence.tokens.dtype)
        sizes = member.sum(dim=-1, keepdim=True)
        means = member @ self.project(sequence.tokens) / sizes.clamp(min=1)
        return self._text.bank(means), sizes[..., 0] > 0

    def features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return features ``[B, E]``, not normalised."""
        return self._text.pool(*self.prototypes(inputs, interventions=interventions))


def real(sequence: TokenSequence) -> Tensor:
    """Return bool ``[B, N]``: which tokens are not padding."""
    keep = sequence.keep
    return torch.ones_like(sequence.tokens[..., 0], dtype=torch.bool) if keep is None else keep


_TOWERS: dict[str, type[BertTower]] = {
    "cls": BertTower,
    "pooler": BertTower,
    "sum4_mean": SummedTower,
    "sentences": SentenceTower,
}


def build_text(side: TextSide, shapes: Shapes) -> tuple[Text, BertTower]:
    """Build a text encoder of the sizes that its tensors have, with random weights, and the view of it.

    Raises:
        MissingTensor: a tensor that determines a size is missing.
    """
    transformer = _transformer(shapes, side)
    longest = int(transformer.config.max_position_embeddings) - (2 if is_roberta(shapes) else 0)
    side = replace(side, max_length=min(side.max_length, longest))
    text = Text(transformer, side, shapes)
    return text, _TOWERS[side.pool](text, side)


def is_roberta(shapes: Shapes) -> bool:
    """Return whether a text encoder is a RoBERTa: it knows one type of segment, BERT two."""
    return shapes["text.transformer.embeddings.token_type_embeddings.weight"][0] == 1


def _transformer(shapes: Shapes, side: TextSide) -> Any:
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    prefix, pooler = "text.transformer", side.pool == "pooler"
    words, width = shapes[WORD_TABLE]
    roberta = is_roberta(shapes)
    sizes: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": shapes.count(f"{prefix}.encoder.layer"),
        "num_attention_heads": heads_of(width, side.head_width),
        "intermediate_size": shapes[f"{prefix}.encoder.layer.0.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes[f"{prefix}.embeddings.position_embeddings.weight"][0],
        "type_vocab_size": 1 if roberta else 2,
        "pad_token_id": 1 if roberta else 0,
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
    }
    if roberta:
        return RobertaModel(RobertaConfig(**sizes), add_pooling_layer=pooler)
    return BertModel(BertConfig(**sizes), add_pooling_layer=pooler)

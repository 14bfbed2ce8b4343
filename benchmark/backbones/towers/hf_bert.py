"""Text tower over a Hugging Face BERT inside open_clip's HFTextEncoder (BiomedCLIP's text side)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.base import TextTower, TokenSequence
from benchmark.backbones.towers.tokens import tokens_at


class HFBertTower(TextTower):
    """View of ``open_clip.hf_model.HFTextEncoder`` with a BERT that pools its first token.

    Args:
        text: the open_clip module; it is neither copied nor changed.
        context_length: longest text; None takes BERT's position table.

    Raises:
        ValueError: if the encoder is not a BERT or does not pool the last hidden state of the first token.
    """

    def __init__(self, text: nn.Module, context_length: int | None = None) -> None:
        super().__init__()
        bert: Any = text.transformer
        pooler = type(text.pooler).__name__
        if not hasattr(bert, "encoder") or not hasattr(bert.encoder, "layer"):
            raise ValueError(f"text tower {type(bert).__name__} is not a BERT")
        if pooler != "ClsLastHiddenStatePooler":
            raise ValueError(f"text pooling {pooler} is not supported: expected cls_last_hidden_state_pooler")
        self._bert = bert
        self._proj: Any = text.proj
        self.blocks = bert.encoder.layer
        self.width = int(bert.config.hidden_size)
        self.num_heads = int(bert.config.num_attention_heads)
        self.embed_dim = int(text.output_dim)  # type: ignore[arg-type]
        self.pad_id = int(bert.config.pad_token_id)
        self.context_length = context_length or int(bert.config.max_position_embeddings)

    def word_embeddings(self, token_ids: Tensor) -> Tensor:
        """Return rows of the word table."""
        return self._bert.embeddings.word_embeddings(token_ids)

    def lengths(self, token_ids: Tensor) -> Tensor:
        """Count the tokens that are not padding."""
        return (token_ids != self.pad_id).sum(dim=1)

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed token ids ``[B, N]`` as word vectors, before positions, token types and LayerNorm."""
        return TokenSequence(self.word_embeddings(inputs), inputs != self.pad_id, pooled_at=0)

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Add positions and token types, then LayerNorm, by BERT's own embedding module."""
        return sequence.with_tokens(self._bert.embeddings(inputs_embeds=sequence.tokens))

    def attention_mask(self, sequence: TokenSequence) -> Tensor | None:
        """Return what is added to the scores ``[B, 1, 1, N]``: 0, or the lowest number on padding."""
        keep = sequence.keep
        # transformers passes no mask for a full batch; on a GPU that test would cost a synchronisation per step
        if keep is None or (keep.device.type == "cpu" and bool(keep.all())):
            return None
        # not a bool mask of queries and keys, as transformers makes it: each layer would keep it anew, as numbers
        mask, lowest = keep[:, None, None, :], torch.finfo(sequence.tokens.dtype).min
        return torch.zeros_like(mask, dtype=sequence.tokens.dtype).masked_fill(~mask, lowest)

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run transformers' own layer (tuples of older releases are unpacked)."""
        output = self.blocks[index](tokens, mask)
        return output[0] if isinstance(output, tuple) else output

    def queries_keys_values(
        self, index: int, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three projections; queries of the wanted tokens alone."""
        layer: Any = self.blocks[index]
        attention = layer.attention.self
        queries = attention.query(tokens if at is None else tokens_at(tokens, at))
        parts = (queries, attention.key(tokens), attention.value(tokens))
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return queries, keys, values

    def finish_block(
        self, index: int, tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Any
    ) -> Tensor:
        """Attend, then the MLP, as BERT's layer does."""
        layer: Any = self.blocks[index]
        attention = layer.attention.self
        dropout = attention.dropout.p if attention.training else 0.0
        scale = queries.shape[-1] ** -0.5  # said as transformers does: torch's own root ends in other bits
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale
        )
        attended = layer.attention.output(mixed.transpose(1, 2).flatten(2), tokens)
        return layer.output(layer.intermediate(attended), attended)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens through open_clip's text projection."""
        return self._proj(tokens)

    def linears(self, index: int) -> dict[str, nn.Module]:
        """Return the layer's six Linears."""
        layer: Any = self.blocks[index]
        attention = layer.attention.self
        return {
            "q": attention.query, "k": attention.key, "v": attention.value, "o": layer.attention.output.dense,
            "up": layer.intermediate.dense, "down": layer.output.dense,
        }  # fmt: skip

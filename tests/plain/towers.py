"""The two towers of a timm ViT and a Hugging Face BERT, block by block as the papers write them.

Shape letters: B batch, N tokens, D tower width, H heads, d = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones import Backbone, TokenSequence, Tower, TowerOutput
from benchmark.backbones.towers.hf_bert import HFBertTower
from benchmark.backbones.towers.timm_vit import TimmVitTower
from benchmark.backbones.towers.tokens import Choose
from benchmark.errors import ConfigError


def plain_backbone(backbone: Backbone) -> Backbone:
    """Return a view of the same model whose towers compute plainly.

    Raises:
        ConfigError: the towers are of another kind.
    """
    image, text = backbone.image, backbone.text
    if not isinstance(image, TimmVitTower) or not isinstance(text, HFBertTower):
        kinds = f"{type(image).__name__} and {type(text).__name__}"
        raise ConfigError(f"'{backbone.name}' has {kinds}; needed are a timm ViT and a BERT")
    return Backbone(
        backbone.model, PlainVit(image), PlainBert(text),
        tokenizer=backbone.tokenizer, input_spec=backbone.input_spec, name=backbone.name,
    )  # fmt: skip


class PlainTower(Tower):
    """What both share: dense updates, explicit attention, no shortcut in the last block.

    Args:
        tower: whose weights are read.
    """

    def __init__(self, tower: Tower) -> None:
        vars(self).update(vars(tower))
        self._deltas = {}

    def forward(
        self, inputs: Tensor, *, global_only: bool = False, choose: Choose | None = None, **how: Any
    ) -> TowerOutput:
        """Run the tower on all tokens, whatever is asked for; otherwise as the tower does."""
        return super().forward(inputs, global_only=False, choose=None, **how)

    def _on_first_delta(self, index: int, site: str) -> None:
        """Hook nothing: :meth:`linear` adds the updates."""

    def linear(self, index: int, site: str, inputs: Tensor) -> Tensor:
        """Return W x + b + s (B A) drop(x) for one site, B A formed as a matrix."""
        module: Any
        module, name, start, stop = self.linear_of(index, site)
        bias = None if module.bias is None else module.bias[start:stop]
        output = functional.linear(inputs, module.weight[start:stop], bias)
        for delta in self._deltas.get((index, name), {}).get(site, []):
            low: Any = delta
            product = low.B @ low.A
            output = output + low.scale * functional.linear(
                functional.dropout(inputs, low.dropout, low.training), product
            )
        return output

    def attention(self, index: int, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed values ``[B, N, D]``, scores and probabilities ``[B, H, N, N]`` of one block."""
        queries, keys, values = (
            self.linear(index, site, tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for site in ("q", "k", "v")
        )
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        probabilities = (scores if bias is None else scores + bias).softmax(dim=-1)
        return (probabilities @ values).transpose(1, 2).flatten(2), scores, probabilities

    def block(self, index: int, tokens: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output ``[B, N, D]``, its scores and its probabilities ``[B, H, N, N]``."""
        raise NotImplementedError

    def map_of(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """Return which of the two the global token's row is read from."""
        raise NotImplementedError

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run a block."""
        return self.block(index, tokens, mask)[0]

    def _block_with_row(self, index: int, sequence: TokenSequence, mask: Any) -> tuple[Tensor, Tensor]:
        tokens, scores, probabilities = self.block(index, sequence.tokens, mask)
        return tokens, self.map_of(scores, probabilities).mean(dim=1)[:, 0]  # mean over heads, whole map


class PlainVit(PlainTower, TimmVitTower):
    """timm's ViT: x + o(att(LN x)), then x + MLP(LN x)."""

    def block(self, index: int, tokens: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output and its maps."""
        block: Any = self.blocks[index]
        mixed, scores, probabilities = self.attention(index, block.norm1(tokens), None)
        tokens = tokens + block.ls1(self.linear(index, "o", mixed))
        hidden = block.mlp.act(self.linear(index, "up", block.norm2(tokens)))
        return tokens + block.ls2(self.linear(index, "down", hidden)), scores, probabilities

    def map_of(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """Images: scaled scores before softmax."""
        return scores


class PlainBert(PlainTower, HFBertTower):
    """BERT: LN(x + o(att x)), then LN(x + MLP x)."""

    def attention_mask(self, sequence: TokenSequence) -> Tensor | None:
        """Return what is added to the scores ``[B, 1, 1, N]``: 0, or the lowest number on padding."""
        if sequence.keep is None:
            return None
        zeros = torch.zeros_like(sequence.keep, dtype=sequence.tokens.dtype)
        return zeros.masked_fill(~sequence.keep, torch.finfo(zeros.dtype).min)[:, None, None, :]

    def block(self, index: int, tokens: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's output and its maps."""
        layer: Any = self.blocks[index]
        mixed, scores, probabilities = self.attention(index, tokens, mask)
        tokens = layer.attention.output.LayerNorm(tokens + self.linear(index, "o", mixed))
        hidden = layer.intermediate.intermediate_act_fn(self.linear(index, "up", tokens))
        return layer.output.LayerNorm(tokens + self.linear(index, "down", hidden)), scores, probabilities

    def map_of(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """Texts: probabilities after it."""
        return probabilities

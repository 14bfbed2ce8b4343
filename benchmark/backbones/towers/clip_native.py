"""Towers over open_clip's own ViT and causal text transformer (OpenAI-style CLIP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.base import ImageTower, TextTower, TokenSequence, Tower
from benchmark.backbones.towers.split import SplitAttention
from benchmark.backbones.towers.tokens import tokens_at


class _ResidualBlocks(Tower):
    """What both open_clip towers share: pre-norm blocks around ``nn.MultiheadAttention``.

    MultiheadAttention keeps q, k and v as one bare parameter that no hook can reach. A block that carries deltas on
    its attention, or whose scores are wanted, is therefore run by :meth:`_open_block`; any other by the library, also
    when :meth:`split_qkv` has put our attention in the place of its own.
    """

    def _set_blocks(self, transformer: Any) -> None:
        if not all(
            isinstance(getattr(block, "attn", None), nn.MultiheadAttention | SplitAttention)
            for block in transformer.resblocks
        ):
            raise ValueError("open_clip blocks with custom attention are not supported")
        self._transformer = transformer
        self.blocks = transformer.resblocks
        self.width = int(transformer.width)
        self.num_heads = int(transformer.resblocks[0].attn.num_heads)

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run open_clip's own block, or its two steps where something acts inside its attention."""
        if any(self.has_deltas(index, name) for name in ("qkv", "o")):
            return self.finish_block(index, tokens, *self.queries_keys_values(index, tokens), mask)
        return self.blocks[index](tokens, attn_mask=mask)

    def queries_keys_values(
        self, index: int, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts of the attention's one projection."""
        block: Any = self.blocks[index]
        attn, inputs = block.attn, block.ln_1(tokens)
        if isinstance(attn, SplitAttention):
            fused = torch.cat([attn.q(inputs), attn.k(inputs), attn.v(inputs)], dim=-1)
        else:
            fused = functional.linear(inputs, attn.in_proj_weight, attn.in_proj_bias)
        fused = self.add_deltas(index, "qkv", inputs, fused)
        queries, keys, values = fused.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if at is not None:
            queries = tokens_at(queries.transpose(1, 2), at).transpose(1, 2)
        return queries, keys, values

    def finish_block(
        self, index: int, tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Any
    ) -> Tensor:
        """Attend, then the MLP, as open_clip's block does."""
        block: Any = self.blocks[index]
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=None if mask is None else mask.to(queries.dtype)
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        mixed = self.add_deltas(index, "o", mixed, block.attn.out_proj(mixed))
        tokens = tokens + block.ls_1(mixed)
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def mask_at(self, mask: Any, positions: Tensor) -> Any:
        """Return the rows ``[B, 1, m, N]`` of a causal mask."""
        return None if mask is None else mask[positions][:, None]

    def block_norm(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the block's first LayerNorm."""
        block: Any = self.blocks[index]
        return block.ln_1(tokens)

    def linears(self, index: int) -> dict[str, nn.Module]:
        """Return the block's linear maps; q, k and v are in the attention itself, split or not."""
        block: Any = self.blocks[index]
        return {"qkv": block.attn, "o": block.attn.out_proj, "up": block.mlp.c_fc, "down": block.mlp.c_proj}

    def split_qkv(self) -> None:
        """Put attention with Linears q, k, v and out_proj in the place of every block's own."""
        blocks: Any = self.blocks
        for block in blocks:
            if not isinstance(block.attn, SplitAttention):
                block.attn = SplitAttention(block.attn).train(block.attn.training)

    def _on_first_delta(self, index: int, site: str) -> None:
        if site in ("up", "down"):
            super()._on_first_delta(index, site)


class ClipVitTower(_ResidualBlocks, ImageTower):
    """View of ``open_clip.transformer.VisionTransformer``.

    Args:
        visual: the open_clip module; it is neither copied nor changed.

    Raises:
        ValueError: if it does not pool its class token after the final norm.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        vit: Any = visual
        if vit.attn_pool is not None or vit.pool_type != "tok":
            raise ValueError(
                f"open_clip image tower with pooling '{vit.pool_type}' is not supported: expected 'tok'"
            )
        self._vit = vit
        self._set_blocks(vit.transformer)
        self.grid = tuple(vit.grid_size)
        self.image_size = tuple(vit.image_size)
        self.embed_dim = self.width if vit.proj is None else int(vit.proj.shape[1])

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed images ``[B, 3, H, W]``: class token and patches with positions, before ``ln_pre``."""
        vit = self._vit
        patches = vit.conv1(inputs).flatten(2).permute(0, 2, 1)
        start = vit.class_embedding.view(1, 1, -1).expand(len(patches), -1, -1).to(patches.dtype)
        tokens = torch.cat([start, patches], dim=1) + vit.positional_embedding.to(patches.dtype)
        return TokenSequence(vit.patch_dropout(tokens), None, pooled_at=0)

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Apply ``ln_pre``."""
        return sequence.with_tokens(self._vit.ln_pre(sequence.tokens))

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply ``ln_post`` to all tokens (per token, so it may come before pooling)."""
        return self._vit.ln_post(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens through the projection matrix."""
        return tokens if self._vit.proj is None else tokens @ self._vit.proj


class ClipTextTower(_ResidualBlocks, TextTower):
    """View of the causal text transformer of ``open_clip.model.CLIP`` or of ``open_clip.transformer.TextTransformer``.

    The global token is the end token; padding stands after it and the causal mask hides it from every real token.

    Args:
        owner: the module that holds token_embedding, positional_embedding, transformer, ln_final and text_projection.

    Raises:
        ValueError: if its pooling is not the end token.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        text: Any = owner
        pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        if pool not in ("argmax", "eos") or getattr(text, "cls_emb", None) is not None:
            raise ValueError(
                f"open_clip text tower with pooling '{pool}' is not supported: expected argmax or eos"
            )
        self._text = text
        self._eos_id: Any = getattr(
            text, "text_eos_id" if hasattr(text, "text_pool_type") else "eos_id", None
        )
        self._by_argmax = pool == "argmax"
        self._set_blocks(text.transformer)
        self.context_length = int(text.positional_embedding.shape[0])
        self.pad_id = int(getattr(text, "pad_id", 0) or 0)
        self.embed_dim = self._projection_width()

    def _projection_width(self) -> int:
        projection = self._text.text_projection
        if projection is None:
            return self.width
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    def word_embeddings(self, token_ids: Tensor) -> Tensor:
        """Return rows of the word table."""
        words = self._text.token_embedding(token_ids)
        if torch.is_autocast_enabled(words.device.type):
            return words  # autocast alone chooses types then; weights may be cast for the time of a step
        return words.to(self._transformer.get_cast_dtype())

    def _end(self, token_ids: Tensor) -> Tensor:
        if self._by_argmax:
            return token_ids.argmax(dim=-1)
        return token_ids.eq(self._eos_id).int().argmax(dim=-1)

    def lengths(self, token_ids: Tensor) -> Tensor:
        """Return the position of the end token plus one."""
        return self._end(token_ids) + 1

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed token ids ``[B, N]`` as word vectors, before positions; pads are real to nobody but themselves."""
        end = self._end(inputs)
        keep = torch.arange(inputs.shape[1], device=inputs.device)[None] <= end[:, None]
        return TokenSequence(self.word_embeddings(inputs), keep, pooled_at=end)

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Add positions."""
        positions = self._text.positional_embedding[: sequence.tokens.shape[1]]
        return sequence.with_tokens(sequence.tokens + positions.to(sequence.tokens.dtype))

    def attention_mask(self, sequence: TokenSequence) -> Tensor | None:
        """Return the additive causal mask ``[N, N]``, rebuilt where inserted tokens outgrow the stored one."""
        stored, length = self._text.attn_mask, sequence.tokens.shape[1]
        if stored is None:
            return None
        if length <= len(stored):
            return stored[:length, :length]
        return torch.full((length, length), float("-inf"), device=stored.device, dtype=stored.dtype).triu_(1)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply ``ln_final``."""
        return self._text.ln_final(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens through the text projection."""
        projection = self._text.text_projection
        if projection is None:
            return tokens
        return projection(tokens) if isinstance(projection, nn.Linear) else tokens @ projection

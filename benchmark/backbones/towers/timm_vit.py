"""Image tower over a timm VisionTransformer inside open_clip's TimmModel (BiomedCLIP's image side)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.base import ImageTower, TokenSequence
from benchmark.backbones.towers.split import SplitLinear
from benchmark.backbones.towers.tokens import tokens_at


class TimmVitTower(ImageTower):
    """View of ``open_clip.timm_model.TimmModel`` whose trunk is a ViT with a class token.

    Args:
        visual: the open_clip module; it is neither copied nor changed.

    Raises:
        ValueError: if the trunk is not a ViT that pools its class token.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        from timm.layers.attention import Attention  # timm takes seconds to import
        from timm.models.vision_transformer import Block, VisionTransformer

        self._plain_types = (Block, Attention)
        trunk: Any = visual.trunk
        if not hasattr(trunk, "blocks") or getattr(trunk, "global_pool", None) != "token":
            kind, pool = type(trunk).__name__, getattr(trunk, "global_pool", None)
            raise ValueError(f"timm image tower {kind} (pooling '{pool}') is not a ViT with a class token")
        if not isinstance(visual.trunk, VisionTransformer) or not isinstance(trunk.head, nn.Identity):
            # relatives pass more than tokens from block to block, and a head of the trunk's own would be left out
            raise ValueError(
                f"timm image tower {type(trunk).__name__} with its own way to blocks or head is not supported"
            )
        self._trunk = trunk
        self._head: Any = visual.head
        self.blocks = trunk.blocks
        self.width = int(trunk.embed_dim)
        self.num_heads = int(trunk.blocks[0].attn.num_heads)
        self.grid = tuple(trunk.patch_embed.grid_size)
        self.image_size = tuple(trunk.patch_embed.img_size)
        self.embed_dim = next((m.out_features for m in reversed(self._linears())), self.width)

    def _linears(self) -> list[nn.Linear]:
        return [m for m in self._head.modules() if isinstance(m, nn.Linear)]

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed images ``[B, 3, H, W]``: class token and patches with positions."""
        trunk = self._trunk
        tokens = trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs)))
        return TokenSequence(tokens, None, pooled_at=0, content_at=trunk.num_prefix_tokens)

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Apply timm's pre-norm (identity for most ViTs)."""
        return sequence.with_tokens(self._trunk.norm_pre(sequence.tokens))

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run timm's own block."""
        return self.blocks[index](tokens)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the trunk's final LayerNorm to all tokens."""
        return self._trunk.norm(tokens)

    def opens(self, index: int) -> bool:
        """Return whether a block and its attention are timm's plain ones."""
        block: Any = self.blocks[index]
        plain = (type(block), type(block.attn)) == self._plain_types
        return plain and getattr(block.attn, "gate", None) is None

    def queries_keys_values(
        self, index: int, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts of the fused projection."""
        block: Any = self.blocks[index]
        fused = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = fused.permute(2, 0, 3, 1, 4)
        if at is not None:
            queries = tokens_at(queries.transpose(1, 2), at).transpose(1, 2)
        return block.attn.q_norm(queries), block.attn.k_norm(keys), values

    def finish_block(
        self, index: int, tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Any
    ) -> Tensor:
        """Attend, then the MLP, as timm's block does."""
        block: Any = self.blocks[index]
        attention = block.attn
        dropout = attention.attn_drop.p if attention.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        mixed = attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))
        tokens = tokens + block.drop_path1(block.ls1(attention.proj_drop(mixed)))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def head_norm(self, pooled: Tensor) -> Tensor:
        """Apply timm's head norm and dropout (identity for most ViTs)."""
        return self._trunk.head_drop(self._trunk.fc_norm(pooled))

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens through open_clip's projection head."""
        return self._head(tokens)

    def block_norm(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the block's first LayerNorm."""
        block: Any = self.blocks[index]
        return block.norm1(tokens)

    def linears(self, index: int) -> dict[str, nn.Module]:
        """Return the block's Linears, q, k and v in one."""
        block: Any = self.blocks[index]
        return {"qkv": block.attn.qkv, "o": block.attn.proj, "up": block.mlp.fc1, "down": block.mlp.fc2}

    def split_qkv(self) -> None:
        """Put a module with Linears q, k and v in the place of every block's fused one."""
        blocks: Any = self.blocks
        for index, block in enumerate(blocks):
            fused = block.attn.qkv
            if isinstance(fused, SplitLinear):
                continue
            if not isinstance(fused, nn.Linear):
                raise ValueError(f"timm attention with {type(fused).__name__} as qkv cannot be split")
            block.attn.qkv = SplitLinear(fused.weight, fused.bias).train(fused.training)
            if (index, "qkv") in self._deltas:
                self._on_first_delta(index, "q")

    def last_queries_and_keys(self, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Read q and k off the fused projection while the last block runs."""
        attention: Any = self.blocks[-1].attn
        seen: list[Tensor] = []
        handle = attention.qkv.register_forward_hook(lambda _m, _a, output: seen.append(output))
        try:
            tokens = run()
        finally:
            handle.remove()
        queries, keys, _ = seen[0].unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return tokens, attention.q_norm(queries), attention.k_norm(keys)

"""Image tower over CT-CLIP's CTViT: volumes cut into a grid of boxes, without class token.

The sequence holds the grid alone, row by row, slices slowest. Pooling is the mean over slices; the projection acts on
all places of a slice at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from benchmark.backbones.towers.base import ImageTower, Intervention, TokenSequence, TowerOutput
from benchmark.backbones.towers.tokens import Choose
from benchmark.errors import BenchmarkError


class GridTokens(TokenSequence):
    """Tokens of a grid, to which none can be added: position is a convolution over the grid."""

    def insert(self, vectors: Tensor, at: int = 1) -> NoReturn:
        """Refuse."""
        refuse_tokens()

    def overwrite(self, vectors: Tensor, at: int = 1) -> NoReturn:
        """Refuse."""
        refuse_tokens()


class CTTower(ImageTower):
    """View of ``medical.ctvit.CTViT``: layers within slices, then layers along them, in one row of blocks.

    Tokens are ``[B, t h w, D]`` in every block, whatever it attends over. What is added to scores within slices is
    handed to the blocks as their mask.

    Args:
        visual: the module; it is neither copied nor changed.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        module: Any = visual
        self._visual = module
        self._within, self._along = module.enc_spatial_transformer, module.enc_temporal_transformer
        self.blocks = [*self._within.layers, *self._along.layers]
        self.width, self.embed_dim = int(module.width), int(module.embed_dim)
        self.num_heads = int(module.enc_spatial_transformer.layers[0].attention.heads)
        self.grid, self.image_size = tuple(module.grid), tuple(module.image_size)

    def forward(
        self,
        inputs: Tensor,
        *,
        interventions: Iterable[Intervention] = (),
        taps: Iterable[int] = (),
        global_row: bool = False,
        global_only: bool = False,
        choose: Choose | None = None,
    ) -> TowerOutput:
        """Run the tower; every token counts for the pooled feature, so ``global_only`` saves nothing.

        Raises:
            BenchmarkError: the attention of a global token is wanted, or volumes of another size.
        """
        if global_row:
            refuse_tokens()
        return super().forward(inputs, interventions=interventions, taps=taps)

    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed volumes ``[B, 1, *image_size]``: boxes, without positions."""
        if tuple(inputs.shape[1:]) != (1, *self.image_size):
            wanted = " x ".join(map(str, self.image_size))
            raise BenchmarkError(
                f"this backbone takes volumes of one channel and {wanted} voxels, got {tuple(inputs.shape[1:])}"
            )
        return GridTokens(self._visual.to_patch_emb(inputs).flatten(1, 3), None, pooled_at=0, content_at=0)

    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Return the sequence as it is: the published model has nothing here."""
        return sequence

    def attention_mask(self, sequence: TokenSequence) -> Tensor:
        """Return what is added to the scores within slices, ``[H, h w, h w]``."""
        return self._visual.spatial_rel_pos_bias(*self.grid[1:])

    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run a layer; the last one within slices ends in the norm of its stage."""
        output = self.blocks[index](tokens.unflatten(1, self.grid), mask).flatten(1, 3)
        return self._within.norm_out(output) if index == len(self._within.layers) - 1 else output

    def block_norm(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the norm in front of a layer's queries."""
        layer: Any = self.blocks[index]
        return layer.attention.norm(tokens)

    def opens(self, index: int) -> bool:
        """Return that no block runs for some of its tokens."""
        return False

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm of the second stage, then the quantiser, to all tokens."""
        return self._visual.quantiser(self._along.norm_out(tokens))

    def pool(self, sequence: TokenSequence) -> Tensor:
        """Return the mean over slices, its places side by side: ``[B, h w D]``."""
        return sequence.tokens.unflatten(1, self.grid).mean(dim=1).flatten(1)

    def project(self, tokens: Tensor) -> Tensor:
        """Map pooled ``[..., h w D]`` into the shared space.

        Raises:
            BenchmarkError: single tokens ``[..., D]``.
        """
        if tokens.shape[-1] != self._visual.proj.in_features:
            refuse_tokens()
        return self._visual.proj(tokens)

    def patch_features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return what each box adds to the projected feature, ``[B, t h w, E]``: their sum is the feature."""
        tokens = self.forward(inputs, interventions=interventions).sequence.tokens.unflatten(1, self.grid)
        shares = self._visual.proj.weight.unflatten(1, (*self.grid[1:], self.width))
        return torch.einsum("bthwd,ehwd->bthwe", tokens, shares).flatten(1, 3) / self.grid[0]

    def linears(self, index: int) -> dict[str, nn.Module]:
        """Return the layer's Linears, keys and values in one."""
        layer: Any = self.blocks[index]
        attention = layer.attention
        return {
            "q": attention.to_q, "kv": attention.to_kv, "o": attention.to_out, "up": layer.mlp[1],
            "down": layer.mlp[4],
        }  # fmt: skip


def refuse_tokens() -> NoReturn:
    """Raise BenchmarkError: the method needs a class token, or tokens of its own."""
    raise BenchmarkError(
        "the image tower of this backbone is a CTViT: it has no class token and takes no further tokens. Take LoRA, a "
        "tuner of peft, MMA, full fine-tuning, or a method that leaves the image tower alone"
    )

"""CT-CLIP's image encoder: a 3-D ViT whose attention goes over slices, then along them, and ends in a quantiser.

Written from the formulas of the published modules (`CT-CLIP: transformer_maskgit/attention.py, ctvit.py`); tests
compare it with vectors that those modules gave (tests/golden/ct.py).

Shape letters: B batch, t x h x w token grid, D width, S sequences of n tokens, H heads, K codes, E shared width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.records import ImageSide, QuantiserMode
from benchmark.backbones.towers.precision import at_least_fp32, full_precision
from benchmark.errors import BenchmarkError

_SCALE = 8.0
"""Of scores of unit-norm queries and keys."""
_ROWS = 4096
"""Tokens that are compared with all codes at once: the table of cosines would be 0.45 GB a volume."""


class ScaledNorm(nn.Module):
    """LayerNorm with a trained scale ``gamma`` and a stored offset ``beta`` that is never trained."""

    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised ``[..., D]``."""
        return functional.layer_norm(inputs, inputs.shape[-1:], self.gamma, self.beta)


class PositionGenerator(nn.Module):
    """Adds position by a depthwise convolution over the grid ``[B, t, h, w, D]``; causal along its first axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(width, width, 3, groups=width)

    def forward(self, grid: Tensor) -> Tensor:
        """Return what is added, of the same shape."""
        padded = functional.pad(grid.movedim(-1, 1), (1, 1, 1, 1, 2, 0))
        return self.dsconv(padded).movedim(1, -1)


class CosineAttention(nn.Module):
    """Attention of unit-norm queries and keys; keys and values are made of the input as it is, not normalised.

    Args:
        width: D. heads: H. head_width: of each.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm = ScaledNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.q_scale, self.k_scale = (nn.Parameter(torch.ones(head_width)) for _ in range(2))
        # stored without elements by the published model: a key that is always there, and a size that must be this one
        self.register_buffer("null_kv", torch.zeros(heads, 0, head_width))

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Return attended ``[S, n, D]``; ``bias`` ``[H, n, n]`` is added to the scores."""
        maps = (self.to_q(self.norm(tokens)), *self.to_kv(tokens).chunk(2, dim=-1))
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in maps)
        queries = functional.normalize(queries, dim=-1) * self.q_scale
        keys = functional.normalize(keys, dim=-1) * self.k_scale
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=_SCALE)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """a gelu(g), of ``[..., 2 M]`` whose first half is a and second g."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[..., M]``."""
        values, gates = inputs.chunk(2, dim=-1)
        return values * functional.gelu(gates)


class CTLayer(nn.Module):
    """One layer over a grid of tokens: position, attention within slices or along them, MLP.

    Args:
        sizes: (D, heads, width of a head, width of the MLP).
        along: whether attention goes along the slices (for each place of a slice) instead of over each slice.
        published_axes: of a layer along the slices: as published, the position convolution reads tokens that lie in
            memory as h, w, t as if they were t, h, w. On a cube its axes are then other ones, on any other grid
            places are mixed up. False takes the axes for what they are.
    """

    def __init__(self, sizes: tuple[int, int, int, int], *, along: bool, published_axes: bool) -> None:
        super().__init__()
        width, heads, head_width, hidden = sizes
        self.peg = PositionGenerator(width)
        self.attention = CosineAttention(width, heads, head_width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * hidden, bias=False), Gated(), nn.Identity(),
            nn.Linear(hidden, width, bias=False),
        )  # fmt: skip
        self.along, self.published_axes = along, published_axes

    def forward(self, grid: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer on ``[B, t, h, w, D]``; ``bias`` ``[H, h w, h w]`` belongs to attention over slices."""
        if not self.along:
            return self._rest((grid + self.peg(grid)).flatten(2, 3).flatten(0, 1), bias).view(grid.shape)
        turned = grid.permute(0, 2, 3, 1, 4)  # b h w t
        if self.published_axes:
            turned = turned.contiguous()
            read_as = turned.view(grid.shape)
            turned = (read_as + self.peg(read_as)).view(turned.shape)
        else:
            turned = turned + self.peg(grid).permute(0, 2, 3, 1, 4)
        rows = self._rest(turned.flatten(0, 2), None)
        return rows.unflatten(0, turned.shape[:3]).permute(0, 3, 1, 2, 4).contiguous()

    def _rest(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        tokens = tokens + self.attention(tokens, bias)
        return tokens + self.mlp(tokens)


class CTStage(nn.Module):
    """Layers that attend in one way, and the norm behind the last of them."""

    def __init__(
        self, depth: int, sizes: tuple[int, int, int, int], *, along: bool, published_axes: bool
    ) -> None:
        super().__init__()
        layers = (CTLayer(sizes, along=along, published_axes=published_axes) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.norm_out = ScaledNorm(sizes[0])


class Quantiser(nn.Module):
    """Replaces every token by the code with the highest cosine, as stored: rows of the codebook are not unit vectors.

    Training never changes the codebook here; the published module moves it at every training pass.

    Args:
        codes: K. width: D.
        mode: "straight_through": the code's value, the token's gradient. "published": no gradient, as the published
            model in evaluation; refused where one is needed. "off": tokens as they are.
    """

    codebook: Tensor

    def __init__(self, codes: int, width: int, mode: QuantiserMode) -> None:
        super().__init__()
        self.register_buffer("codebook", functional.normalize(torch.randn(1, codes, width), dim=-1))
        self.mode = mode

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[..., D]``.

        Raises:
            BenchmarkError: mode "published" where something in front of it trains.
        """
        if self.mode == "off":
            return tokens
        if self.mode == "published" and tokens.requires_grad:
            raise BenchmarkError(
                "the quantiser of this image tower passes no gradient in its published form, so nothing in front of it "
                "can train: take quantiser=straight_through or quantiser=off, or a method that leaves the image tower "
                "alone"
            )
        rows = self.codebook[0][self.indices(tokens.detach())].to(tokens.dtype)
        return _StraightThrough.apply(tokens, rows) if tokens.requires_grad else rows

    @torch.no_grad()
    def indices(self, tokens: Tensor) -> Tensor:
        """Return the number of each token's code ``[...]``."""
        with full_precision(tokens.device):  # a rounded cosine can pick another code
            codes = functional.normalize(at_least_fp32(self.codebook[0]), dim=-1)
            parts = at_least_fp32(tokens).flatten(0, -2).split(_ROWS)
            best = [(functional.normalize(part, dim=-1) @ codes.T).argmax(dim=-1) for part in parts]
        return torch.cat(best).view(tokens.shape[:-1])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


class Boxes(nn.Module):
    """Cuts volumes ``[B, 1, *size]`` into boxes ``[B, t, h, w, voxels]``, slices slowest in a box."""

    def __init__(self, box: tuple[int, ...]) -> None:
        super().__init__()
        self.box = box

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the boxes."""
        deep, high, wide = self.box
        cut = volumes[:, 0].unflatten(3, (-1, wide)).unflatten(2, (-1, high)).unflatten(1, (-1, deep))
        return cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)


class RelativePositions(nn.Module):
    """What attention over a slice adds to its scores: an MLP of the distance, in rows and columns, of two places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        first, second = (nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(0.1)) for inputs in (2, width))
        self.net = nn.Sequential(first, second, nn.Linear(width, heads))

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return ``[H, h w, h w]``: row i is what place i adds to its scores of all places."""
        weight: Any = self.net[2].weight
        offsets = [torch.arange(1 - n, n, device=weight.device, dtype=weight.dtype) for n in (rows, columns)]
        apart = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1)
        # once for every distance: there are (h w)^2 pairs of places, but (2 h - 1) (2 w - 1) distances
        table = self.net(apart.sign() * apart.abs().log1p())
        places = torch.cartesian_prod(
            torch.arange(rows, device=weight.device), torch.arange(columns, device=weight.device)
        )
        between = places[:, None] - places[None] + places.new_tensor([rows - 1, columns - 1])
        return table[between[..., 0], between[..., 1]].permute(2, 0, 1)


class CTViT(nn.Module):
    """The image encoder, which :class:`~benchmark.backbones.towers.ctvit.CTTower` runs.

    Attributes:
        image_size: voxels (slices, rows, columns). box: voxels of a token. grid: tokens (t, h, w).
        width: D. embed_dim: E.
    """

    def __init__(self, side: ImageSide, shapes: Shapes, size: tuple[int, ...]) -> None:
        super().__init__()
        self.image_size, self.box = size, side.box
        if (
            len(size) != 3
            or len(side.box) != 3
            or any(n % step for n, step in zip(size, side.box, strict=True))
        ):
            raise ValueError(f"volumes of {size} voxels cannot be cut into boxes of {side.box}")
        self.grid = tuple(n // step for n, step in zip(size, side.box, strict=True))
        layer = "visual.enc_spatial_transformer.layers.0"
        self.width, voxels = shapes["visual.to_patch_emb.2.weight"]
        head_width = shapes[f"{layer}.attention.q_scale"][0]
        heads = shapes[f"{layer}.attention.to_q.weight"][0] // head_width
        sizes = (self.width, heads, head_width, shapes[f"{layer}.mlp.4.weight"][1])
        if math.prod(side.box) != voxels:
            raise ValueError(
                f"boxes of {side.box} are {math.prod(side.box)} voxels, the weights take {voxels}"
            )
        self.to_patch_emb = nn.Sequential(
            Boxes(side.box), nn.LayerNorm(voxels), nn.Linear(voxels, self.width), nn.LayerNorm(self.width)
        )
        self.spatial_rel_pos_bias = RelativePositions(
            shapes["visual.spatial_rel_pos_bias.net.2.weight"][1], heads
        )
        cube = len(set(self.grid)) == 1  # elsewhere the published order of axes mixes up places
        for name, along in (("enc_spatial_transformer", False), ("enc_temporal_transformer", True)):
            depth = shapes.count(f"visual.{name}.layers")
            setattr(self, name, CTStage(depth, sizes, along=along, published_axes=cube))
        codes = shapes.get("visual.quantiser.codebook", (1, 0))[1]
        self.quantiser = Quantiser(codes, self.width, side.quantiser)
        self.embed_dim, inputs = shapes["visual.proj.weight"]
        self.proj = nn.Linear(inputs, self.embed_dim, bias=False)

"""Heads and pooling of the medical models: layers in order, each acting on the last dimension of ``[..., C]``.

Sizes are read from the shapes of the tensors that will fill them.
Shape letters: B batch, N cells or sentences, C width, E shared width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.medical.records import Steps

Shape = tuple[int, ...]


class MissingTensor(KeyError):
    """A tensor without which the size of a model is not known."""


class Shapes(dict[str, Shape]):
    """Sizes of tensors by name; asking for one that is not there raises :class:`MissingTensor`."""

    def __missing__(self, name: str) -> Shape:
        raise MissingTensor(name)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Shapes:
        """Return the sizes of a state."""
        return cls({name: tuple(value.shape) for name, value in state.items()})

    def count(self, prefix: str) -> int:
        """Return the highest number that follows ``prefix`` and a dot in a name, plus one."""
        tails = (name.removeprefix(f"{prefix}.") for name in self if name.startswith(f"{prefix}."))
        numbers = (tail.partition(".")[0] for tail in tails)
        return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


class LastBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last dimension, for any number of leading dimensions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised values of the same shape ``[..., C]``."""
        return super().forward(inputs.flatten(0, -2)).view_as(inputs)


class Constant(nn.Module):
    """Values appended to every cell: ``[..., C]`` -> ``[..., C + M]`` (BioViL-T without an earlier image)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, count))

    def forward(self, inputs: Tensor) -> Tensor:
        """Append them."""
        return torch.cat([inputs, self.value.expand(*inputs.shape[:-1], -1)], dim=-1)


class AttentionPool(nn.Module):
    """CLIP's attention pooling: the tokens' mean attends to itself and the tokens; ``[B, N, C]`` -> ``[B, C]``.

    Args:
        width: C. heads: of attention. positions: 1 + N where positions are learnt, else None.
    """

    def __init__(self, width: int, heads: int, positions: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        if positions is not None:
            self.positional_embedding = nn.Parameter(torch.zeros(positions, width))
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pool; ``keep``: bool ``[B, N]``, False for tokens that do not count."""
        weights = torch.ones_like(tokens[..., 0]) if keep is None else keep.to(tokens.dtype)
        mean = (tokens * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        tokens = torch.cat([mean[:, None], tokens], dim=1)
        if hasattr(self, "positional_embedding"):
            tokens = tokens + self.positional_embedding
        parts = (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if keep is None else functional.pad(keep, (1, 0), value=True)[:, None, None]
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]

    def alone(self, tokens: Tensor) -> Tensor:
        """Return what each token ``[B, N, C]`` would be pooled to if only it were looked at (MaskCLIP's reading)."""
        if hasattr(self, "positional_embedding"):
            tokens = tokens + self.positional_embedding[1:]
        return self.c_proj(self.v_proj(tokens))


class Bank(nn.Module):
    """A bank of prototypes: a sentence becomes their mean, weighted by how well each fits.

    The published model draws Gumbel noise even when it is evaluated, so that two passes differ. ``how="gumbel"`` keeps
    that, from a generator of its own; "softmax" leaves the noise out.
    """

    temperature = 0.9

    def __init__(self, count: int, width: int, how: str = "softmax") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))
        self.noisy = how == "gumbel"
        self.seed = 0

    def forward(self, sentences: Tensor) -> Tensor:
        """Return prototypes ``[..., C]`` of sentences ``[..., C]``."""
        scores = sentences @ self.weight.T
        if self.noisy:
            generator = torch.Generator(device=scores.device).manual_seed(self.seed)
            noise = torch.empty_like(scores).exponential_(generator=generator).log()
            scores = scores - noise
        return (scores / self.temperature).softmax(dim=-1) @ self.weight


def head(steps: Steps, prefix: str, shapes: Shapes) -> nn.Sequential:
    """Build a head; ``prefix`` stands in front of the layers' numbers in the names of their tensors.

    Raises:
        MissingTensor: a layer's tensor is not there.
    """
    return nn.Sequential(*(_LAYERS[step](f"{prefix}.{index}", shapes) for index, step in enumerate(steps)))


def width_behind(head: nn.Module, width: int) -> int:
    """Return the width that a head ends in, of inputs of ``width``."""
    linears = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return int(linears[-1].out_features) if linears else width


def _linear(name: str, shapes: Shapes, *, bias: bool = True) -> nn.Module:
    outputs, inputs = shapes[f"{name}.weight"]
    return nn.Linear(inputs, outputs, bias)


def _batchnorm(name: str, shapes: Shapes, *, affine: bool = True) -> nn.Module:
    return LastBatchNorm(shapes[f"{name}.running_mean"][0], affine=affine)


_LAYERS: dict[str, Callable[[str, Shapes], nn.Module]] = {
    "linear": _linear,
    "matrix": functools.partial(_linear, bias=False),
    "batchnorm": _batchnorm,
    "plain_batchnorm": functools.partial(_batchnorm, affine=False),
    "layernorm": lambda name, shapes: nn.LayerNorm(shapes[f"{name}.weight"][0], eps=1e-12),  # BERT's
    "relu": lambda name, shapes: nn.ReLU(),
    "gelu": lambda name, shapes: nn.GELU(),
    "constant": lambda name, shapes: Constant(shapes[f"{name}.value"][1]),
}

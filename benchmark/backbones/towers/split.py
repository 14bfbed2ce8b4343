"""Splits a fused query-key-value layer into three Linears.

The modules here replace a library's own and compute the same. Each of q, k and v then has a name in the
model, so that a library which adapts Linears by name can adapt them one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PARTS = ("q", "k", "v")


class SplitLinear(nn.Module):
    """A fused map as three Linears ``q``, ``k``, ``v``: x ``[..., in]`` -> their outputs in a row ``[..., out]``.

    Args:
        weight: of the fused map ``[out, in]``; its thirds are copied. bias: ``[out]`` or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.q, self.k, self.v = thirds(weight, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return queries, keys and values, one after another."""
        return torch.cat([self.q(inputs), self.k(inputs), self.v(inputs)], dim=-1)


class SplitAttention(nn.Module):
    """Self-attention in place of ``nn.MultiheadAttention``, with Linears ``q``, ``k``, ``v`` and ``out_proj``.

    Args:
        attention: batch-first and without dropout, as open_clip builds it; its weights are copied.

    Raises:
        ValueError: if it does something that is not repeated here.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        weight, extra = attention.in_proj_weight, (attention.bias_k, attention.bias_v)
        plain = attention.batch_first and not attention.dropout and not attention.add_zero_attn
        if weight is None or not plain or any(value is not None for value in extra):
            raise ValueError("this form of nn.MultiheadAttention cannot be split")
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.q, self.k, self.v = thirds(weight, attention.in_proj_bias)
        self.out_proj = linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return (output ``[B, N, D]``, None), as ``nn.MultiheadAttention`` does with ``need_weights=False``.

        Raises:
            ValueError: if weights are asked for.
        """
        if need_weights:
            raise ValueError("split attention returns no attention weights")
        queries, keys, values = (
            part(inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part, inputs in ((self.q, query), (self.k, key), (self.v, value))
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def thirds(weight: Tensor, bias: Tensor | None) -> list[nn.Linear]:
    """Return the Linears of the three parts of a fused map, in the order of :data:`PARTS`."""
    biases: Any = [None] * 3 if bias is None else bias.chunk(3)
    return [linear(part, values) for part, values in zip(weight.chunk(3), biases, strict=True)]


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a Linear with copies of these values, on their device, trained if they were."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None:
            copied = nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
            setattr(made, name, copied)
    return made


def size_of(module: Any) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear map, also one that an adapter library has wrapped, or of q, k and v."""
    if isinstance(module, nn.MultiheadAttention | SplitAttention):
        return module.embed_dim, 3 * module.embed_dim
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return int(module.in_features), int(module.out_features)

"""The same methods written down plainly, to measure the fast forms against; nobody trains with them.

What is plain: LoRA by the dense product B A, attention as scores, softmax and product in every block, every token
through the last block, the whole hypergraph, and in evaluation one image and one prompt at a time. Callers pad texts to
the context length. It is written from the equations and reads the weights of the same backbone; no library is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.backbones import Backbone
from benchmark.registry import METHODS
from methods.base import Method, from_options
from tests.plain.hypergraph import WholeHypergraph
from tests.plain.pieces import pieces, with_every_token
from tests.plain.towers import plain_backbone

__all__ = ["OneByOne", "build", "pieces", "with_every_token"]


class OneByOne(Method):
    """Evaluates one image and one prompt at a time."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]`` of images ``[B, C, H, W]``."""
        if self.training:
            return super().encode_image(images)
        return torch.cat([super(OneByOne, self).encode_image(image[None]) for image in images])

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]`` of token ids ``[B, L]``."""
        if self.training:
            return super().encode_text(token_ids)
        return torch.cat([super(OneByOne, self).encode_text(ids[None]) for ids in token_ids])


def build(name: str, backbone: Backbone, **options: Any) -> Method:
    """Wrap a backbone with the plain form of a method; arguments as for ``methods.build``.

    Raises:
        PluginError: no such method is registered.
        ConfigError: an option is wrong, or the towers have no plain form.
    """
    method = METHODS.get(name)
    parts = (OneByOne, WholeHypergraph) if hasattr(method, "refined") else (OneByOne,)
    plain: type[Method] = type(f"Plain{method.__name__}", (*parts, method), {})
    return from_options(plain, plain_backbone(backbone), options)

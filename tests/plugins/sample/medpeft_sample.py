"""Image bias: a learned vector added to the output of every MLP of the image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.registry import register_method
from methods.base import Method, MethodCard


class Bias(nn.Module):
    """A delta that does not look at its input: ``[..., in]`` -> one learned vector ``[..., out]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the vector for every token."""
        return self.value.expand(*inputs.shape[:-1], -1)


@register_method("image_bias")
class ImageBias(Method):
    """Additive deltas on the second layer of each MLP; they can be folded into its bias."""

    card = MethodCard(
        title="Image bias",
        paper="a sample",
        equation="y = W x + b + c in every MLP's second layer",
        trains="c [image width] of each block, starting at zero",
        count="blocks * image width",
    )
    adapts = frozenset({"image"})
    identity_at_init = True
    mergeable = True

    def setup(self) -> None:
        """Attach one delta to each block."""
        tower = self.backbone.image
        self.image = nn.ModuleList(Bias(tower.width) for _ in range(tower.depth))
        for index, delta in enumerate(self.image):
            tower.attach(index, "down", delta)

    def expected_parameters(self) -> int:
        """Return blocks * image width."""
        return self.backbone.image.depth * self.backbone.image.width

"""CLIP-SVD: the singular values of the towers' linear maps are trained, their singular vectors are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Method, MethodCard, Sides
from methods.layers.lora import Position, Site, blocks_at, towers_of


@dataclass(frozen=True)
class ClipSVDOptions:
    """Which maps are adapted.

    Raises:
        ConfigError: none is.
    """

    params: tuple[Site, ...] = setting(("q", "k", "v", "o", "up", "down"), "adapted maps of a block")
    position: Position = setting("all", "adapted blocks of a tower")
    encoder: Sides = setting("both", "adapted towers")

    def __post_init__(self) -> None:
        if not self.params:
            raise ConfigError("params: expected at least one map")


class SingularValues(nn.Module):
    """A change of a map's singular values: x ``[..., in]`` -> U diag(delta) V^T x ``[..., out]``, zero at the start.

    The weight itself stays as it is, so that the start is exact; gradients are those of the singular values.

    Args:
        weight: ``[out, in]``, which is decomposed.
    """

    foldable: ClassVar[bool] = True
    left: Tensor
    right: Tensor
    values: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        self.register_buffer("left", left.to(weight), persistent=False)
        self.register_buffer("right", right.to(weight), persistent=False)
        self.register_buffer("values", values, persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(values))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the update of ``inputs``."""
        return (inputs @ self.right.T.to(inputs) * self.delta) @ self.left.T.to(inputs)

    def weight(self) -> Tensor:
        """Return the change of the weight, ``[out, in]``."""
        return (self.left * self.delta) @ self.right


@register_method("clip_svd", in_all=False, groups=("fewshot",))
class ClipSVD(Method):
    """A few values for each map; folded into the weights they cost nothing."""

    card = MethodCard(
        title="CLIP-SVD",
        paper="Koleilat et al., TMLR 2026",
        arxiv="2509.03740",
        repository="HealthX-Lab/CLIP-SVD",
        equation="W + U diag(delta) V^T, W = U diag(s) V^T; q, k, v, output and both MLP maps of every block",
        trains="delta [min(in, out)] of each adapted map",
        count="sum over adapted maps of min(in, out): 110,592 at BiomedCLIP's size",
        deviations=(
            "a change is learnt beside the weight, so that the start is exact (the code puts the product in its place)",
            "all singular values (the code leaves out the last ones beyond a multiple of 4: none at published widths)",
        ),
    )
    Options = ClipSVDOptions
    adapts = frozenset({"image", "text"})
    identity_at_init = True
    mergeable = True

    def setup(self) -> None:
        """Decompose the maps and attach the changes."""
        self.adapters = nn.ModuleDict()
        for kind, tower in towers_of(self.backbone, self.options.encoder).items():
            blocks = nn.ModuleDict()
            for index in blocks_at(self.options.position, tower.depth):
                placed = nn.ModuleDict()
                for site in self.options.params:
                    linear, _, start, stop = tower.linear_of(index, site)
                    fused: Any = getattr(linear, "in_proj_weight", None)  # of torch's MultiheadAttention
                    weight: Any = linear.weight if fused is None else fused
                    placed[site] = SingularValues(weight[start:stop])
                    tower.attach(index, site, placed[site])
                blocks[str(index)] = placed
            self.adapters[kind] = blocks

    def expected_parameters(self) -> int:
        """Return min(in, out) summed over the adapted maps."""
        return _count(self.backbone, self.options)


def _count(backbone: Backbone, options: ClipSVDOptions) -> int:
    return sum(
        min(tower.site_shape(index, site))
        for tower in towers_of(backbone, options.encoder).values()
        for index in blocks_at(options.position, tower.depth)
        for site in options.params
    )

"""CLIP-Adapter: a small residual network on top of the frozen image feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import SIDES, Method, MethodCard, Sides
from methods.layers.official import OfficialTensors


@dataclass(frozen=True)
class ClipAdapterOptions:
    """Options in the authors' spelling."""

    reduction: int = setting(4, "embedding width over hidden width", low=1)
    ratio: float = setting(0.2, "weight of the adapted feature", low=0, high=1)
    apply_to: Sides = setting("vision", "adapted side: vision (the authors' code), text or both")


class Adapter(nn.Module):
    """relu(W2 relu(W1 u)), no biases, ``[..., E]`` -> ``[..., E]``; non-negative in every coordinate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the adapted features."""
        return self.up(self.down(features).relu()).relu()


@register_method("clip_adapter")
class ClipAdapter(Method):
    """Blend of the frozen feature and its adapted form, normalised after blending."""

    card = MethodCard(
        title="CLIP-Adapter",
        paper="Gao et al., IJCV 2024",
        arxiv="2110.04544",
        repository="gaopengcuhk/CLIP-Adapter",
        equation="v' = ratio relu(W2 relu(W1 v)) + (1 - ratio) v, then normalised",
        trains="W1 [E / reduction, E] and W2 [E, E / reduction] of each adapted side",
        count="2 E (E // reduction) per side",
        deviations=("image-report pairs instead of class names; nothing in the adapter refers to classes",),
    )
    Options = ClipAdapterOptions
    cost_hint = 0.2

    def setup(self) -> None:
        """Create one adapter per side."""
        width = self.backbone.embed_dim
        hidden = width // self.options.reduction
        if hidden < 1:
            raise ConfigError(
                f"reduction: expected at most the embedding width {width}, got {self.options.reduction}"
            )
        self.adapters = nn.ModuleDict({side: Adapter(width, hidden) for side in SIDES[self.options.apply_to]})

    def image_head(self, features: Tensor) -> Tensor:
        """Blend image features."""
        return self._blend("image", features)

    def text_head(self, features: Tensor) -> Tensor:
        """Blend text features."""
        return self._blend("text", features)

    def _blend(self, side: str, features: Tensor) -> Tensor:
        if side not in self.adapters:
            return features
        ratio = self.options.ratio
        return ratio * self.adapters[side](features) + (1 - ratio) * features

    def expected_parameters(self) -> int:
        """Return 2 E (E // reduction) per side."""
        width = self.backbone.embed_dim
        return len(SIDES[self.options.apply_to]) * 2 * width * (width // self.options.reduction)


def load_official(method: ClipAdapter, state: Mapping[str, Any]) -> None:
    """Load the authors' image adapter (``fc.0.weight``, ``fc.2.weight``, possibly under ``adapter.``).

    Raises:
        ConfigError: the method has no image adapter.
        StoreError: a tensor is missing or of another shape.
    """
    if "image" not in method.adapters:
        raise ConfigError(
            "official checkpoint of CLIP-Adapter: it adapts images; build with apply_to=vision or both"
        )
    tensors = OfficialTensors(method, state, "adapter.")
    adapter: Any = method.adapters["image"]
    tensors.copy_all("fc.0", adapter.down)
    tensors.copy_all("fc.2", adapter.up)

"""Backbones: one interface over the two-tower models that are adapted."""

from __future__ import annotations

import torch

from benchmark.backbones.backbone import Backbone, InputSpec, from_open_clip
from benchmark.backbones.towers import Intervention, TokenSequence, Tower, TowerOutput, at_least_fp32

__all__ = [
    "Backbone",
    "InputSpec",
    "Intervention",
    "TokenSequence",
    "Tower",
    "TowerOutput",
    "at_least_fp32",
    "from_open_clip",
    "load_backbone",
]


def load_backbone(
    name: str, *, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """Build a backbone by name, frozen and in eval mode.

    Args:
        name: a registered name; what follows a colon is the plugin's own business (``random:biomedclip``).
        pretrained: weights tag or path, where the backbone takes one.
        device: where its parameters go.

    Raises:
        PluginError: if no such backbone is registered.
    """
    from benchmark.registry import BACKBONES

    backbone: Backbone = BACKBONES.get(name)(name, pretrained=pretrained)
    backbone.requires_grad_(False)
    return backbone.eval().to(device)

"""Backbones: one interface to the two-tower models that methods adapt.

Importing this package imports no torch: what needs it is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmark.errors import PluginError
from benchmark.registry import BACKBONES, calling

if TYPE_CHECKING:
    import torch

    from benchmark.backbones.backbone import Backbone, InputSpec, from_open_clip
    from benchmark.backbones.towers.base import Intervention, Tower
    from benchmark.backbones.towers.tokens import TokenSequence, TowerOutput, tokens_at

__all__ = [
    "Backbone",
    "InputSpec",
    "Intervention",
    "TokenSequence",
    "Tower",
    "TowerOutput",
    "check_backbone",
    "find_backbone",
    "from_open_clip",
    "load_backbone",
    "rules_of",
    "tokens_at",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from benchmark.backbones import backbone
        from benchmark.backbones.towers import base, tokens

        for module in (backbone, base, tokens):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


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
        BenchmarkError: as the plugin raises it, for example when its files are not here.
    """
    from benchmark.backbones.backbone import Backbone

    plugin = BACKBONES.get(name)
    with calling(f"backbone '{name}'"):
        backbone = plugin(BACKBONES.resolve(name), pretrained=pretrained)
    if not isinstance(backbone, Backbone):
        raise PluginError(
            f"backbone '{name}': its plugin gives a {type(backbone).__name__}, expected a Backbone"
        )
    backbone.requires_grad_(False)
    return backbone.eval().to(device)


def check_backbone(name: str, *, pretrained: str | None = None) -> Any:
    """Make sure that a backbone can be loaded, before any work begins and without loading it.

    Returns:
        What the plugin's ``find(name, pretrained=...)`` returns (a :class:`published.FoundModel`, for ours); None for
        a plugin that has nothing to find.

    Raises:
        PluginError, BenchmarkError: as in :func:`load_backbone`.
    """
    find = getattr(BACKBONES.get(name), "find", None)
    with calling(f"backbone '{name}'"):
        return None if find is None else find(BACKBONES.resolve(name), pretrained=pretrained)


def find_backbone(name: str, *, pretrained: str | None = None) -> Any:
    """Return what `check_backbone` finds; a backbone that has nothing to find is built.

    Raises:
        PluginError, BenchmarkError: as in :func:`load_backbone`.
    """
    found = check_backbone(name, pretrained=pretrained)
    return load_backbone(name, pretrained=pretrained) if found is None else found


def rules_of(model: Any) -> tuple[str, ...]:
    """Return the score rules of a backbone, or of what `find_backbone` has found; those that name none have one."""
    return tuple(getattr(model, "rules", ("global",)))

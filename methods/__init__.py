"""Adaptation methods: one plugin per file. ``build`` creates one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.backbones import Backbone
    from methods.base import Method


def build(name: str, backbone: Backbone, **options: Any) -> Method:
    """Wrap a backbone with a method.

    Args:
        name: registered name, or the paper's spelling of it.
        backbone: the model to adapt; it is frozen first, and the method acts on this very object.
        **options: the method's own keys (its ``Options``), and for every method ``logit_scale`` (log, frozen, linear),
            ``loss`` (label_guided, clip) and ``label_match`` (equal, shared_positive).

    Raises:
        PluginError: if no such method is registered.
        ConfigError: for an unknown or impossible option.
    """
    from benchmark.registry import METHODS
    from methods.base import from_options

    return from_options(METHODS.get(name), backbone, options)

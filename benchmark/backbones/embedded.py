"""Backbones that need no download: the tiny pretrained ones, and architectures with random weights."""

from __future__ import annotations

from typing import Any

import torch

from benchmark.backbones.architectures import BIOMEDCLIP, CONTEXT_LENGTH, PUBMED_BERT, build
from benchmark.backbones.backbone import Backbone, InputSpec, from_open_clip
from benchmark.errors import ConfigError, unknown
from benchmark.registry import register_backbone


def _refuse_weights(name: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise ConfigError(f"--pretrained: backbone '{name}' brings its own weights, got '{pretrained}'")


def _tiny(name: str, pretrained: str | None) -> Backbone:
    from benchmark.backbones import tiny

    _refuse_weights(name, pretrained)
    model, tokenizer = tiny.load_tiny(name)
    spec = InputSpec((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), (tiny.MEAN,) * 3, (tiny.STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


@register_backbone("tiny", summary="1.3 M parameters, 64 px, pretrained on phantoms as a weak generalist")
def tiny(name: str, *, pretrained: str | None = None) -> Backbone:
    """1.3 M parameters, 64 px, pretrained on phantoms as a weak generalist (docs/phantom.md)."""
    return _tiny("tiny", pretrained)


@register_backbone("tiny_b", summary="the same from another pretraining seed")
def tiny_b(name: str, *, pretrained: str | None = None) -> Backbone:
    """The same as ``tiny`` from another pretraining seed: how much of a ranking is the backbone's draw?"""
    return _tiny("tiny_b", pretrained)


@register_backbone(
    "random", summary="random:biomedclip, random:tiny or random:<open_clip name>: untrained weights"
)
def random(name: str, *, pretrained: str | None = None) -> Backbone:
    """``random:biomedclip``, ``random:tiny`` or ``random:<open_clip name>``: the architecture, untrained.

    For efficiency figures and tests; no tokenizer for ``biomedclip`` (its vocabulary is a download).
    """
    _refuse_weights(name, pretrained)
    _, _, architecture = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture == "biomedclip":
            return from_open_clip(build(BIOMEDCLIP, PUBMED_BERT), context_length=256, name=name)
        if architecture == "tiny":
            return _random_tiny(name)
        return _random_open_clip(architecture, name)


def _random_tiny(name: str) -> Backbone:
    from benchmark.backbones import tiny

    _, tokenizer = tiny.load_tiny("tiny")
    model = tiny.build_tiny(tokenizer.vocab_size)
    spec = InputSpec((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), (tiny.MEAN,) * 3, (tiny.STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


def _random_open_clip(architecture: str, name: str) -> Backbone:
    import open_clip

    known = open_clip.list_models()
    if architecture not in known:
        raise ConfigError(f"--backbone {name}: " + unknown("open_clip model", architecture, known))
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    own_words = not config["text_cfg"].get("hf_tokenizer_name")  # other vocabularies are downloads
    tokenizer = open_clip.get_tokenizer(architecture) if own_words else None
    length = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
    return from_open_clip(build(config), tokenizer, context_length=length, name=name)

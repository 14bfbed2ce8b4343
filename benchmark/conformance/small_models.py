"""Two small random models, one of each tower family, and random pairs for them: where methods are tried out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmark.backbones import Backbone, InputSpec, from_open_clip, load_backbone
from benchmark.data.samples import Batch
from methods.base import Method

Build = Callable[[Backbone], Method]
"""Wraps a fresh backbone with a method, as ``methods.build`` does."""

FAMILIES = ("timm+bert", "open_clip")
_SIZE, _CONTEXT = 32, 24
_SPREAD = {
    (FAMILIES[0], "image"): 2.0,
    (FAMILIES[0], "text"): 6.0,
    (FAMILIES[1], "image"): 2.0,
    (FAMILIES[1], "text"): 2.0,
}


def small_backbone(family: str) -> Backbone:
    """Return a fresh small random model of a family, the same one every time: 32 px images, 24 tokens."""
    return copy.deepcopy(_prototype(family))


def small_batch(backbone: Backbone, pairs: int = 6, *, seed: int = 0) -> Batch:
    """Return random pairs: texts of several lengths, padded to the context length; labels with repeated rows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(pairs, 3, *backbone.input_spec.size, generator=generator)
    length = backbone.text.context_length
    ids = torch.zeros(pairs, length, dtype=torch.long)
    for row in range(pairs):
        words = int(torch.randint(5, length // 2, (1,), generator=generator))
        ids[row, :words] = torch.randint(5, 70, (words,), generator=generator)
        ids[row, 0], ids[row, words] = 2, 79  # the largest id ends a text where a tower looks for it
    labels = torch.randint(0, 2, (pairs, 2), generator=generator).float()
    return Batch(images=images, token_ids=ids, labels=labels)


def made(build: Build, family: str) -> tuple[Method, Any]:  # Any: a Batch whose inputs are all there
    """Return a method on a small model, as it starts, and pairs for it."""
    torch.manual_seed(0)
    method = build(small_backbone(family))
    return method, small_batch(method.backbone)


def moved(build: Build, family: str) -> tuple[Method, Any]:
    """Return the same with trained values away from their start, so that nothing is hidden by zeros."""
    method, batch = made(build, family)
    move(method)
    return method, batch


@torch.no_grad()
def move(method: Method, *, size: float = 0.02) -> None:
    """Add normal noise to every trained value but the logit scale."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in method.trainable_parameters().items():
        if method.parameter_group(name) != "scale":
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@functools.cache
def _prototype(family: str) -> Backbone:
    backbone = _timm_and_bert() if family == "timm+bert" else _open_clip()
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            # libraries start random weights so small that all images and all texts look alike
            if parameter.ndim >= 2:
                parameter.mul_(_SPREAD[family, backbone.tower_of(name)])
    return backbone.requires_grad_(False)


def _timm_and_bert() -> Backbone:
    """Return the embedded architecture with fewer blocks (four and three) and a quarter of the patches."""
    source = load_backbone("random:tiny")
    model: Any = source.model
    trunk, encoder = model.visual.trunk, model.text.transformer.encoder
    trunk.set_input_size(img_size=_SIZE)
    trunk.blocks, encoder.layer = trunk.blocks[:4], encoder.layer[:3]
    model.visual.image_size = (_SIZE, _SIZE)
    spec = InputSpec((_SIZE, _SIZE), source.input_spec.mean, source.input_spec.std)
    return from_open_clip(
        model, source.tokenizer, context_length=_CONTEXT, input_spec=spec, name="random:small_timm_bert"
    )


def _open_clip() -> Backbone:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=3, width=64, head_width=32, patch_size=8, image_size=_SIZE)
    text = CLIPTextCfg(context_length=_CONTEXT, vocab_size=80, width=48, heads=2, layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(32, vision, text, quick_gelu=True)
    return from_open_clip(model, name="random:small_clip")

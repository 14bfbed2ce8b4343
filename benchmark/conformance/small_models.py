"""Small random models, one of each tower family and one with a ResNet, and random pairs: where methods are tried."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmark.backbones import Backbone, InputSpec, from_open_clip, load_backbone
from benchmark.backbones.tiny import build_tiny
from benchmark.backbones.towers.precision import at_least_fp32
from benchmark.data.samples import Batch
from methods.base import Method
from methods.supervision import Classes, Support

Build = Callable[[Backbone], Method]
"""Wraps a fresh backbone with a method, as ``methods.build`` does."""

FAMILIES = ("timm+bert", "open_clip")
_MODELS = dict(zip(("random:small_timm_bert", "random:small_clip"), FAMILIES, strict=True))
CLASSES = 3
_SIZE, _CONTEXT = 32, 24


def small_backbone(family: str) -> Backbone:
    """Return a fresh copy of a family's small random model: 32 px images, 24 tokens, always the same weights."""
    return copy.deepcopy(_prototype(family))


def small_batch(backbone: Backbone, pairs: int = 6, *, seed: int = 0) -> Batch:
    """Return random pairs: texts of several lengths, padded to the context length; labels with repeated rows."""
    generator, channels = torch.Generator().manual_seed(seed), len(backbone.input_spec.mean)
    images = torch.randn(pairs, channels, *backbone.input_spec.size, generator=generator)
    length = backbone.text.context_length
    ids = torch.zeros(pairs, length, dtype=torch.long)
    for row in range(pairs):
        words = int(torch.randint(5, length // 2, (1,), generator=generator))
        ids[row, :words] = torch.randint(5, 70, (words,), generator=generator)
        ids[row, 0], ids[row, words] = 2, 79  # the largest id ends a text where a tower looks for it
    labels = torch.randint(0, 2, (pairs, 2), generator=generator).float()
    return Batch(images=images, token_ids=ids, labels=labels)


def worlds(method: Method, batch: Any) -> list[Any]:
    """Return the same images as pairs and with class labels; a method that needs classes has no pairs."""
    return ([] if method.needs_classes else [batch]) + [with_classes(method, batch)]


@torch.no_grad()
def with_classes(method: Method, batch: Any) -> Any:
    """Return a batch of pairs with class labels in the place of texts; six of the texts are prompts of three classes.

    Frozen features have the number type of the images.
    """
    name = _MODELS.get(method.backbone.name, method.backbone.name)
    frozen = small_resnet() if name == "random:small_resnet" else small_backbone(name)
    prompts, shape = batch.token_ids[: 2 * CLASSES], (CLASSES, 2)
    features = at_least_fp32(frozen.text.features(prompts)).to(batch.images.dtype).unflatten(0, shape)
    sentences = torch.cat([features, features.roll(1, dims=0), features.mean(dim=1, keepdim=True)], dim=1)
    return Batch(
        images=batch.images,
        labels=torch.arange(len(batch.images)) % CLASSES,
        supervision=Classes(prompts.unflatten(0, shape), features, sentences),
    )


def class_scores(method: Method, batch: Any) -> torch.Tensor:
    """Return the scores ``[B, C]`` of a batch of labelled images, as an evaluation makes them."""
    return method.classify(Batch(images=batch.images), method.prepare_classes(batch.supervision.prompts))


@torch.no_grad()
def bound(method: Method, batch: Any) -> Method:
    """Return the method, bound to the classes of a batch, and fitted to its images if it is of that kind."""
    labelled = with_classes(method, batch)
    method.bind(labelled.supervision)
    if method.fits:
        images = method.from_image_features(method.backbone.image.features(batch.images))
        method.fit(Support(images, labelled.labels, labelled.supervision))
    return method


def loss_of(method: Method, batch: Any) -> torch.Tensor:
    """Return the loss that a batch's supervision makes."""
    return batch.supervision.loss(method, batch)


def made(build: Build, family: str) -> tuple[Method, Any]:  # Any: a Batch whose inputs are all there
    """Return a method at its start, on a small model, and pairs for it."""
    torch.manual_seed(0)
    method = build(small_backbone(family))
    batch = small_batch(method.backbone)
    return bound(method, batch), batch


def moved(build: Build, family: str) -> tuple[Method, Any]:
    """Return the same with trained values moved away from their start, so that zeros hide nothing."""
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


def small_resnet() -> Backbone:
    """Return a small random model whose image tower is a ResNet."""
    return _clip("random:small_resnet", layers=(1, 1, 1, 1), width=8, head_width=64)


@functools.cache
def _prototype(family: str) -> Backbone:
    if family == "timm+bert":
        backbone, text_spread = _timm_and_bert(), 6.0
    else:
        backbone, text_spread = (
            _clip("random:small_clip", layers=3, width=64, head_width=32, patch_size=8),
            2.0,
        )
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            # libraries start random weights so small that all images and all texts look alike
            if parameter.ndim >= 2:
                parameter.mul_(text_spread if backbone.tower_of(name) == "text" else 2.0)
    return backbone.requires_grad_(False)


def _timm_and_bert() -> Backbone:
    """Return the embedded architecture with a third text block and a quarter of the patches."""
    source = load_backbone("random:tiny")
    whole: Any = source.model
    model = build_tiny(whole.text.transformer.config.vocab_size, text_depth=3)
    model.visual.trunk.set_input_size(img_size=_SIZE)
    model.visual.image_size = (_SIZE, _SIZE)
    spec = InputSpec((_SIZE, _SIZE), source.input_spec.mean, source.input_spec.std)
    return from_open_clip(
        model, source.tokenizer, context_length=_CONTEXT, input_spec=spec, name="random:small_timm_bert"
    )


def _clip(name: str, **vision: Any) -> Backbone:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    text = CLIPTextCfg(context_length=_CONTEXT, vocab_size=80, width=48, heads=2, layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(32, CLIPVisionCfg(image_size=_SIZE, **vision), text, quick_gelu=True)
    return from_open_clip(model, name=name)

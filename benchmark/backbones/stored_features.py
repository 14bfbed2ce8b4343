"""Image features from files in the place of an image tower: ``features:<backbone>`` and ``token_features:<backbone>``.

The dataset ``features`` reads them; texts pass the text tower of the backbone that they were made with. Pooled features
``[E]`` are used as they are; tokens ``[N, D]`` of a CTViT, those after its last norm, pass its pooling and projection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmark.errors import ConfigError
from benchmark.registry import register_backbone

if TYPE_CHECKING:
    from benchmark.backbones.backbone import Backbone


@register_backbone(
    "features", summary="features:<backbone>: pooled image features from files; its text tower"
)
def pooled(name: str, *, pretrained: str | None = None) -> Backbone:
    """Load the text tower of ``features:<backbone>``; ConfigError where none is named."""
    from torch import nn

    source = _source(name, pretrained)
    model: Any = source.model
    model.visual = nn.Identity()  # its weights are not needed
    return _stored(name, source, (source.embed_dim,))


@register_backbone("token_features", summary="token_features:<backbone>: the same from tokens of a CTViT")
def tokens(name: str, *, pretrained: str | None = None) -> Backbone:
    """Load ``token_features:<backbone>``; ConfigError where none is named, or it is no CTViT."""
    from benchmark.backbones.towers.ctvit import CTTower

    source = _source(name, pretrained)
    if not isinstance(source.image, CTTower):
        raise ConfigError(f"--backbone {name}: tokens are pooled for a CTViT alone; take features:...")
    return _stored(name, source, (math.prod(source.image.grid), source.image.width))


def _source(name: str, pretrained: str | None) -> Backbone:
    from benchmark.backbones import load_backbone

    kind, _, base = name.partition(":")
    if not base:
        raise ConfigError(f"--backbone {kind}: say whose features they are, as in {kind}:tiny_ct")
    return load_backbone(base, pretrained=pretrained)


def _stored(name: str, source: Backbone, size: tuple[int, ...]) -> Backbone:
    from benchmark.backbones.backbone import Backbone
    from benchmark.backbones.towers.stored import FeatureSpec, FeatureTower

    made = Backbone(
        source.model,
        FeatureTower(source.image, tokens=len(size) == 2),
        source.text,
        tokenizer=source.tokenizer,
        input_spec=FeatureSpec(size, (0.0,), (1.0,)),
        name=name,
    )
    made.settings = f"{name.partition(':')[0]} {source.settings}"
    return made

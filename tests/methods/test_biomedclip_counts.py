"""Exact trainable counts on a randomly initialised BiomedCLIP, built without download."""

from __future__ import annotations

import pytest

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.registry import METHODS

WITHOUT_SCALE = {
    "zero_shot": 0,
    "coop": 3_072,
    "cocoop": 44_832,
    "clip_adapter": 131_072,
    "taskres": 512,
    "maple": 5_329_152,
    "mma": 807_680,
    "clip_lora": 442_368,
    "mmrl": 5_911_552,
    "molre": 49_152 + 16_614,
    "full_ft": 195_902_720,
    "ace_lora": 969_216,
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return the architecture; methods attach to it one after another, which no count depends on."""
    return load_backbone("random:biomedclip")


def test_the_backbone_has_biomedclips_size(backbone: Backbone) -> None:
    assert sum(p.numel() for p in backbone.parameters()) == 195_902_721
    assert len(backbone.model.state_dict()) == 351
    assert backbone.embed_dim == 512
    assert backbone.text.context_length == 256
    assert (backbone.image.width, backbone.image.depth, backbone.image.grid) == (768, 12, (14, 14))
    assert float(backbone.logit_scale) == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.parametrize("name", sorted(WITHOUT_SCALE))
def test_trainable_count(backbone: Backbone, name: str) -> None:
    method = methods.build(name, backbone)
    trained = method.trainable_parameters()
    scale = sum(p.numel() for n, p in trained.items() if method.parameter_group(n) == "scale")
    count = sum(p.numel() for p in trained.values())
    assert count - scale == WITHOUT_SCALE[name] == method.expected_parameters()
    assert scale == (0 if name == "zero_shot" else 1)
    backbone.requires_grad_(False)


def test_every_method_of_all_is_counted() -> None:
    assert set(METHODS.names(extras=False)) <= set(WITHOUT_SCALE)

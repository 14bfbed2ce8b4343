"""ResNet image towers: features are the library's own, taps are the stages, what needs tokens is refused."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

import methods
from benchmark.backbones import Backbone, from_open_clip
from benchmark.errors import BenchmarkError
from tasks.dense import Taps
from tests.small import context

TEXT = CLIPTextCfg(context_length=12, vocab_size=40, width=32, heads=2, layers=2)


def clip(**vision) -> Backbone:
    torch.manual_seed(0)
    return from_open_clip(CLIP(32, CLIPVisionCfg(image_size=64, **vision), TEXT, quick_gelu=True))


def native() -> Backbone:
    return clip(layers=(1, 1, 1, 1), width=8, head_width=64)


def timm_resnet() -> Backbone:
    return clip(timm_model_name="resnet26", timm_pool="avg", timm_proj="linear")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("build", [native, timm_resnet])
def test_features_are_the_librarys_own(build, images):
    backbone = build()
    with torch.no_grad():
        expected = backbone.model.encode_image(images)
        assert torch.equal(backbone.image.features(images), expected)
        encoded = methods.build("zero_shot", backbone).encode_image(images)
    torch.testing.assert_close(encoded, torch.nn.functional.normalize(expected, dim=-1))
    assert backbone.embed_dim == expected.shape[1] == 32


@pytest.mark.parametrize(
    ("build", "channels"), [(native, (32, 64, 128, 256)), (timm_resnet, (256, 512, 1024, 2048))]
)
def test_taps_are_the_outputs_of_the_stages(build, channels, tmp_path):
    backbone = build()
    method = methods.build("zero_shot", backbone)
    taps = Taps(method, (2, 4, 7, 9, 11), context(backbone, tmp_path))
    assert taps.pyramid
    assert taps.shapes == [(count, side, side) for count, side in zip(channels, (16, 8, 4, 2), strict=True)]
    three = Taps(method, (3, 7, 11), context(backbone, tmp_path))
    assert [shape[1] for shape in three.shapes] == [8, 4, 2]
    assert backbone.image.width == channels[-1]
    assert backbone.image.grid == (2, 2)


def test_what_needs_tokens_gets_one_clear_line(images):
    tower = native().image
    for call in (tower.embed, tower.project, lambda given: tower.attach(0, "q", torch.nn.Identity())):
        with pytest.raises(BenchmarkError, match="ResNet, which has no tokens: take a backbone with a ViT"):
            call(images)


def test_text_may_be_adapted_alone_and_there_is_nothing_to_split(images):
    backbone = native()
    before = backbone.image.features(images)
    method = methods.build("clip_lora", backbone, encoder="text")
    method.backbone.split_qkv()
    assert torch.equal(method.eval().backbone.image.features(images), before)
    assert method.trainable_parameters()


@pytest.mark.parametrize("name", ["taskres", "coop", "clip_adapter"])
def test_methods_that_leave_the_image_tower_alone_work(name, images):
    method = methods.build(name, native())
    ids = torch.zeros(2, 12, dtype=torch.long)
    ids[:, :5], ids[:, 5] = 3, 39
    assert method.similarity(images, ids).shape == (2, 2)

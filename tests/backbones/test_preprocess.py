"""Preprocessing records: a grey image of 300 x 500 pixels through every model's, against what others make of it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from benchmark.backbones import InputSpec, load_backbone
from benchmark.errors import ConfigError
from benchmark.preprocess import Preprocess, preprocess_of
from tests.backbones.medical_files import RECORDS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BILINEAR, BICUBIC = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC


def grey_image() -> np.ndarray:
    """Return uint8 ``[300, 500]``: a ramp with noise, from 20 to 203."""
    rng, ramp = np.random.default_rng(0), np.linspace(40, 180, 500)[None, :]
    values = np.clip(ramp + rng.normal(0, 25, (300, 500)), 20, 203).astype(np.uint8)
    values[0, 0], values[-1, -1] = 20, 203
    return values


def normalised(
    pixels: np.ndarray | PIL.Image.Image, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return ``[C, h, w]`` of grey pixels, as torchvision does it."""
    values = torch.tensor(np.asarray(pixels)).float().expand(len(mean), -1, -1) / 255
    return functional.normalize(values, list(mean), list(std))


def pillow(grey: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(grey)


def squashed(side: int, how: v2.InterpolationMode, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return normalised(v2.Resize((side, side), how)(pillow(grey_image())), mean, std)


def bordered() -> Tensor:
    """GLoRIA's: 500 -> 256 wide and 300 -> 153 high by area, 51 and 52 black rows, the middle 224."""

    def shares(length: int, count: int) -> np.ndarray:
        """Return ``[count, length]``: how much of each output pixel an input pixel covers."""
        edges = np.linspace(0, length, count + 1)
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(length)[None]
        return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) / (length / count)

    resized = shares(300, 153) @ grey_image().astype(float) @ shares(500, 256).T
    whole = np.zeros((256, 256))
    whole[51:204] = np.rint(resized.round(6))  # exact halves are no matter of the last bit
    return normalised(whole[16:240, 16:240].astype(np.uint8), (0.5,) * 3, (0.5,) * 3)


def stretched(crop: int) -> Tensor:
    """BioViL's: grey levels to 0..255 and cut off, shortest side 512, the middle, no mean and deviation."""
    values = grey_image().astype(float) - 20
    bytes_ = (values / values.max() * 255).astype(np.uint8)
    resized = v2.CenterCrop(crop)(v2.Resize(512, BILINEAR)(pillow(bytes_)))
    return torch.tensor(np.asarray(resized)).float().expand(3, -1, -1) / 255


def open_clips() -> Tensor:
    config = PreprocessCfg(size=224, mean=CLIP[0], std=CLIP[1])
    return image_transform_v2(config, is_train=False)(pillow(grey_image()))


EXPECTED = {
    "convirt": lambda: squashed(224, BILINEAR, *IMAGENET),
    "gloria": bordered,
    "mgca-r50": bordered,
    "mgca-vit": bordered,
    "biovil": lambda: stretched(480),
    "biovil-t": lambda: stretched(448),
    "prior": lambda: squashed(224, BILINEAR, (0.4755,), (0.3011,)),
    "kad": lambda: squashed(512, BICUBIC, *IMAGENET),
    "pmc-clip": open_clips,
    "plip": open_clips,
    "quiltnet": open_clips,
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_models_input_is_what_others_make_of_the_image(name: str) -> None:
    record = RECORDS[name].preprocess
    pixels = record.fitting.on("shortest_crop").pixels(grey_image())
    found = InputSpec(record.size, record.mean, record.std).to_input(pixels[None])[0]
    expected = EXPECTED[name]()
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_model_of_one_channel_makes_colours_grey() -> None:
    record = RECORDS["prior"].preprocess
    other = RECORDS["prior"].with_options("statistics=chexpert").preprocess
    assert (other.mean, other.std) == ((0.5063,), (0.2895,))  # both are published
    colours = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    pixels = record.fitting.pixels(colours)
    expected = v2.Resize((224, 224), BILINEAR)(PIL.Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(pixels, np.asarray(expected))
    # and where colours were stored at its size already
    spec = InputSpec((30, 50), record.mean, record.std)
    grey = np.asarray(PIL.Image.fromarray(colours).convert("L"))
    torch.testing.assert_close(spec.to_input(colours[None]), spec.to_input(grey[None]))


def test_a_backbone_without_a_record_leaves_the_crop_to_the_dataset() -> None:
    record = preprocess_of(load_backbone("tiny"))
    assert record.size == (64, 64)
    assert record.fitting.crop is None
    assert [record.fitting.on(crop).name for crop in ("squash", "shortest_crop")] == [
        "squash-64x64",
        "shortest_crop-64x64",
    ]


def test_a_record_is_found_on_backbones_and_on_what_was_found() -> None:
    class Found:
        image_size = (8, 8)
        preprocess: object = RECORDS["gloria"].preprocess

    assert preprocess_of(Found()) is RECORDS["gloria"].preprocess
    Found.preprocess = {"mean": (0.5,)}  # as open_clip's describe themselves
    assert preprocess_of(Found()).fitting.on("squash").name == "squash-8x8"


def test_records_are_checked_and_are_json() -> None:
    with pytest.raises(ConfigError, match="1 means but 3 standard deviations"):
        Preprocess((8, 8), (0.5,), (0.5,) * 3)
    with pytest.raises(ConfigError, match="side: expected at least 8"):
        Preprocess((8, 8), (0.5,), (0.5,), "shortest_crop", side=4)
    assert Preprocess((8, 8), (0.5,), (0.25,), "longest_pad", 16, "area").as_json() == {
        "size": [8, 8], "mean": [0.5], "std": [0.25], "resize": "longest_pad", "side": 16,
        "interpolation": "area", "channels": "rgb", "minmax": False,
    }  # fmt: skip

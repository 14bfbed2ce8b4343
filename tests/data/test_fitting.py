"""Fitting: geometry of images, masks and boxes against torchvision and plain sums, and names that say all of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional

from benchmark.errors import ConfigError
from benchmark.preprocess import Fitting

RNG = np.random.default_rng


@pytest.mark.parametrize("shape", [(37, 61), (61, 37), (50, 50), (20, 23), (300, 201), (224, 225)])
@pytest.mark.parametrize("colour", [False, True])
def test_shortest_crop_is_open_clips_transform(shape: tuple[int, int], colour: bool) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = RNG(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = pixels if colour else pixels[:, :, 0]
    for mode, crop in (("shortest", "shortest_crop"), ("squash", "squash")):
        config = PreprocessCfg(size=32, resize_mode=mode, mean=(0, 0, 0), std=(1, 1, 1))
        expected = image_transform_v2(config, is_train=False)(PIL.Image.fromarray(pixels))
        ours = Fitting((32, 32), crop).pixels(pixels)
        theirs = np.rint(expected.numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(ours if colour else np.repeat(ours[..., None], 3, axis=2), theirs)


def test_sizes_that_are_not_square() -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    assert Fitting((4, 8), "squash").pixels(pixels).shape == (4, 8)
    assert Fitting((4, 8), "shortest_crop").pixels(pixels).shape == (4, 8)
    assert Fitting((8, 4), "shortest_crop").pixels(pixels).shape == (8, 4)
    assert Fitting((8, 4), "longest_pad").pixels(pixels).shape == (8, 4)
    np.testing.assert_array_equal(Fitting((6, 10), "shortest_crop").pixels(pixels), pixels)


def test_masks_move_with_the_image() -> None:
    # 4 x 8 to 2 x 2: resized to 2 x 4, and the two middle columns stay
    mask = np.zeros((4, 8), dtype=bool)
    mask[:2, 2:4] = True
    fitted = Fitting((2, 2), "shortest_crop")
    np.testing.assert_array_equal(fitted.mask(mask), [[True, False], [False, False]])
    np.testing.assert_array_equal(
        Fitting((2, 4), "squash").mask(mask), [[False, True, False, False], [False] * 4]
    )
    # with borders: 2 x 4 in the middle of 4 x 4
    np.testing.assert_array_equal(
        Fitting((4, 4), "longest_pad").mask(mask),
        [[False] * 4, [False, True, False, False], [False] * 4, [False] * 4],
    )
    image = np.where(mask, 255, 0).astype(np.uint8)
    assert fitted.pixels(image)[0, 0] > 128


def test_boxes_move_with_the_image() -> None:
    # 200 wide, 100 high, to 50 x 50. Cropped: resized to 100 x 50, 25 columns cut off at each side.
    cropped, squashed = Fitting((50, 50), "shortest_crop"), Fitting((50, 50), "squash")
    assert cropped.box((60, 20, 100, 40), (200, 100)) == (5, 10, 25, 20)
    assert cropped.box((40, 0, 180, 100), (200, 100)) == (0, 0, 50, 50)
    assert cropped.box((0, 10, 50, 20), (200, 100)) == (0, 5, 0, 10)  # cut away
    assert squashed.box((60, 20, 100, 40), (200, 100)) == (15, 10, 25, 20)
    assert Fitting((224, 224), "shortest_crop").box((128, 256, 512, 1024), (1024, 1024)) == (28, 56, 112, 224)
    # With borders: 80 x 40 in the middle of 80 x 80, of which 50 x 50 are kept: 15 to the left, 5 above.
    bordered = Fitting((50, 50), "longest_pad", 80)
    assert bordered.box((60, 20, 100, 40), (200, 100)) == (9, 13, 25, 21)


def test_borders_and_crop_of_a_wide_image_by_hand() -> None:
    # 2 x 4 as it is on a 4 x 4 square, of which the middle 2 x 2 is kept: all of the height, half of the width
    pixels = np.arange(1, 9, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(Fitting((2, 2), "longest_pad", 4).pixels(pixels), [[2, 3], [6, 7]])
    whole = Fitting((4, 4), "longest_pad").pixels(pixels)
    np.testing.assert_array_equal(whole, [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8], [0] * 4])
    # odd borders: the smaller half comes first, as GLoRIA rounds
    odd = Fitting((3, 3), "longest_pad").pixels(pixels[:, :3])
    np.testing.assert_array_equal(odd, [[1, 2, 3], [5, 6, 7], [0, 0, 0]])


@pytest.mark.parametrize(("shape", "target"), [((7, 5), (3, 2)), ((6, 9), (6, 4)), ((3, 4), (5, 7))])
def test_area_is_the_mean_over_shares_of_pixels(shape: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = RNG(1).integers(0, 256, shape, dtype=np.uint8)

    def shares(length: int, count: int, at: int) -> list[Fraction]:
        low, high = Fraction(at * length, count), Fraction((at + 1) * length, count)
        return [max(Fraction(0), min(high, i + 1) - max(low, i)) / (high - low) for i in range(length)]

    expected = np.zeros(target)
    for row, column in np.ndindex(*target):
        down, across = shares(shape[0], target[0], row), shares(shape[1], target[1], column)
        expected[row, column] = float(
            sum(down[i] * across[j] * int(pixels[i, j]) for i, j in np.ndindex(*shape))
        )
    found = Fitting(target, "squash", interpolation="area").pixels(pixels)
    np.testing.assert_array_equal(found, np.rint(expected))


def test_area_at_whole_factors_is_torchs_and_pillows_box() -> None:
    pixels = RNG(2).integers(0, 256, (24, 36), dtype=np.uint8)
    found = Fitting((8, 12), "squash", interpolation="area").pixels(pixels)
    torchs = functional.interpolate(torch.tensor(pixels)[None, None].double(), size=(8, 12), mode="area")
    np.testing.assert_array_equal(found, np.rint(torchs[0, 0].numpy()))
    box = PIL.Image.fromarray(pixels).resize((12, 8), PIL.Image.Resampling.BOX)
    assert np.abs(found.astype(int) - np.asarray(box)).max() <= 1  # Pillow rounds after each direction


def test_grey_levels_are_stretched_before_anything_else() -> None:
    # 10..60 to 0..255: (pixel - 10) * 255 / 50, cut off
    pixels = np.array([[10, 60], [35, 11]], dtype=np.uint8)
    fitted = Fitting((2, 2), "squash", minmax=True)
    np.testing.assert_array_equal(fitted.pixels(pixels), [[0, 255], [127, 5]])
    np.testing.assert_array_equal(fitted.pixels(np.full((2, 2), 7, np.uint8)), np.zeros((2, 2)))
    # over all colours together, and grey afterwards
    colours = np.array([[[0, 0, 0], [51, 0, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(
        Fitting((1, 2), "squash", channels="grey", minmax=True).pixels(colours), [[0, 76]]
    )


def test_grey_is_pillows_luminance_and_leaves_grey_alone() -> None:
    colours = RNG(3).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    red, green, blue = colours.astype(int).transpose(2, 0, 1)
    expected = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    grey = Fitting((5, 4), "squash", channels="grey")
    np.testing.assert_array_equal(grey.pixels(colours), expected)
    np.testing.assert_array_equal(grey.pixels(colours[:, :, 0]), colours[:, :, 0])


NAMES = {
    "shortest_crop-224x224": Fitting((224, 224), "shortest_crop"),
    "squash-6x10": Fitting((6, 10), "squash"),
    "longest_pad256-224x224-area-grey": Fitting((224, 224), "longest_pad", 256, "area", "grey"),
    "shortest_crop512-480x480-bilinear-grey-minmax": Fitting(
        (480, 480), "shortest_crop", 512, "bilinear", "grey", True
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_everything(name: str) -> None:
    assert NAMES[name].name == name
    assert Fitting.parse(name) == NAMES[name]


@pytest.mark.parametrize(
    "name",
    ["", "squash", "squash-", "squash224-224x224", "squash-8x8-area-bilinear", "squash-8x8-blue", "a-8x8"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected|unknown crop"):
        Fitting.parse(name)


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown crop 'middle'. Known: longest_pad, shortest_crop, squash"):
        Fitting((4, 4), "middle")
    with pytest.raises(ConfigError, match="unknown interpolation 'bicubik'. Did you mean 'bicubic'"):
        Fitting((4, 4), interpolation="bicubik")
    with pytest.raises(ConfigError, match="side: expected at least 8"):
        Fitting((4, 8), "shortest_crop", 6)
    with pytest.raises(ConfigError, match="side: expected at least 4, with shortest_crop or longest_pad"):
        Fitting((4, 4), "squash", 6)
    with pytest.raises(ConfigError, match="size: expected height and width"):
        Fitting((4, 0))


def test_a_dataset_brings_the_crop_where_the_model_has_none() -> None:
    assert Fitting((4, 4)).on("squash") == Fitting((4, 4), "squash")
    assert Fitting((4, 4), "longest_pad").on("squash") == Fitting((4, 4), "longest_pad")

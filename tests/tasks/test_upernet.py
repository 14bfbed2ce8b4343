"""The decoder alone: sizes, gradients, parameter counts of the published layout, and that it can learn."""

from __future__ import annotations

import pytest
import torch

from benchmark.errors import ConfigError
from tasks.heads.upernet import UPerNet, norm, rescale

FIVE = (4.0, 4.0, 2.0, 1.0, 0.5)


def maps(channels=(16,) * 5, sides=(8,) * 5, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, s, s, generator=generator) for c, s in zip(channels, sides, strict=True)]


def test_pyramid_of_a_vit_at_224_and_logits_at_the_input_size():
    head = UPerNet([32] * 5, FIVE, width=16).eval()
    taps = maps((32,) * 5, (14,) * 5, batch=1)
    assert [tuple(one.shape[2:]) for one in head.pyramid(taps)] == [
        (56, 56),
        (56, 56),
        (28, 28),
        (14, 14),
        (7, 7),
    ]
    assert head(taps, (224, 224)).shape == (1, 2, 224, 224)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_odd_grids_and_sizes(side):
    head = UPerNet([16] * 5, FIVE, width=16).eval()
    assert head(maps(sides=(side,) * 5), (side * 9 + 1, 31)).shape == (2, 2, side * 9 + 1, 31)


@pytest.mark.parametrize(
    ("rescales", "width", "neck", "head"),
    [
        ((4.0, 2.0, 1.0, 0.5), 512, 7.08, 32.26),
        ((4.0, 2.0, 1.0, 0.5), 256, 7.08, 9.64),
        (FIVE, 256, 11.80, 11.02),
    ],
)
def test_parameter_counts_at_width_768(rescales, width, neck, head):
    with torch.device("meta"):
        decoder = UPerNet([768] * len(rescales), rescales, width=width)
    counted = sum(value.numel() for value in decoder.neck.parameters()) / 1e6
    total = sum(value.numel() for value in decoder.parameters()) / 1e6
    assert counted == pytest.approx(neck, abs=0.01)
    assert total - counted == pytest.approx(head, abs=0.01)


def test_gradients_reach_every_parameter_with_a_batch_of_one():
    head = UPerNet([16] * 5, FIVE, width=16).train()
    head(maps(batch=1), (32, 32)).square().mean().backward()
    assert [
        name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()
    ] == []


def test_groups_always_hold_several_channels():
    for channels in (1, 8, 16, 35, 96, 256, 768):
        layer = norm(channels)
        assert channels % layer.num_groups == 0
        assert channels // layer.num_groups >= min(8, channels)
    assert norm(256).num_groups == norm(768).num_groups == 32


def test_wrong_factors_are_one_clear_line():
    with pytest.raises(ConfigError, match="rescale: expected factors of 4, 2, 1, 0.5, got 3"):
        rescale(16, 3)
    with pytest.raises(ConfigError, match="expected 2 factors, one per tap, got 1"):
        UPerNet([16, 16], [1.0])

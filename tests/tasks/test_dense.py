"""What dense tasks share: parts, views, taps, and the training of a head on a tower that stays as it is."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import methods
from benchmark.conformance.small_models import small_backbone
from benchmark.data.augment import AS_IT_IS, Augment, View
from benchmark.errors import CellError, ConfigError, DataError
from benchmark.preprocess import preprocess_of
from methods.base import Method
from tasks.heads.images import DenseOptions, check_apart, panel_rows, read_part
from tasks.heads.taps import TapBatches, Taps, tap_indices
from tasks.heads.training import decay_factor, fit_head, seeded
from tests.small import context, method

SIIM: dict[str, Any] = {
    "dataset": "phantom",
    "part": "siim",
    "title": "SIIM",
    "train": {"seed": 1, "n": 24},
    "val": {"seed": 2, "n": 16},
    "test": {"n": 16},
}
BOTH = ("masks", "boxes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@functools.cache
def frozen() -> Method:
    return method("zero_shot")


def part(root: Path, name: str = "train", truth: Any = "masks", **more: Any) -> Any:
    wrapped = frozen()
    entry = SIIM | ({"part": "rsna"} if truth == "boxes" else {})
    around = context(wrapped.backbone, root, limit=more.pop("limit", None))
    return read_part(entry, name, truth, around, preprocess_of(wrapped.backbone).fitting, **more)


# --- parts ---------------------------------------------------------------------------------------------------


def test_parts_hold_positives_only_and_do_not_share_patients(root: Path) -> None:
    parts = {name: part(root, name) for name in ("train", "val", "test")}
    assert [len(one) for one in parts.values()] == [12, 8, 8]
    assert all(one.mask(row).any() for one in parts.values() for row in range(len(one)))
    assert check_apart(parts) == {"train/val": 0, "train/test": 0, "val/test": 0}
    assert len(part(root, positives_only=False)) == 24
    assert len(part(root, limit=5)) == 5


def test_an_image_in_two_parts_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"12 images are in 'train' and in 'test', first 'siim-1-000001'"):
        check_apart({"train": part(root), "test": part(root)})


def test_missing_truth_and_missing_parts_are_one_clear_line(root: Path) -> None:
    fitting, around = preprocess_of(frozen().backbone).fitting, context(frozen().backbone, root)
    for truth in BOTH:
        wrong = SIIM | {"part": "rsna" if truth == "masks" else "siim"}
        with pytest.raises(DataError, match=truth):
            read_part(wrong, "test", truth, around, fitting)
    with pytest.raises(ConfigError, match="no key 'val' says what val is"):
        read_part({key: SIIM[key] for key in SIIM if key != "val"}, "val", "masks", around, fitting)
    with pytest.raises(DataError, match="no image with masks"):
        read_part(SIIM | {"test": {"n": 1}}, "test", "masks", around, fitting)


def test_panels_are_spread_evenly_over_the_ids() -> None:
    ids = ["d", "b", "a", "c", "e"]
    assert [ids[row] for row in panel_rows(ids, 3)] == ["a", "c", "e"]
    assert len(panel_rows(ids, 9)) == 5
    assert len(panel_rows(ids, 0)) == 0


# --- views ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [View(hflip=True), View(vflip=True), View(True, True), View(angle=90.0)])
def test_pixels_masks_and_boxes_move_together(view: View) -> None:
    mask = np.zeros((8, 8), bool)
    mask[1:3, 4:7] = True
    np.testing.assert_array_equal(view.pixels(mask.astype(np.uint8) * 255) > 127, view.mask(mask))
    assert view.mask(mask).sum() == 6
    if not view.angle:
        x1, y1, x2, y2 = view.boxes(np.array([[4, 1, 7, 3]]), (8, 8))[0].astype(int)
        assert view.mask(mask)[y1:y2, x1:x2].all()


def test_a_small_turn_fills_with_black_and_leaves_the_mask_binary() -> None:
    turned = View(angle=10.0)
    assert turned.pixels(np.full((20, 20), 200, np.uint8))[0, 0] == 0
    assert turned.mask(np.ones((20, 20), bool)).dtype == bool
    with pytest.raises(ValueError, match="boxes cannot be turned"):
        turned.boxes(np.zeros((1, 4)), (20, 20))


def test_views_are_drawn_as_often_as_asked_for() -> None:
    views = Augment(hflip=0.5, vflip=0.25, rotation=10).draw(np.random.default_rng(0), 2000)
    assert np.mean([view.hflip for view in views]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([view.vflip for view in views]) == pytest.approx(0.25, abs=0.05)
    assert np.mean([view.angle != 0 for view in views]) == pytest.approx(0.5, abs=0.05)
    assert max(abs(view.angle) for view in views) <= 10
    assert Augment(0.5, 0.5, 10).all_views() is None
    assert set(Augment(0.5, 0.5).all_views() or ()) == set(
        Augment(0.5, 0.5).draw(np.random.default_rng(1), 99)
    )
    assert Augment().all_views() == [AS_IT_IS]


# --- taps ----------------------------------------------------------------------------------------------------


def test_tap_positions_scale_with_depth() -> None:
    five = (2, 4, 7, 9, 11)
    assert tap_indices(five, 12) == five
    assert tap_indices(five, 6) == (1, 2, 3, 4, 5)
    assert tap_indices((3, 7, 11), 6) == (1, 3, 5)
    assert tap_indices((3, 7, 11), 24) == (7, 15, 23)
    assert tap_indices(five, 3) == (0, 1, 1, 2, 2)


@pytest.mark.parametrize("family", ["timm+bert", "open_clip"])
def test_taps_are_the_towers_blocks_without_class_token(family: str, root: Path) -> None:
    wrapped = methods.build("zero_shot", small_backbone(family))
    tower, around = wrapped.backbone.image, context(wrapped.backbone, root)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *wrapped.backbone.input_spec.size), dtype=np.uint8)
    plain = Taps(wrapped, (2, 11), around, "none")(pixels)
    last, every = Taps(wrapped, (2, 11), around)(pixels), Taps(wrapped, (2, 11), around, "all")(pixels)
    assert plain[0].shape == (2, tower.width, *tower.grid)
    with torch.no_grad():
        whole = tower.forward(wrapped.backbone.input_spec.to_input(pixels), taps=[tower.depth - 1])
        normed = tower.final_norm(whole.taps[tower.depth - 1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(last[1], normed)
    torch.testing.assert_close(plain[1], whole.taps[tower.depth - 1])
    assert torch.equal(last[0], plain[0])
    assert not torch.equal(every[0], plain[0])
    torch.testing.assert_close(every[1], last[1])


@pytest.mark.parametrize("name", ["maple", "mmrl"])
def test_tokens_that_a_method_inserts_are_no_part_of_the_map(name: str, root: Path) -> None:
    wrapped = method(name)
    taps = Taps(wrapped, (2, 11), context(wrapped.backbone, root))
    assert taps.shapes == [(64, 8, 8)] * 2


def test_kept_features_are_those_computed_each_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, images = frozen(), part(root)
    around = context(wrapped.backbone, root)
    taps, augment = Taps(wrapped, (5, 11), around), Augment(0.5, 0.5)
    kept = list(TapBatches(taps, images, around, augment).epoch(1, 5, 0))
    monkeypatch.setattr("tasks.heads.taps.CACHE_BYTES", 0)
    fresh = list(TapBatches(taps, images, around, augment).epoch(1, 5, 0))
    other = list(TapBatches(taps, images, around, augment).epoch(2, 5, 0))
    assert [len(batch.rows) for batch in kept] == [5, 5, 2]
    assert sorted(np.concatenate([batch.rows for batch in kept])) == list(range(12))
    for one, two in zip(kept, fresh, strict=True):
        assert one.views == two.views
        assert (one.rows == two.rows).all()
        for a, b in zip(one.maps, two.maps, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert [batch.views for batch in kept] != [batch.views for batch in other]


# --- training a head ------------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [decay_factor(step, warmup=4, total=12, power=1.0) for step in range(12)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[-1] == pytest.approx(1 / 8)
    assert decay_factor(8, warmup=4, total=12, power=2.0) == 0.25


def train(root: Path, wrapped: Method, scores: list[float], seed: int = 0, **options: Any) -> Any:
    """Train a one-layer head for as many epochs as there are scores; return head, fit and weights by epoch."""
    around = dataclasses.replace(context(wrapped.backbone, root), seed=seed)
    taps = Taps(wrapped, (11,), around)
    with seeded(seed, around.device):
        head = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(64, 1, 1))
    seen: list[torch.Tensor] = []

    def validate() -> float:
        assert not head.training
        assert not torch.is_grad_enabled()
        seen.append(head[1].weight.detach().clone())
        return scores[len(seen) - 1]

    fit = fit_head(
        head,
        TapBatches(taps, part(root), around, Augment(0.5)),
        loss=lambda batch: head(batch.maps[0]).square().mean(),
        validate=validate,
        options=DenseOptions(**{"epochs": len(scores), "batch_size": 4, "lr": 1e-2} | options),
        context=around,
        stage="train",
    )
    return head, fit, seen


@pytest.mark.parametrize("name", ["zero_shot", "clip_lora", "maple", "full_ft"])
def test_nothing_of_the_encoder_changes(name: str, root: Path) -> None:
    wrapped = method(name).train()
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    _, _, seen = train(root, wrapped, [0.1, 0.2])
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
    assert all(value.grad is None for value in wrapped.parameters())
    assert not any(module.training for module in wrapped.modules())
    assert not torch.equal(seen[0], seen[1])


def test_the_best_epoch_is_kept_and_patience_ends_training(root: Path) -> None:
    head, fit, seen = train(root, frozen(), [0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9], patience=3)
    assert (fit.best_epoch, fit.best_score) == (2, 0.5)
    assert [row["score"] for row in fit.history] == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert torch.equal(head[1].weight, seen[1])
    assert not head.training


def test_steps_end_training_in_the_middle_of_an_epoch(root: Path) -> None:
    per_epoch = -(-len(part(root)) // 4)
    _, fit, seen = train(root, frozen(), [0.1, 0.2, 0.3], max_steps=per_epoch + 1)
    assert [row["epoch"] for row in fit.history] == [1, 2]
    _, whole, all_seen = train(root, frozen(), [0.1, 0.2, 0.3])
    assert torch.equal(seen[0], all_seen[0])  # the schedule is that of the whole training
    assert len(whole.history) == 3


def test_a_seed_fixes_the_head_and_the_global_generator_goes_on(root: Path) -> None:
    first, again, other = (train(root, frozen(), [0.1], seed)[2][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(root, frozen(), [0.1])
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite_is_one_clear_line(root: Path) -> None:
    with pytest.raises(CellError, match="loss of the head became .* lower the task's lr"):
        train(root, frozen(), [0.1, 0.1, 0.1, 0.1], lr=1e30, warmup_epochs=0.0)


def test_options_are_checked() -> None:
    for taps in ((), (3, 2), (1, 12), (-1,)):
        with pytest.raises(ConfigError, match="taps: expected rising block numbers from 0 to 11"):
            DenseOptions(taps=taps)

"""Grounding: patch features of methods and towers, metrics of maps, and the task."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import methods
from benchmark.errors import BenchmarkError, ConfigError, DataError
from benchmark.metrics.classification import SampleMean, plain_value
from benchmark.metrics.grounding import boxed, central_map, map_scores, scores_of
from benchmark.registry import METHODS
from methods.base import Method
from methods.layers.hypergraph import refine_all
from tasks.base import DatasetResult
from tasks.grounding import GroundingOptions, GroundingTask, upsample
from tests.backbones.test_resnet import native, timm_resnet
from tests.small import context, method

RSNA: dict[str, Any] = {
    "dataset": "phantom",
    "part": "rsna",
    "n": 16,
    "title": "RSNA",
    "classes": ["No Finding", "Pneumonia"],
    "positive": "Pneumonia",
}
PLAIN = METHODS.names(extras=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@functools.cache
def built(name: str) -> Method:
    return method(name).eval()


@functools.cache
def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def evaluate(wrapped: Method, root: Path, entry: dict[str, Any] = RSNA, **options: Any) -> DatasetResult:
    task = GroundingTask(GroundingOptions(bootstrap=20, **options))
    return task.evaluate(wrapped, entry, "rsna", context(wrapped.backbone, root))


# --- patch features -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_every_method_has_unit_features_of_all_patches(name: str) -> None:
    wrapped = built(name)
    features = wrapped.patch_features(images())
    assert features.shape == (3, 64, wrapped.backbone.embed_dim)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 64))
    classes = wrapped.prepare_classes(wrapped.backbone.tokenize(["a", "b", "c", "d"]).view(2, 2, -1))
    assert wrapped.classify_patches(images(), classes).shape == (3, 64, 2)


@pytest.mark.parametrize("name", [name for name in PLAIN if METHODS.get(name).identity_at_init])
@torch.no_grad()
def test_without_adaptation_maps_are_the_frozen_ones(name: str) -> None:
    torch.testing.assert_close(
        built(name).patch_features(images()), built("zero_shot").patch_features(images()), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_patches_go_through_the_norm_and_the_projection_of_the_global_token() -> None:
    frozen = built("zero_shot")
    tower = frozen.backbone.image
    tokens = tower.forward(images()).sequence.tokens
    everything = functional.normalize(tower.project(tokens), dim=-1)
    torch.testing.assert_close(frozen.patch_features(images()), everything[:, 1:])
    torch.testing.assert_close(frozen.encode_image(images()), everything[:, 0])


@torch.no_grad()
def test_inserted_tokens_are_no_patches() -> None:
    """MMRL's tokens stand before the patches, MaPLe's behind them."""
    for name, patches in (("mmrl", slice(6, None)), ("maple", slice(1, 65))):
        wrapped = built(name)
        tower = wrapped.backbone.image
        tokens = tower.forward(images(), interventions=wrapped.image_interventions()).sequence.tokens
        expected = functional.normalize(tower.project(tokens[:, patches]), dim=-1)
        torch.testing.assert_close(wrapped.patch_features(images()), expected)


@torch.no_grad()
def test_the_hypergraph_gives_patches_what_it_gives_the_global_token() -> None:
    wrapped = built("ace_lora")
    graph = wrapped.graph_of(wrapped.backbone.image, images())
    output = functional.normalize(
        refine_all(wrapped.graphs["image"], graph.tokens, graph.row, topk=5), dim=-1
    )
    torch.testing.assert_close(output[:, 0], wrapped.encode_image(images()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output[:, 1:], wrapped.patch_features(images()))


@torch.no_grad()
def test_cocoop_conditions_the_finding_on_the_whole_image() -> None:
    wrapped = built("cocoop")
    prompts = wrapped.backbone.tokenize(["opacity", "nothing"]).view(2, 1, -1)
    found = wrapped.classify_patches(images(), wrapped.prepare_classes(prompts))
    for row in range(3):
        own = wrapped.encode_image(images())[row]
        text = torch.stack([wrapped.conditioned(own[None], prompt)[0] for prompt in prompts])
        torch.testing.assert_close(found[row], wrapped.patch_features(images())[row] @ text.T)


@torch.no_grad()
def test_cells_of_a_resnet_average_to_its_pooled_feature() -> None:
    """With uniform attention and without positions, pooling is the mean of what the cells add."""
    wrapped = methods.build("zero_shot", native()).eval()
    tower: Any = wrapped.backbone.image
    pool = tower._visual.attnpool
    for values in (pool.positional_embedding, pool.k_proj.weight, pool.k_proj.bias):
        values.zero_()
    cells = tower.patch_features(images())
    assert cells.shape == (3, 4, wrapped.backbone.embed_dim)
    torch.testing.assert_close(cells.mean(dim=1), tower.features(images()), atol=1e-5, rtol=1e-4)
    assert wrapped.patch_features(images()).shape == cells.shape


@torch.no_grad()
def test_a_timm_resnet_projects_its_cells_or_says_why_not() -> None:
    tower: Any = timm_resnet().image
    torch.testing.assert_close(
        tower.patch_features(images()).mean(dim=1), tower.features(images()), atol=1e-5, rtol=1e-4
    )
    tower._trunk.global_pool.pool_type = "max"
    with pytest.raises(BenchmarkError, match="a pooling of its own"):
        tower.patch_features(images())


# --- metrics --------------------------------------------------------------------------------------------------


def test_a_pixel_is_boxed_when_its_centre_is() -> None:
    inside = boxed(np.array([[1.0, 0.0, 3.0, 1.0], [0.0, 1.6, 1.4, 4.0]]), (4, 4))
    assert inside.astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert not boxed(np.empty((0, 4)), (2, 3)).any()


def test_scores_of_a_map_worked_by_hand() -> None:
    values = np.array([[4.0, 2.0], [1.0, 3.0]])
    inside = np.array([[True, False], [True, False]])
    scores = map_scores(values, inside)
    assert scores["pointing"] == 1
    assert scores["map_auroc"] == 0.5  # 4 beats both others, 1 none
    assert scores["cnr"] == 0  # 2.5 against 2.5
    scores = map_scores(values, ~inside & (values > 2))  # 3 against 4, 2, 1
    assert scores["pointing"] == 0
    assert scores["map_auroc"] == pytest.approx(2 / 3)
    assert scores["cnr"] == pytest.approx((3 - 7 / 3) / np.sqrt(14 / 9))
    lower = map_scores(values, values == 1)
    assert lower["cnr_signed"] == pytest.approx((1 - 3) / np.sqrt(2 / 3))
    assert lower["cnr"] == -lower["cnr_signed"]


def test_a_flat_map_scores_what_chance_does() -> None:
    inside = boxed(np.array([[0.0, 0.0, 1.0, 2.0]]), (4, 4))
    scores = map_scores(np.full((4, 4), 0.3), inside)
    assert scores == {"pointing": 2 / 16, "map_auroc": 0.5, "cnr": 0.0, "cnr_signed": 0.0}


def test_images_without_an_outside_do_not_count() -> None:
    insides = [np.ones((2, 2), bool), np.array([[True, False], [False, False]])]
    found = scores_of([np.eye(2), np.eye(2)], insides)
    assert np.isnan(found["pointing"][0])
    assert plain_value(SampleMean(found["pointing"]), 2) == found["pointing"][1] == 0.5


def test_the_central_map_is_highest_in_the_middle() -> None:
    values = central_map((5, 3))
    assert np.unravel_index(values.argmax(), values.shape) == (2, 1)
    assert np.array_equal(values, values[::-1, ::-1])


def test_upsampling_is_linear_between_the_centres_of_patches() -> None:
    assert upsample(np.array([[0.0, 1.0]]), (1, 4))[0].tolist() == [0, 0.25, 0.75, 1]


# --- the task -------------------------------------------------------------------------------------------------


def test_a_result_holds_metrics_references_samples_and_panels(root: Path) -> None:
    result = evaluate(built("zero_shot"), root, panels=3)
    names = {"pointing", "map_auroc", "cnr", "cnr_signed"}
    assert set(result.metrics) == names | {f"{name}_trivial" for name in names} | {"pointing_random"}
    assert result.n == 8  # positives of 16
    kept = result.predictions
    for name in names:
        entry = result.metrics[name]
        assert entry["value"] == pytest.approx(kept[f"sample_{name}"].mean())
        assert entry["ci_low"] <= entry["value"] <= entry["ci_high"]
    assert kept["panel_map"].shape == (3, 8, 8)
    assert len(kept["panel_pixels"]) == len(kept["panel_id"]) == 3
    assert set(kept["panel_truth_image"].tolist()) == {0, 1, 2}
    assert kept["panel_truth"].shape == (len(kept["panel_truth_image"]), 4)


def test_a_map_that_knows_the_boxes_is_perfect(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def knowing(method: Any, data: Any, *rest: Any) -> np.ndarray:
        return np.stack([boxed(boxes, data.size) for boxes in data.boxes]).astype(np.float32)

    monkeypatch.setattr("tasks.grounding.similarity_maps", knowing)
    result = evaluate(built("zero_shot"), root)
    assert result.metrics["pointing"]["value"] == 1
    assert result.metrics["map_auroc"]["value"] == 1


def test_references_are_the_same_for_all_methods(root: Path) -> None:
    one, other = (evaluate(built(name), root).metrics for name in ("zero_shot", "ace_lora"))
    references = [name for name in one if name.endswith(("_trivial", "_random"))]
    assert {name: one[name] for name in references} == {name: other[name] for name in references}
    assert one["map_auroc"] != other["map_auroc"]


def test_the_finding_must_be_named_and_have_boxes(root: Path) -> None:
    with pytest.raises(ConfigError, match="no key 'positive' names the finding"):
        evaluate(built("zero_shot"), root, {key: value for key, value in RSNA.items() if key != "positive"})
    with pytest.raises(DataError, match="column 'boxes' is missing"):
        evaluate(built("zero_shot"), root, RSNA | {"part": "siim"})

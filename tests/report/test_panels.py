from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.report.collect import collect_blocks
from benchmark.report.figures import maps, panels, write_figures
from benchmark.report.figures.stored import Stored
from benchmark.report.figures.style import Drawing
from benchmark.report.model import Block
from benchmark.report.paper import load_paper
from benchmark.store.cells import CellFolder
from tests.report.conftest import metric, write_report

IDS = np.array(["a", "b"])
RECALL = np.linspace(0, 1, 5)


def _masks(*corners: int) -> np.ndarray:
    """One square mask per image; -1 for an empty one."""
    masks = np.zeros((len(corners), 8, 8), bool)
    for mask, corner in zip(masks, corners, strict=True):
        mask[corner : corner + 3, corner : corner + 3] = corner >= 0
    return masks


def _store(cell: CellFolder, task: str, **arrays: Any) -> CellFolder:
    cell.write_json(
        f"{task}.json",
        {"task": task, "status": "success", "datasets": {"siim": {"metrics": {"m": metric(0.5)}}}},
    )
    cell.write_npz(f"predictions/{task}-siim.npz", {"image_id": IDS, **arrays})
    return cell


def _with_masks(cell: CellFolder, *found: int, ids: np.ndarray = IDS) -> CellFolder:
    pixels = np.full((2, 8, 8), 90, np.uint8)
    truth, prediction = _masks(1, 2), _masks(*found)
    return _store(
        cell, "outline", panel_id=ids, panel_pixels=pixels, panel_truth=truth, panel_prediction=prediction
    )


def _with_boxes(cell: CellFolder, *found: list[float], precision: float = 0.5) -> CellFolder:
    return _store(
        cell,
        "find",
        panel_id=IDS,
        panel_pixels=np.full((2, 8, 8, 3), 90, np.uint8),
        panel_truth=np.array([[1, 1, 4, 5], [2, 2, 7, 7], [0, 0, 2, 2]], np.float32),
        panel_truth_image=np.array([0, 1, 1]),
        panel_prediction=np.array(found, np.float32).reshape(-1, 4),
        panel_prediction_image=np.zeros(len(found), np.int64),
        panel_prediction_score=np.full(len(found), 0.75, np.float32),
        pr_iou=np.array([0.4, 0.5]),
        pr_recall=RECALL,
        pr_precision=precision * np.array([[1, 1, 1, 1, 0], [1, 1, 0.5, 0, 0]]),
    )


def _block(folder: Path) -> Block:
    (block,) = collect_blocks(folder, load_paper())
    return block


def _drawn(folder: Path, task: str) -> dict[str, Drawing]:
    drawings = panels.draw(Stored(_block(folder), task, "siim"))
    return {drawing.name.partition("_")[0]: drawing for drawing in drawings}


def _titles(drawing: Drawing) -> list[str]:
    """Titles of the columns of a grid of pictures: the only texts above it."""
    texts = [text for axes in drawing.figure.axes for text in axes.texts]
    return [
        text.get_text()
        for text in texts
        if text.get_position()[1] > 1 and text.get_transform() != text.axes.transData
    ]


def _images(drawing: Drawing) -> list[list[np.ndarray]]:
    """Images of each tile, row by row."""
    return [[np.asarray(image.get_array()) for image in axes.images] for axes in drawing.figure.axes]


def test_a_column_per_method_that_found_something_else(tmp_path, write_cell):
    for method, found in (
        ("zero_shot", (1, 3)),
        ("coop", (1, 3)),
        ("clip_lora", (2, 2)),
        ("full_ft", (0, -1)),
    ):
        _with_masks(write_cell(method), *found)
    drawing = _drawn(tmp_path, "outline")["A5"]
    titles = _titles(drawing)
    assert titles[:2] == ["Input", "Truth"]
    assert len(titles) == 5
    assert sum("and 1 more" in title for title in titles) == 1
    assert len([images for images in _images(drawing) if images[0].ndim == 2]) == 2 * 5
    assert "evenly spaced" in drawing.caption
    assert "The same results, shown once: " in drawing.caption


def test_each_model_answers_on_the_image_as_it_saw_it(tmp_path, write_cell):
    _with_masks(write_cell("zero_shot"), 4, 4)
    other = {
        "panel_truth": np.ones((2, 4, 4), bool),
        "panel_prediction": np.eye(4, dtype=bool)[None].repeat(2, axis=0),
    }
    cell = write_cell("coop")
    _store(cell, "outline", panel_id=IDS, panel_pixels=np.full((2, 4, 4), 30, np.uint8), **other)
    images = _images(_drawn(tmp_path, "outline")["A5"])
    shown = sorted(film.shape for film, *_ in images)
    assert shown in ([(4, 4)] * 2 + [(8, 8)] * 6, [(4, 4)] * 6 + [(8, 8)] * 2)
    shades = [shade[..., 3] > 0 for _, *shades in images for shade in shades]
    assert any(np.array_equal(shade, np.eye(4, dtype=bool)) for shade in shades)


def test_masks_are_filled_where_they_are(tmp_path, write_cell):
    _with_masks(write_cell("zero_shot"), 4, -1)
    images = _images(_drawn(tmp_path, "outline")["A5"])
    # of each image: input, truth, prediction; the second prediction is empty
    assert [len(shades) for _, *shades in images] == [0, 1, 1, 0, 1, 0]
    np.testing.assert_array_equal(images[2][1][..., 3] > 0, _masks(4)[0])


def test_boxes_lie_on_the_edges_of_their_pixels(tmp_path, write_cell):
    _with_boxes(write_cell("zero_shot"), [1, 1, 4, 4], [0, 2, 3, 8])
    tiles = _drawn(tmp_path, "find")["A5"].figure.axes
    boxes = [[patch.get_bbox().extents.tolist() for patch in axes.patches] for axes in tiles]
    assert boxes[1] == [[1, 1, 4, 5]]
    assert boxes[2] == [[1, 1, 4, 5], [1, 1, 4, 4], [0, 2, 3, 8]]
    assert [len(found) for found in boxes] == [0, 1, 3, 0, 2, 2]
    assert [text.get_text() for text in tiles[2].texts[-2:]] == ["0.75", "0.75"]


def test_a_method_that_was_shown_other_images_is_left_out(tmp_path, write_cell):
    _with_masks(write_cell("zero_shot"), 1, 1)
    _with_masks(write_cell("coop"), 2, 2, ids=np.array(["a", "z"]))
    assert len(_titles(_drawn(tmp_path, "outline")["A5"])) == 3


def test_curves_end_where_recall_ends_and_average_over_overlaps_and_seeds(tmp_path, write_cell):
    _with_boxes(write_cell("zero_shot", seed=0), precision=0.4)
    _with_boxes(write_cell("zero_shot", seed=1), precision=0.8)
    _with_boxes(write_cell("coop"), precision=1.0)
    figure = _drawn(tmp_path, "find")["pr"].figure
    assert [axes.get_title() for axes in figure.axes] == ["IoU 0.50", "Mean over IoU 0.40 to 0.50"]
    (at_half, _), (mean, _) = (axes.lines for axes in figure.axes)
    assert np.asarray(at_half.get_xdata()).tolist() == [0, 25, 50]
    assert np.asarray(at_half.get_ydata()).tolist() == pytest.approx([60, 60, 30])
    assert np.asarray(mean.get_ydata()).tolist() == pytest.approx([60, 60, 45, 30])
    labels = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert labels[0] == labels[1] == [row.title for row in _block(tmp_path).rows]


def test_maps_stand_beside_the_image_with_its_boxes(tmp_path, write_cell):
    for method, shift in (("zero_shot", 0.0), ("coop", 0.5), ("taskres", 0.0)):
        _store(
            write_cell(method),
            "look",
            panel_id=IDS,
            panel_pixels=np.full((2, 8, 8), 90, np.uint8),
            panel_truth=np.array([[1, 1, 4, 5], [2, 2, 7, 7], [0, 0, 2, 2]], np.float32),
            panel_truth_image=np.array([0, 1, 1]),
            panel_map=shift + np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 10,
        )
    (drawing,) = maps.draw(Stored(_block(tmp_path), "look", "siim"))
    *tiles, bar = drawing.figure.axes
    assert bar.get_ylabel() == "cosine"
    assert drawing.name == "3_look_siim"
    assert len(_titles(drawing)) == 3
    assert sum("and 1 more" in title for title in _titles(drawing)) == 1
    assert [len(axes.patches) for axes in tiles] == [1] * 3 + [2] * 3  # of the image and of each method's map
    assert [image.shape for (image,) in _images(drawing)[:-1]] == [(8, 8), (2, 2), (2, 2)] * 2
    ranges = [text.get_text() for axes in tiles for text in axes.texts if " to " in text.get_text()]
    assert sorted(ranges) == ["0.00 to 0.30", "0.40 to 0.70", "0.50 to 0.80", "0.90 to 1.20"]


def test_nothing_is_drawn_without_pictures_or_from_failed_runs(tmp_path, write_cell):
    _with_masks(write_cell("coop", status="failed"), 1, 1)
    write_cell("zero_shot")
    assert _drawn(tmp_path, "outline") == {}


def test_a_damaged_file_costs_only_its_column(tmp_path, write_cell):
    _with_masks(write_cell("zero_shot"), 1, 1)
    damaged = _with_masks(write_cell("coop"), 2, 2).path / "predictions" / "outline-siim.npz"
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert len(_titles(_drawn(tmp_path, "outline")["A5"])) == 3


def test_the_report_writes_and_embeds_the_pictures(tmp_path, write_cell, choose_experiments):
    choose_experiments()
    cell = write_cell("zero_shot", curve=(), parameters=0, flops=None)
    _with_masks(cell, 1, 3)
    _with_boxes(cell, [1, 1, 4, 4])
    names = ("figure_A5_outline_siim", "figure_A5_find_siim", "figure_pr_find_siim")
    written = {path.name for path in write_report(tmp_path, formats=["html"])}
    assert {f"{name}.{kind}" for name in names for kind in ("png", "pdf")} <= written
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == sum(name.endswith(".png") for name in written)


def test_the_same_store_gives_the_same_files(tmp_path, write_cell, choose_experiments):
    choose_experiments()
    _with_masks(write_cell("zero_shot", scores=None), 1, 3)
    once, twice = (
        [
            path.read_bytes()
            for item in write_figures([_block(tmp_path)], (), tmp_path / folder)
            for path in item.files
        ]
        for folder in "ab"
    )
    assert len(once) >= 2
    assert once == twice

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmark.report import write_report
from benchmark.report.collect import Block, collect_blocks
from benchmark.report.panels import curve_figure, panel_figure, write_panels
from benchmark.report.paper import load_paper
from benchmark.store import CellFolder
from tests.report.conftest import WriteCell, metric

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


def _titles(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_column_per_method_that_found_something_else(tmp_path: Path, write_cell: WriteCell) -> None:
    for method, found in (
        ("zero_shot", (1, 3)),
        ("coop", (1, 3)),
        ("clip_lora", (2, 2)),
        ("full_ft", (0, -1)),
    ):
        _with_masks(write_cell(method), *found)
    figure = panel_figure(_block(tmp_path), "outline", "siim")
    titles = _titles(figure)
    assert titles[:2] == ["Input", "Truth"]
    assert len(titles) == 5
    assert sum("and 1 more" in title for title in titles) == 1
    assert figure is not None
    assert len(figure.axes) == 2 * 5
    note = figure.texts[-1].get_text() + figure.get_supxlabel()
    assert "evenly spaced" in note
    assert "The same predictions: " in note


def test_masks_are_filled_where_they_are(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_masks(write_cell("zero_shot"), 4, -1)
    figure = panel_figure(_block(tmp_path), "outline", "siim")
    assert figure is not None
    shades = [[image.get_array() for image in axes.images[1:]] for axes in figure.axes]
    assert [len(one) for one in shades] == [0, 1, 1, 0, 1, 0]  # input, truth, prediction of either image
    np.testing.assert_array_equal(np.asarray(shades[2][0])[..., 3] > 0, _masks(4)[0])


def test_boxes_lie_on_the_edges_of_their_pixels(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_boxes(write_cell("zero_shot"), [1, 1, 4, 4], [0, 2, 3, 8])
    figure = panel_figure(_block(tmp_path), "find", "siim")
    assert figure is not None
    boxes = [[patch.get_bbox().extents.tolist() for patch in axes.patches] for axes in figure.axes]
    assert [len(one) for one in boxes] == [0, 1, 3, 0, 2, 2]
    assert boxes[1] == [[0.5, 0.5, 3.5, 4.5]]
    assert boxes[2][1:] == [[0.5, 0.5, 3.5, 3.5], [-0.5, 1.5, 2.5, 7.5]]
    assert [text.get_text() for text in figure.axes[2].texts] == ["0.75", "0.75"]


def test_a_method_that_was_shown_other_images_is_left_out(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_masks(write_cell("zero_shot"), 1, 1)
    _with_masks(write_cell("coop"), 2, 2, ids=np.array(["a", "z"]))
    assert len(_titles(panel_figure(_block(tmp_path), "outline", "siim"))) == 3


def test_curves_end_where_recall_ends_and_average_over_overlaps_and_seeds(
    tmp_path: Path, write_cell: WriteCell
) -> None:
    _with_boxes(write_cell("zero_shot", seed=0), precision=0.4)
    _with_boxes(write_cell("zero_shot", seed=1), precision=0.8)
    _with_boxes(write_cell("coop"), precision=1.0)
    figure = curve_figure(_block(tmp_path), "find", "siim")
    assert _titles(figure) == ["IoU 0.50", "Mean over IoU 0.40 to 0.50"]
    assert figure is not None
    (at_half, _), (mean, _) = (axes.lines for axes in figure.axes)
    assert np.asarray(at_half.get_xdata()).tolist() == [0, 25, 50]
    assert np.asarray(at_half.get_ydata()).tolist() == pytest.approx([60, 60, 30])
    assert np.asarray(mean.get_ydata()).tolist() == pytest.approx([60, 60, 45, 30])
    labels = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert labels[0] == labels[1] == [row.title for row in _block(tmp_path).rows]


def test_nothing_is_drawn_without_pictures_or_from_failed_runs(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_masks(write_cell("coop", status="failed"), 1, 1)
    write_cell("zero_shot")
    assert write_panels([_block(tmp_path)], tmp_path / "report") == []


def test_a_damaged_file_costs_only_its_column(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_masks(write_cell("zero_shot"), 1, 1)
    damaged = _with_masks(write_cell("coop"), 2, 2).path / "predictions" / "outline-siim.npz"
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert len(_titles(panel_figure(_block(tmp_path), "outline", "siim"))) == 3


def test_the_report_writes_and_embeds_the_pictures(tmp_path: Path, write_cell: WriteCell) -> None:
    cell = write_cell("zero_shot", curve=(), parameters=0, flops=None)
    _with_masks(cell, 1, 3)
    _with_boxes(cell, [1, 1, 4, 4])
    names = ("figure_A5_outline_siim", "figure_A5_find_siim", "figure_pr_find_siim")
    written = {path.name: path.read_bytes() for path in write_report(tmp_path, formats=["html"])}
    assert {f"{name}.{kind}" for name in names for kind in ("png", "pdf")} <= set(written)
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f'alt="{name}"' in page for name in names)


def test_the_same_store_gives_the_same_files(tmp_path: Path, write_cell: WriteCell) -> None:
    _with_masks(write_cell("zero_shot"), 1, 3)
    once, twice = (
        [path.read_bytes() for path in write_panels([_block(tmp_path)], tmp_path / folder)] for folder in "ab"
    )
    assert len(once) == 2
    assert once == twice

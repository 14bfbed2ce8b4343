from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.heads.yolov3 import (
    COCO_ANCHORS,
    YoloV3,
    assign,
    coco_anchors,
    decode,
    kmeans_anchors,
    pad_targets,
    suppress,
    yolo_loss,
)

SIZE = (64, 64)
RULES = ("mgca", "yolov3")


def _head(**options: object) -> YoloV3:
    torch.manual_seed(0)
    return YoloV3((6, 6, 6), width=8, **options)


def _outputs(batch: int = 1, grids: tuple[int, ...] = (2, 4, 8), value: float = 0.0) -> list[torch.Tensor]:
    return [torch.full((batch, 18, side, side), value) for side in grids]


def _targets(*boxes: list[float]) -> torch.Tensor:
    return pad_targets([np.array(boxes, dtype=np.float64).reshape(-1, 4)], SIZE)


# --- the network --------------------------------------------------------------------------------------------


def test_parameters_and_shapes_with_the_published_widths() -> None:
    with torch.device("meta"):
        head = YoloV3((768, 768, 768))
        outputs = head([torch.empty(2, 768, side, side) for side in (28, 14, 7)])
    assert sum(parameter.numel() for parameter in head.parameters()) == 20_938_806
    assert [tuple(output.shape) for output in outputs] == [(2, 18, 7, 7), (2, 18, 14, 14), (2, 18, 28, 28)]


@pytest.mark.parametrize("grid", [(7, 7), (5, 9), (2, 3)])
def test_one_grid_becomes_three_also_when_its_sides_are_odd(grid: tuple[int, int]) -> None:
    rows, columns = grid
    outputs = _head(rescale=(2, 1, 0.5))([torch.randn(2, 6, rows, columns)] * 3)
    expected = [(rows // 2, columns // 2), grid, (2 * rows, 2 * columns)]
    assert [tuple(output.shape[-2:]) for output in outputs] == expected


def test_unknown_rescale_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="rescale"):
        _head(rescale=(4, 1, 1))


@pytest.mark.parametrize("rule", RULES)
def test_gradients_reach_every_parameter(rule: str) -> None:
    head = _head(rescale=(2, 1, 0.5))
    outputs = head([torch.randn(2, 6, 4, 4) for _ in range(3)])
    # a large, a middle and a small box: the rule "yolov3" gives each scale one
    targets = _targets([2, 2, 60, 62], [10, 10, 18, 22], [30, 30, 33, 32]).repeat(2, 1, 1)
    yolo_loss(outputs, targets, coco_anchors(SIZE), SIZE, rule).backward()
    missed = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missed == []


# --- anchors ------------------------------------------------------------------------------------------------


def test_anchors_scale_with_the_image() -> None:
    at_224 = coco_anchors((224, 224))
    assert at_224[0].tolist() == [pytest.approx(pair, abs=0.01) for pair in
                                  ([62.46, 48.46], [84.00, 106.62], [200.85, 175.54])]  # fmt: skip
    assert coco_anchors((416, 208))[2, 0].tolist() == [5, 13]


def test_kmeans_finds_nine_kinds_of_boxes_and_puts_large_ones_on_the_coarse_grid() -> None:
    kinds = np.array(COCO_ANCHORS, dtype=float).reshape(-1, 2)
    shapes = np.repeat(kinds, 5, axis=0) * np.tile([[0.97], [0.99], [1.0], [1.01], [1.03]], (9, 1))
    anchors = kmeans_anchors(np.random.default_rng(0).permutation(shapes)).reshape(-1, 2)
    by_area = kinds[np.argsort(-kinds.prod(axis=1), kind="stable")]
    np.testing.assert_allclose(anchors.numpy(), by_area, rtol=1e-5)


def test_kmeans_takes_fewer_boxes_than_anchors() -> None:
    anchors = kmeans_anchors(np.array([[10.0, 20.0], [4.0, 5.0]]))
    assert anchors.shape == (3, 3, 2)
    assert anchors[0, 0].tolist() == [10, 20]
    assert anchors[2, 2].tolist() == [4, 5]


# --- targets ------------------------------------------------------------------------------------------------


def test_targets_are_centres_and_sizes_in_shares_of_the_image() -> None:
    targets = pad_targets([np.array([[0, 16, 32, 32.0]]), np.empty((0, 4))], (64, 128))
    assert targets.tolist() == [[[0.125, 0.375, 0.25, 0.25]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("box", [[10, 12, 30, 50], [40, 3, 64, 20], [0, 0, 64, 64], [5.5, 6.25, 9, 9.5]])
def test_decoding_a_target_gives_the_box_back(rule: str, box: list[float]) -> None:
    anchors, outputs = coco_anchors(SIZE), _outputs()
    found = 0
    for number, goal in enumerate(assign(_targets(box), anchors, outputs, SIZE, rule)):
        cells = torch.zeros(*goal.found.shape, 6)
        cells[..., :2], cells[..., 2:4] = torch.logit(goal.offset, eps=1e-7), goal.log_scale
        cells[..., 4] = goal.found.float()
        outputs[number] = cells.movedim(-1, 2).flatten(1, 2)
        found += int(goal.found.sum())
    boxes, scores = decode(outputs, anchors, SIZE)
    assert found == (3 if rule == "mgca" else 1)
    claimed = boxes[scores > 0.6]
    assert len(claimed) == found
    np.testing.assert_allclose(claimed.numpy(), np.tile(box, (found, 1)), atol=1e-4 * 64)


def test_mgca_assigns_every_box_on_every_grid_and_spares_what_fits() -> None:
    # anchors in cells: coarse (stride 32) 1x1, 1x2, 4x4; others far off. The box of 32x64 pixels is 1x2 cells.
    anchors = torch.tensor(
        [[[32, 32], [32, 64], [128, 128]], [[1, 1], [2, 2], [3, 3]], [[9, 9], [5, 5], [7, 7]]]
    )
    coarse, middle, fine = assign(_targets([8, 0, 40, 64]), anchors.float(), _outputs(), SIZE)
    # centre (24, 32): cell (0, 1) of the coarse grid, on the border between its rows
    assert torch.nonzero(coarse.found).tolist() == [[0, 1, 1, 0]]
    assert coarse.offset[0, 1, 1, 0].tolist() == [0.75, 0.0]
    assert coarse.log_scale[0, 1, 1, 0].tolist() == [0.0, 0.0]
    # with one cell added to each side: anchor 0 overlaps 2*2 / (2*3) = 0.67 > 0.5, anchor 2 only 6/25
    assert torch.nonzero(~coarse.silent).tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]
    # 2x4 cells against 3/16 of a cell: (19/16)^2 / 15 < 0.5, so the found cell is asked to be silent as well
    assert torch.nonzero(middle.found).tolist() == [[0, 2, 2, 1]]
    assert bool(middle.silent.all())
    assert middle.log_scale[0, 2, 2, 1].tolist() == pytest.approx([np.log(32 / 3), np.log(64 / 3)], rel=1e-5)
    assert torch.nonzero(fine.found).tolist() == [[0, 0, 4, 3]]


def test_yolov3_assigns_one_anchor_of_nine_and_spares_predictions_that_overlap() -> None:
    anchors = torch.tensor(
        [[[40, 40], [50, 50], [60, 60]], [[16, 16], [8, 8], [32, 16]], [[2, 2], [3, 3], [4, 4]]]
    )
    outputs = _outputs()  # every prediction: its anchor, centred in its cell
    goals = assign(_targets([16, 16, 32, 32]), anchors.float(), outputs, SIZE, "yolov3")
    assert [int(goal.found.sum()) for goal in goals] == [0, 1, 0]
    # centre (24, 24) with stride 16: cell (1, 1), where anchor 0 predicts exactly this box
    assert torch.nonzero(goals[1].found).tolist() == [[0, 0, 1, 1]]
    # the anchor 32x16 there is centred the same: overlap 256/512 = 0.5, which is not above 0.5
    assert torch.nonzero(~goals[1].silent).tolist() == [[0, 0, 1, 1]]
    assert bool(goals[0].silent.all())
    outputs[1][0, 12 + 2] = float(np.log(0.75))  # anchor 2 becomes 24x16: overlap 256/384 = 0.67
    goals = assign(_targets([16, 16, 32, 32]), anchors.float(), outputs, SIZE, "yolov3")
    assert torch.nonzero(~goals[1].silent).tolist() == [[0, 0, 1, 1], [0, 2, 1, 1]]


@pytest.mark.parametrize("rule", RULES)
def test_a_centre_on_the_right_or_bottom_edge_stays_in_the_grid(rule: str) -> None:
    targets = torch.tensor([[[1.0, 1.0, 0.25, 0.25], [1.0, 0.0, 0.9, 0.9], [0.0, 1.0, 0.05, 0.05]]])
    for goal in assign(targets, coco_anchors(SIZE), _outputs(), SIZE, rule):
        last = goal.found.shape[-1] - 1
        for _, _, y, x in torch.nonzero(goal.found).tolist():
            assert {x, y} <= {0, last}
        assert float(goal.offset.max()) <= 1.0


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_zeros_and_boxes_without_area_are_no_targets(rule: str) -> None:
    anchors, outputs = coco_anchors(SIZE), _outputs(value=0.3)
    box = _targets([10, 12, 30, 50])
    padded = torch.cat([box, torch.zeros(1, 3, 4), torch.tensor([[[0.5, 0.5, 0.0, 0.2]]])], dim=1)
    assert yolo_loss(outputs, padded, anchors, SIZE, rule) == yolo_loss(outputs, box, anchors, SIZE, rule)


# --- loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_without_boxes_is_finite_and_asks_for_silence(rule: str) -> None:
    outputs = _outputs(batch=2)
    loss = yolo_loss(outputs, torch.zeros(2, 1, 4), coco_anchors(SIZE), SIZE, rule)
    assert float(loss) == pytest.approx(3 * 0.5 * np.log(2), rel=1e-5)  # 0.5 BCE(0.5, 0) at each scale
    silent = yolo_loss(_outputs(batch=2, value=-9.0), torch.zeros(2, 1, 4), coco_anchors(SIZE), SIZE, rule)
    assert float(silent) < 1e-3


def test_the_terms_of_the_loss_by_hand() -> None:
    anchors = torch.full((3, 3, 2), 16.0)
    anchors[:, 1:] = 1.0
    loss = yolo_loss(_outputs(), _targets([16, 16, 48, 32]), anchors, SIZE)
    # centre (32, 24), 32x16: at each scale cell offset (0, .75), (0, .5), (0, 0), tw = ln 2, th = 0, all outputs 0.
    # In cells (1 x .5, 2 x 1, 4 x 2) against anchors (.5 x .5, 1 x 1, 2 x 2), one added to each side, the overlap is
    # .75, .67, .6: always above 0.5, so this cell is not asked to be silent.
    bce = np.log(2)  # of an output of 0, whatever the target
    term = 2.5 * 2 * bce + 2.5 * np.log(2) ** 2 + bce + bce
    cells = [3 * side * side for side in (2, 4, 8)]
    expected = sum((term + 0.5 * bce * (count - 1)) / count for count in cells)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_computed_in_float32_under_bfloat16() -> None:
    outputs = [output.bfloat16().requires_grad_() for output in _outputs(value=0.25)]
    loss = yolo_loss(outputs, _targets([10, 12, 30, 50]), coco_anchors(SIZE), SIZE)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(output.grad is not None and output.grad.isfinite().all() for output in outputs)


# --- post-processing ----------------------------------------------------------------------------------------


def test_suppression_keeps_the_most_confident_of_overlapping_boxes() -> None:
    boxes = torch.tensor(
        [[0, 0, 9, 9], [0, 0, 9, 10], [0, 0, 9, 4], [30, 30, 39, 39], [50, 50, 60, 60]], dtype=torch.float64
    )
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.4], dtype=torch.float64)
    kept, confidence = suppress(boxes, scores, least=0.5)
    # [0, 0, 9, 4] shares 50 of 110 pixels with the best box, which is below one half
    assert kept.tolist() == boxes[[1, 2, 3]].tolist()
    assert confidence.tolist() == [0.9, 0.7, 0.6]
    # against [0, 0, 9, 9] it would be 50 of 100, counted in pixels: exactly one half is too much
    assert len(suppress(boxes[[0, 2]], scores[[0, 2]], least=0.5)[0]) == 1


def test_suppression_returns_no_more_than_a_hundred_boxes_and_takes_none() -> None:
    corners = 20.0 * torch.arange(150)[:, None] + torch.tensor([0, 0, 5, 5])
    kept, scores = suppress(corners, torch.linspace(0.6, 0.9, 150), least=0.5)
    assert len(kept) == 100
    assert scores[0] == pytest.approx(0.9)
    kept, scores = suppress(corners, torch.full((150,), 0.1), least=0.5)
    assert (kept.shape, scores.shape) == ((0, 4), (0,))


def test_huge_predictions_stay_finite() -> None:
    boxes, _ = decode(_outputs(value=200.0), coco_anchors(SIZE), SIZE)
    assert bool(boxes.isfinite().all())

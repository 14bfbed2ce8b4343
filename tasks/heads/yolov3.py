"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) as MGCA uses it on frozen encoders (HKU-MedAI/MGCA, ssl_detector).

Three feature maps, each ending in boxes relative to three anchors per cell. At a cell (cx, cy) of a grid with stride s
and an anchor (pw, ph), in pixels:

    bx = (sigmoid(tx) + cx) s,   by = (sigmoid(ty) + cy) s,   bw = pw e^tw,   bh = ph e^th,   conf = sigmoid(tc)

Two rules say which cells must find a box. ``mgca``: on every grid, the anchor of the box's cell that fits its shape
best; the overlap of shapes is counted with one cell added to each side, and anchors of that cell with an overlap
above 0.5 need not be silent. ``yolov3``: the one best of all nine anchors; predictions that overlap a box by more
than 0.5 need not be silent. There is one class, so its score decides nothing; it is kept to equal MGCA's head.

Deviation: a centre on the right or bottom edge belongs to the last cell (MGCA's code indexes out of its grid).
Shape letters: B images, K boxes, A anchors of a scale, h x w grid, N predictions of all scales. Scales go from coarse
to fine, feature maps from fine to coarse, as encoders give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.backbones.backbone import constant
from benchmark.metrics.detection import MAX_DETECTIONS, box_iou

Rule = Literal["mgca", "yolov3"]
Size = tuple[int, int]
COCO_SIZE = 416
COCO_ANCHORS = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
"""Width and height of the anchors of each scale, in pixels of an image of ``COCO_SIZE``."""
VALUES = 6  # tx, ty, tw, th, confidence, class
IGNORE_OVERLAP = 0.5
BOX_WEIGHT, SILENCE_WEIGHT = 2.5, 0.5
_MAX_LOG_SCALE = 10.0  # e^10 anchors is wider than any image, and still a number


# --- the network --------------------------------------------------------------------------------------------


class YoloV3(nn.Module):
    """The detection head on three feature maps.

    Args:
        channels: of the feature maps, fine to coarse.
        width: channels of the narrow layers at the coarse scale; half and a quarter of it at the others.
        rescale: factor by which each map is enlarged (2: learnt), kept (1) or reduced (0.5: maximum), fine to coarse.
            An encoder whose taps all have one grid needs (2, 1, 0.5).
    """

    def __init__(
        self, channels: Sequence[int], *, width: int = 512, rescale: Sequence[float] = (1, 1, 1)
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.neck = nn.ModuleList([_rescaler(count, by) for count, by in zip(channels, rescale, strict=True)])
        self.scales = nn.ModuleList(
            [
                _Scale(coarse, width),
                _Scale(middle + width // 2, width // 2),
                _Scale(fine + width // 4, width // 4),
            ]
        )
        self.links = nn.ModuleList([_conv(width, width // 2, 1), _conv(width // 2, width // 4, 1)])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return predictions ``[B, 18, h, w]`` of each scale, coarse to fine, from maps ``[B, C, h, w]``."""
        maps = [layer(values) for layer, values in zip(self.neck, features, strict=True)][::-1]
        branch, predicted = self.scales[0](maps[0])
        outputs = [predicted]
        for link, scale, values in zip(self.links, self.scales[1:], maps[1:], strict=True):
            # to the size of the finer map: twice the coarse one, or one more where that was an odd number
            enlarged = F.interpolate(link(branch), size=values.shape[-2:], mode="nearest")
            branch, predicted = scale(torch.cat([enlarged, values], dim=1))
            outputs.append(predicted)
        return outputs


class _Scale(nn.Module):
    """Six convolutions, of which the fifth leads on to the next scale, and the prediction."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(inputs, width, 1),
            _conv(width, 2 * width, 3),
            _conv(2 * width, width, 1),
            _conv(width, 2 * width, 3),
            _conv(2 * width, width, 1),
        )
        self.predict = nn.Sequential(
            _conv(width, 2 * width, 3), nn.Conv2d(2 * width, len(COCO_ANCHORS[0]) * VALUES, 1)
        )

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        branch = self.branch(values)
        return branch, self.predict(branch)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


def _rescaler(channels: int, factor: float) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    if factor == 2:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)
    if factor == 0.5:
        return nn.MaxPool2d(2)
    raise ValueError(f"YoloV3: expected rescale factors 2, 1 or 0.5, got {factor}")


# --- anchors ------------------------------------------------------------------------------------------------


def coco_anchors(size: Size) -> Tensor:
    """Return COCO's anchors for images of ``size`` (height, width): ``[3, 3, 2]`` width and height in pixels."""
    height, width = size
    return torch.tensor(COCO_ANCHORS) * torch.tensor([width / COCO_SIZE, height / COCO_SIZE])


def kmeans_anchors(shapes: np.ndarray, *, steps: int = 100) -> Tensor:
    """Return nine anchors ``[3, 3, 2]``, the largest first, that fit widths and heights ``[M, 2]`` (M > 0).

    k-means with 1 - overlap of shapes as the distance, as in YOLOv2 (arXiv 1612.08242). It starts from boxes at even
    steps of the area, so nothing is drawn at random.
    """
    shapes = np.asarray(shapes, dtype=np.float64)
    shapes = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    centres = shapes[np.linspace(0, len(shapes) - 1, 9).round().astype(int)]
    corners = np.concatenate([np.zeros_like(shapes), shapes], axis=1)
    for _ in range(steps):
        overlap = box_iou(corners, np.concatenate([np.zeros_like(centres), centres], axis=1))
        member = overlap.argmax(axis=1)[:, None] == np.arange(9)
        means = np.stack(
            [
                shapes[own].mean(axis=0) if own.any() else old
                for own, old in zip(member.T, centres, strict=True)
            ]
        )
        if np.allclose(means, centres):
            break
        centres = means
    centres = centres[np.argsort(-centres.prod(axis=1), kind="stable")]
    return torch.tensor(centres, dtype=torch.float32).reshape(3, 3, 2)


# --- boxes as targets ---------------------------------------------------------------------------------------


def pad_targets(boxes: Sequence[np.ndarray], size: Size) -> Tensor:
    """Return boxes ``[K, 4]`` (x1, y1, x2, y2 in pixels) of B images as one tensor ``[B, K, 4]`` of targets.

    A target is centre x, centre y, width, height as shares of the image; rows of zeros fill up.
    """
    height, width = size
    targets = np.zeros((len(boxes), max([1, *map(len, boxes)]), 4), np.float32)
    for row, corners in enumerate(boxes):
        low, high = corners[:, :2] / (width, height), corners[:, 2:] / (width, height)
        targets[row, : len(corners)] = np.concatenate([(low + high) / 2, high - low], axis=1)
    return torch.from_numpy(targets)


@dataclass(frozen=True)
class Assigned:
    """What the cells of one scale should say.

    Attributes:
        found: bool ``[B, A, h, w]``, cells that must find a box. silent: those that must not claim one.
        offset: ``[B, A, h, w, 2]``, centre within the cell (sigmoid of tx, ty). log_scale: ``[B, A, h, w, 2]``, tw, th.
    """

    found: Tensor
    silent: Tensor
    offset: Tensor
    log_scale: Tensor


def assign(
    targets: Tensor, anchors: Tensor, outputs: Sequence[Tensor], size: Size, rule: Rule = "mgca"
) -> list[Assigned]:
    """Return what the cells of each scale should say about boxes.

    Args:
        targets: ``[B, K, 4]`` of :func:`pad_targets`.
        anchors: ``[3, A, 2]`` in pixels, coarse to fine.
        outputs: of the head; they give the grids, and ``yolov3`` compares their boxes with the targets.
        size: (height, width) of the image.
        rule: see the head of this file. Of two boxes for one cell and anchor the later one counts.
    """
    shapes = targets[..., 2:] * constant((size[1], size[0]), targets.device)
    best = (_shape_overlap(shapes[:, :, None], anchors.flatten(0, 1), 0.0)).argmax(dim=-1)
    assigned = []
    for scale, (output, own) in enumerate(zip(outputs, anchors, strict=True)):
        grid = constant((output.shape[-1], output.shape[-2]), targets.device)
        stride = constant((size[1], size[0]), targets.device) / grid
        chosen = (targets[..., 2:] > 0).all(dim=-1)
        if rule == "mgca":
            overlap = _shape_overlap((shapes / stride)[:, :, None], own / stride, 1.0)
            anchor, spared = overlap.argmax(dim=-1), overlap > IGNORE_OVERLAP
        else:
            chosen, anchor, spared = chosen & (best // len(own) == scale), best % len(own), None
        result = _empty(output, len(own))
        rows = torch.arange(len(targets), device=targets.device)
        for number in range(targets.shape[1]):
            # every image writes, those without a box what was there: a GPU waits for nobody to count them
            here, nearest = chosen[:, number], anchor[:, number]
            centre = targets[:, number, :2] * grid
            cell = torch.minimum(centre.floor(), grid - 1)
            x, y = cell.long().unbind(dim=1)
            at = (rows, nearest, y, x)
            scale_of = torch.log(shapes[:, number] / own[nearest])
            result.found[at] |= here
            result.offset[at] = torch.where(here[:, None], centre - cell, result.offset[at])
            result.log_scale[at] = torch.where(here[:, None], scale_of, result.log_scale[at])
            if spared is not None:
                result.silent[rows, :, y, x] &= ~(spared[:, number] & here[:, None])
        if spared is None:
            result.silent.copy_(~result.found & ~_overlapping(output, own, targets, size))
        assigned.append(result)
    return assigned


def _empty(output: Tensor, anchors: int) -> Assigned:
    shape = (len(output), anchors, *output.shape[-2:])
    found = torch.zeros(shape, dtype=torch.bool, device=output.device)
    numbers = torch.zeros((*shape, 2), device=output.device)
    return Assigned(found, ~found, numbers, numbers.clone())


def _shape_overlap(ones: Tensor, others: Tensor, extra: float) -> Tensor:
    """Overlap of boxes with one corner in common, by width and height ``[..., 2]``."""
    shared = (torch.minimum(ones, others) + extra).prod(dim=-1)
    return shared / ((ones + extra).prod(dim=-1) + (others + extra).prod(dim=-1) - shared)


@torch.no_grad()
def _overlapping(output: Tensor, anchors: Tensor, targets: Tensor, size: Size) -> Tensor:
    """Which predictions ``[B, A, h, w]`` overlap a target by more than ``IGNORE_OVERLAP``."""
    boxes = _decoded(_split(output), anchors, size)[..., None, :]
    sides = constant((size[1], size[0]), targets.device)
    true = _corners(targets[..., :2] * sides, targets[..., 2:] * sides)[:, None, None, None]
    low, high = torch.maximum(boxes[..., :2], true[..., :2]), torch.minimum(boxes[..., 2:], true[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) + (true[..., 2:] - true[..., :2]).prod(dim=-1)
    return (shared > IGNORE_OVERLAP * (areas - shared)).any(dim=-1)


# --- loss and boxes of predictions --------------------------------------------------------------------------


def yolo_loss(
    outputs: Sequence[Tensor], targets: Tensor, anchors: Tensor, size: Size, rule: Rule = "mgca"
) -> Tensor:
    """Return MGCA's loss, summed over scales.

    2.5 (BCE x + BCE y) + 2.5 (MSE w + MSE h) + BCE confidence of cells that must find + 0.5 BCE of cells that must be
    silent + BCE class; each is a mean over all cells of a scale, not over those with a box.
    """
    # fp32 whatever the precision of the head: the terms are means over thousands of cells, mostly zeros
    outputs, targets = [output.float() for output in outputs], targets.float()
    parts = []
    for output, goal in zip(outputs, assign(targets, anchors, outputs, size, rule), strict=True):
        cells, found, silent = _split(output), goal.found.float(), goal.silent.float()
        centre = F.binary_cross_entropy_with_logits(cells[..., :2], goal.offset, reduction="none").sum(-1)
        shape = (cells[..., 2:4] - goal.log_scale).square().sum(-1)
        # softplus(-t) = -log sigmoid(t), softplus(t) = -log(1 - sigmoid(t))
        claim, silence, named = (
            F.softplus(-cells[..., 4]),
            F.softplus(cells[..., 4]),
            F.softplus(-cells[..., 5]),
        )
        parts.append(
            (
                found * (BOX_WEIGHT * (centre + shape) + claim + named) + SILENCE_WEIGHT * silent * silence
            ).mean()
        )
    return torch.stack(parts).sum()


@torch.no_grad()
def decode(outputs: Sequence[Tensor], anchors: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return the boxes ``[B, N, 4]`` (x1, y1, x2, y2 in pixels) and confidences ``[B, N]`` of all predictions."""
    boxes, scores = [], []
    for output, own in zip(outputs, anchors, strict=True):
        cells = _split(output.float())
        boxes.append(_decoded(cells, own, size).flatten(1, 3))
        scores.append(cells[..., 4].sigmoid().flatten(1))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def suppress(
    boxes: Tensor, scores: Tensor, *, least: float, overlap: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes ``[K, 4]`` and scores ``[K]`` of one image that remain, the most confident first.

    Args:
        boxes: ``[N, 4]``.
        scores: ``[N]``.
        least: predictions below this confidence are dropped.
        overlap: so is one that overlaps a more confident one by this much or more, counted as MGCA does: corners are
            the first and the last pixel, so that sides are one longer than their difference.
    """
    from torchvision.ops import nms  # torchvision takes seconds to import

    # float64, in which "more than the next smaller number" is "this much or more"
    boxes, scores = boxes.double(), scores.double()
    sure = torch.nonzero(scores >= least)[:, 0]
    grown = boxes[sure] + boxes.new_tensor([0, 0, 1, 1])
    kept = sure[nms(grown, scores[sure], np.nextafter(overlap, 0.0))][:MAX_DETECTIONS]
    return boxes[kept].cpu().numpy(), scores[kept].cpu().numpy()


def _split(output: Tensor) -> Tensor:
    """``[B, A * 6, h, w]`` -> ``[B, A, h, w, 6]``."""
    return output.unflatten(1, (-1, VALUES)).movedim(2, -1)


def _decoded(cells: Tensor, anchors: Tensor, size: Size) -> Tensor:
    """Return the corners ``[B, A, h, w, 4]`` of predictions ``[B, A, h, w, 6]``, in pixels."""
    rows, columns = cells.shape[2:4]
    y, x = torch.meshgrid(
        torch.arange(rows, device=cells.device), torch.arange(columns, device=cells.device), indexing="ij"
    )
    stride = constant((size[1] / columns, size[0] / rows), cells.device)
    centre = (cells[..., :2].sigmoid() + torch.stack([x, y], dim=-1)) * stride
    return _corners(centre, anchors[:, None, None] * cells[..., 2:4].clamp(max=_MAX_LOG_SCALE).exp())


def _corners(centre: Tensor, shape: Tensor) -> Tensor:
    return torch.cat([centre - shape / 2, centre + shape / 2], dim=-1)

"""Detection: a YOLOv3 head trained on the frozen image tower of an adapted method.

Protocol of the ACE-LoRA paper's Table 4 (RSNA), which follows MGCA: three tapped blocks, AdamW, one epoch of warm-up,
then polynomial decay, batches of eight, AP averaged over eight overlaps from 0.40 to 0.75. The paper leaves open the
learning rate, the confidence threshold and how a ViT's one grid becomes three; the defaults here are stated with each
option. ``map`` is measured at the confidence threshold 0.5 as MGCA does, which cuts recall off; ``map_low_conf`` goes
on down to 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.backbone import to_device
from benchmark.errors import ConfigError
from benchmark.metrics.classification import Metric, WeightedMetric, plain_value
from benchmark.metrics.detection import (
    IOU_THRESHOLDS,
    RECALLS,
    Boxes,
    Matches,
    box_iou,
    detection_metrics,
    match,
    mean_average_precision,
    precision_at_recalls,
)
from benchmark.registry import register_task
from benchmark.settings import setting
from tasks.dense import DenseHead, DenseTask, references
from tasks.heads.images import DenseImages, DenseOptions
from tasks.heads.taps import DenseBatch, TapBatches, Taps
from tasks.heads.yolov3 import (
    Rule,
    YoloV3,
    coco_anchors,
    decode,
    kmeans_anchors,
    pad_targets,
    suppress,
    yolo_loss,
)

NUM_SCALES = 3


@dataclass(frozen=True)
class DetectionOptions(DenseOptions):
    """Options of the task.

    Raises:
        ConfigError: as for all dense tasks, or not three taps, or an augmentation that boxes cannot follow.
    """

    taps: tuple[int, ...] = setting((3, 7, 11), "three tapped blocks, counted from 0 in a tower of 12")
    width: int = setting(512, "channels of the narrow layers at the coarse scale (MGCA: 512)", low=4)
    anchors: Literal["coco", "kmeans"] = setting(
        "coco", "COCO's anchors scaled to the image, or fitted on train"
    )
    assign: Rule = setting("mgca", "which cells must find a box: mgca or yolov3")
    lr: float = setting(5e-4, "peak learning rate of the head (MGCA: 5e-4)", above=0)
    end_lr: float = setting(1e-7, "learning rate at the end", low=0)
    weight_decay: float = setting(1e-6, "AdamW weight decay (MGCA: 1e-6)", low=0)
    batch_size: int = setting(8, "images per step", low=1)
    conf: float = setting(0.5, "confidence that a detection needs (MGCA: 0.5)", low=0)
    low_conf: float = setting(0.05, "confidence of the second number, map_low_conf", low=0)
    nms: float = setting(0.5, "overlap at which the less confident of two detections is dropped", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.taps) != NUM_SCALES:
            raise ConfigError(f"taps: expected {NUM_SCALES} blocks, got {list(self.taps)}")
        if self.rotation:
            raise ConfigError(f"rotation: expected 0, because boxes cannot be turned, got {self.rotation}")
        if self.low_conf > self.conf:
            raise ConfigError(f"low_conf: expected at most conf ({self.conf}), got {self.low_conf}")


@dataclass(frozen=True)
class Detector(DenseHead[Boxes]):
    """A YOLOv3 head, its loss, and the boxes that it finds.

    Attributes:
        head: on the device. anchors: ``[3, 3, 2]`` in pixels of images of ``size`` (height, width).
    """

    head: YoloV3
    anchors: Tensor
    size: tuple[int, int]
    options: DetectionOptions

    def loss(self, batch: DenseBatch, images: DenseImages) -> Tensor:
        """Return the loss of a batch; its boxes are seen as its images are."""
        boxes = [
            view.boxes(_boxes(images)[row], self.size)
            for row, view in zip(batch.rows, batch.views, strict=True)
        ]
        targets = to_device(pad_targets(boxes, self.size), self.anchors.device)
        return yolo_loss(self.head(batch.maps), targets, self.anchors, self.size, self.options.assign)

    @torch.no_grad()
    def predict(self, batches: TapBatches, batch_size: int) -> Boxes:
        """Return the boxes of a part, down to ``low_conf``."""
        corners: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for batch in batches.in_order(batch_size):
            found = decode(self.head(batch.maps), self.anchors, self.size)
            for boxes, confidence in zip(*found, strict=True):
                kept = suppress(boxes, confidence, least=self.options.low_conf, overlap=self.options.nms)
                corners.append(kept[0])
                scores.append(kept[1])
        return Boxes.of(corners, scores)


@register_task("detection")
class DetectionTask(DenseTask[Boxes]):
    """AP averaged over eight overlaps (headline), AP at each, variants, each with an interval clustered by patient."""

    title, kind = "Detection", "detection"
    Options = DetectionOptions
    metrics = (
        Metric("map", "mAP", headline=True, references=references("map")),
        Metric("map_mgca_skip", "mAP (skip)"),
    )
    truth = "boxes"
    options: DetectionOptions

    def new_head(self, taps: Taps, train: DenseImages, device: torch.device) -> Detector:
        """Return an untrained head for these taps; a tower with its own pyramid needs no rescaling.

        Raises:
            ConfigError: the tower does not give three maps.
        """
        if len(taps.shapes) != NUM_SCALES:
            raise ConfigError(
                f"detection needs {NUM_SCALES} tapped maps; this tower gives {len(taps.shapes)}"
            )
        shapes = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in _boxes(train)])
        anchors = kmeans_anchors(shapes) if self.options.anchors == "kmeans" else coco_anchors(train.size)
        head = YoloV3(
            [shape[0] for shape in taps.shapes],
            width=self.options.width,
            rescale=(1, 1, 1) if taps.pyramid else (2, 1, 0.5),
        )
        return Detector(head.to(device), anchors.to(device), train.size, self.options)

    def score(self, found: Boxes, images: DenseImages) -> float:
        """Return the AP of detections down to ``low_conf``.

        Early epochs are rarely sure of anything: at the threshold of the test they would all score 0.
        """
        return plain_value(mean_average_precision(_matched(found, images)), len(images))

    def constant(self, train: DenseImages, val: DenseImages) -> np.ndarray:
        """Return the box ``[4]`` that finds most when it is given for every image."""
        return best_fixed_box([*_boxes(train), *_boxes(val)])

    def formulas(self, found: Boxes, constant: np.ndarray, test: DenseImages) -> dict[str, WeightedMetric]:
        """Return all metrics; ``map_trivial`` is that of the constant answer."""
        everywhere = Boxes.of([constant[None]] * len(test), [np.ones(1)] * len(test))
        truth = Boxes.of(_boxes(test))
        metrics = detection_metrics(found, truth, len(test), self.options.conf)
        metrics["map_trivial"] = mean_average_precision(_matched(everywhere, test))
        return metrics

    def samples(self, found: Boxes, test: DenseImages, shown: np.ndarray) -> dict[str, np.ndarray]:
        """Return all boxes, the curves of precision over recall, and the boxes that are shown."""
        truth, matches = Boxes.of(_boxes(test)), _matched(found, test)
        curves = [precision_at_recalls(matches, at) for at in range(len(matches.thresholds))]
        return {
            **_table("truth", truth),
            **_table("found", found),
            "pr_iou": np.array(matches.thresholds),
            "pr_recall": RECALLS,
            "pr_precision": np.stack(curves),
            **_table("panel_truth", truth.of_images(shown)),
            **_table("panel_prediction", found.at_least(self.options.conf).of_images(shown)),
        }

    def notes(self, dense_head: Detector, constant: np.ndarray) -> dict[str, Any]:
        """Return the anchors, the box that answers every image, and the confidence that ``map`` asks for."""
        return {
            "anchors": dense_head.anchors.tolist(),
            "constant_box": constant.tolist(),
            "conf": self.options.conf,
        }


def best_fixed_box(truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return the box ``[4]`` that finds most when it is given for every image: the mean box or one of the true ones.

    It finds a box at an overlap threshold when it overlaps it by as much; all thresholds count alike.
    """
    everything = np.concatenate(truth)
    candidates = np.concatenate([everything.mean(axis=0, keepdims=True), np.unique(everything, axis=0)])
    best = np.stack([box_iou(candidates, boxes).max(axis=1) for boxes in truth if len(boxes)])
    found = (best[..., None] >= np.array(IOU_THRESHOLDS)).sum(axis=(0, 2))
    return np.asarray(candidates[np.argmax(found)])


def _boxes(images: DenseImages) -> tuple[np.ndarray, ...]:
    assert images.boxes is not None  # read_part saw to it
    return images.boxes


def _matched(found: Boxes, images: DenseImages) -> Matches:
    return match(found, Boxes.of(_boxes(images)), len(images))


def _table(name: str, boxes: Boxes) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {name: boxes.corners.astype(np.float32), f"{name}_image": boxes.image}
    if boxes.scores is not None:
        arrays[f"{name}_score"] = boxes.scores.astype(np.float32)
    return arrays

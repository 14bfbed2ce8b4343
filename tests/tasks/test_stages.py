"""Dense tasks on a ResNet at its own input size and preprocessing: four stages, boxes and masks that moved along."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

import methods
from benchmark.backbones import Backbone, InputSpec, from_open_clip
from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.prepare.prepare import prepare
from benchmark.errors import DataError
from benchmark.preprocess import Fitting, Preprocess
from benchmark.registry import DATASETS
from tasks.detection import DetectionOptions, DetectionTask
from tasks.segmentation import SegmentationOptions, SegmentationTask
from tests.data import trees
from tests.small import context

TEXT = CLIPTextCfg(context_length=12, vocab_size=40, width=32, heads=2, layers=2)
BORDERED = Preprocess((96, 96), (0.5,) * 3, (0.5,) * 3, "longest_pad", 112, "area", "grey")
STRETCHED = Preprocess((64, 64), (0.4755,), (0.3011,), "shortest_crop", 72, "bilinear", "grey", True)
PARTS = ("train", "val", "test")
SMALL: dict[str, Any] = {"width": 16, "epochs": 1, "bootstrap": 10, "untrained": False}


def resnet(record: Preprocess) -> Backbone:
    """Return a random ResNet with a record of its own, of as many channels as it says."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(image_size=record.size[0], layers=(1, 1, 1, 1), width=8, head_width=64)
    model = CLIP(32, vision, TEXT, quick_gelu=True)
    visual: Any = model.visual
    if len(record.mean) == 1:
        visual.conv1 = nn.Conv2d(1, visual.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    backbone = from_open_clip(model, input_spec=InputSpec(record.size, record.mean, record.std))
    backbone.preprocess = record
    return backbone.requires_grad_(False)


def entry(dataset: str, protocol: str) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "title": dataset,
        **{part: {"part": part, "protocol": protocol} for part in PARTS},
    }


def test_segmentation_decodes_four_stages_of_a_model_with_one_channel(tmp_path: Path) -> None:
    record = STRETCHED
    layout = "dicom" if find_spec("pydicom") else "png"
    raw = trees.make_siim(tmp_path / "raw", layout=layout)
    wanted = {"workers": 1, "accept_split": True, "fitting": record.fitting}
    prepare(DATASETS.get("siim"), raw, tmp_path, **wanted)  # type: ignore[arg-type]
    backbone = resnet(record)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    task = SegmentationTask(SegmentationOptions(**SMALL))
    wrapped = methods.build("zero_shot", backbone)
    result = task.evaluate(wrapped, entry("siim", "segmentation"), "siim", context(backbone, tmp_path))
    side = record.size[0]
    assert result.info["taps"] == [
        (count, side // stride, side // stride)
        for count, stride in zip((32, 64, 128, 256), (4, 8, 16, 32), strict=True)
    ]
    assert result.info["data_transform"] == record.fitting.name
    assert "not the published" in str(result.info["data_notes"])
    assert result.n == result.info["images"]["test"] > 0
    assert result.info["preprocess"] == json.loads(json.dumps(record.as_json()))
    assert result.predictions["panel_prediction"].shape[1:] == record.size
    assert result.predictions["panel_pixels"].ndim == 3  # grey, whatever the file was
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_detection_finds_boxes_where_the_fitting_put_them(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    raw = trees.make_rsna(tmp_path / "raw")
    prepare(DATASETS.get("rsna"), raw, tmp_path, fitting=BORDERED.fitting, workers=1, accept_split=True)
    backbone = resnet(BORDERED)
    task = DetectionTask(DetectionOptions(**SMALL))
    wrapped = methods.build("zero_shot", backbone)
    result = task.evaluate(wrapped, entry("rsna", "detection"), "rsna", context(backbone, tmp_path))
    assert result.info["taps"] == [(64, 12, 12), (128, 6, 6), (256, 3, 3)]  # the last three stages
    test_part = {"dataset": "rsna", "part": "test", "protocol": "detection"}
    data = load_dataset(test_part, tmp_path, NullReporter(), BORDERED.fitting)
    shown = data.manifest.set_index("image_id").loc[list(result.predictions["image_id"])]
    expected = [
        BORDERED.fitting.box(box, (width, height))
        for text, width, height in zip(
            shown["boxes"], shown["original_width"], shown["original_height"], strict=True
        )
        for box in json.loads(text or "[]")
    ]
    np.testing.assert_allclose(result.predictions["truth"], expected, atol=1e-4)


def test_what_is_prepared_for_another_model_is_not_taken(tmp_path: Path) -> None:
    raw = trees.make_siim(tmp_path / "raw", layout="png")
    plain = Fitting((96, 96), "shortest_crop")
    prepare(DATASETS.get("siim"), raw, tmp_path, fitting=plain, workers=1, accept_split=True)
    backbone = resnet(BORDERED)
    task = SegmentationTask(SegmentationOptions(**SMALL))
    with pytest.raises(
        DataError, match=r"as shortest_crop-96x96, not as longest_pad112-96x96-area-grey: .*--transform"
    ):
        task.evaluate(
            methods.build("zero_shot", backbone),
            entry("siim", "segmentation"),
            "siim",
            context(backbone, tmp_path),
        )

"""No method, head or task mixes devices, and none makes the host wait for the GPU within a training step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import methods
from benchmark.backbones.backbone import to_device
from benchmark.backbones.towers.precision import TrainingArithmetic
from benchmark.conformance.small_models import FAMILIES, small_backbone, small_batch
from benchmark.data.samples import Batch
from benchmark.registry import METHODS
from benchmark.run.training.gradients import backward
from benchmark.run.training.trainer import make_optimiser
from tasks.heads.upernet import UPerNet
from tasks.heads.yolov3 import Rule, YoloV3, coco_anchors, pad_targets, yolo_loss
from tasks.segmentation import tversky_loss
from tasks.transclip import assign
from tests.device.marked import CPU, GPU, Operations, marked_gpu
from tests.small import RECIPE, batches, method

PEFT = ("peft:lora", "peft:dora", "peft:adalora", "peft:osf")
CASES = [
    *((name, family) for name in METHODS.names(extras=False) for family in FAMILIES),
    *zip(PEFT, FAMILIES * 2, strict=True),
]

KNOWN = {"peft:adalora": "peft_tuner.py after_step"}
"""peft's allocator reads the chosen ranks on the host, and the gradients are looked at before it does."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    with marked_gpu(monkeypatch) as seen:
        yield seen


def on_gpu(batch: Batch) -> Batch:
    return batch.changed(lambda value: value.to(GPU))


def test_what_is_planted_is_seen(gpu: Operations) -> None:
    x, y = torch.rand(3, device="cuda"), torch.rand(3)
    _ = x + y, torch.cat([x, y])
    assert (len(gpu.mixed), gpu.waits) == (2, [])
    _ = (
        float(x.sum()),
        x[x > 0],
        x.cpu(),
        x.new_tensor([1.0]),
        y.to(x),
        x.nonzero(),
        y.to("cuda", non_blocking=True),
    )
    assert len(gpu.waits) == 7
    pinned = y.pin_memory().to("cuda", non_blocking=True)
    assert (x.exp()[x.argsort()].device, pinned.device, y.device) == (GPU, GPU, CPU)
    assert (len(gpu.mixed), len(gpu.waits)) == (2, 7)


def test_a_fault_in_a_backward_pass_is_seen(gpu: Operations) -> None:
    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * float(gradient.sum())

    x = torch.rand(3).to(GPU).requires_grad_()
    gpu.waits.clear()
    Planted.apply(x).sum().backward()
    assert len(gpu.waits) == 1


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_method_stays_on_its_gpu_and_does_not_wait_for_it(gpu: Operations, name: str, family: str) -> None:
    inputs = small_batch(small_backbone(family))
    batch = on_gpu(inputs)
    ours, own = (
        methods.build(name, small_backbone(family).to(place)).to(place).eval() for place in (CPU, GPU)
    )
    own.load_trainable_state(ours.trainable_state())
    with torch.no_grad():
        scores = own.similarity(batch.images, batch.token_ids)
        torch.testing.assert_close(scores.cpu(), ours.similarity(inputs.images, inputs.token_ids))
        own.classify_patches(batch.images, own.prepare_classes(batch.token_ids.view(3, 2, -1)))
    gpu.waits.clear()
    for micro_batch in (None, 3) if own.train().trainable_parameters() else ():
        optimiser = make_optimiser(own, RECIPE)
        with TrainingArithmetic("bf16", GPU, own.backbone.model)():
            backward(own, batch, micro_batch, torch.amp.GradScaler("cuda", enabled=False))
        optimiser.step()
        own.after_step(1, 500)
    waits = [wait for wait in gpu.waits if not wait.startswith(KNOWN.get(name, "-"))]
    assert (gpu.mixed, waits) == ([], [])


def test_a_batch_reaches_the_gpu_without_a_wait(gpu: Operations) -> None:
    own = batches(method("clip_lora"))
    own._device = GPU
    batch = next(own.epoch(1))
    assert batch.images.device == batch.token_ids.device == GPU
    assert (gpu.mixed, gpu.waits) == ([], [])


@pytest.mark.parametrize("rule", ["mgca", "yolov3"])
def test_a_detection_head_does_not_wait(gpu: Operations, rule: Rule) -> None:
    head, size = YoloV3((6, 6, 6), width=8).to(GPU), (64, 64)
    boxes = [np.array([[8.0, 8, 30, 40], [40, 20, 60, 44]]), np.empty((0, 4))]
    maps = [torch.randn(2, 6, side, side).to(GPU) for side in (8, 4, 2)]
    anchors = coco_anchors(size).to(GPU)
    gpu.waits.clear()
    yolo_loss(head(maps), to_device(pad_targets(boxes, size), GPU), anchors, size, rule).backward()
    assert (gpu.mixed, gpu.waits) == ([], [])


def test_a_segmentation_head_does_not_wait(gpu: Operations) -> None:
    head = UPerNet([8] * 4, (4.0, 2.0, 1.0, 0.5), width=8).to(GPU)
    maps = [torch.randn(2, 8, 4, 4).to(GPU) for _ in range(4)]
    truth = to_device(torch.ones(2, 16, 16), GPU)
    gpu.waits.clear()
    tversky_loss(head(maps, (16, 16)).softmax(dim=1)[:, 1], truth, alpha=0.5, beta=0.5).backward()
    assert (gpu.mixed, gpu.waits) == ([], [])


def test_transclip_stays_on_its_gpu(gpu: Operations) -> None:
    features = torch.nn.functional.normalize(torch.randn(12, 8), dim=-1).to(GPU)
    log_y = torch.randn(12, 3).to(GPU).log_softmax(dim=1)
    solved = assign(features, log_y)
    assert solved.device == GPU
    assert gpu.mixed == []

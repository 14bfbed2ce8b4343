"""How steps are timed and computed on a GPU, judged without one: clock, arithmetic, optimiser, scaler, heads."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import machine
from benchmark.backbones import load_backbone
from benchmark.backbones.towers import precision
from benchmark.console import NullReporter
from benchmark.files import ROOT
from benchmark.run.cost import forget
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.clock import StepClock
from benchmark.run.training.trainer import Trainer, make_optimiser
from tasks.heads.images import DenseOptions
from tasks.heads.taps import DenseBatch
from tasks.heads.training import fit_head
from tests.device.marked import CPU, GPU, Operations, marked_gpu
from tests.small import RECIPE, batches, context, method


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    with marked_gpu(monkeypatch) as seen:
        yield seen


# ---------------------------------------------------------------------------------------------- time
class FakeGpu:
    """A GPU that works off what it was given, later than the host gave it."""

    def __init__(self) -> None:
        self.host = self.done = 0.0
        self.waited = 0

    def work(self, seconds: float) -> None:
        self.done = max(self.done, self.host) + seconds

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        made = SimpleNamespace()
        made.record = lambda stream: setattr(made, "at", max(self.done, self.host))
        made.elapsed_time = lambda other: 1e3 * (other.at - made.at)
        made.synchronize = self.synchronize
        return made

    def synchronize(self) -> None:
        self.waited += 1


def test_a_step_on_a_gpu_lasts_as_long_as_the_gpu_needs_waits_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host is ahead by whole steps, then lets the GPU wait for a batch; a clock of its own would see 1, 1, 10 s."""
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr("time.perf_counter", lambda: gpu.host)

    def loading() -> Iterator[float]:
        for reading in (0.0, 0.0, 9.0):
            gpu.host += reading
            yield reading

    clock = StepClock(GPU)
    for _ in clock.steps(loading()):
        gpu.host += 1.0  # handing over the kernels
        gpu.work(3.0)
    assert gpu.waited == 0
    seconds, waits = clock.read()
    # 1 + 3, 3 and, idle from second 7 on, until 12 and 3 more
    assert seconds == pytest.approx([4.0, 3.0, 8.0])
    assert waits == [0.0, 0.0, 9.0]
    assert gpu.waited == 1  # once for all
    assert clock.read() == ([], [])


# ---------------------------------------------------------------------------------------------- memory
def test_what_an_earlier_cell_left_is_freed() -> None:
    wrapped = method("clip_lora")
    left = weakref.ref(wrapped.backbone.image)
    gc.disable()
    try:
        del wrapped
        assert left() is not None  # a tower and its hooks refer to each other
        forget(CPU)
        assert left() is None
    finally:
        gc.enable()
    assert gc.get_freeze_count() >= len(gc.get_objects())  # the next time, libraries are not looked at again


def test_choosing_a_device_does_not_load_the_compiler() -> None:
    code = "import sys; from benchmark.machine import use_device; use_device('cpu'); "
    code += "print('torch._inductor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---------------------------------------------------------------------------------------------- arithmetic
@pytest.fixture
def settings() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("settings")
def test_one_place_sets_how_a_process_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    machine.use_device("cuda:1", deterministic=True)
    assert chosen == [torch.device("cuda:1")]
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.ones(3).put_(torch.tensor([0]), torch.ones(1))  # has no deterministic form
    machine.use_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(chosen) == 1


def test_bf16_is_chosen_where_a_gpu_has_it_not_where_it_imitates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    native = True

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision.resolve("auto", GPU) == "bf16"
    native = False
    assert precision.resolve("auto", GPU) == "fp32"
    assert precision.resolve("bf16", GPU) == "bf16"  # who asks for it gets it
    assert precision.resolve("auto", CPU) == "fp32"


# ---------------------------------------------------------------------------------------------- optimiser
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_gpu_steps_in_one_kernel_a_cpu_as_before(gpu: Operations, name: str) -> None:
    recipe = dataclasses.replace(RECIPE, optimiser=name)
    for place, fused in ((CPU, None), (GPU, True)):
        wrapped = method("taskres").to(place)
        assert make_optimiser(wrapped, recipe).defaults["fused"] is fused
    assert precision.fused([]) == {}


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_in_fp16_does_not_wait_to_know_whether_it_overflowed(
    gpu: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", _scaler)
    if not fused:  # the fault that is planted: torch then looks at the flag on the host
        monkeypatch.setattr("benchmark.run.training.trainer.fused", lambda parameters: {})
    own = method("taskres").to(GPU).train()
    batch = next(batches(method("taskres")).epoch(1)).changed(lambda value: value.to(GPU))
    recipe = dataclasses.replace(RECIPE, precision="fp16", grad_clip=1.0)
    stepping = Trainer(
        own, SimpleNamespace(steps=3), recipe, validate=lambda _: {}, metric="none",
        checkpoint=Checkpoint(tmp_path / "state.pt", "k"), device=GPU, reporter=NullReporter(),
    )  # fmt: skip
    gpu.waits.clear()
    stepping._step(batch)
    assert gpu.mixed == []
    assert (gpu.waits == []) == fused


def _scaler(device: str, *, enabled: bool) -> torch.amp.GradScaler:
    """Return a scaler that works without a GPU; marked tensors are handed to it all the same."""
    assert device == "cuda"
    return _RealScaler("cpu", enabled=enabled)


_RealScaler = torch.amp.GradScaler


# ---------------------------------------------------------------------------------------------- heads
class Maps:
    """Two batches of one map, as :class:`tasks.heads.taps.TapBatches` gives them."""

    def __init__(self, device: torch.device) -> None:
        self._map = torch.ones(2, 3, 4, 4).to(device)

    def steps(self, batch_size: int) -> int:
        return 2

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[DenseBatch]:
        for rows in (np.arange(2), np.arange(2, 4)):
            yield DenseBatch([self._map], rows, ())


@pytest.mark.parametrize(
    ("arithmetic", "seen"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_head_trains_in_the_arithmetic_of_the_run(
    tmp_path: Path, arithmetic: str, seen: torch.dtype
) -> None:
    kinds: list[torch.dtype] = []
    head = nn.Conv2d(3, 1, 1)
    before = head.weight.detach().clone()

    def loss(batch: DenseBatch) -> Tensor:
        found = head(batch.maps[0])
        kinds.append(found.dtype)
        return found.float().square().mean()

    surroundings = dataclasses.replace(context(load_backbone("tiny"), tmp_path), precision=arithmetic)
    fit = fit_head(
        head, Maps(CPU), loss=loss, validate=lambda: 0.5, options=DenseOptions(epochs=1, batch_size=2),
        context=surroundings, stage="head",
    )  # fmt: skip
    assert kinds == [seen] * 2
    assert head.weight.dtype == torch.float32
    assert np.isfinite(fit.history[0]["train_loss"])
    assert (head.weight != before).any() or fit.best_epoch == 0


@pytest.mark.parametrize("fused", [True, False])
def test_a_head_s_steps_do_not_wait_for_a_gpu(
    gpu: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", _scaler)
    if not fused:
        monkeypatch.setattr("tasks.heads.training.fused", lambda weights: {})
    head, maps = nn.Conv2d(3, 1, 1).to(GPU), Maps(GPU)
    surroundings = dataclasses.replace(context(load_backbone("tiny"), tmp_path), precision="fp16", device=GPU)
    fit_head(
        head, maps, loss=lambda batch: head(batch.maps[0]).float().square().mean(), validate=lambda: 0.5,
        options=DenseOptions(epochs=1, batch_size=2), context=surroundings, stage="head",
    )  # fmt: skip
    assert gpu.mixed == []
    assert any("make_step" in wait for wait in gpu.waits) != fused

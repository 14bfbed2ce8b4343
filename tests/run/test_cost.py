from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.data.samples import Batch
from benchmark.files import ROOT
from benchmark.run import cost
from benchmark.run.training.clock import StepClock


class _TinyMethod(nn.Module):
    """Image: Linear 6 -> 4, frozen, then trained 4 -> 3; text: trained 5 -> 3; batch norm has buffers."""

    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 4, bias=False).requires_grad_(False)
        self.image = nn.Linear(4, 3, bias=False)
        self.text = nn.Linear(5, 3, bias=False)
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.scale = nn.Parameter(torch.zeros(()))
        self.trained = trained

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        if not self.trained:
            return {}
        weight = {"image.weight": self.image.weight, "text.weight": self.text.weight}
        return {**weight, "text.tied": self.text.weight, "scale": self.scale}

    def parameter_group(self, name: str) -> str:
        return {"frozen": "shared"}.get(name.split(".")[0], name.split(".")[0])

    def loss_together(self, batch: Batch, world: object) -> Tensor:
        hidden = functional.dropout(self.frozen(batch.images), 0.5)
        image, text = self.norm(self.image(hidden)), self.text(batch.token_ids)
        return (image @ text.T * self.scale.exp()).square().mean()


def _batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn(size, 6, generator=generator), token_ids=torch.randn(size, 5, generator=generator)
    )


def test_parameter_counts_by_tower_and_with_and_without_the_scale() -> None:
    assert cost.parameter_counts(_TinyMethod()) == {
        "trainable": 12 + 15 + 1,
        "trainable_without_logit_scale": 27,
        "total": 24 + 12 + 15 + 1,
        "trainable_image": 12,
        "trainable_text": 15,
        "trainable_shared": 0,
        "total_image": 12,
        "total_text": 15,
        "total_shared": 24,
    }


def test_flops_agree_with_a_count_by_hand() -> None:
    report = cost.measure_method(_TinyMethod(), _batch(8))
    size = 8
    forward = 2 * size * (6 * 4 + 4 * 3 + 5 * 3) + 2 * size * size * 3
    # Backward: weight gradients of both trained layers (no input gradient: what is below is frozen), and two
    # products of the similarity matrix.
    backward = 2 * size * (4 * 3 + 5 * 3) + 2 * (2 * size * size * 3)
    assert report["forward_flops_per_pair"] == forward / size
    assert report["step_flops_per_pair"] == (forward + backward) / size
    assert "multiply-add = 2" in report["flops_convention"]


@pytest.mark.parametrize("trained", [True, False])
def test_measuring_changes_nothing(trained: bool) -> None:
    method = _TinyMethod(trained)
    method.image.weight.grad = torch.full_like(method.image.weight, 7.0)
    kept = method.image.weight.grad
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    cost.measure_method(method, _batch())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert method.image.weight.grad is kept
    assert torch.equal(kept, torch.full_like(kept, 7.0))
    assert method.text.weight.grad is None
    assert method.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_method_that_trains_nothing_has_no_step() -> None:
    report = cost.measure_method(_TinyMethod(trained=False), _batch())
    assert report["trainable_parameters"] == 0
    assert report["step_flops_per_pair"] is None
    assert report["forward_flops_per_pair"] > 0
    assert json.loads(json.dumps(report)) == report


def test_a_failing_loss_leaves_the_gradients_alone() -> None:
    method = _TinyMethod()
    method.image.weight.grad = kept = torch.ones_like(method.image.weight)
    with pytest.raises(TypeError):
        cost.measure_method(method, Batch(token_ids=torch.zeros(2, 5)))
    assert method.image.weight.grad is kept


def test_attention_counts_as_its_plain_formula() -> None:
    query = torch.randn(2, 3, 10, 4, requires_grad=True)

    def run() -> None:
        functional.scaled_dot_product_attention(query, query, query).sum().backward()

    one_product = 2 * (2 * 3) * 10 * 10 * 4
    assert cost.flops(run) == one_product * (2 + 4)


def test_a_fused_encoder_layer_is_not_counted_as_nothing() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad():
        counted = cost.flops(lambda: layer(tokens))
    assert counted == 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * (2 * 5 * 5 * 8)


def test_step_times_are_percentiles() -> None:
    assert cost.step_times([4.0, 1.0, 2.0, 3.0, 5.0], [1.0, 0.0, 0.0, 0.0, 2.0]) == {
        "step_time_p50_s": 3.0,
        "step_time_p95_s": 4.8,
        "data_wait_share": 0.2,
    }
    assert set(cost.step_times([], []).values()) == {None}


class _Event:
    """Stands for an event of a GPU that reaches each mark 250 ms after the one before."""

    made: ClassVar[list[_Event]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.waited_for = False
        self.made.append(self)

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"

    def synchronize(self) -> None:
        self.waited_for = True

    def elapsed_time(self, end: _Event) -> float:
        return 250.0 * (self.made.index(end) - self.made.index(self))


def test_steps_on_a_gpu_are_timed_by_its_events_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = StepClock(torch.device("cuda:1"))
    assert list(clock.steps("abc")) == ["a", "b", "c"]
    seconds, waits = clock.read()
    assert seconds == [0.25] * 3
    assert len(waits) == 3
    assert [event.waited_for for event in _Event.made] == [False, False, False, True]
    assert clock.read() == ([], [])


def test_a_peak_that_a_system_cannot_forget_counts_only_where_it_rose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "_forget_peak", lambda: False)
    peak = 100
    monkeypatch.setattr(cost, "peak_memory", lambda _: peak)
    memory = cost.PeakMemory(torch.device("cpu"))
    assert memory.bytes() is None
    peak = 130
    assert memory.bytes() == 130


def test_peak_memory_on_cpu_is_that_of_the_process() -> None:
    assert cost.peak_memory("cpu") > 50_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda_sees_an_allocation_and_forgets_it() -> None:
    memory = cost.PeakMemory(torch.device("cuda"))
    tensor = torch.zeros(1_000_000, device="cuda")
    assert memory.bytes() >= (size := tensor.numel() * 4)
    del tensor
    assert cost.PeakMemory(torch.device("cuda")).bytes() <= memory.bytes() - size


def test_a_process_that_ran_a_cell_ends_without_a_word():
    """Libraries that count what they free say so on stderr, below the last screen."""
    code = "import torch, torch.utils.flop_counter; from benchmark.run.cost import forget; forget(torch.device('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

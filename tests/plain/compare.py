"""The fast forms against the plain ones: that both compute the same, how much faster they are, and the targets.

What is compared and what must be reached stands in ``targets.yaml`` beside this file. FLOPs and bytes do not depend on
the machine: ``test_targets.py`` holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.efficiency.timing import Times, in_turns, ratio
from benchmark.efficiency.workbench import RUN_PAIRS, Candidate, Workbench, shared_copy
from benchmark.errors import CellError
from benchmark.files import read_yaml
from methods.base import Method
from tests.plain import pieces
from tests.plain.bench import PlainBench, PlainForm

TOLERANCE = 1e-5
"""Largest relative difference between the two forms in fp64: of loss, gradients and scores."""
_FAINT = 1e-9
_FILE = Path(__file__).with_name("targets.yaml")


@dataclass(frozen=True)
class TargetResult:
    """One target, as it was measured.

    Attributes:
        number: of the target. what: in words. measured: the figure, if it was measured.
        spread: fastest and slowest round of a time ratio.
        target: what it must reach, in words. met: whether it does; None where that cannot be said.
        note: why not.
    """

    number: int
    what: str
    measured: float | None = None
    spread: tuple[float, float] | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


def settings() -> Mapping[str, Any]:
    """Return the content of the file of comparisons."""
    return read_yaml(_FILE)


def forms(content: Mapping[str, Any], device: torch.device) -> dict[str, PlainForm]:
    """Return the forms that can be measured on a device, by name."""
    known = {field.name for field in fields(PlainForm)}
    found = {}
    for name, entry in content["forms"].items():
        values = {key: value for key, value in entry.items() if key in known}
        if values.get("precision") == "fast_bf16":
            if not fast_bf16(device):
                continue
            values["precision"] = "bf16"
        found[name] = PlainForm(**values)
    return found


def fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 products are faster than fp32 ones here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


# ---------------------------------------------------------------------------- equality
def differences(bench: Workbench, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the largest relative differences between fast and plain forms, in fp64 and without dropout.

    Raises:
        CellError: one of them is above :data:`TOLERANCE`.
    """
    exact = PlainBench(shared_copy(bench.backbone).double(), batch_size=2, text_length=bench.text_length)
    found = []
    for entry in entries:
        options = dict(entry.get("options", {}))
        plain, fast = (PlainForm(entry["method"], options, plain=plain) for plain in (True, False))
        found.append({"method": entry["method"], "options": options, **difference(exact, fast, plain)})
    for item in found:
        worst = max(item[key] for key in ("loss", "gradients", "scores"))
        if not worst <= TOLERANCE:
            raise CellError(
                f"{item['method']} {item['options']}: fast and plain form differ by {worst:.1e} (allowed {TOLERANCE:g})"
            )
    return found


def difference(bench: Workbench, fast: PlainForm, plain: PlainForm) -> dict[str, float]:
    """Return the relative differences of loss, gradients and evaluation scores; the bench is in fp64."""
    ours, theirs = (bench.build(form).double() for form in (fast, plain))
    theirs.load_trainable_state(ours.trainable_state())
    losses, gradients = zip(*(_loss(bench, method) for method in (ours, theirs)), strict=True)
    strongest = max(float(value.abs().max()) for value in gradients[1].values())
    worst = max(
        float((gradients[0][name] - value).abs().max()) / max(float(value.abs().max()), _FAINT * strongest)
        for name, value in gradients[1].items()
    )
    scores = [_scores(bench, method) for method in (ours, theirs)]
    return {
        "loss": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradients": worst,
        "scores": float((scores[0] - scores[1]).abs().max() / scores[1].abs().max()),
    }


def _loss(bench: Workbench, method: Method) -> tuple[float, dict[str, Tensor]]:
    batch: Any = bench.batch(method.train())
    batch.images = batch.images.double()
    loss = method.loss(batch)
    loss.backward()
    trained = method.trainable_parameters().items()
    return float(loss.detach()), {name: value.grad for name, value in trained if value.grad is not None}


@torch.no_grad()
def _scores(bench: Workbench, method: Method) -> Tensor:
    batch: Any = bench.batch(method.eval())
    batch.images = batch.images.double()
    scores: Tensor = method.classify(batch, method.prepare_classes(bench.prompts(method)))
    return scores


# ---------------------------------------------------------------------------- time
def measure_forms(
    bench: Workbench,
    wanted: Mapping[str, PlainForm],
    targets: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    told: Callable[[str], None],
) -> dict[str, Times]:
    """Return the times that targets name, by "<form>|<quantity>"; forms are measured side by side, in turns."""
    timed = {
        f"{entry.get(side)}|{entry.get('quantity', '').replace('pairs_per_s', 'step_time')}"
        for entry in targets
        for side in ("of", "against")
    }
    things: dict[str, Callable[[], object]] = {}
    for name, form in wanted.items():
        candidate = Candidate(bench, form, cached=False)
        calls: dict[str, Callable[[], object]] = {"step": candidate.step, "evaluation": candidate.evaluate}
        calls |= pieces(candidate.method.train(), candidate.batch)
        things |= {f"{name}|{what}_time": call for what, call in calls.items()}
    things = {key: call for key, call in things.items() if key in timed}
    found: dict[str, Times] = {}
    in_turns(things, rounds=rounds, device=bench.device, told=told, done=found.update)
    return found


def target_results(
    content: Mapping[str, Any],
    times: Mapping[str, Times],
    *,
    bench: Workbench,
    rows: Sequence[Mapping[str, Any]] = (),
    stages: Sequence[Mapping[str, Any]] = (),
) -> list[TargetResult]:
    """Return a line per target.

    Args:
        content: of the file.
        times: of :func:`measure_forms`, and of ``efficiency.costs.measure``.
        bench: where they were measured.
        rows: of ``efficiency.costs.measure``.
        stages: of ``efficiency.throughput.measure``.
    """
    backbone, length = content["backbone"], content["text_length"]
    same = (bench.backbone.name, bench.text_length) == (backbone, length)
    elsewhere = "" if same else f"judged at {backbone}, {length} tokens"
    measured = _Measured(
        times, bench, {row["method"]: row for row in rows}, {row["name"]: row for row in stages}
    )
    return [_result(entry, measured, elsewhere) for entry in content["targets"]]


def _result(entry: Mapping[str, Any], measured: _Measured, elsewhere: str) -> TargetResult:
    number, what = int(entry["number"]), str(entry["what"])
    value, spread = measured.of(entry)
    goal = entry.get("faster", entry.get("at_least"))
    target = "" if goal is None else f"{goal:g}{'x' * ('faster' in entry)} or more"
    if value is None:
        return TargetResult(number, what, target=target, note="not measured here")
    note, device = elsewhere if target else "", measured.bench.device.type
    if entry.get("device", device) != device:
        target, note = "", f"{target} on {entry['device']}"
    met = None if note or goal is None else value >= goal
    return TargetResult(number, what, value, spread, target, met, note)


_Figure = tuple[float | None, tuple[float, float] | None]


@dataclass(frozen=True)
class _Measured:
    times: Mapping[str, Times]
    bench: Workbench
    rows: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]

    def of(self, entry: Mapping[str, Any]) -> _Figure:
        """Return the figure that a target asks for, with its spread."""
        if "cached" in entry:
            return self.cached(entry["cached"])
        if "input" in entry:
            stage = self.stages.get(entry["input"])
            return (None, None) if stage is None else (stage["per_cpu_second"], None)
        of, quantity = str(entry["of"]), str(entry["quantity"]).replace("pairs_per_s", "step_time")
        fast, slow = (self.times.get(f"{form}|{quantity}") for form in (of, entry.get("against", of)))
        if fast is None or slow is None:
            return None, None
        if entry["quantity"] == "pairs_per_s":
            return self.bench.batch_size / fast.median, None
        middle, low, high = ratio(slow, fast, cpu=self.on_cpu)
        return middle, (low, high)

    @property
    def on_cpu(self) -> bool:
        return self.bench.device.type == "cpu"

    def cached(self, method: str) -> _Figure:
        """Return how many pairs are trained on with cached features while the frozen towers work on one."""
        row, step = self.rows.get(method), self.times.get(f"{method}|step_of_a_run")
        if row is None or step is None:
            return None, None
        trained = self.spent(step) / RUN_PAIRS
        passes = sum(self.spent(self.times[f"frozen|{tower}"]) for tower in row["cached_towers"].split())
        return (passes / self.bench.batch_size + trained) / trained, None

    def spent(self, times: Times) -> float:
        return times.cpu_median if self.on_cpu else times.median

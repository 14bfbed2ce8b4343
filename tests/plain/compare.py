"""The fast forms against the plain ones: that both compute the same, how much they differ in cost, and the targets.

What is compared and what must be reached stands in ``targets.yaml`` beside this file.
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
from benchmark.run.cost import measure_method
from methods.base import Method
from tests.plain import pieces
from tests.plain.bench import PlainBench, PlainForm

TOLERANCE = 1e-5
"""Largest relative difference between the two forms in fp64: of loss, gradients and scores."""
_FAINT = 1e-9
_FILE = Path(__file__).with_name("targets.yaml")


@dataclass(frozen=True)
class Verdict:
    """One line of the comparison.

    Attributes:
        number: of the target. what: in words. measured: the figure, if it was measured.
        spread: fastest and slowest round of a time ratio.
        target: what it must reach, in words. met: whether it does; None where that cannot be said.
        note: why not, or where else it is held.
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


# ---------------------------------------------------------------------------- cost
def measure_forms(
    bench: Workbench,
    wanted: Mapping[str, PlainForm],
    targets: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    told: Callable[[str], None],
    done: Callable[[dict[str, dict[str, Any]], dict[str, Times]], None],
) -> None:
    """Measure forms side by side.

    Args:
        bench: with the backbone and the pairs.
        wanted: forms by name.
        targets: what they are measured for.
        rounds: of timing.
        told: called with a few words about each stage.
        done: called after each round with the counts of each form (step_flops, saved_bytes), and the times that targets
            name, by "<form>|<quantity>".
    """
    timed = {
        (entry.get(side), entry.get("quantity", "").replace("pairs_per_s", "step_time"))
        for entry in targets
        for side in ("of", "against")
    }
    counts: dict[str, dict[str, Any]] = {}
    things: dict[str, Callable[[], object]] = {}
    for name, form in wanted.items():
        told(f"count {name}")
        candidate = Candidate(bench, form, cached=False)
        method = candidate.method.train()
        counts[name] = {
            "step_flops": measure_method(method, candidate.batch)["step_flops_per_pair"],
            "saved_bytes": candidate.memory(),
        }
        calls: dict[str, Callable[[], object]] = {
            "step_time": candidate.step,
            "evaluation_time": candidate.evaluate,
        }
        calls |= {f"{piece}_time": call for piece, call in pieces(method, candidate.batch).items()}
        things |= {f"{name}|{what}": call for what, call in calls.items() if (name, what) in timed}
    in_turns(things, rounds=rounds, device=bench.device, told=told, done=lambda times: done(counts, times))


def verdicts(
    content: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Times],
    *,
    bench: Workbench,
    rows: Sequence[Mapping[str, Any]] = (),
    stages: Sequence[Mapping[str, Any]] = (),
) -> list[Verdict]:
    """Return a line per target.

    Args:
        content: of the file.
        counts: of :func:`measure_forms`.
        times: of that, and of ``method_costs.measure``.
        bench: where they were measured.
        rows: of ``method_costs.measure``.
        stages: of ``input_pipeline.measure``.
    """
    judge = _Judge(
        counts, times, bench,
        {row["method"]: row for row in rows}, {row["name"]: row for row in stages}, _elsewhere(content, bench),
    )  # fmt: skip
    return [judge.verdict(entry) for entry in content["targets"]]


def _elsewhere(content: Mapping[str, Any], bench: Workbench) -> str:
    """Return why targets are not judged on this bench; empty where they are."""
    backbone, length = content["backbone"], content["text_length"]
    same = (bench.backbone.name, bench.text_length) == (backbone, length)
    return "" if same else f"judged at {backbone}, {length} tokens"


@dataclass(frozen=True)
class _Judge:
    counts: Mapping[str, Mapping[str, Any]]
    times: Mapping[str, Times]
    bench: Workbench
    rows: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    elsewhere: str

    @property
    def device(self) -> str:
        """The kind of device."""
        return self.bench.device.type

    def verdict(self, entry: Mapping[str, Any]) -> Verdict:
        number, what = int(entry["number"]), str(entry["what"])
        if "test" in entry:
            return Verdict(number, what, note=f"held by {entry['test']}")
        value, spread = self.measured(entry)
        target, met = _goal(entry, value)
        if value is None:
            return Verdict(number, what, target=target, note="not measured here")
        note = self.elsewhere if target else ""
        if entry.get("device", self.device) != self.device:
            target, note = "", f"{target} on {entry['device']}"
        return Verdict(number, what, value, spread, target, None if note else met, note)

    def measured(self, entry: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
        if "cached" in entry:
            return self.cached(entry["cached"])
        if "input" in entry:
            stage = self.stages.get(entry["input"])
            return (None, None) if stage is None else (stage["per_cpu_second"], None)
        of, quantity = str(entry["of"]), str(entry["quantity"])
        against = str(entry.get("against", of))
        if of not in self.counts or against not in self.counts:
            return None, None
        if quantity == "pairs_per_s":
            return self.bench.batch_size / self.times[f"{of}|step_time"].median, None
        if quantity.endswith("_time"):
            return self.faster(self.times[f"{against}|{quantity}"], self.times[f"{of}|{quantity}"])
        return self.counts[of][quantity] / self.counts[against][quantity], None

    def faster(self, slow: Times, fast: Times) -> tuple[float, tuple[float, float]]:
        middle, low, high = ratio(slow, fast, cpu=self.device == "cpu")
        return middle, (low, high)

    def cached(self, method: str) -> tuple[float | None, tuple[float, float] | None]:
        """Return how many pairs are trained on with cached features while the frozen towers work on one."""
        row, step = self.rows.get(method), self.times.get(f"{method}|step_of_a_run")
        if row is None or step is None:
            return None, None
        trained = self.spent(step) / RUN_PAIRS
        passes = sum(self.spent(self.times[f"frozen|{tower}"]) for tower in row["cached_towers"].split())
        return (passes / self.bench.batch_size + trained) / trained, None

    def spent(self, times: Times) -> float:
        return times.cpu_median if self.device == "cpu" else times.median


def _goal(entry: Mapping[str, Any], value: float | None) -> tuple[str, bool | None]:
    for key, word in (("faster", "x or more"), ("at_least", "or more"), ("share", "or less")):
        if key in entry:
            good = value is not None and (value <= entry[key] if key == "share" else value >= entry[key])
            return f"{entry[key]:g} {word}".replace(" x", "x"), good
    return "", None

"""How fast a run would go here: training steps at the batch sizes of a run, eager and compiled, as a share of the peak.

Meant for a GPU (``efficiency --rates 64 256``); works anywhere. The peak is measured: a large square matrix product in
the arithmetic of the towers. FLOPs are those of the step as it runs, counted on the small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from benchmark.backbones import Backbone
from benchmark.errors import CellError
from benchmark.registry import METHODS
from benchmark.timing import Times, in_turns
from benchmark.workbench import Candidate, Form, Workbench

PAPER_EPOCHS, PAPER_PAIRS = 40, 240_000
"""Length of the ACE-LoRA paper's training, for the projected duration."""
_SIDE = {"cuda": 8192, "cpu": 1024}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Row = dict[str, Any]
Tell = Callable[[str], None]


def matrix_peak(device: torch.device, precision: str, *, side: int | None = None, rounds: int = 5) -> float:
    """Return the multiply-adds (each counts 2) per second of one square matrix product.

    Args:
        device: where.
        precision: fp32, bf16 or fp16; fp32 as torch is set (TF32 or not).
        side: of the matrices.
        rounds: of timing.
    """
    side = side or _SIDE.get(device.type, 1024)
    matrix = torch.randn(side, side, device=device, dtype=_TYPES[precision])
    times = in_turns({"product": lambda: matrix @ matrix}, rounds=rounds, device=device)
    return 2 * side**3 / min(times["product"].rounds)


@dataclass(frozen=True)
class Rates:
    """Measures steps of methods at several batch sizes.

    Attributes:
        backbone: frozen. text_length, precision, rounds: as for the other figures.
        flops: of a step per pair, by method. compiled: also with the towers' blocks compiled.
        told: called with a few words about each stage. done: called after each method with all rows so far.
    """

    backbone: Backbone
    text_length: int
    precision: str
    rounds: int
    flops: Mapping[str, float]
    compiled: bool
    told: Tell
    done: Callable[[list[Row]], None]

    def measure(self, sizes: Sequence[int]) -> None:
        """Measure every method at every batch size.

        Raises:
            CellError: torch.compile fails here.
        """
        self.told("measure the peak of matrix products")
        peak = matrix_peak(self.backbone.logit_scale.device, self.precision)
        rows: list[Row] = []
        for size in sizes:
            for method in self.flops:
                self.told(f"{method}, batches of {size}")
                rows += self._method(method, size, peak)
                self.done(list(rows))

    def _method(self, method: str, size: int, peak: float) -> list[Row]:
        about = {"method": method, "title": METHODS.get(method).card.title, "batch_size": size}
        forms = ("eager", "compiled") if self.compiled else ("eager",)
        try:
            times, memory = self._timed(method, size, forms)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise CellError(
                f"--compile: torch.compile fails here ({reason}); it needs a C++ compiler, or leave the flag out"
            ) from error
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            figures = _figures(None, None, 0.0, size, peak) | {"note": "out of memory"}
            return [{**about, "form": form, "precision": self.precision, **figures} for form in forms]
        rows = []
        for form in forms:
            figures = _figures(times[form], memory[form], self.flops[method], size, peak)
            figures["note"] = "" if form == "eager" else pays(times["eager"], times[form])
            rows.append({**about, "form": form, "precision": self.precision, **figures})
        return rows

    def _timed(
        self, method: str, size: int, forms: Sequence[str]
    ) -> tuple[dict[str, Times], dict[str, int | None]]:
        bench = Workbench(self.backbone, batch_size=size, text_length=self.text_length)
        candidates = {
            form: Candidate(bench, Form(method, precision=self.precision, compiled=form == "compiled"))
            for form in forms
        }
        memory = {form: _memory(candidate, bench.device) for form, candidate in candidates.items()}
        steps = {form: candidate.step for form, candidate in candidates.items()}
        return in_turns(steps, rounds=self.rounds, device=bench.device, told=self.told), memory


def _memory(candidate: Candidate, device: torch.device) -> int | None:
    """Return the memory of a step; None for a compiled one on a CPU, which keeps what its compiler decides."""
    if candidate.form.compiled and device.type != "cuda":
        return None
    return candidate.memory()


def _figures(times: Times | None, memory: int | None, flops: float, size: int, peak: float) -> Row:
    """Return what follows from the time of a step; all None without one."""
    rate = size / times.median if times else None
    return {
        "step_time_p50_s": times.median if times else None,
        "step_memory_bytes": memory,
        "pairs_per_s": rate,
        "flops_per_s": rate * flops if rate else None,
        "peak_flops_per_s": peak,
        "share_of_peak": rate * flops / peak if rate else None,
        "paper_training_s": PAPER_EPOCHS * PAPER_PAIRS / rate if rate else None,
    }


def pays(eager: Times, compiled: Times) -> str:
    """Return in words whether compiling pays, beyond the noise of the rounds."""
    gain = f"{eager.median / compiled.median:.2f}x"
    if compiled.spread[1] < eager.spread[0]:
        return f"pays: {gain}"
    if eager.spread[1] < compiled.spread[0]:
        return f"does not pay: {gain}"
    return f"makes no difference beyond the noise: {gain}"

"""How fast a run would go here: training steps at the batch sizes of a run, eager and compiled, as a share of the peak.

Meant for a GPU (``efficiency --rates 64 256``); works anywhere. The peak is measured: a large square matrix product in
the arithmetic of the towers. FLOPs are those of the step as it runs, counted on the small batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException

from benchmark.backbones import Backbone
from benchmark.console import NullReporter
from benchmark.data.batches import PairBatches, PixelRows
from benchmark.data.features import FrozenFeatures
from benchmark.data.prepared import Array
from benchmark.data.samples import PairData
from benchmark.efficiency.timing import Times, in_turns
from benchmark.efficiency.workbench import Candidate, Form, Workbench, shared_copy
from benchmark.errors import CellError
from benchmark.registry import METHODS
from methods.base import Method

PAPER_EPOCHS, PAPER_PAIRS = 40, 240_000
"""Length of the ACE-LoRA paper's training, for the projected duration."""


_SIDE = {"cuda": 8192, "cpu": 1024}


_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


RateRow = dict[str, Any]


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
    done: Callable[[list[RateRow]], None]

    def measure(self, sizes: Sequence[int]) -> None:
        """Measure every method at every batch size.

        Raises:
            CellError: torch.compile fails here.
        """
        self.told("measure the peak of matrix products")
        peak = matrix_peak(self.backbone.logit_scale.device, self.precision)
        rows: list[RateRow] = []
        for size in sizes:
            for method in self.flops:
                self.told(f"{method}, batches of {size}")
                rows += self._method(method, size, peak)
                self.done(list(rows))

    def _method(self, method: str, size: int, peak: float) -> list[RateRow]:
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


def _figures(times: Times | None, memory: int | None, flops: float, size: int, peak: float) -> RateRow:
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


SAMPLES, BATCH = 1024, 64


WORKERS = (0, 2)


KINDS: dict[str, tuple[int, ...]] = {"grey": (), "colour": (3,)}
"""Kinds of pixel files, and the shape of their channels."""


_LABELS = 14


_WORDS = (30, 150)


StageRow = dict[str, Any]


class _Everything(Method):
    """Takes images and texts, so that batches bring both."""

    adapts: ClassVar[frozenset[str]] = frozenset({"image", "text"})


def measure(
    bench: Workbench,
    *,
    rounds: int,
    told: Callable[[str], None],
    done: Callable[[list[StageRow], dict[str, Times]], None],
) -> None:
    """Measure all stages in turns.

    Args:
        bench: with the backbone; its pairs are not used.
        rounds: of timing.
        told: called with a few words about each stage.
        done: called after each round with a row per stage (name, what, unit, per_second, slowest_round, fastest_round,
            and per_cpu_second of this process alone) and the times by "input|<name>".
    """
    told("write a file of made-up images")
    with tempfile.TemporaryDirectory(prefix="medpeft-bench-") as folder:
        stages = _stages(bench, Path(folder))
        in_turns(
            {f"input|{stage.name}": stage.run for stage in stages},
            rounds=rounds,
            device=bench.device,
            told=told,
            done=lambda times: done([_row(stage, times[f"input|{stage.name}"]) for stage in stages], times),
        )


@dataclass(frozen=True)
class _Stage:
    """A stage of the pipeline: ``run`` processes ``SAMPLES`` units."""

    name: str
    what: str
    unit: str
    run: Callable[[], object]


def _row(stage: _Stage, times: Times) -> StageRow:
    low, high = times.spread
    rates = {
        "per_second": times.median,
        "slowest_round": high,
        "fastest_round": low,
        "per_cpu_second": times.cpu_median,
    }
    return {
        "name": stage.name,
        "what": stage.what,
        "unit": stage.unit,
        **{key: SAMPLES / seconds for key, seconds in rates.items()},
    }


def _stages(bench: Workbench, folder: Path) -> list[_Stage]:
    generator = np.random.default_rng(0)
    rows = np.sort(generator.permutation(SAMPLES).reshape(-1, BATCH), axis=1)
    frozen = FrozenFeatures(
        shared_copy(bench.backbone), folder, precision="fp32", batch_size=BATCH, reporter=NullReporter()
    )
    texts = bench.reports(SAMPLES, _WORDS)
    frozen.token_ids(texts)  # by now they are kept
    words = f"reports tokenised ({type(bench.backbone.tokenizer).__name__})"
    stages = [
        _Stage("texts_tokenised", words, "texts/s", lambda: bench.backbone.tokenize(texts)),
        _Stage("texts_kept", "kept token ids read", "texts/s", _ids(frozen.token_ids(texts), rows)),
    ]
    for kind, channels in KINDS.items():
        pixels = _on_disk(folder / f"{kind}.npy", (SAMPLES, *bench.backbone.input_spec.size, *channels))
        bytes_only, normalised = _bytes(pixels, rows), _input(bench, pixels, rows)
        stages += [
            _Stage(f"{kind}_handed_over", f"{kind}: bytes handed over", "images/s", bytes_only),
            _Stage(f"{kind}_input", f"{kind}: and normalised on {bench.device}", "images/s", normalised),
        ]
        for workers in WORKERS:
            what = f"{kind}: whole batches of pairs, --num-workers {workers}"
            run = _loader(bench, frozen, _pairs(pixels, texts), workers)
            stages.append(_Stage(f"{kind}_loader_{workers}", what, "pairs/s", run))
    return stages


def _on_disk(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pixels: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def _bytes(pixels: Array, rows: np.ndarray) -> Callable[[], None]:
    source = PixelRows(pixels)

    def run() -> None:
        for chosen in rows:
            source[chosen]

    return run


def _input(bench: Workbench, pixels: Array, rows: np.ndarray) -> Callable[[], None]:
    source, spec = PixelRows(pixels), bench.backbone.input_spec

    def run() -> None:
        for chosen in rows:
            spec.to_input(source[chosen], bench.device)

    return run


def _ids(ids: np.ndarray, rows: np.ndarray) -> Callable[[], None]:
    def run() -> None:
        for chosen in rows:
            torch.from_numpy(ids[chosen]).long()

    return run


def _pairs(pixels: np.ndarray, texts: Sequence[str]) -> PairData:
    labels = np.random.default_rng(0).integers(0, 2, (SAMPLES, _LABELS)).astype(np.float32)
    names = tuple(f"label {number}" for number in range(_LABELS))
    ids = [str(number) for number in range(SAMPLES)]
    return PairData("made up", pixels, list(texts), labels, names, ids, "made up")


def _loader(bench: Workbench, frozen: FrozenFeatures, data: PairData, workers: int) -> Callable[[], None]:
    """Return an epoch of batches as the trainer gets them."""
    method = _Everything(shared_copy(bench.backbone))
    batches = PairBatches(
        method, data, frozen, batch_size=BATCH, seed=0, device=bench.device, num_workers=workers
    )

    def run() -> None:
        for _ in batches.epoch(1):
            pass

    return run


def judged(stages: Sequence[StageRow], methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the loader keeps up with the fastest method that takes images.

    Args:
        stages: of :func:`measure`.
        methods: rows of ``method_costs.measure``.

    Returns:
        fastest: its title. needs: pairs/s of its step. brings: "grey" and "colour" -> pairs/s of the loader, whatever
        number of workers does best. keeps_up: the same -> whether that is enough. Empty when no method was timed that
        takes images.
    """
    taking = [
        row
        for row in methods
        if row["pairs_per_s"] is not None and "image" not in row["cached_towers"].split()
    ]
    if not taking:
        return {}
    fastest = max(taking, key=lambda row: float(row["pairs_per_s"]))
    needs = float(fastest["pairs_per_s"])
    brings = {
        kind: max(float(row["per_second"]) for row in stages if row["name"].startswith(f"{kind}_loader_"))
        for kind in KINDS
    }
    keeps_up = {kind: rate >= needs for kind, rate in brings.items()}
    return {"fastest": fastest["title"], "needs": needs, "brings": brings, "keeps_up": keeps_up}

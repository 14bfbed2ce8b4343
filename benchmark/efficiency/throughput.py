"""How fast a run would go on this machine: its training steps, and the input pipeline that feeds them.

Rates (``efficiency --rates 64 256``) are meant for a GPU and work anywhere: training steps at the batch sizes of a run,
eager and compiled, as a share of the peak. The peak is measured by a large square matrix product in the arithmetic of
the towers. FLOPs are those of the step as it runs, counted on the small batch.

The input pipeline reads made-up images from a file that lies in memory, so its rates are ceilings.
"""

from __future__ import annotations

import functools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException

from benchmark.backbones import Backbone
from benchmark.console import NullReporter
from benchmark.data.batches import PairBatches, PixelRows
from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import PairData
from benchmark.efficiency.timing import Times, in_turns
from benchmark.efficiency.workbench import Candidate, Form, Workbench, shared_copy
from benchmark.errors import CellError
from benchmark.registry import METHODS
from methods.base import Method

PAPER_EPOCHS, PAPER_PAIRS = 40, 240_000
"""Length of the ACE-LoRA paper's training, for the projected duration."""
SAMPLES, BATCH = 1024, 64
WORKERS = (0, 2)
KINDS: dict[str, tuple[int, ...]] = {"grey": (), "colour": (3,)}
"""Kinds of pixel files, and the shape of their channels."""
_SIDE = {"cuda": 8192, "cpu": 1024}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LABELS = 14
_WORDS = (30, 150)
Row = dict[str, Any]
Tell = Callable[[str], None]


# --- rates ---------------------------------------------------------------------------------------------------


def matrix_peak(device: torch.device, precision: str, *, side: int | None = None, rounds: int = 5) -> float:
    """Return the operations per second of one square matrix product; a multiply-add counts as 2.

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
        forms = ("eager", "compiled") if self.compiled else ("eager",)
        times: Mapping[str, Times] = {}
        memory: Mapping[str, int | None] = {}
        try:
            times, memory = self._timed(method, size, forms)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise CellError(
                f"--compile: torch.compile fails here ({reason}); it needs a C++ compiler, or leave the flag out"
            ) from error
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        rows = []
        for form in forms:
            note = "" if form == "eager" else pays(times["eager"], times[form]) if times else ""
            rows.append(
                {"method": method, "title": METHODS.get(method).card.title, "batch_size": size, "form": form,
                 "precision": self.precision,
                 **_figures(times.get(form), memory.get(form), self.flops[method], size, peak),
                 "note": note if times else "out of memory"}
            )  # fmt: skip
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
    return None if candidate.form.compiled and device.type != "cuda" else candidate.memory()


def _figures(times: Times | None, memory: int | None, flops: float, size: int, peak: float) -> Row:
    """Return what follows from the time of a step; None where there is no time."""
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


# --- input pipeline ------------------------------------------------------------------------------------------


class _TakesBoth(Method):
    """Takes images and texts, so that batches bring both."""

    adapts = frozenset({"image", "text"})


@dataclass(frozen=True)
class _Stage:
    """A stage of the pipeline: ``run`` brings ``SAMPLES`` of what ``unit`` counts."""

    name: str
    what: str
    unit: str
    run: Callable[[], object]

    def row(self, times: Times) -> Row:
        low, high = times.spread
        seconds = {"per_second": times.median, "slowest_round": high, "fastest_round": low}
        rates = {
            key: SAMPLES / value for key, value in (seconds | {"per_cpu_second": times.cpu_median}).items()
        }
        return {"name": self.name, "what": self.what, "unit": self.unit, **rates}


def measure(
    bench: Workbench, *, rounds: int, told: Tell, done: Callable[[list[Row], dict[str, Times]], None]
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
        stages = {f"input|{stage.name}": stage for stage in _stages(bench, Path(folder))}
        in_turns(
            {key: stage.run for key, stage in stages.items()},
            rounds=rounds,
            device=bench.device,
            told=told,
            done=lambda times: done([stage.row(times[key]) for key, stage in stages.items()], times),
        )


def _stages(bench: Workbench, folder: Path) -> Iterable[_Stage]:
    generator, spec = np.random.default_rng(0), bench.backbone.input_spec
    rows = np.sort(generator.permutation(SAMPLES).reshape(-1, BATCH), axis=1)
    frozen = FrozenFeatures(
        shared_copy(bench.backbone), folder, precision="fp32", batch_size=BATCH, reporter=NullReporter()
    )
    texts = bench.reports(SAMPLES, _WORDS)
    ids = frozen.token_ids(texts)  # cached from now on

    def each(use: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: deque(map(use, rows), maxlen=0)

    words = f"reports tokenised ({type(bench.backbone.tokenizer).__name__})"
    yield _Stage("texts_tokenised", words, "texts/s", lambda: bench.backbone.tokenize(texts))
    kept = each(lambda chosen: torch.from_numpy(ids[chosen]).long())
    yield _Stage("texts_kept", "kept token ids read", "texts/s", kept)
    for kind, channels in KINDS.items():
        pixels = _on_disk(folder / f"{kind}.npy", (SAMPLES, *spec.size, *channels))
        source = PixelRows(pixels)
        yield _Stage(
            f"{kind}_handed_over", f"{kind}: bytes handed over", "images/s", each(source.__getitem__)
        )
        normalised = each(functools.partial(_normalised, bench, source))
        what = f"{kind}: and normalised on {bench.device}"
        yield _Stage(f"{kind}_input", what, "images/s", normalised)
        for workers in WORKERS:
            what = f"{kind}: whole batches of pairs, --num-workers {workers}"
            run = _loader(bench, frozen, _pairs(pixels, texts), workers)
            yield _Stage(f"{kind}_loader_{workers}", what, "pairs/s", run)


def _normalised(bench: Workbench, source: PixelRows, rows: np.ndarray) -> torch.Tensor:
    return bench.backbone.input_spec.to_input(source[rows], bench.device)


def _on_disk(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pixels: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def _pairs(pixels: np.ndarray, texts: Sequence[str]) -> PairData:
    labels = np.random.default_rng(0).integers(0, 2, (SAMPLES, _LABELS)).astype(np.float32)
    names = tuple(f"label {number}" for number in range(_LABELS))
    ids = [str(number) for number in range(SAMPLES)]
    return PairData("made up", pixels, list(texts), labels, names, ids, "made up")


def _loader(bench: Workbench, frozen: FrozenFeatures, data: PairData, workers: int) -> Callable[[], object]:
    """Return what makes an epoch of batches as the trainer gets them."""
    method = _TakesBoth(shared_copy(bench.backbone))
    batches = PairBatches(
        method, data, frozen, batch_size=BATCH, seed=0, device=bench.device, num_workers=workers
    )
    return lambda: deque(batches.epoch(1), maxlen=0)


def judged(stages: Sequence[Row], methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the loader keeps up with the fastest method that takes images.

    Args:
        stages: of :func:`measure`.
        methods: rows of :func:`benchmark.efficiency.costs.measure`.

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

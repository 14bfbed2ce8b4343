"""How fast a training loop can be fed: images from a file of bytes, texts from kept ids, beside what a step needs.

The file is a temporary one of made-up images, as a prepared dataset has them: uint8, memory mapped, at the backbone's
size. It has just been written, so it lies in memory and the figures are a ceiling. Nothing is decoded or resized: that
is done once, when data are prepared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmark.console import NullReporter
from benchmark.data.batches import PairBatches
from benchmark.data.features import FrozenFeatures
from benchmark.data.loading import PixelRows
from benchmark.data.prepared import Array
from benchmark.data.samples import PairData
from benchmark.timing import Times, in_turns
from benchmark.workbench import Workbench, shared_copy
from methods.base import Method

SAMPLES, BATCH = 1024, 64
WORKERS = (0, 2)
KINDS: dict[str, tuple[int, ...]] = {"grey": (), "colour": (3,)}
"""Kinds of pixel files, and the shape of their channels."""
_LABELS = 14
_WORDS = (30, 150)
Row = dict[str, Any]


class _Everything(Method):
    """Takes images and texts, so that batches bring both."""

    adapts: ClassVar[frozenset[str]] = frozenset({"image", "text"})


def measure(
    bench: Workbench,
    *,
    rounds: int,
    told: Callable[[str], None],
    done: Callable[[list[Row], dict[str, Times]], None],
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
    """A stage of the pipeline: ``run`` brings ``SAMPLES`` of what ``unit`` counts."""

    name: str
    what: str
    unit: str
    run: Callable[[], object]


def _row(stage: _Stage, times: Times) -> Row:
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


def judged(stages: Sequence[Row], methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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

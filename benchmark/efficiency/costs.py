"""What every method costs at the size of a backbone, without data: one row of figures per method.

Parameters and FLOPs are counted, memory is what autograd keeps (on a GPU: what was allocated), times are taken in turns
(``benchmark/efficiency/timing.py``). As in a run, towers that a method does not change use cached features; FLOPs
are given both with and without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmark.efficiency.timing import Times, in_turns, ratio
from benchmark.efficiency.workbench import Candidate, Form, Workbench
from benchmark.registry import METHODS
from benchmark.run.cost import frozen_flops, inference_costs, measure_method

FROZEN = "frozen"
"""Name of the frozen model among the things that are timed."""
Row = dict[str, Any]
Tell = Callable[[str], None]


def measure(
    bench: Workbench,
    names: Sequence[str],
    *,
    rounds: int,
    precision: str,
    told: Tell,
    done: Callable[[list[Row], dict[str, Times]], None],
) -> None:
    """Measure methods side by side.

    Args:
        bench: with the backbone and the pairs.
        names: of methods.
        rounds: of timing.
        precision: of the towers while things are timed.
        told: called with a few words about each stage.
        done: called after each round with a row per method, and the times by "<name>|<what>" (and "frozen|image",
            "frozen|text", "frozen|score").
    """
    frozen = frozen_flops(bench.backbone, bench.prompt_texts)
    rows, candidates = [], {}
    for name in names:
        told(f"count {name}")
        candidates[name] = candidate = Candidate(bench, Form(name, precision=precision))
        rows.append(
            _counted(bench, name, candidate) | inference_costs(candidate.method, bench.prompt_texts, frozen)
        )
    things = dict(_things(bench, candidates, rows, precision))
    cpu = bench.device.type == "cpu"

    def finish(times: dict[str, Times]) -> None:
        done([row | _timed(row, bench.batch_size, times, cpu=cpu) for row in rows], times)

    in_turns(things, rounds=rounds, device=bench.device, told=told, done=finish)


def _counted(bench: Workbench, name: str, candidate: Candidate) -> Row:
    """Return what does not depend on the clock."""
    method = candidate.method.train()
    figures = measure_method(method, bench.batch(method), pairs=bench.batch_size)
    constant = sorted({"image", "text"} - method.adapts)
    cached = (
        measure_method(method, candidate.batch, pairs=bench.batch_size)
        if constant and candidate.trains
        else {}
    )
    return {
        "method": name,
        "title": METHODS.get(name).card.title,
        **{key: value for key, value in figures.items() if not isinstance(value, dict)},
        **{f"trainable_{tower}": count for tower, count in figures["by_tower"].items()},
        **{f"total_{tower}": count for tower, count in figures["total_parameters_by_tower"].items()},
        "cached_towers": " ".join(constant),
        "step_flops_per_pair_cached": cached.get("step_flops_per_pair"),
        "step_memory_bytes": candidate.memory() if candidate.trains else None,
        "adapter_bytes": adapter_bytes(candidate),
    }


def adapter_bytes(candidate: Candidate) -> int:
    """Return the size of the file that a run would keep."""
    state = {name: value.contiguous() for name, value in candidate.method.trainable_state().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "adapter.safetensors")
        save_file(state, path)
        return path.stat().st_size


def _things(
    bench: Workbench, candidates: Mapping[str, Candidate], rows: Iterable[Row], precision: str
) -> Iterable[tuple[str, Callable[[], object]]]:
    untrained = next(name for name in METHODS.names(extras=False) if METHODS.get(name).deterministic)
    still = Candidate(bench, Form(untrained, precision=precision))
    yield f"{FROZEN}|score", still.score
    yield f"{FROZEN}|image", lambda: bench.frozen_pass("image")
    yield f"{FROZEN}|text", lambda: bench.frozen_pass("text")
    for row in rows:
        name, candidate = row["method"], candidates[row["method"]]
        if candidate.trains:
            yield f"{name}|step", candidate.step
            if candidate.on_features:
                yield f"{name}|step_of_a_run", candidate.step_of_a_run
        yield f"{name}|score", candidate.score
        if row["inference_overhead_merged"] is not None:
            yield f"{name}|merged", candidate.score_merged


def _timed(row: Row, pairs: int, times: Mapping[str, Times], *, cpu: bool) -> Row:
    name = row["method"]
    step, score, merged = (times.get(f"{name}|{what}") for what in ("step", "score", "merged"))
    assert score is not None  # every method is scored
    still = times[f"{FROZEN}|score"]
    low, high = step.spread if step else (None, None)
    return {
        "step_time_p50_s": step.median if step else None,
        "step_time_p95_s": step.p95 if step else None,
        "step_time_fastest_round_s": low,
        "step_time_slowest_round_s": high,
        "step_cpu_time_p50_s": step.cpu_median if step else None,
        "pairs_per_s": pairs / step.median if step else None,
        "evaluation_images_per_s": pairs / score.median,
        "inference_time_overhead": ratio(score, still, cpu=cpu)[0],
        "inference_time_overhead_merged": ratio(merged, still, cpu=cpu)[0] if merged else None,
    }

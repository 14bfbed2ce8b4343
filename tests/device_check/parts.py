"""The parts of the device check. Each runs in a process of its own and returns JSON with ``ok``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import methods
from benchmark.backbones import load_backbone
from benchmark.backbones.towers.precision import TrainingArithmetic, resolve
from benchmark.cli import main
from benchmark.conformance.small_models import FAMILIES, move, small_backbone, small_batch
from benchmark.console import NullReporter, Stopped
from benchmark.data.batches import PairBatches
from benchmark.data.samples import Batch
from benchmark.efficiency.throughput import Rates, matrix_peak
from benchmark.machine import hardware, use_device
from benchmark.registry import METHODS
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.clock import wait_for
from benchmark.run.training.gradients import backward
from benchmark.run.training.trainer import Adaptation, Trainer, make_optimiser
from methods.base import Method
from tests.small import RECIPE, corpus, frozen

Found = dict[str, Any]
PEFT = ("peft:lora", "peft:dora", "peft:adalora", "peft:osf")
FEW = ("ace_lora", "coop", "full_ft", "peft:lora")
TIMED = ("ace_lora", "clip_lora", "full_ft")
ALLOWED = {"fp32": (1e-3, 1e-2, 1e-2), "bf16": (0.05, 0.3, 0.1)}
"""Largest relative differences from fp32 on the CPU: of the loss, of all gradients as one vector, of similarities."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What is checked.

    Attributes:
        device: on which. short: so little that a CPU does it within a test.
    """

    device: str
    short: bool

    @property
    def place(self) -> torch.device:
        """The device, for torch."""
        return torch.device(self.device)

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.place.type == "cuda"


def environment(check: Check) -> Found:
    """Return machine, versions, and the measured peaks of matrix products."""
    peaks = {
        kind: matrix_peak(check.place, kind, side=None if check.gpu else 64, rounds=5 if check.gpu else 1)
        / 1e12
        for kind in ("fp32", "bf16")
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "timm", "transformers", "peft")}
    found = hardware() | {"versions": versions, "cuda": torch.version.cuda, "tflops": peaks}
    return found | {"auto": resolve("auto", check.place), "ok": True}


# --------------------------------------------------------------------------------------- the same numbers
def all_methods(check: Check) -> Found:
    """Compare one step of every method with the same step in fp32 on the CPU, without dropout."""
    names = FEW if check.short else (*METHODS.names(extras=False), *PEFT)
    families = FAMILIES[:1] if check.short else FAMILIES
    rows = {f"{name} {family}": _compared(name, family, check) for name in names for family in families}
    bad = [name for name, row in rows.items() if not all(one["ok"] for one in row.values())]
    return {"ok": not bad, "bad": bad, "rows": rows}


def _compared(name: str, family: str, check: Check) -> Found:
    ours, own = (
        methods.build(name, small_backbone(family).to(place)).to(place).eval()
        for place in ("cpu", check.device)
    )
    move(ours)
    own.load_trainable_state(ours.trainable_state())
    inputs = small_batch(ours.backbone)
    batch = inputs.changed(lambda value: value.to(check.place))
    expected = _answers(ours, inputs, "fp32")
    row: Found = {}
    for precision, allowed in ALLOWED.items():
        try:
            apart = [_apart(a, b) for a, b in zip(_answers(own, batch, precision), expected, strict=True)]
            fits = all(value <= most for value, most in zip(apart, allowed, strict=True))
            row[precision] = {"ok": fits, "loss_gradients_similarity": apart}
        except Exception as error:
            row[precision] = {"ok": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}
    return row


def _answers(method: Method, batch: Batch, precision: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, gradients as one vector and similarities, on the CPU; then make a step, which must be finite."""
    with torch.no_grad():
        similarity = method.similarity(batch.images, batch.token_ids).float().cpu()
    trained = method.trainable_parameters()
    if not trained:
        return torch.zeros(1), torch.zeros(1), similarity
    method.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    device = batch.images.device
    with TrainingArithmetic(precision, device, method.backbone.model)():
        loss = backward(method, batch, None, torch.amp.GradScaler(device.type, enabled=False))
    gradients = torch.cat(
        [
            torch.zeros(value.numel()) if value.grad is None else value.grad.float().cpu().flatten()
            for value in trained.values()
        ]
    )
    kept = method.trainable_state()
    make_optimiser(method, RECIPE).step()
    if not all(bool(value.isfinite().all()) for value in trained.values()):
        raise ArithmeticError("a trained value is not finite after a step")
    method.load_trainable_state(kept)
    return loss.float().cpu(), gradients, similarity


def _apart(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm().clamp(min=1e-12))


# --------------------------------------------------------------------------------------- the training loop
class _Stop(NullReporter):
    """Asks for a stop after some steps, and keeps what it is told."""

    def __init__(self, after: int | None) -> None:
        self.left, self.lines = after, list[str]()

    def log(self, line: str) -> None:
        self.lines.append(line)

    def stopping(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left <= 0


def _built(name: str, check: Check, **options: Any) -> Method:
    torch.manual_seed(0)
    return methods.build(name, load_backbone("tiny").to(check.place), **options).to(check.place)


def _trainer(
    method: Method, check: Check, folder: Path, *, pairs: int, reporter: Any = None, **recipe: Any
) -> Trainer:
    how = dataclasses.replace(RECIPE, log_every=1000, select="last", **recipe)
    batches = PairBatches(
        method, corpus(pairs), frozen(method.backbone), batch_size=how.batch_size, seed=0, device=check.place
    )
    return Trainer(
        method, batches, how, validate=lambda _: {"none": 0.5}, metric="none", device=check.place,
        checkpoint=Checkpoint(folder / "state.pt", "k"), reporter=reporter or NullReporter(),
    )  # fmt: skip


def waits(check: Check) -> Found:
    """Say where the host waits for the GPU in a batch and in a step, by torch's own debug mode."""
    if not check.gpu:
        return {"ok": True, "skipped": "needs CUDA; tests/device/test_marked.py judges without"}
    places: dict[str, list[str]] = {}
    for name in ("ace_lora", "coop", "peft:lora"):
        with tempfile.TemporaryDirectory() as folder:
            method = _built(name, check).train()
            own = _trainer(method, check, Path(folder), pairs=32, precision="bf16")
            batch = own._batches.batch(np.arange(16))
            own._step(batch)  # what is made once may wait
            runs: dict[str, Callable[[], object]] = {
                "batch": lambda own=own: own._batches.batch(np.arange(16)),
                "step": lambda own=own, batch=batch: own._step(batch),
            }
            for what, run in runs.items():
                wait_for(check.place)
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    run()
                    torch.cuda.set_sync_debug_mode("default")
                places[f"{name} {what}"] = [
                    f"{Path(one.filename).name}:{one.lineno}"
                    for one in seen
                    if "synchroniz" in str(one.message)
                ]
    return {"ok": not any(places.values()), "places": places}


def out_of_memory(check: Check) -> Found:
    """Lack memory for a batch: it is halved, with the gradients of the whole one."""
    size = 8 if check.short else 256
    method = _built("ace_lora", check, lora_dropout=0.0).train()

    def gradients(fail: bool) -> tuple[float, torch.Tensor, int | None]:
        with tempfile.TemporaryDirectory() as folder:
            own = _trainer(method, check, Path(folder), pairs=size, batch_size=size)
            original, left = method.embed, [1 if fail else 0]

            def embed(batch: Batch) -> Any:
                if left[0]:
                    left[0] -= 1
                    _fill(check)
                return original(batch)

            method.embed = embed  # type: ignore[method-assign]
            try:
                loss = own._backward(next(own._batches.epoch(1)))
            finally:
                method.embed = original  # type: ignore[method-assign]
            found = [value.grad.float().cpu().flatten() for value in own._trained if value.grad is not None]
            return float(loss), torch.cat(found), own._micro_batch

    loss, whole, _ = gradients(fail=False)
    halved, parts, micro = gradients(fail=True)
    apart = {"loss": abs(halved - loss) / abs(loss), "gradients": _apart(parts, whole)}
    fits = micro == size // 2 and apart["loss"] < 1e-4 and apart["gradients"] < 1e-2
    return {"ok": fits, "micro_batch": micro, **apart}


def _fill(check: Check) -> None:
    """Run out of memory: a GPU is asked for more than it has, a CPU only says so."""
    if check.gpu:
        torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device=check.place)
    raise torch.OutOfMemoryError("pretended")


def resume(check: Check) -> Found:
    """Make six steps at once, once more, and in two runs: are the weights the same bits?"""

    def run(folder: Path, stop: int | None = None) -> tuple[torch.Tensor, list[str]]:
        recipe = {"epochs": 2, "max_steps": 6, "batch_size": size, "precision": "bf16", "deterministic": True}
        first = _trainer(
            _built("ace_lora", check), check, folder, pairs=4 * size, reporter=_Stop(stop), **recipe
        )
        torch.manual_seed(0)
        if stop is not None:
            with contextlib.suppress(Stopped):
                first.run()
        method, last = _built("ace_lora", check), _Stop(None)
        torch.manual_seed(0 if stop is None else 1)  # the checkpoint has to bring all that counts
        _trainer(method, check, folder, pairs=4 * size, reporter=last, **recipe).run()
        return torch.cat([x.float().cpu().flatten() for x in method.trainable_state().values()]), last.lines

    size = 4 if check.short else 16
    use_device(check.device, deterministic=True)
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)]
        (once, _), (twice, _), (parts, lines) = run(folders[0]), run(folders[1]), run(folders[2], stop=3)
    told = any("going on after step 3" in line for line in lines)
    found = {"same_run_twice": torch.equal(once, twice), "resumed": torch.equal(once, parts), "told": told}
    return {"ok": all(found.values()), **found, "apart": _apart(parts, once)}


def clock(check: Check) -> Found:
    """Compare the times of steps with the clock on the wall: events that lie would say less."""
    method = _built("clip_lora", check)
    with tempfile.TemporaryDirectory() as folder:
        pairs, size = (16, 4) if check.short else (1024, 16)
        own = _trainer(method, check, Path(folder), pairs=pairs, batch_size=size, epochs=1, warmup_epochs=0.0)
        wait_for(check.place)
        began = time.perf_counter()
        outcome: Adaptation = own.run()
        wait_for(check.place)
        wall = time.perf_counter() - began
    share = sum(outcome.step_seconds) / wall
    return {"ok": 0.5 < share <= 1.02, "share_of_wall": share, "steps": len(outcome.step_seconds)}


# --------------------------------------------------------------------------------------- speed and commands
def speed(check: Check, *, compiled: bool = False) -> Found:
    """Measure pairs/s at batches of 64 and 256, and their share of the measured matrix peak."""
    if compiled and not check.gpu:
        return {"ok": True, "skipped": "needs CUDA; tests/backbones/test_compile.py compiles on a CPU"}
    backbone = small_backbone(FAMILIES[0]) if check.short else load_backbone("random:biomedclip")
    rows: list[Found] = []
    names = TIMED[:1] if compiled or check.short else TIMED
    flops = {name: _flops(name, backbone) for name in names}
    rates = Rates(
        backbone.to(check.place), backbone.text.context_length, resolve("auto", check.place),
        1 if check.short else 3, flops, compiled, lambda line: None, lambda found: rows.__setitem__(slice(None), found),
    )  # fmt: skip
    rates.measure((2,) if check.short else (64, 256))
    return {"ok": all(row["pairs_per_s"] for row in rows), "rows": rows}


def compiled(check: Check) -> Found:
    """Measure the same of ACE-LoRA with compiled blocks, and without."""
    return speed(check, compiled=True)


def _flops(name: str, backbone: Any) -> float:
    """Return the operations of a step per pair."""
    from benchmark.run.cost import measure_method

    method = methods.build(name, copy.deepcopy(backbone)).train()
    batch = small_batch(backbone, 2)
    batch.token_ids = torch.ones(2, backbone.text.context_length, dtype=torch.long)
    return float(measure_method(method, batch)["step_flops_per_pair"])


def main_job(check: Check) -> Found:
    """Run the command: adapt, evaluate, report; on a GPU with heads and processes that read ahead."""
    words = [
        "--smoke",
        "--methods",
        "clip_lora" if check.short else "full_ft,ace_lora,taskres",
        "--jobs",
        "1",
    ]
    tasks = "zeroshot" if check.short else "zeroshot,transclip,grounding,segmentation,detection"
    words += ["--tasks", tasks, "--num-workers", "0" if check.short else "2"]
    return _command(
        ["run", *words], check, "runs/**/efficiency.json", ("peak_memory_bytes", "step_time_p50_s")
    )


def verb(check: Check) -> Found:
    """Run the efficiency verb as a user does."""
    if check.short:
        return {"ok": True, "skipped": "tests/cli/test_efficiency_verb.py runs it on a CPU"}
    words = ["efficiency", "--methods", "ace_lora", "--backbone", "random:biomedclip", "--batch-size", "8"]
    return _command([*words, "--rounds", "2", "--rates", "64"], check, "efficiency.json", ("complete",))


def _command(words: list[str], check: Check, pattern: str, wanted: tuple[str, ...]) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, "--device", check.device, "--output-dir", folder]
        if words[0] == "run":
            words += ["--data-root", f"{folder}/data"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(words)
        files = {
            str(path.relative_to(folder)): json.loads(path.read_text()) for path in Path(folder).glob(pattern)
        }
    rows = {name: {key: content.get(key) for key in wanted} for name, content in files.items()}
    return {"ok": code == 0 and bool(rows), "exit_code": code, "files": rows, "tail": out.getvalue()[-1000:]}


PARTS: dict[str, tuple[Callable[[Check], Found], int]] = {
    "environment": (environment, 20), "methods": (all_methods, 60), "waits": (waits, 30),
    "out_of_memory": (out_of_memory, 30), "resume": (resume, 40), "clock": (clock, 30), "main_job": (main_job, 70),
    "speed": (speed, 60), "verb": (verb, 60), "compiled": (compiled, 110),
}  # fmt: skip
"""The parts in their order: what is most worth knowing first; and seconds after which a part is stopped."""

"""What a method costs: parameters, floating-point operations, time, memory.

FLOP convention, also written beside every number: one multiply-add counts as 2; matrix products, convolutions
and attention are counted, element-wise work is not; attention counts as its plain formula on every device,
so that a kernel which computes scores twice to save memory does not look more expensive.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmark.backbones.towers.precision import similarity
from benchmark.data.samples import Batch

if TYPE_CHECKING:
    from benchmark.backbones import Backbone
    from methods.base import Method

FLOPS_CONVENTION = (
    "multiply-add = 2; matrix products, convolutions and attention (plain formula); no element-wise work"
)


_TOWERS = ("image", "text", "shared")
_OBJECTS = 50_000
"""More than a cell leaves behind, and fewer than a library brings."""


_CHECKPOINT_SCALE = "backbone.model.logit_scale"  # the method's own logit scale stands in its place


def parameter_counts(method: Method) -> dict[str, int]:
    """Count numbers (not tensors): trained in all and by tower, and all of the model.

    Returns:
        trainable, trainable_without_logit_scale, total, trainable_image, trainable_text, trainable_shared, and
        total_image, total_text, total_shared. The logit scale is in ``trainable`` when it is trained, and in
        no tower. A tensor under two names counts once.
    """
    trained = _by_group(method, method.trainable_parameters().items())
    model = ((name, value) for name, value in method.named_parameters() if name != _CHECKPOINT_SCALE)
    every = _by_group(method, model)
    counts = {
        "trainable": sum(trained.values()),
        "trainable_without_logit_scale": sum(trained.values()) - trained["scale"],
        "total": sum(every.values()),
    }
    counts |= {f"trainable_{tower}": trained[tower] for tower in _TOWERS}
    return counts | {f"total_{tower}": every[tower] for tower in _TOWERS}


def _by_group(method: Method, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, int]:
    groups = {"image": 0, "text": 0, "shared": 0, "scale": 0}
    seen: set[int] = set()
    for name, parameter in named:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            groups[method.parameter_group(name)] += parameter.numel()
    return groups


def _addmm_flops(_: object, left: Sequence[int], right: Sequence[int], **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


_ALSO = {torch.ops.aten.addmm_: _addmm_flops}
"""Operations that torch's counter leaves out, with their formulas over shapes."""


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of one call, by the convention of this module."""
    with _counting() as counter:
        run()
    return int(counter.get_total_flops())


def step_times(seconds: Sequence[float], waits: Sequence[float]) -> dict[str, float | None]:
    """Median and 95th percentile of step times in seconds, and the share of them that batches were waited for.

    All None when no step was timed.
    """
    if not len(seconds):
        return dict.fromkeys(("step_time_p50_s", "step_time_p95_s", "data_wait_share"))
    p50, p95 = np.percentile(np.asarray(seconds, dtype=np.float64), [50, 95])
    share = sum(waits) / sum(seconds)
    return {"step_time_p50_s": float(p50), "step_time_p95_s": float(p95), "data_wait_share": share}


def forget(device: torch.device) -> None:
    """Free what an earlier cell of this process has left, so that it is neither in the way nor in a peak of memory.

    A backbone and its hooks refer to each other, so that nothing but the collector frees them.
    """
    gc.collect()
    if len(gc.get_objects()) > _OBJECTS:
        gc.freeze()  # libraries, mostly: later collections need not look at them
        atexit.register(gc.unfreeze)  # else a library reports at the end what it was not told to free
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory in use since this was made: allocated by torch on a GPU, else resident in this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._forgotten = device.type == "cuda" or _forget_peak()
        self._before = 0 if self._forgotten else peak_memory(device)

    def bytes(self) -> int | None:
        """Return the peak; None where a larger one came before, and the system cannot forget it."""
        peak = peak_memory(self._device)
        return peak if self._forgotten or peak > self._before else None


def _forget_peak() -> bool:
    """Set the peak of resident memory to what is in use now, as Linux can: proc(5), clear_refs."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # glibc keeps what is freed, here hundreds of megabytes of an earlier cell
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device | str) -> int:
    """Peak memory in bytes: allocated by torch on a CUDA device, otherwise resident in this whole process."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # getrusage also holds the peak of the process that started this one, up to that moment
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def measure_method(method: Method, batch: Any, *, pairs: int | None = None) -> dict[str, Any]:
    """Parameters and FLOPs of one training step of a method, as a JSON-ready dict.

    The method is left as it was: gradients, buffers and random state are restored, and no step is taken. It
    runs in the mode (train or eval) it is in. Attention scores are held in full: a small batch is kinder.

    Args:
        method: the method, on the device of the batch.
        batch: what is trained on; its ``token_ids`` [B, L] say how many pairs it holds.
        pairs: the number of pairs if the batch has no token_ids.

    Returns:
        trainable_parameters, trainable_parameters_without_logit_scale, total_parameters, by_tower (trained),
        total_parameters_by_tower, forward_flops_per_pair, step_flops_per_pair (forward and backward; None when
        nothing is trained), flops_convention.
    """
    counts = parameter_counts(method)
    pairs = len(batch.token_ids) if pairs is None else pairs
    with _unchanged(method):
        forward, step = _step_flops(method, batch, trains=counts["trainable"] > 0)
    return {
        "trainable_parameters": counts["trainable"],
        "trainable_parameters_without_logit_scale": counts["trainable_without_logit_scale"],
        "total_parameters": counts["total"],
        "by_tower": {tower: counts[f"trainable_{tower}"] for tower in _TOWERS},
        "total_parameters_by_tower": {tower: counts[f"total_{tower}"] for tower in _TOWERS},
        "forward_flops_per_pair": forward / pairs,
        "step_flops_per_pair": None if step is None else step / pairs,
        "flops_convention": FLOPS_CONVENTION,
    }


def _step_flops(method: Method, batch: Any, *, trains: bool) -> tuple[int, int | None]:
    with _counting() as counter, torch.set_grad_enabled(trains):
        loss = batch.supervision.loss(method, batch)
        forward = int(counter.get_total_flops())
        if not trains:
            return forward, None
        loss.backward()
    return forward, int(counter.get_total_flops())


@contextlib.contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Count FLOPs with the fused kernels off: torch's fused encoder layer would be counted as nothing."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_ALSO) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextlib.contextmanager
def _unchanged(method: Method) -> Iterator[None]:
    """Put gradients, buffers and random state back as they were."""
    parameters = list(method.parameters())
    gradients = [parameter.grad for parameter in parameters]
    buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
    for parameter in parameters:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=_cuda_indices(parameters)):
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _cuda_indices(parameters: Iterable[nn.Parameter]) -> list[int]:
    return sorted({int(parameter.device.index or 0) for parameter in parameters if parameter.is_cuda})


_IMAGES = 2


@dataclass(frozen=True)
class InferenceFlops:
    """Operations per image and per text."""

    image: float
    text: float


@torch.no_grad()
def frozen_flops(backbone: Backbone, prompts: Sequence[str]) -> InferenceFlops:
    """Count what the frozen model does; call it before a method wraps the backbone.

    Args:
        backbone: as it was loaded.
        prompts: one per class.
    """
    images, ids = _inputs(backbone, prompts)
    texts = backbone.text.features(ids)

    def score() -> Tensor:
        return similarity(backbone.image.features(images), texts)

    return InferenceFlops(flops(score) / len(images), flops(lambda: backbone.text.features(ids)) / len(ids))


@torch.no_grad()
def inference_costs(method: Method, prompts: Sequence[str], frozen: InferenceFlops) -> dict[str, Any]:
    """Count what the adapted model does, as keys of efficiency.json.

    Args:
        method: left in eval mode.
        prompts: as for :func:`frozen_flops`.
        frozen: what that returned for the same backbone.

    Returns:
        inference_flops_per_image, inference_flops_per_text; inference_overhead: operations per image as a multiple of
        the frozen model's; inference_overhead_merged: the same once all that the frozen weights can take up is folded
        into them, None where there is nothing of the kind.
    """
    method.eval()
    with _needing_no_gradient(method):
        adapted = _adapted_flops(method, prompts)
        merged = _merged_overhead(method, prompts, adapted, frozen)
    return {
        "inference_flops_per_image": adapted.image,
        "inference_flops_per_text": adapted.text,
        "inference_overhead": adapted.image / frozen.image,
        "inference_overhead_merged": merged,
    }


@contextlib.contextmanager
def _needing_no_gradient(method: Method) -> Iterator[None]:
    """Switch requires_grad off: torch's counter fails on modules that return a view of a parameter with it."""
    trained = list(method.trainable_parameters().values())
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _merged_overhead(
    method: Method, prompts: Sequence[str], adapted: InferenceFlops, frozen: InferenceFlops
) -> float | None:
    if method.mergeable:  # the whole method becomes a plain backbone (checked for every method that says so)
        return 1.0
    with contextlib.ExitStack() as stack:
        for tower in (method.backbone.image, method.backbone.text):
            stack.enter_context(tower.without_deltas(only_foldable=True))
        rest = _adapted_flops(method, prompts)
    return None if rest == adapted else rest.image / frozen.image


def _adapted_flops(method: Method, prompts: Sequence[str]) -> InferenceFlops:
    images, ids = _inputs(method.backbone, prompts, context=method.text_padding == "context")
    classes = _prepared(method, ids[:, None])
    score = flops(lambda: method.classify(Batch(images=images), classes))
    bound = method.needs_classes  # may have no features of other texts
    texts = flops(lambda: method.class_features(ids[:, None]) if bound else method.encode_text(ids))
    return InferenceFlops(score / len(images), texts / len(ids))


def _prepared(method: Method, prompts: Tensor) -> Any:
    """Return the classes of prompts; a method that is bound to classes takes them for its own ones."""
    if not method.class_bound or "text" in method.adapts:
        return method.prepare_classes(prompts)
    features = method.backbone.text.features(prompts.flatten(0, 1))
    return method.from_class_features(features.unflatten(0, prompts.shape[:2]))


def _inputs(backbone: Backbone, prompts: Sequence[str], *, context: bool = False) -> tuple[Tensor, Tensor]:
    spec, device = backbone.input_spec, backbone.logit_scale.device
    ids = backbone.tokenize(prompts).long()
    ids = ids if context else backbone.trim(ids)
    return torch.zeros(_IMAGES, len(spec.mean), *spec.size, device=device), ids.to(device)

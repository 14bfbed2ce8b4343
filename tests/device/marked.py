"""CPU tensors that carry a mark and say that they lie on a GPU, so that mixed devices and waits show without one.

All values are real. Two modes work together. `_Calls` answers ``tensor.device``, turns ``device="cuda"`` into a mark,
and notes copies between host and GPU that make the host wait. `Operations` sees every operation below, in backward
passes too: it hands marks on, and notes operands on two devices and operations whose result size the host must know.
A mark is the address of a storage, held by a weak reference, so that it dies with its tensor.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.backbones.backbone import constant

ROOT = Path(__file__).parents[2]
GPU, CPU, aten = torch.device("cuda:0"), torch.device("cpu"), torch.ops.aten
_OURS = tuple(str(ROOT / room) for room in ("methods", "benchmark", "tasks"))
_CROSSES = {aten._to_copy, aten.copy_, aten._foreach_copy_}
_WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}
_INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def _tensors(values: Any) -> list[Tensor]:
    # sparse ones have no storage to mark
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.layout == torch.strided]


class Operations(TorchDispatchMode):
    """Notes of what a GPU would not have done as asked.

    Attributes:
        waits: "file function: operation" where the host would wait for the GPU.
        mixed: the same where operands lie on two devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        self.waits: list[str] = []
        self.mixed: list[str] = []

    def mark(self, value: Tensor, there: bool = True) -> Tensor:
        """Say that a tensor lies on the GPU, or no longer does."""
        storage = value.untyped_storage()
        if there:
            self._marked[storage._cdata] = StorageWeakRef(storage)
        else:
            self._marked.pop(storage._cdata, None)
        return value

    def has(self, value: Tensor) -> bool:
        """Return whether a tensor lies on the GPU."""
        found = self._marked.get(value.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def note(self, notes: list[str], what: Any) -> None:
        """Add an operation with the function of ours that asked for it."""
        codes = (frame.f_code for frame, _ in traceback.walk_stack(None))
        ours = next((code for code in codes if code.co_filename.startswith(_OURS)), None)
        notes.append(
            f"{Path(ours.co_filename).name} {ours.co_name}: {what}" if ours else f"a library: {what}"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, kind = _tensors((args, kwargs)), func.overloadpacket
        there = [self.has(value) for value in given]
        if any(there):
            chosen = _tensors(args[1]) if kind in _INDEXES else []
            by_mask = any(index.dtype == torch.bool or not self.has(index) for index in chosen)
            if by_mask or kind in _WAITS or (kind is aten.copy_ and there[0] != there[1]):
                self.note(self.waits, func)
            elif kind not in _CROSSES and any(x.ndim and not self.has(x) for x in given):
                self.note(self.mixed, func)
        out = func(*args, **(kwargs or {}))
        zeros = not given and torch._C._current_autograd_node() is not None  # autograd's own start
        lands = there[0] if kind is aten.copy_ else any(there)
        if zeros or lands:
            for value in _tensors(out):
                self.mark(value)
        return out


class _Calls(TorchFunctionMode):
    """Answers for the device and turns a wish for the GPU into a mark."""

    def __init__(self, seen: Operations) -> None:
        super().__init__()
        self._seen, self._pinned = seen, {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, seen, name = dict(kwargs or {}), self._seen, getattr(func, "__name__", "")
        if name == "__get__" and func.__self__ is Tensor.device:
            return GPU if seen.has(args[0]) else CPU
        if name == "__get__" and func.__self__ is Tensor.is_cuda:
            return seen.has(args[0])
        if name == "pin_memory":
            self._pinned[args[0].untyped_storage()._cdata] = StorageWeakRef(args[0].untyped_storage())
            return args[0]
        if name in ("to", "cpu"):
            return self._moved(*args, **(given if name == "to" else {"device": CPU}))
        wished = torch.device(given.get("device") or CPU).type == "cuda"
        own = name in ("new_tensor", "__deepcopy__", "tolist", "numpy") and seen.has(args[0])
        if (wished or own) and name in ("tensor", "new_tensor", "tolist", "numpy"):
            seen.note(seen.waits, name)
        out = func(*args, **(given | {"device": CPU} if "device" in given else given))
        return seen.mark(out) if (wished or own) and isinstance(out, Tensor) else out

    def _moved(self, value: Tensor, *args: Any, **given: Any) -> Tensor:
        copied = given.pop("copy", False)
        device, kind, without_waiting, _ = torch._C._nn._parse_to(*args, **given)
        was, out = self._seen.has(value), value.to(kind or value.dtype, copy=copied)
        like = _tensors(args[:1])
        will = self._seen.has(like[0]) if like else was if device is None else device.type == "cuda"
        if was == will:
            return out
        if was or not (without_waiting and self._is_pinned(value)):
            self._seen.note(self._seen.waits, "to the CPU" if was else "to the GPU, not pinned")
        return self._seen.mark(out.clone(), will)

    def _is_pinned(self, value: Tensor) -> bool:
        found = self._pinned.get(value.untyped_storage()._cdata)
        return found is not None and not found.expired()


@contextlib.contextmanager
def marked_gpu(patch: pytest.MonkeyPatch) -> Iterator[Operations]:
    """Offer a GPU while the block runs; what it would refuse or wait for is noted in what this gives."""
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        real = getattr(torch, name)
        patch.setattr(torch, name, lambda _=0, real=real, **how: real("cpu", **how))
    grouped = torch._C._group_tensors_by_device_and_dtype

    def by_device(lists: Any, indices: bool = False) -> Any:
        found = grouped(lists, indices).items()
        return {(GPU if seen.has(one[0][0][0]) else CPU, kind): one for (_, kind), one in found}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_device)
    patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
    patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    seen, run = Operations(), torch.autograd._engine_run_backward
    calls = _Calls(seen)

    def run_backward(*args: Any, **how: Any) -> Any:
        with calls:  # a mode is off inside its own calls, and this is one of them
            return run(*args, **how)

    patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    constant.cache_clear()  # marks live as long as this block
    with seen, calls:
        yield seen
    constant.cache_clear()

"""Kernels, bytes and operations of a training step at BiomedCLIP's size, counted on tensors without values.

``python -m tests.device.counted`` prints the table of docs/scaling.md.

A GPU takes other branches than a CPU where this project or torch looks at the device: they are chosen here by hand, so
that what is counted is a GPU's eager step. Views move nothing and count for nothing; bytes are those of each kernel's
operands and results, an expanded operand read once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.backbones.towers.hf_bert import HFBertTower
from benchmark.backbones.towers.precision import TrainingArithmetic
from benchmark.data.samples import Batch
from benchmark.efficiency.workbench import shared_copy
from benchmark.registry import METHODS
from methods.layers import lora

_MOVES_NOTHING = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "split", "split_with_sizes", "unbind", "as_strided", "lift_fresh", "unflatten", "_reshape_alias",
    "diagonal", "is_same_size", "narrow", "empty", "empty_like", "new_empty", "empty_strided", "_local_scalar_dense",
}  # fmt: skip


MACHINES = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
    "RTX 4090": (165e12, 1.01e12),
}
"""GPU -> dense bf16 operations per second and bytes per second, by its data sheet (A100 and H100 with 80 GB)."""
PRODUCTS, COPIES, LAUNCH = 0.48, 0.72, 6e-6
"""Shares of the data sheet that products and copies reach (60 and 80 % of what large ones reach, which is 80 and 90 %),
and seconds to launch a kernel."""
PAIRS, RUN = 64, 9.6e6
"""Pairs of a batch, and of the paper's 40 epochs."""

_FLOPS = {**flop_registry, torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}


@dataclass
class Counts(TorchDispatchMode):
    """What a step asks of a GPU.

    Attributes:
        kernels: operations that compute or copy. bytes: that they read and write. flops: of matrix products.
        product_bytes: those of the bytes that matrix products and attention move.
    """

    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    product_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space == "prim" or name.rstrip("_") in _MOVES_NOTHING:
            return out
        moved = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)]
        count = sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in moved)
        self.kernels += 1
        self.bytes += count
        if flops := _FLOPS.get(func._overloadpacket):
            self.flops += flops(*args, **(kwargs or {}), out_val=out)
            self.product_bytes += count
        return out

    def seconds(self, machine: str = "H200") -> float:
        """Return the time on a GPU, by a model that may err by a quarter: nobody has measured it.

        Products cover the bytes that they move; all other kernels take the time of theirs; and no kernel takes
        less than the host needs to launch it.
        """
        operations, speed = MACHINES[machine]
        products = self.flops / (PRODUCTS * operations)
        copies = (self.bytes - self.product_bytes) / (COPIES * speed)
        return max(products + copies, self.kernels * LAUNCH)


class _Drawn:
    """A drawn order whose values are known, as those of a tensor without values are not."""

    def __init__(self, order: range) -> None:
        self._order = order

    def __getitem__(self, part: slice) -> _Drawn:
        return _Drawn(self._order[part])

    def sort(self) -> _Drawn:
        return self

    @property
    def values(self) -> _Drawn:
        return self

    def tolist(self) -> list[int]:
        return list(self._order)


@contextlib.contextmanager
def branches_of_a_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take a GPU's branches on CPU tensors: one kernel for dropout, one for its backward pass, masks without a look."""

    def dropout(inputs: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
        return torch.native_dropout(inputs, probability, True) if probability else (inputs, None)

    def dropped(inputs: Tensor, keep: Tensor | None, probability: float) -> Tensor:
        if keep is None:
            return inputs
        return torch.ops.aten.native_dropout_backward(inputs, keep, 1 / (1 - probability))

    def attention_mask(_: HFBertTower, sequence: Any) -> Tensor:
        keep = sequence.keep[:, None, None, :]
        return torch.zeros_like(keep, dtype=sequence.tokens.dtype).masked_fill(~keep, -1e30)

    def torch_dropout(inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(inputs, p, True)[0] if training and p else inputs

    patch.setattr(lora, "dropout", dropout)
    patch.setattr(lora, "dropped", dropped)
    patch.setattr(HFBertTower, "attention_mask", attention_mask)
    patch.setattr(functional, "dropout", torch_dropout)
    patch.setattr(torch, "randperm", lambda size: _Drawn(range(size)))
    yield


def real_size(patch: pytest.MonkeyPatch) -> Backbone:
    """Return BiomedCLIP's architecture with any values; nobody waits for random numbers."""
    with patch.context() as still:
        for name in ("normal_", "uniform_", "erfinv_"):
            still.setattr(Tensor, name, lambda tensor, *_, **__: tensor)
        return load_backbone("random:biomedclip")


def count_step(name: str, backbone: Backbone, *, pairs: int = PAIRS, tokens: int = 256) -> Counts:
    """Return what the forward and the backward pass of a method's bf16 step cost, on cached features as in a run."""
    counts, size = Counts(), backbone.input_spec.size
    method = methods.build(name, shared_copy(backbone)).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in method.modules():
            for kind in (module._parameters, module._buffers):
                kind.update({key: mode.from_tensor(x) for key, x in kind.items() if x is not None})
        images, labels = torch.zeros(pairs, 3, *size), torch.zeros(pairs, 14)
        batch = Batch(images, torch.ones(pairs, tokens, dtype=torch.long), labels)
        features = torch.zeros(pairs, backbone.embed_dim)
        batch.frozen_image = features if "image" in method.frozen_targets else None
        batch.frozen_text = features if "text" in method.frozen_targets else None
        batch.image_features = None if "image" in method.adapts else features
        batch.text_features = None if "text" in method.adapts else features
        arithmetic = TrainingArithmetic("bf16", torch.device("cpu"), method.backbone.model)
        with arithmetic():  # frozen weights are cast once, not in each step
            pass
        with counts:
            with arithmetic():
                loss = method.loss(batch)
            loss.backward()
    return counts


def main(names: list[str]) -> None:
    """Print what a step of each method costs, and what the model makes of it."""
    trained = [name for name in METHODS.names(extras=False) if not METHODS.get(name).deterministic]
    with pytest.MonkeyPatch.context() as patch, branches_of_a_gpu(patch):
        backbone, total = real_size(patch), dict.fromkeys(MACHINES, 0.0)
        for name in names or [name for name in trained if not METHODS.get(name).needs_classes]:
            one = count_step(name, backbone)
            rate, share = PAIRS / one.seconds(), one.flops / one.seconds() / MACHINES["H200"][0]
            hours = {machine: RUN / PAIRS * one.seconds(machine) / 3600 for machine in MACHINES}
            total = {machine: spent + hours[machine] for machine, spent in total.items()}
            cells = [
                METHODS.get(name).card.title, f"{one.flops / PAIRS / 1e9:.1f}", f"{one.kernels:,}",
                f"{one.bytes / 1e9:.0f}", f"{rate:,.0f}", f"{100 * share:.0f} %",
                *(f"{spent:.1f}" for spent in hours.values()),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
        print(f"| all | | | | | | {' | '.join(f'{hours:.1f}' for hours in total.values())} |")


if __name__ == "__main__":
    main(sys.argv[1:])

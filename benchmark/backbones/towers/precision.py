"""Arithmetic of towers: fp32, or autocast to bf16 or fp16 with frozen weights cast once instead of in every step.

Everything after the towers (heads, unit norm, graph, similarities, loss) is computed in fp32: a bf16 number has 8 bits,
so thousands of cosines would collapse to a few hundred values, and images would tie for the first place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(precision: str, device: torch.device) -> str:
    """Return the arithmetic that runs, fp32, bf16 or fp16: ``auto`` is bf16 on GPUs that have it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    # older GPUs only imitate it, slower than fp32
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of the towers' arithmetic, as :func:`resolve` names it."""
    kind = resolve(precision, device)
    return full_precision(device) if kind == "fp32" else torch.autocast(device.type, dtype=_TYPES[kind])


def scaler_of(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what keeps fp16's gradients from vanishing; in other arithmetic it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=resolve(precision, device) == "fp16")


def fused(parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Return the options of an optimiser whose step is one kernel, where all parameters lie on a GPU.

    Such a step also looks itself whether fp16 overflowed, so that no step waits for that answer.
    """
    places = [parameter.is_cuda for parameter in parameters]
    return {"fused": True} if places and all(places) else {}


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context in which nothing is cast, inside autocast too: what follows the towers is computed there."""
    kind = "cpu" if device.type == "meta" else device.type  # autocast does not know tensors without values
    return torch.autocast(kind, enabled=False)


def at_least_fp32(values: Tensor) -> Tensor:
    """Return values in fp32 where they are coarser, unchanged otherwise."""
    return values if values.dtype == torch.float64 else values.float()


def similarity(left: Tensor, right: Tensor) -> Tensor:
    """Return the products ``[..., N, M]`` of features ``[..., N, E]`` and ``[..., M, E]``, in fp32 or finer.

    The one place where features meet: cosines if both have length 1, logits if one side is scaled.
    """
    with full_precision(left.device):
        return at_least_fp32(left) @ at_least_fp32(right).mT


class TrainingArithmetic:
    """The arithmetic of training steps: a context in which loss and gradients of a model are computed.

    Autocast casts every weight that does not train in every pass, and keeps the copy for the backward pass. Here the
    copies of frozen linear maps are made once and stand in for the weights inside the context alone; the bits are the
    same (``tests/backbones/test_precision.py``), and outside, in validation for example, the model is as it was. A
    linear map that an adapter library has wrapped is left alone: its wrapper may read the weight itself.

    Args:
        precision: auto, fp32, bf16 or fp16.
        device: of the model.
        model: whose weights are cast.
    """

    def __init__(self, precision: str, device: torch.device, model: nn.Module) -> None:
        self._precision, self._device, self._model = precision, device, model
        self._cast: list[tuple[nn.Parameter, Tensor]] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute in the towers' arithmetic while the block runs."""
        with autocast(self._precision, self._device), self._frozen_weights_cast():
            yield

    @property
    def copies(self) -> list[Tensor]:
        """The copies, which last; none in fp32."""
        with autocast(self._precision, self._device):
            return [cast for _, cast in self._pairs()]

    @contextlib.contextmanager
    def _frozen_weights_cast(self) -> Iterator[None]:
        pairs = self._pairs()
        originals = [weight.data for weight, _ in pairs]
        try:
            for weight, cast in pairs:
                weight.data = cast
            yield
        finally:
            for (weight, _), original in zip(pairs, originals, strict=True):
                weight.data = original

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return weights and their copies, made when first asked for under autocast."""
        if not torch.is_autocast_enabled(self._device.type):
            return []
        if self._cast is None:
            kind = torch.get_autocast_dtype(self._device.type)
            self._cast = [(weight, weight.detach().to(kind)) for weight in _frozen_weights(self._model)]
        return self._cast


def _frozen_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights and biases of linear maps that do not train, each once."""
    maps = (
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] != "base_layer"
    )
    tensors = (tensor for module in maps for tensor in (module.weight, module.bias) if tensor is not None)
    found: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return [tensor for tensor in found.values() if not tensor.requires_grad]

"""Reading checkpoints as the methods' authors save them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.errors import StoreError


def flatten(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors by dotted name, from a flat or nested checkpoint.

    A top level of ``weights`` and ``metadata`` (`ACE-LoRA: lora.py`) or ``state_dict`` (CoOp's framework) is removed.
    """
    for wrapper in ("weights", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            return flatten(state[wrapper])
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": tensor for inner, tensor in flatten(value).items()})
        elif isinstance(value, (Tensor, nn.Parameter)):
            flat[name] = value.detach()
    return flat


@torch.no_grad()
def copy_into(target: nn.Parameter, state: Mapping[str, Tensor], name: str, *, who: str) -> None:
    """Copy one official tensor into a parameter of the same number of values.

    Raises:
        StoreError: if it is missing or of another shape.
    """
    if name not in state:
        raise StoreError(
            f"official checkpoint of {who}: tensor '{name}' is missing; it holds {', '.join(state) or 'none'}"
        )
    value = state[name]
    if value.squeeze().shape != target.squeeze().shape:
        raise StoreError(
            f"official checkpoint of {who}: '{name}' has shape {tuple(value.shape)}, expected {tuple(target.shape)}; "
            "build the method with the options that the checkpoint was trained with"
        )
    target.copy_(value.reshape(target.shape))

"""Checkpoints as the methods' authors save them: tensors by name, copied into a method's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.errors import StoreError
from methods.base import Method


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


class OfficialTensors:
    """The tensors of an authors' checkpoint, and which of them have been copied.

    Args:
        method: that they are loaded into.
        state: the checkpoint, flat or nested.
        prefix: left out of the names that begin with it.
    """

    def __init__(self, method: Method, state: Mapping[str, Any], prefix: str = "") -> None:
        self._method, self._what = method, f"official checkpoint of {method.card.title}"
        self._tensors = {name.removeprefix(prefix): value for name, value in flatten(state).items()}
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Return whether the checkpoint holds a tensor."""
        return name in self._tensors

    @torch.no_grad()
    def copy(self, name: str, target: nn.Parameter) -> None:
        """Copy one tensor into a parameter of the same number of values.

        Raises:
            StoreError: if it is missing or of another shape.
        """
        if name not in self._tensors:
            names = list(self._tensors)
            held = ", ".join(names[:8]) + f" and {len(names) - 8} more" * (len(names) > 8)
            raise StoreError(f"{self._what}: tensor '{name}' is missing; it holds {held or 'none'}")
        value = self._tensors[name]
        if value.squeeze().shape != target.squeeze().shape:
            raise StoreError(
                f"{self._what}: '{name}' has shape {tuple(value.shape)}, expected {tuple(target.shape)}; "
                "build the method with the options that the checkpoint was trained with"
            )
        target.copy_(value.reshape(target.shape))
        self._used.add(name)

    def copy_all(self, name: str, module: nn.Module) -> None:
        """Copy ``<name>.weight``, ``<name>.bias`` and so on into the parameters of a module."""
        for own, target in module.named_parameters():
            self.copy(f"{name}.{own}", target)

    def finish(self, *ignored: str) -> None:
        """Set the method's logit scale to ``logit_scale`` where it is stored, and refuse tensors without a place.

        Args:
            *ignored: tensors under these names may be left over.

        Raises:
            StoreError: naming the first tensor that is left over.
        """
        unused = sorted(set(self._tensors) - self._used - {"logit_scale"})
        left = [name for name in unused if not name.startswith(ignored)]
        if left:
            raise StoreError(f"{self._what}: {len(left)} tensors have no place, first '{left[0]}'")
        if "logit_scale" in self._tensors:
            self._method.logit_scale.set(float(self._tensors["logit_scale"]))

"""Checks that adaptation did not change frozen weights, running statistics or the mode of frozen towers.

A frozen weight that changes is not stored, so the stored adapter would not give the reported numbers. Every tensor that
is not trained is hashed once before and once after adaptation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmark.errors import CellError
from methods.base import Method

Digests = Mapping[str, bytes]
_ALIKE = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.ParameterDict, nn.ParameterList, nn.ModuleDict)
"""Modules that do the same in both modes; methods may put frozen ones into a tower."""


def frozen_digests(method: Method) -> Digests:
    """Return name -> digest of every tensor of a method that is not trained, buffers included."""
    trained = set(method.trainable_parameters())
    return {name: _digest(value) for name, value in method.state_dict().items() if name not in trained}


def check_frozen(method: Method, before: Digests) -> None:
    """Compare with what the frozen tensors were before adaptation.

    Raises:
        CellError: one has changed; the message names it.
    """
    after = frozen_digests(method)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if changed:
        more = f" and {len(changed) - 1} more frozen tensors" if changed[1:] else ""
        raise CellError(
            f"{method.card.title} changed '{changed[0]}'{more} during adaptation, which it does not declare as "
            "trained: the stored adapter would not give these results. Train it (requires_grad), or leave it as it is"
        )


def check_mode(method: Method) -> None:
    """Check the mode of a method's modules, after ``train()`` or ``eval()`` has set it.

    In evaluation nothing may be in train mode; in training no part of the backbone that is frozen, and nothing in it
    that has running statistics, which are not stored with what is trained.

    Raises:
        CellError: a module is in train mode that must not be; the message names it.
    """
    wrong = (
        name
        for name, module in method.named_modules()
        if module.training and (not method.training or (name.startswith("backbone") and _stays(module)))
    )
    if (name := next(wrong, None)) is not None:
        frozen, when = ("frozen, but ", "training") if method.training else ("", "evaluation")
        raise CellError(
            f"{method.card.title}: '{name or 'the method'}' is {frozen}in train mode during {when}, so that "
            "dropout draws and statistics move: the method's train() must leave it in eval mode"
        )


def _stays(module: nn.Module) -> bool:
    """Return whether a module of the backbone must stay in eval mode while others train."""
    if getattr(module, "running_mean", None) is not None:
        return True
    weights = list(module.parameters())
    frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
    return frozen and not isinstance(module, _ALIKE)


def _digest(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.blake2b(f"{tuple(value.shape)}{value.dtype}".encode(), digest_size=16)
    digest.update(flat.numpy().data)
    return digest.digest()

"""Gradients of a contrastive loss, also for a batch whose towers do not fit into memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.data.samples import Batch
from methods.base import Embeddings, Method


def backward(method: Method, batch: Batch, micro_batch: int | None, scaler: torch.amp.GradScaler) -> Tensor:
    """Accumulate the gradients of ``method.loss(batch)`` and return the detached loss.

    Args:
        method: whose trained tensors receive gradients.
        batch: all pairs that the loss compares.
        micro_batch: pairs per pass through the towers; None passes all at once. The loss always sees the whole batch,
            so its negatives and gradients stay those of the full batch (Gao et al., RepL4NLP 2021, arXiv 2101.06983):
            a first pass collects embeddings, the loss gives their gradients, a second pass carries these into the
            towers with the same random masks.
        scaler: for fp16; does nothing otherwise.
    """
    if micro_batch is None or micro_batch >= batch.size or not method.splits:
        loss = method.loss(batch)
        scaler.scale(loss).backward()
        return loss.detach()
    parts = batch.split(micro_batch)
    states, embedded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(batch))
            embedded.append(method.embed(part))
    joined: Embeddings = {
        name: torch.cat([piece[name] for piece in embedded]).requires_grad_() for name in embedded[0]
    }
    loss = method.loss_of(joined, batch.labels)
    scaler.scale(loss).backward()
    start = 0
    for part, state in zip(parts, states, strict=True):
        _set_random_state(state)
        pieces = method.embed(part)
        moving = {name: piece for name, piece in pieces.items() if piece.requires_grad}
        torch.autograd.backward(
            list(moving.values()),
            [joined[name].grad[start : start + part.size] for name in moving],  # type: ignore[index]
        )
        start += part.size
    return loss.detach()


def _random_state(batch: Batch) -> tuple[Tensor, Any]:
    device = batch.device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else device


def _set_random_state(state: tuple[Tensor, Any]) -> None:
    torch.set_rng_state(state[0])
    if isinstance(state[1], Tensor):
        torch.cuda.set_rng_state(state[1])

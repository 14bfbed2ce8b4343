"""Gradients of a batch's loss, also for a batch that several processes share or that does not fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.backbones.towers.precision import full_precision
from benchmark.data.samples import Batch
from benchmark.run.training.checkpoint import random_state, set_random_state
from benchmark.world import ALONE, World
from methods.base import Embeddings, Method


def backward(
    method: Method,
    batch: Batch,
    micro_batch: int | None,
    scaler: torch.amp.GradScaler,
    world: World = ALONE,
    step: int = 0,
) -> Tensor:
    """Accumulate the gradients of the loss that the batch's supervision makes, and return the detached loss.

    Args:
        method: whose trained tensors receive gradients.
        batch: what the loss compares; with several processes, this one's share of it, or all of it where the method
            does not take parts (:attr:`Method.splits`).
        micro_batch: samples per pass through the towers; None passes all at once. The loss always sees the whole batch,
            so its negatives and gradients stay those of the full batch (Gao et al., RepL4NLP 2021, arXiv 2101.06983):
            a first pass collects embeddings, the loss gives their gradients, a second pass carries these into the
            towers with the same random masks.
        scaler: for fp16; does nothing otherwise.
        world: processes that share a batch. Each embeds its share and computes the loss of all, so that the mean of
            their gradients is the gradient of the joint batch.
        step: number of the step, from which each process draws its masks.
    """
    if micro_batch is None or micro_batch >= batch.size or not method.splits:
        loss = _loss(method, batch, world, step)
        with _as_computed(batch):
            scaler.scale(loss).backward()
        return loss.detach()
    parts = batch.split(micro_batch)
    states, embedded = [], []
    # compiled blocks draw masks of their own, and run with gradient alone
    compiled = method.backbone.image.compiled or method.backbone.text.compiled
    with world.own_draws(step), torch.set_grad_enabled(compiled):
        for part in parts:
            states.append(random_state(batch.device))
            found = part.supervision.embed(method, part).items()
            embedded.append({name: piece.detach() for name, piece in found})
            del found
    own: Embeddings = {
        name: torch.cat([piece[name] for piece in embedded]).requires_grad_() for name in embedded[0]
    }
    loss = _joint_loss(method, own, batch, world)
    with _as_computed(batch):
        scaler.scale(loss).backward()
    start = 0
    with world.own_draws(step):
        for part, state in zip(parts, states, strict=True):
            set_random_state(state, batch.device)
            pieces = part.supervision.embed(method, part)
            moving = {name: piece for name, piece in pieces.items() if piece.requires_grad}
            with _as_computed(batch):
                torch.autograd.backward(
                    list(moving.values()),
                    [own[name].grad[start : start + part.size] for name in moving],  # type: ignore[index]
                )
            start += part.size
    return loss.detach()


def _as_computed(batch: Batch) -> torch.autocast:
    """Return a context without autocast, where each gradient is computed in the type of its forward pass.

    Inside autocast, what was computed in fp32 would have its gradients rounded (torch's notes on mixed precision), and
    so would the products in a library's gradient hooks, which must not change the type.
    """
    return full_precision(batch.device)


def _loss(method: Method, batch: Batch, world: World, step: int) -> Tensor:
    if world.size == 1 or not method.splits:
        return batch.supervision.loss(method, batch, world)
    with world.own_draws(step):
        own = batch.supervision.embed(method, batch)
    return _joint_loss(method, own, batch, world)


def _joint_loss(method: Method, own: Embeddings, batch: Batch, world: World) -> Tensor:
    """Return the loss of all processes' samples."""
    labels = batch.labels
    values = world.gather([*own.values(), *([] if labels is None else [labels])])
    joint = dict(zip(own, values, strict=False))
    return batch.supervision.loss_of(method, joint, None if labels is None else values[-1])

"""Training a head on maps of a frozen tower: AdamW, warm-up and polynomial decay, best weights by validation.

The head computes in the arithmetic of the run, as the towers do; losses are in fp32.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.backbones.towers.precision import autocast, fused, scaler_of
from benchmark.errors import CellError
from tasks.base import TaskContext
from tasks.heads.images import DenseOptions
from tasks.heads.taps import DenseBatch, TapBatches


@dataclass(frozen=True)
class HeadFit:
    """How the training of a head went.

    Attributes:
        history: one row per epoch: epoch, train_loss, score. best_epoch, best_score: of the kept weights.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_score: float


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Use this seed inside the block; afterwards the global generators continue from their former state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def decay_factor(step: int, *, warmup: int, total: int, power: float) -> float:
    """Return the factor on the learning rate at a 0-based step: linear warm-up, then polynomial decay towards 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (1.0 - (step - warmup) / max(1, total - warmup)) ** power


def fit_head(
    head: nn.Module,
    batches: TapBatches,
    *,
    loss: Callable[[DenseBatch], Tensor],
    validate: Callable[[], float],
    options: DenseOptions,
    context: TaskContext,
    stage: str,
) -> HeadFit:
    """Train a head with AdamW; it holds the weights of its best validation epoch afterwards, in eval mode.

    Args:
        head: on the device; all of it trains.
        batches: of the training part.
        loss: mean loss of a batch, called in the run's arithmetic.
        validate: score of the head as it is (in eval mode, without gradients); larger is better.
        options: schedule, patience, batch size.
        context: seed, device, reporter.
        stage: what the progress display shows.

    Raises:
        CellError: the loss is not finite.
    """
    steps = batches.steps(options.batch_size)
    total = min(options.epochs * steps, options.max_steps or math.inf)
    weights = list(head.parameters())
    optimiser = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay, **fused(weights))
    scaler = scaler_of(context.precision, context.device)

    def make_step(batch: DenseBatch) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with autocast(context.precision, context.device):
            value = loss(batch)
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        return value.detach()

    history: list[dict[str, float]] = []
    best, best_state = -math.inf, copy.deepcopy(head.state_dict())
    best_epoch = 0
    context.reporter.start(stage, int(total))
    with seeded(context.seed, context.device):
        for epoch in range(1, options.epochs + 1):
            done = (epoch - 1) * steps
            left = int(min(steps, total - done))
            epoch_batches = itertools.islice(batches.epoch(epoch, options.batch_size, context.seed), left)
            mean = _epoch(head, epoch_batches, make_step, optimiser, options, done, steps)
            score = _score(head, validate)
            history.append({"epoch": epoch, "train_loss": mean, "score": score})
            context.reporter.advance(left, f"loss {mean:.3f} val {score:.3f}")
            if score > best:
                best, best_epoch, best_state = score, epoch, copy.deepcopy(head.state_dict())
            if epoch - best_epoch >= options.patience or done + left >= total:
                break
    head.load_state_dict(best_state)
    head.eval()
    return HeadFit(history, best_epoch, best)


def _epoch(
    head: nn.Module,
    batches: Iterable[DenseBatch],
    make_step: Callable[[DenseBatch], Tensor],
    optimiser: torch.optim.Optimizer,
    options: DenseOptions,
    done: int,
    steps: int,
) -> float:
    """Run one epoch and return its mean loss."""
    head.train()
    warmup, total = round(options.warmup_epochs * steps), options.epochs * steps
    values: list[Tensor] = []
    for step, batch in enumerate(batches, start=done):
        factor = decay_factor(step, warmup=warmup, total=total, power=options.power)
        for group in optimiser.param_groups:
            group["lr"] = options.end_lr + (options.lr - options.end_lr) * factor
        values.append(make_step(batch))
    mean = float(torch.stack(values).mean())
    if not math.isfinite(mean):
        raise CellError(
            f"the loss of the head became {mean} in step {done} to {done + steps}: lower the task's lr"
        )
    return mean


@torch.no_grad()
def _score(head: nn.Module, validate: Callable[[], float]) -> float:
    head.eval()
    return float(validate())

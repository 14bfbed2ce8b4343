"""The one training loop: batches, loss, backward, step; validation after each epoch; best weights by validation.

It knows no method or task by name. A tower that a method does not change uses cached features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.towers.precision import TrainingArithmetic, fused, scaler_of
from benchmark.config.run_config import Recipe
from benchmark.console import Reporter, Stopped
from benchmark.data.batches import Batches
from benchmark.data.samples import Batch
from benchmark.errors import CellError
from benchmark.run.checks.frozen import check_mode
from benchmark.run.cost import PeakMemory
from benchmark.run.training.checkpoint import Checkpoint, random_state, set_random_state
from benchmark.run.training.clock import StepClock
from benchmark.run.training.gradients import backward
from benchmark.world import ALONE, World
from methods.base import Method

Validate = Callable[[Method], dict[str, float]]
_KEPT_STEP_TIMES = 4096


@dataclass
class Adaptation:
    """The outcome of a training, besides the method's weights.

    Attributes:
        history: one row per epoch, row 0 before the first step.
        best: the history row whose weights were kept.
        step_seconds: of the last steps, each until the next one. step_waits: how much of it a batch was waited for.
        peak_memory: bytes, of the steps; None where the system cannot tell. wall_seconds: all, validation too.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any]
    step_seconds: list[float]
    step_waits: list[float]
    peak_memory: int | None
    wall_seconds: float


@dataclass
class _Progress:
    epoch: int = 0
    step: int = 0
    epoch_steps: int = 0  # of an epoch whose row is not in the history yet
    epoch_loss: Tensor = field(default_factory=lambda: torch.zeros(()))  # their sum
    epoch_empty: Tensor = field(
        default_factory=lambda: torch.zeros(())
    )  # those in which no pair was compared
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    step_waits: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    wall_seconds: float = 0.0


def learning_rate_factor(step: int, *, warmup: int, total: int, schedule: str) -> float:
    """Return the factor on the learning rate at a 0-based step: linear from 0 over the warm-up, then cosine to 0."""
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def make_optimiser(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser of a method's trained tensors, with and without weight decay as the method declares.

    AdamW decays the weights themselves; Adam and SGD (momentum ``betas[0]``) add the decay to the gradient.
    """
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in method.trainable_parameters().items():
        groups[method.decays(name)].append(parameter)
    parts = [
        {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]
    one_kernel = fused(method.trainable_parameters().values())
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parts, lr=recipe.lr, momentum=recipe.betas[0], **one_kernel)
    adam = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimiser]
    return adam(parts, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, **one_kernel)


class Trainer:
    """Adapts one method on one training set.

    Args:
        method: to be trained; holds the best weights afterwards.
        batches: the training set; each batch says what it supervises with.
        recipe: how.
        validate: returns named scores of the method on the validation set; ``metric`` among them is maximised. None:
            there is no such set, and the recipe selects the last step.
        metric: validation score that selects.
        checkpoint: where to go on from.
        device: of the method.
        reporter: told about progress.
        world: processes that train it together, each with its share of ``batches``. The first one validates, keeps the
            checkpoint and tells the others.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        recipe: Recipe,
        *,
        validate: Validate | None,
        metric: str,
        checkpoint: Checkpoint,
        device: torch.device,
        reporter: Reporter,
        world: World = ALONE,
    ) -> None:
        self._method, self._batches, self._recipe, self._world = method, batches, recipe, world
        self._validate, self._metric = validate, metric
        self._checkpoint, self._device, self._reporter = checkpoint, device, reporter
        self._trained = list(method.trainable_parameters().values())
        self._optimiser = make_optimiser(method, recipe)
        self._arithmetic = TrainingArithmetic(recipe.precision, device, method.backbone.model)
        self._scaler = scaler_of(recipe.precision, device)
        self._micro_batch = recipe.micro_batch
        planned = recipe.epochs * batches.steps
        self._total = planned if recipe.max_steps is None else min(planned, recipe.max_steps)
        self._warmup = min(round(recipe.warmup_epochs * batches.steps), max(1, self._total // 2))
        self._progress = _Progress()
        self._clock, self._steps = 0.0, StepClock(device)
        for tower in (method.backbone.image, method.backbone.text):
            if recipe.gradient_checkpointing:
                tower.checkpointing = True
            if recipe.compile:
                tower.compile_blocks()

    def run(self) -> Adaptation:
        """Train to the end, from the last whole checkpoint if there is one.

        Raises:
            CellError: if the loss is not finite, or memory does not suffice for single pairs.
            Stopped: the run was asked to stop; the checkpoint holds everything up to the last step.
        """
        self._clock = time.perf_counter()
        resumed = self._resume()
        self._world.copy_from_first(self._trained)
        progress = self._progress
        if not resumed:
            progress.history.append(self._row(train_loss=None))
            if self._recipe.select == "best_or_start":
                self._keep_best(progress.history[0])
        try:
            while progress.step < self._total or progress.epoch_steps:
                self._next_epoch()
        except Stopped:
            self._count_time()
            self._save()
            raise Stopped(f"kept up to step {progress.step} of {self._total}") from None
        assert progress.best is not None  # at least one epoch ran
        self._method.load_trainable_state(progress.best_state)
        return Adaptation(
            progress.history,
            progress.best,
            progress.step_seconds,
            progress.step_waits,
            progress.peak_memory,
            progress.wall_seconds,
        )

    # ------------------------------------------------------------------ one epoch
    def _next_epoch(self) -> None:
        """Train and validate for one epoch, or for what an earlier run left of it."""
        progress = self._progress
        if not progress.epoch_steps:
            progress.epoch += 1
            progress.epoch_loss, progress.epoch_empty = torch.zeros(2, device=self._device).unbind()
        left = min(self._batches.steps - progress.epoch_steps, self._total - progress.step)
        part = (progress.step / self._total, (progress.step + left) / self._total)
        self._reporter.start(f"adapt, epoch {progress.epoch}", left, part)
        self._method.train()
        check_mode(self._method)
        memory = PeakMemory(self._device)
        self._train_epoch()
        progress.peak_memory = max(filter(None, (progress.peak_memory, memory.bytes())), default=None)
        row = self._row(train_loss=float(progress.epoch_loss) / max(1, progress.epoch_steps))
        if empty := int(progress.epoch_empty):
            row["empty_steps"] = empty
        progress.epoch_steps = 0
        progress.history.append(row)
        self._keep_best(row)
        self._count_time()
        self._save()

    def _train_epoch(self) -> None:
        """Make the steps of an epoch, or what is left of them or of ``max_steps``."""
        progress, since = self._progress, 0
        for batch in self._steps.steps(self._batches.epoch(progress.epoch, progress.epoch_steps)):
            if progress.step >= self._total:
                break
            loss = self._step(batch)
            progress.epoch_loss += loss
            progress.epoch_empty += loss == 0  # all others masked out by label guidance
            progress.epoch_steps += 1
            since += 1
            if since >= self._recipe.log_every:
                since = 0
                self._reporter.advance(self._recipe.log_every, self._note())
            elif self._reporter.stopping():
                raise Stopped
        self._reporter.advance(since, self._note())

    def _note(self) -> str:
        """Read the epoch's mean loss (the only synchronisation with a GPU); one that is not finite is an error."""
        loss = float(self._progress.epoch_loss) / max(1, self._progress.epoch_steps)
        if not math.isfinite(loss):
            step, rate = self._progress.step, self._optimiser.param_groups[0]["lr"]
            raise CellError(
                f"the loss became {loss} before step {step} (epoch {self._progress.epoch}, learning rate {rate:.2g}): "
                "lower --lr or set recipe.grad_clip=1.0"
            )
        return f"loss {loss:.3f}"

    def _step(self, batch: Batch) -> Tensor:
        """Make one optimiser step and return the detached loss."""
        self._set_learning_rate()
        loss = self._backward(batch)
        try:
            self._update()
        except (
            torch.OutOfMemoryError
        ) as error:  # the activations are free already, and a half step cannot be repeated
            raise CellError(
                "out of memory in the optimiser's step, which smaller batches do not help: set recipe.optimiser=sgd, "
                "or use a smaller backbone or --device cpu"
            ) from error
        self._progress.step += 1
        self._method.after_step(self._progress.step, self._total)
        return loss

    def _update(self) -> None:
        """Change the weights by their gradients."""
        if self._recipe.grad_clip is not None:
            self._scaler.unscale_(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.grad_clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()

    def _backward(self, batch: Batch) -> Tensor:
        """Fill the gradients; on out-of-memory pass the towers in ever smaller parts (same gradients)."""
        self._optimiser.zero_grad(set_to_none=True)
        while (loss := self._attempt(batch)) is None:
            # here the failed attempt's error is gone, and with it the frames that held its tensors
            self._optimiser.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self._reporter.log(f"out of memory: towers now take {self._micro_batch} pairs at a time")
        return loss

    def _attempt(self, batch: Batch) -> Tensor | None:
        """Fill the gradients and return the loss; None where memory did not suffice, and half the pairs are tried next.

        Raises:
            CellError: it does not suffice for a single pair.
        """
        try:
            loss = self._accumulate(batch)
            self._world.mean_gradients(self._trained)
            return loss
        except torch.OutOfMemoryError as error:
            self._world.tell(error)  # all make the step again
            size = self._micro_batch or batch.size
            if size <= 1 or not self._method.splits:
                raise CellError(
                    f"out of memory with {size if self._method.splits else batch.size} pairs at a time: "
                    "lower --batch-size, or use a smaller backbone or --device cpu"
                ) from error
        self._micro_batch = size // 2
        return None

    def _accumulate(self, batch: Batch) -> Tensor:
        """Add the gradients of this process's part of the loss, and return the loss of all."""
        step = self._progress.step
        with self._arithmetic():
            if self._recipe.negatives == "global":
                return backward(self._method, batch, self._micro_batch, self._scaler, self._world, step)
            with self._world.own_draws(step):
                return self._world.mean(backward(self._method, batch, self._micro_batch, self._scaler))

    def _set_learning_rate(self) -> None:
        factor = learning_rate_factor(
            self._progress.step, warmup=self._warmup, total=self._total, schedule=self._recipe.schedule
        )
        for group in self._optimiser.param_groups:
            group["lr"] = self._recipe.lr * factor

    # ------------------------------------------------------------------ selection and state
    def _count_time(self) -> None:
        now, progress = time.perf_counter(), self._progress
        progress.wall_seconds += now - self._clock
        self._clock = now
        for kept, new in zip((progress.step_seconds, progress.step_waits), self._steps.read(), strict=True):
            kept += new
            del kept[:-_KEPT_STEP_TIMES]

    def _row(self, train_loss: float | None) -> dict[str, Any]:
        self._count_time()
        self._method.eval()
        check_mode(self._method)
        scores, drawn = self._world.from_first(
            lambda: (self._validate(self._method) if self._validate else {}, random_state(self._device))
        )
        set_random_state(drawn, self._device)  # the same numbers everywhere, should validation draw any
        if self._validate and not math.isfinite(scores[self._metric]):
            raise CellError(
                f"validation gave {self._metric} {scores[self._metric]} in epoch {self._progress.epoch}, by which no "
                "epoch can be selected: look at the validation set's classes"
            )
        return {
            "epoch": self._progress.epoch,
            "step": self._progress.step,
            "train_loss": train_loss,
            "lr": self._optimiser.param_groups[0]["lr"],
            "logit_scale": float(self._method.logit_scale().detach()),
            "seconds": self._progress.wall_seconds,
            **{f"val_{name}": value for name, value in scores.items()},
        }

    def _keep_best(self, row: dict[str, Any]) -> None:
        key, progress = f"val_{self._metric}", self._progress
        last = self._recipe.select == "last"
        if progress.best is None or last or row[key] > progress.best[key]:
            progress.best, progress.best_state = row, self._method.trainable_state()

    def _save(self) -> None:
        if not self._world.is_first:
            return
        self._checkpoint.save(
            {
                "rng": random_state(self._device),
                "progress": vars(self._progress),
                "trained": self._method.trainable_state(),
                "method": self._method.training_state(),
                "optimiser": self._optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
                "micro_batch": self._micro_batch,
            }
        )

    def _resume(self) -> bool:
        state = self._world.from_first(lambda: self._checkpoint.load(self._reporter.log))
        if state is None:
            return False
        set_random_state(state["rng"], self._device)
        self._progress = _Progress(**state["progress"])
        for name in ("epoch_loss", "epoch_empty"):
            setattr(self._progress, name, getattr(self._progress, name).to(self._device))
        self._method.load_trainable_state(state["trained"])
        self._method.load_training_state(state.get("method", {}))
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self._micro_batch = state["micro_batch"]
        self._reporter.log(f"going on after step {self._progress.step} of {self._total}")
        return True

"""The requirements for methods, checked on two small random models, one of each tower family.

A check holds a method to what it declares (what it adapts, its parameter count, identity at the start); where
``list methods`` asks the same question, the check asks it by the same function of ``probes.py``. The tests run every
check on every registered method; a check that fails says what it saw.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.towers.precision import TrainingArithmetic
from benchmark.conformance import class_checks, probes  # noqa: F401  (the first registers its checks)
from benchmark.conformance.requirements import (
    CHECKS,
    ConformanceError,
    check,
    check_in_eval,
    close,
    hold,
    none,
)
from benchmark.conformance.small_models import (
    FAMILIES,
    Build,
    bound,
    class_scores,
    loss_of,
    made,
    move,
    moved,
    small_backbone,
    small_batch,
    with_classes,
    worlds,
)
from benchmark.data.samples import Batch
from benchmark.errors import ConfigError, unknown
from benchmark.registry.sources import place_of
from benchmark.run.training.gradients import backward
from benchmark.store.cells import CellFolder
from methods.base import Method

_GROUPS = ("image", "text", "shared", "scale")


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check on one family; ``reason`` is empty when it holds."""

    check: str
    family: str
    reason: str


def run_checks(build: Build, names: Sequence[str] | None = None) -> Iterator[CheckResult]:
    """Run checks on both families.

    Args:
        build: wraps a fresh backbone with the method, as ``methods.build`` does.
        names: of the checks; None runs all.
    """
    for name in CHECKS if names is None else names:
        for family in FAMILIES:
            try:
                CHECKS[name](build, family)
                reason = ""
            except Exception as error:  # a stranger's method may raise anything
                text = " ".join(str(error).split())
                fault = f"{type(error).__name__}: {text}{place_of(error)}"
                reason = text if isinstance(error, ConformanceError) else fault
            yield CheckResult(name, family, reason)


def matching(words: Sequence[str]) -> list[str]:
    """Return the names of the checks that contain one of the words; all without words.

    Raises:
        ConfigError: a word is in no name.
    """
    for word in words:
        if not any(word.lower() in name.lower() for name in CHECKS):
            raise ConfigError(f"--only: {unknown('check', word, CHECKS)}")
    return [name for name in CHECKS if not words or any(word.lower() in name.lower() for word in words)]


def _step(method: Method, batch: Batch, optimiser: torch.optim.Optimizer, step: int, total: int) -> None:
    method.train()
    optimiser.zero_grad()
    loss_of(method, batch).backward()
    optimiser.step()
    method.after_step(step + 1, total)


@check
def _declared_parameter_count(build: Build, family: str) -> None:
    method, _ = made(build, family)
    for name in method.trainable_parameters():
        group = method.parameter_group(name)
        hold(group in _GROUPS, f"{name}: parameter group '{group}' is none of {', '.join(_GROUPS)}")
    counted, declared = probes.trained_values(method), method.expected_parameters()
    hold(counted == declared, f"trains {counted:,} values, its formula says {declared:,}")


@check
def _frozen_tensors_stay_bit_identical(build: Build, family: str) -> None:
    method, batch = made(build, family)
    trained = method.trainable_parameters()
    frozen = {
        name: value.detach().clone() for name, value in method.state_dict().items() if name not in trained
    }
    if trained:
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
        for each in worlds(method, batch):
            for step in range(3):
                _step(method, each, optimiser, step, 3)
    after = method.state_dict()
    changed = [name for name, value in frozen.items() if not torch.equal(after[name], value)]
    none(changed, "frozen tensors changed in three steps")


@check
def _trained_tensors_receive_gradients(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    if not method.trainable_parameters():
        return
    for each in worlds(method.train(), batch):
        method.zero_grad(set_to_none=True)
        loss_of(method, each).backward()
        without = [name for name, value in method.trainable_parameters().items() if value.grad is None]
        none(without, "trained tensors without gradient")
        stray = [n for n, v in method.named_parameters() if not v.requires_grad and v.grad is not None]
        none(stray, "frozen tensors with gradient")


@check
def _identity_at_initialisation(build: Build, family: str) -> None:
    method, batch = made(build, family)
    if method.identity_at_init:
        hold(*probes.starts_as_frozen(method, batch, small_backbone(family)))


@check
def _towers_it_leaves_alone_keep_their_features(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    frozen = small_backbone(family)
    for kind in probes.KINDS:
        if kind not in method.adapts:
            hold(*probes.keeps_tower(method, batch, kind, frozen, tolerance=0.0))
            hold(*probes.cacheable(method, batch, kind, frozen))


@check_in_eval
def _features_are_unit_norm(method: Method, batch: Any) -> None:
    for features in (method.encode_image(batch.images), method.encode_text(batch.token_ids)):
        expected = (len(batch.images), method.backbone.embed_dim)
        hold(features.shape == expected, f"features have shape {tuple(features.shape)}")
        close(features.norm(dim=-1), torch.ones(len(batch.images)), "feature norms", 1e-4)


@check_in_eval
def _evaluation_is_deterministic(method: Method, batch: Any) -> None:
    first = method.similarity(batch.images, batch.token_ids)
    close(method.similarity(batch.images, batch.token_ids), first, "two passes in eval mode", 0.0)
    method.train()
    if not any(name.startswith("backbone.") for name in method.trainable_parameters()):
        hold(not any(m.training for m in method.backbone.modules()), "a frozen tower is in train mode")


@check_in_eval
def _batch_mates_and_padding_do_not_matter(method: Method, batch: Any) -> None:
    together = method.similarity(batch.images, batch.token_ids)
    for row in range(len(batch.images)):
        image, ids = batch.images[row : row + 1], batch.token_ids[row : row + 1]
        if method.text_padding == "longest":
            ids = method.backbone.trim(ids)
        close(method.similarity(image, ids)[0, 0], together[row, row], f"pair {row} alone", 2e-4)


@check_in_eval
def _order_of_pairs_does_not_matter(method: Method, batch: Any) -> None:
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    if not method.class_bound:
        shuffled: Any = batch.changed(lambda value: value[order])
        logits = method.similarity(batch.images, batch.token_ids)
        permuted = method.similarity(shuffled.images, shuffled.token_ids)
        close(permuted, logits[order][:, order], "permuted logits", 2e-4)
    for each in worlds(method, batch):
        shuffled = each.changed(lambda value: value[order])
        close(loss_of(method, shuffled), loss_of(method, each), "loss of permuted samples", 2e-4)


@check_in_eval
def _zero_shot_path_equals_training_path(method: Method, batch: Any) -> None:
    if method.class_bound:
        return
    images, prompts = Batch(images=batch.images), batch.token_ids[:, None]
    cosines = method.classify(images, method.prepare_classes(prompts))
    logits = method.similarity(batch.images, batch.token_ids)
    close(method.logit_scale() * cosines, logits, "logits", 2e-4)
    twice = method.classify(images, method.prepare_classes(prompts.repeat(1, 2, 1)))
    close(twice, cosines, "a repeated template", 1e-5)


@check
def _trained_state_survives_the_store(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    torch.manual_seed(5)  # another start
    fresh = build(small_backbone(family))
    labelled = with_classes(method, batch)
    fresh.bind(labelled.supervision)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cell = CellFolder(Path(folder))
        cell.write_tensors("adapter.safetensors", method.trainable_state())
        fresh.load_trainable_state(cell.read_tensors("adapter.safetensors"))
        ours, stored = (_scores(m.eval(), batch) for m in (method, fresh))
    close(stored, ours, "logits after saving and loading", 1e-6)


def _scores(method: Method, batch: Any) -> Tensor:
    """Return what a method says of a batch: of its pairs, or of the classes that it is bound to."""
    if method.class_bound:
        return class_scores(method, with_classes(method, batch))
    return method.similarity(batch.images, batch.token_ids)


@check
def _overfits_sixteen_pairs(build: Build, family: str) -> None:
    """Train on 16 random pairs and nothing else, without labels.

    The logit scale is held, since it alone lowers the loss. What may be asked depends on the method's size. As many
    trained values as the 32 features have (32 E) could store every feature: such a method must reach half of ln 16, the
    loss of features that tell nothing. A residual of E values cannot tell sixteen texts apart, so a smaller method has
    to lower the loss by a fiftieth. Four learning rates are tried, as a rate that suits a prompt breaks a backbone.
    """
    torch.manual_seed(0)
    method = build(small_backbone(family))
    method.logit_scale.value.requires_grad_(False)
    trained = sum(value.numel() for value in method.trainable_parameters().values())
    if not trained or method.needs_classes:
        return
    start = dict(method.trainable_state())
    batch = _sixteen(method)
    before = _loss(method, batch)
    large = trained >= 32 * method.backbone.embed_dim
    goal = math.log(16) / 2 if large else 0.98 * before
    reached = before
    for rate in (1e-2, 3e-3, 1e-3, 1e-1):
        method.load_trainable_state(start)
        reached = min(reached, _overfitted(method, batch, rate, goal))
        if reached <= goal:
            return
    size = f"{trained:,} trained values could store the pairs" if large else f"{trained:,} trained values"
    raise ConformanceError(f"loss went from {before:.2f} to {reached:.2f}, expected {goal:.2f} ({size})")


@torch.no_grad()
def _sixteen(method: Method) -> Batch:
    """Return 16 pairs without labels; towers that the method leaves alone bring features, as in training."""
    batch: Any = small_batch(method.backbone, 16)
    if method.text_padding == "longest":
        batch.token_ids = method.backbone.trim(batch.token_ids)
    if "image" not in method.adapts:
        batch.image_features = method.backbone.image.features(batch.images)
    if "text" not in method.adapts:
        batch.text_features = method.backbone.text.features(batch.token_ids)
    batch.labels = None
    return batch


def _overfitted(method: Method, batch: Batch, rate: float, goal: float, steps: int = 80) -> float:
    """Return the loss after training until ``goal``; a rate that gets nowhere in 40 steps is given up."""
    optimiser = torch.optim.AdamW(method.trainable_parameters().values(), lr=rate, weight_decay=0.0)
    before = best = _loss(method, batch)
    for step in range(steps):
        _step(method, batch, optimiser, step, steps)
        if (step + 1) % 10 == 0:
            best = min(best, _loss(method, batch))
            if best <= goal or (step == 39 and before - best < (before - goal) / 4):
                break
    return best


@torch.no_grad()
def _loss(method: Method, batch: Batch) -> float:
    return float(loss_of(method.eval(), batch))


@check
def _parts_of_a_batch_give_its_gradients(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    if not method.trainable_parameters() or not method.splits:
        return
    method.eval()  # dropout masks of a whole and of parts differ; everything else must not
    for each in worlds(method, batch):
        gradients, parts = _gradients(method, each, None), _gradients(method, each, 4)
        hold(gradients.keys() == parts.keys(), "other tensors receive gradients")
        for name, whole in gradients.items():
            error = float((parts[name] - whole).norm() / whole.norm().clamp(min=1e-4))
            hold(error < 1e-3, f"gradient of {name} differs by {error:.2g}")


def _gradients(method: Method, batch: Batch, micro_batch: int | None) -> dict[str, Tensor]:
    method.zero_grad(set_to_none=True)
    backward(method, batch, micro_batch, _no_scaler())
    return {n: v.grad.clone() for n, v in method.trainable_parameters().items() if v.grad is not None}


def _no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


@check_in_eval
def _runs_in_bf16_and_float64(method: Method, batch: Any) -> None:
    losses = []
    for each in worlds(method, batch):
        plain = loss_of(method, each)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = loss_of(method, each)
        hold(bool(rounded.isfinite()), "loss under bf16 autocast is not finite")
        near = abs(float(rounded - plain)) < 0.15 * max(1.0, float(plain))
        hold(near, f"bf16 loss {rounded:.3f}, fp32 {plain:.3f}")
        losses.append(plain)
    method.double()
    batch.images = batch.images.double()
    for plain, each in zip(losses, worlds(method, batch), strict=True):
        precise = loss_of(method, each)
        hold(abs(float(precise - plain)) < 1e-3, f"float64 loss {precise:.5f}, fp32 {plain:.5f}")


@check
def _makes_a_step_in_bf16(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    trained = method.train().trainable_parameters()
    if not trained:
        return
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-4)
    with TrainingArithmetic("bf16", torch.device("cpu"), method.backbone.model)():
        for each in worlds(method, batch):
            backward(method, each, None, _no_scaler())
    optimiser.step()
    method.after_step(1, 2)
    lost = [
        n for n, v in trained.items() if v.grad is None or not bool((v.grad.isfinite() & v.isfinite()).all())
    ]
    hold(not lost, f"no finite gradient for {', '.join(lost[:3])}")


@check_in_eval
def _similarities_and_loss_are_not_rounded(method: Method, batch: Any) -> None:
    labelled = with_classes(method, batch)
    prompts = labelled.supervision.prompts if method.class_bound else batch.token_ids[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, classes = Batch(images=batch.images), method.prepare_classes(prompts)
        found = {
            "classify": method.classify(images, classes),
            "classify_patches": method.classify_patches(batch.images, classes),
            "similarity": method.similarity(batch.images, batch.token_ids),
        }
    for what, values in found.items():
        # few fp32 values are bf16 values too; a product that was rounded and widened again always is one
        exact = values.dtype == torch.float32 and (values.bfloat16() == values).float().mean() <= 0.5
        hold(bool(exact), f"{what} is rounded to bf16 under autocast: multiply by precision.similarity")
    for each in worlds(method, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, embeddings = loss_of(method, each), each.supervision.embed(method, each)
        hold(loss.dtype == torch.float32, f"the loss is {loss.dtype} under bf16 autocast, expected fp32")
        if method.splits:
            again = each.supervision.loss_of(method, embeddings, each.labels)
            close(loss, again, "loss under bf16 autocast", 1e-5)


@check
def _every_tensor_moves_with_the_method(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    hold(*probes.registers_every_tensor(method))
    if torch.cuda.is_available() and not method.needs_classes:
        here = _loss(method, batch)
        there = _loss(method.cuda(), batch.changed(lambda value: value.cuda()))
        hold(abs(there - here) < 1e-2, f"loss on the GPU {there:.4f}, on the CPU {here:.4f}")


@check
def _trains_the_same_tensors_once_moved(build: Build, family: str) -> None:
    method, _ = made(build, family)
    trained = set(method.trainable_parameters())
    # another type stands for another device: for both, libraries put new tensors in the place of old ones
    for order, there in (
        ("it was moved", method.bfloat16()),
        ("it was built on a moved backbone", build(small_backbone(family).bfloat16())),
    ):
        if method.fits and there is not method:  # has nothing to move before it is fitted
            continue
        other = sorted(trained ^ set(there.trainable_parameters()))
        none(other, f"once {order}, it trains {len(other)} other tensors")


@check_in_eval
def _a_copy_stands_on_its_own(method: Method, batch: Any) -> None:
    copied = copy.deepcopy(method)
    before = _scores(method, batch)
    close(_scores(copied, batch), before, "logits of a copy", 0.0)
    move(copied, size=0.5)
    close(_scores(method, batch), before, "logits after the copy was trained", 0.0)
    after = _scores(copied, batch)
    trains = probes.trained_values(method) > 0
    hold(trains != torch.equal(after, before), "training a copy changes nothing in the copy")


@check_in_eval
def _classes_are_scored_one_by_one(method: Method, batch: Any) -> None:
    if not method.class_bound:
        hold(*probes.scores_unseen_classes(method, batch))


@check
def _declared_merge_gives_the_same_features(build: Build, family: str) -> None:
    method, batch = moved(build, family)
    if method.mergeable:
        hold(*probes.can_merge(method, batch, small_backbone(family)))


@check
def _seeds_and_prints_nothing(build: Build, family: str) -> None:
    states, printed = [], io.StringIO()
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        for seed in (1, 2):
            torch.manual_seed(seed)
            method = build(small_backbone(family))
            batch = small_batch(method.backbone)
            _loss(bound(method, batch), worlds(method, batch)[0])
            states.append(torch.get_rng_state())
    hold(not torch.equal(*states), "the random state does not depend on the run's seed: it seeds by itself")
    hold(not printed.getvalue(), f"prints '{printed.getvalue().strip()[:60]}'")

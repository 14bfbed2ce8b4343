"""What every method must keep, checked on two small random models, one of each tower family.

The checks read a method's declarations (what it adapts, its parameter count, identity at the start) and hold it to
them. They run over the whole registry in the tests; a check that fails says what it saw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones import Backbone, from_open_clip, load_backbone
from benchmark.data.samples import Batch
from benchmark.efficiency import parameter_counts
from benchmark.gradients import backward
from benchmark.store import CellFolder
from methods.base import Method

FAMILIES = ("timm+bert", "open_clip")
Build = Callable[[Backbone], Method]
Check = Callable[[Build, str], None]
CHECKS: dict[str, Check] = {}
_PAIRS = 6


class ConformanceError(AssertionError):
    """A method does not keep what every method must keep, or what it declared."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check on one family; ``reason`` is empty when it holds."""

    check: str
    family: str
    reason: str


def verdicts(build: Build) -> Iterator[Verdict]:
    """Run all checks on both families.

    Args:
        build: wraps a fresh backbone with the method, as ``methods.build`` does.
    """
    for name, check in CHECKS.items():
        for family in FAMILIES:
            try:
                check(build, family)
                reason = ""
            except Exception as error:  # a stranger's method may raise anything
                text = " ".join(str(error).split())
                reason = text if isinstance(error, ConformanceError) else f"{type(error).__name__}: {text}"
            yield Verdict(name, family, reason)


def small_backbone(family: str) -> Backbone:
    """Return a small random model of a family, the same one every time."""
    if family == "timm+bert":
        return _spread(load_backbone("random:tiny"))
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=3, width=64, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=24, vocab_size=80, width=48, heads=2, layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(32, vision, text, quick_gelu=True)
    return _spread(from_open_clip(model, name="random:small_clip"))


def _spread(backbone: Backbone) -> Backbone:
    """Enlarge random weights: libraries start them so small that all images and all texts look alike."""
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if parameter.ndim >= 2 and backbone.tower_of(name) != "scale":
                parameter.mul_(2.0)
    return backbone


def small_batch(backbone: Backbone, pairs: int = _PAIRS, *, seed: int = 0) -> Batch:
    """Return random pairs: texts of several lengths, padded to the context length; labels with repeated rows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(pairs, 3, *backbone.input_spec.size, generator=generator)
    length = backbone.text.context_length
    ids = torch.zeros(pairs, length, dtype=torch.long)
    for row in range(pairs):
        words = int(torch.randint(5, length // 2, (1,), generator=generator))
        ids[row, :words] = torch.randint(5, 70, (words,), generator=generator)
        ids[row, 0], ids[row, words] = 2, 79  # the largest id ends a text where a tower looks for it
    labels = torch.randint(0, 2, (pairs, 2), generator=generator).float()
    return Batch(images=images, token_ids=ids, labels=labels)


def _check(check: Check) -> Check:
    CHECKS[check.__name__.removeprefix("_").replace("_", " ")] = check
    return check


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise ConformanceError(what)


def _close(ours: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    error = float((ours - expected).abs().max())
    _hold(error <= tolerance, f"{what}: differs by {error:.2g}, allowed {tolerance:.0e}")


def _made(build: Build, family: str) -> tuple[Method, Any]:  # Any: a Batch whose inputs are all there
    torch.manual_seed(0)
    method = build(small_backbone(family))
    return method, small_batch(method.backbone)


def _moved(build: Build, family: str) -> tuple[Method, Any]:
    """Return a method whose trained values are away from their start, so that nothing is hidden by zeros."""
    method, batch = _made(build, family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in method.trainable_parameters().items():
            if method.parameter_group(name) != "scale":
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return method, batch


def _train(method: Method, batch: Batch, steps: int, lr: float = 1e-3) -> list[float]:
    """Take some AdamW steps in training mode and return the losses before each."""
    parameters = method.trainable_parameters().values()
    if not parameters:
        return []
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        method.train()
        optimiser.zero_grad()
        loss = method.loss(batch)
        loss.backward()
        optimiser.step()
        method.logit_scale.clamp()
        losses.append(float(loss.detach()))
    return losses


@_check
def _declared_parameter_count(build: Build, family: str) -> None:
    method, _ = _made(build, family)
    counted, declared = (
        parameter_counts(method)["trainable_without_logit_scale"],
        method.expected_parameters(),
    )
    _hold(counted == declared, f"trains {counted:,} values, its formula says {declared:,}")


@_check
def _frozen_tensors_stay_bit_identical(build: Build, family: str) -> None:
    method, batch = _made(build, family)
    trained = set(method.trainable_parameters())
    frozen = {
        name: value.detach().clone() for name, value in method.state_dict().items() if name not in trained
    }
    _train(method, batch, 3)
    after = method.state_dict()
    changed = [name for name, value in frozen.items() if not torch.equal(after[name], value)]
    _hold(not changed, f"frozen tensors changed in three steps: {', '.join(changed[:3])}")


@_check
def _trained_tensors_receive_gradients(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    if not method.trainable_parameters():
        return
    method.train().loss(batch).backward()
    without = [name for name, value in method.trainable_parameters().items() if value.grad is None]
    _hold(not without, f"trained tensors without gradient: {', '.join(without[:3])}")
    stray = [n for n, v in method.named_parameters() if not v.requires_grad and v.grad is not None]
    _hold(not stray, f"frozen tensors with gradient: {', '.join(stray[:3])}")


@_check
def _identity_at_initialisation(build: Build, family: str) -> None:
    method, batch = _made(build, family)
    if not method.identity_at_init:
        return
    frozen = small_backbone(family)
    with torch.no_grad():
        method.eval()
        image = functional.normalize(frozen.image.features(batch.images), dim=-1)
        text = functional.normalize(frozen.text.features(batch.token_ids), dim=-1)
        _close(method.encode_image(batch.images), image, "image features at the start", 1e-5)
        _close(method.encode_text(batch.token_ids), text, "text features at the start", 1e-5)


@_check
def _towers_it_leaves_alone_keep_their_features(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    frozen = small_backbone(family)
    inputs = {"image": batch.images, "text": batch.token_ids}
    with torch.no_grad():
        method.eval()
        for kind in {"image", "text"} - method.adapts:
            plain = getattr(frozen, kind).features(inputs[kind])
            ours = getattr(method.backbone, kind).features(inputs[kind])
            _close(ours, plain, f"{kind} tower is not declared as adapted", 0.0)
            live = getattr(method, f"encode_{kind}")(inputs[kind])
            cached = getattr(method, f"from_{kind}_features")(plain)
            _close(live, cached, f"{kind} features from the cache", 1e-6)


@_check
def _features_are_unit_norm(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    with torch.no_grad():
        method.eval()
        for features in (method.encode_image(batch.images), method.encode_text(batch.token_ids)):
            _hold(
                features.shape == (_PAIRS, method.backbone.embed_dim),
                f"features have shape {tuple(features.shape)}",
            )
            _close(features.norm(dim=-1), torch.ones(_PAIRS), "feature norms", 1e-4)


@_check
def _evaluation_is_deterministic(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    method.eval()
    with torch.no_grad():
        first = method.similarity(batch.images, batch.token_ids)
        _close(method.similarity(batch.images, batch.token_ids), first, "two passes in eval mode", 0.0)
        method.train()
        if not any(name.startswith("backbone.") for name in method.trainable_parameters()):
            _hold(not any(m.training for m in method.backbone.modules()), "a frozen tower is in train mode")


@_check
def _batch_mates_and_padding_do_not_matter(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    with torch.no_grad():
        method.eval()
        together = method.similarity(batch.images, batch.token_ids)
        for row in range(_PAIRS):
            image, ids = batch.images[row : row + 1], batch.token_ids[row : row + 1]
            if method.text_padding == "longest":
                ids = method.backbone.trim(ids)
            _close(method.similarity(image, ids)[0, 0], together[row, row], f"pair {row} alone", 2e-4)


@_check
def _order_of_pairs_does_not_matter(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled: Any = Batch(
        **{name: None if value is None else value[order] for name, value in vars(batch).items()}
    )
    with torch.no_grad():
        method.eval()
        logits = method.similarity(batch.images, batch.token_ids)
        _close(
            method.similarity(shuffled.images, shuffled.token_ids),
            logits[order][:, order],
            "permuted logits",
            2e-4,
        )
        _close(method.loss(shuffled), method.loss(batch), "loss of permuted pairs", 2e-4)


@_check
def _zero_shot_path_equals_training_path(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    with torch.no_grad():
        method.eval()
        classes = method.prepare_classes(batch.token_ids[:, None])
        cosines = method.classify(Batch(images=batch.images), classes)
        _close(
            method.logit_scale() * cosines, method.similarity(batch.images, batch.token_ids), "logits", 2e-4
        )
        twice = method.classify(
            Batch(images=batch.images), method.prepare_classes(batch.token_ids[:, None].repeat(1, 2, 1))
        )
        _close(twice, cosines, "a repeated template", 1e-5)


@_check
def _trained_state_survives_the_store(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    torch.manual_seed(5)  # another start
    fresh = build(small_backbone(family))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cell = CellFolder(Path(folder))
        cell.write_tensors("adapter.safetensors", method.trainable_state())
        fresh.load_trainable_state(cell.read_tensors("adapter.safetensors"))
        method.eval(), fresh.eval()
        _close(
            fresh.similarity(batch.images, batch.token_ids),
            method.similarity(batch.images, batch.token_ids),
            "logits after saving and loading",
            1e-6,
        )


@_check
def _learns_sixteen_pairs(build: Build, family: str) -> None:
    torch.manual_seed(0)
    method = build(small_backbone(family))
    batch = small_batch(method.backbone, 16)
    batch.labels = None
    losses = _train(method, batch, 25, lr=3e-3)
    if losses:
        _hold(
            min(losses[-5:]) < losses[0] - 0.02,
            f"loss went from {losses[0]:.3f} to {losses[-1]:.3f} in 25 steps",
        )
        _hold(float(method.logit_scale().detach()) <= 100.001, "the logit scale is above 100")


@_check
def _parts_of_a_batch_give_its_gradients(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    if not method.trainable_parameters() or not method.splits:
        return
    method.eval()  # dropout masks of a whole and of parts differ; everything else must not
    gradients = []
    for size in (None, 4):
        method.zero_grad(set_to_none=True)
        backward(method, batch, size, torch.amp.GradScaler("cpu", enabled=False))
        gradients.append(
            {n: v.grad.clone() for n, v in method.trainable_parameters().items() if v.grad is not None}
        )
    _hold(gradients[0].keys() == gradients[1].keys(), "other tensors receive gradients")
    for name, whole in gradients[0].items():
        error = float((gradients[1][name] - whole).norm() / whole.norm().clamp(min=1e-4))
        _hold(error < 1e-3, f"gradient of {name} differs by {error:.2g}")


@_check
def _runs_in_bf16_and_float64(build: Build, family: str) -> None:
    method, batch = _moved(build, family)
    method.eval()
    with torch.no_grad():
        plain = method.loss(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = method.loss(batch)
        _hold(bool(rounded.isfinite()), "loss under bf16 autocast is not finite")
        _hold(
            abs(float(rounded - plain)) < 0.15 * max(1.0, float(plain)),
            f"bf16 loss {rounded:.3f}, fp32 {plain:.3f}",
        )
        method.double()
        batch.images = batch.images.double()
        precise = method.loss(batch)
        _hold(abs(float(precise - plain)) < 1e-3, f"float64 loss {precise:.5f}, fp32 {plain:.5f}")

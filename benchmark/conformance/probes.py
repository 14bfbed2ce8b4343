"""What a method can do, found out by trying it on two small models; what it declares is only compared with that.

*changes a tower*: the tower's own features (interventions and deltas included, heads not) differ once the trained
values have moved. *cached*: the method declares that a tower's features are constant, the moved tower confirms it, and
the features that follow from stored ones equal the live ones. *labels*: the loss cannot be computed without them.
*merges*: :func:`folded` gives a plain backbone with the method's features. *unseen*: class lists of any length are
scored, each class on its own. *identity*: features equal the frozen model's before the first step. *resnet*: whether it
works where the image tower is a ResNet, which has no tokens; if not, the line that says so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone, Tower, from_open_clip, load_backbone
from benchmark.backbones.towers.base import SITES
from benchmark.backbones.towers.resnet import ResNetTower
from benchmark.conformance.small_models import FAMILIES, Build, made, moved, small_backbone, small_batch
from benchmark.data.samples import Batch
from benchmark.errors import BenchmarkError
from benchmark.run.cost import parameter_counts
from methods.base import Method

Kind = Literal["image", "text"]
KINDS: tuple[Kind, Kind] = ("image", "text")
COUNTED_ON = "random:tiny"


@dataclass(frozen=True)
class Capabilities:
    """What was found. A method that fails on one family has it missing in ``families`` and a line in ``notes``.

    Attributes:
        trained: trained values on the embedded backbone, logit scale not counted.
        changes, cached: towers. merges: None where nothing trains.
        families: tower families on which all of this was found. notes: declarations that what was found contradicts.
        resnet: why it does not work with a ResNet as image tower; empty where it does.
    """

    trained: int
    changes: tuple[Kind, ...]
    cached: tuple[Kind, ...]
    needs_labels: bool
    merges: bool | None
    unseen_classes: bool
    identity: bool
    families: tuple[str, ...]
    notes: tuple[str, ...]
    resnet: str = ""


def capabilities(build: Build) -> Capabilities:
    """Probe a method.

    Args:
        build: wraps a fresh backbone with it.

    Raises:
        Exception: whatever the method raises when it works on neither family.
    """
    found: dict[str, Capabilities] = {}
    problems: dict[str, Exception] = {}
    for family in FAMILIES:
        try:
            found[family] = _on_family(build, family)
        except Exception as error:  # a stranger's method may raise anything
            problems[family] = error
    if not found:
        raise problems[FAMILIES[0]]
    each = list(found.values())
    notes = [note for item in each for note in item.notes]
    notes += [f"{family}: {type(error).__name__}: {error}" for family, error in problems.items()]
    merges = {item.merges for item in each}
    resnet, unclear = _on_resnet(build)
    return Capabilities(
        trained=_count(build),
        changes=_in_order(kind for item in each for kind in item.changes),
        cached=tuple(kind for kind in KINDS if all(kind in item.cached for item in each)),
        needs_labels=any(item.needs_labels for item in each),
        merges=None if merges == {None} else False not in merges,
        unseen_classes=all(item.unseen_classes for item in each),
        identity=all(item.identity for item in each),
        families=tuple(found),
        notes=tuple(dict.fromkeys([*notes, *unclear])),
        resnet=resnet,
    )


def _count(build: Build) -> int:
    return parameter_counts(build(load_backbone(COUNTED_ON)))["trainable_without_logit_scale"]


def _on_family(build: Build, family: str) -> Capabilities:
    method, batch = moved(build, family)
    trains = parameter_counts(method)["trainable_without_logit_scale"]
    frozen = small_backbone(family)
    changes = changed_towers(method, batch, frozen)
    cached = _in_order(kind for kind in KINDS if cacheable(method, batch, kind, frozen))
    merges = can_merge(method, batch, small_backbone(family)) if trains else None
    identity = starts_as_frozen(*made(build, family), frozen)
    unsaid = _in_order({*changes} - method.adapts)
    undone = _in_order(kind for kind in KINDS if kind in method.adapts and kind not in changes)
    notes = [f"says that it leaves the {kind} tower alone, but changes it" for kind in unsaid]
    notes += [f"says that it changes the {kind} tower, but does not" for kind in undone]
    if method.identity_at_init and not identity:
        notes.append("says that it starts as the frozen model, but does not")
    if method.mergeable and merges is False:
        notes.append("says that it merges into the weights, but does not")
    needs_labels = not _loss_is_finite(method, batch)
    unseen = scores_unseen_classes(method, batch)
    return Capabilities(
        trains, changes, cached, needs_labels, merges, unseen, identity, (family,), tuple(notes)
    )


def _on_resnet(build: Build) -> tuple[str, list[str]]:
    """Return why a method does not work with a ResNet as image tower ("": it does), and a note if that is not clear."""
    try:
        torch.manual_seed(0)
        method = build(small_resnet())
        batch: Any = small_batch(method.backbone)
        method.loss(batch)
        method.eval().similarity(batch.images, batch.token_ids)
    except BenchmarkError as error:
        return str(error), []
    except Exception as error:  # a stranger's method may raise anything
        reason = f"{type(error).__name__}: {error}"
        return reason, [f"with a ResNet as image tower it fails without a clear line: {reason}"]
    return "", []


def small_resnet() -> Backbone:
    """Return a small random model whose image tower is a ResNet."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=64, image_size=32)
        text = CLIPTextCfg(context_length=24, vocab_size=80, width=48, heads=2, layers=3)
        return from_open_clip(CLIP(32, vision, text, quick_gelu=True), name="random:small_resnet")


# ---------------------------------------------------------------------------- one question each
@torch.no_grad()
def changed_towers(method: Method, batch: Any, frozen: Backbone) -> tuple[Kind, ...]:
    """Return the towers whose own features differ from the frozen ones (interventions and deltas act, heads do not)."""
    method.eval()
    return tuple(
        kind
        for kind in KINDS
        if not torch.allclose(_adapted(method, kind, batch), _plain(frozen, kind, batch), rtol=0.0, atol=1e-5)
    )


@torch.no_grad()
def cacheable(method: Method, batch: Any, kind: Kind, frozen: Backbone) -> bool:
    """Return whether a tower's features may be computed once: declared, and the frozen ones give the same."""
    if kind in method.adapts:
        return False
    method.eval()
    live = getattr(method, f"encode_{kind}")(_inputs(batch, kind))
    stored = getattr(method, f"from_{kind}_features")(_plain(frozen, kind, batch))
    return torch.allclose(live, stored, rtol=0.0, atol=1e-5)


@torch.no_grad()
def starts_as_frozen(method: Method, batch: Any, frozen: Backbone) -> bool:
    """Return whether a method that has not been trained gives the frozen backbone's features."""
    method.eval()
    pairs = zip(_features(method, batch), _frozen_features(frozen, batch), strict=True)
    return all(torch.allclose(ours, plain, rtol=0.0, atol=1e-5) for ours, plain in pairs)


@torch.no_grad()
def can_merge(method: Method, batch: Any, frozen: Backbone) -> bool:
    """Return whether :func:`folded` gives a plain backbone with the method's features and similarities."""
    method.eval()
    plain = folded(method, frozen)
    image, text = _frozen_features(plain, batch)
    ours = _features(method, batch)
    logits = method.logits(image, text)
    return all(
        torch.allclose(x, y, rtol=0.0, atol=tolerance)
        for x, y, tolerance in (
            (ours[0], image, 1e-4),
            (ours[1], text, 1e-4),
            (method.similarity(batch.images, batch.token_ids), logits, 5e-3),
        )
    )


@torch.no_grad()
def scores_unseen_classes(method: Method, batch: Any) -> bool:
    """Return whether class lists of any length are scored, and a class alike whatever stands beside it."""
    method.eval()
    prompts = batch.token_ids[:, None]
    images = Batch(images=batch.images)
    many = method.classify(images, method.prepare_classes(prompts))
    few = method.classify(images, method.prepare_classes(prompts[[2, 0]]))
    alike = few.shape == (len(batch.images), 2) and torch.allclose(few, many[:, [2, 0]], rtol=0.0, atol=1e-4)
    return bool(alike and many.isfinite().all())


def _loss_is_finite(method: Method, batch: Any) -> bool:
    try:
        with torch.no_grad():
            return bool(method.loss(Batch(batch.images, batch.token_ids)).isfinite())
    except Exception:  # whatever stops a loss that has no labels
        return False


# ---------------------------------------------------------------------------- folding
@torch.no_grad()
def folded(method: Method, onto: Backbone) -> Backbone:
    """Return a plain backbone with what a method has learnt in its weights, as far as weights can hold it.

    What can be held: trained values of the backbone itself, under their own names; and, at every linear map that takes
    deltas (``towers.SITES``), whatever is linear in its input. There the adapted map is measured, at zero and at the
    unit vectors, and written as weight and bias of a Linear. Prompts, parallel branches and heads are left out, and a
    map that is not linear comes out wrong: the features then differ, and the method does not merge.

    Args:
        method: in eval mode; it stays as it is.
        onto: a fresh backbone of the same architecture; it is changed and returned.
    """
    source = copy.deepcopy(method)
    source.backbone.split_qkv()
    onto.split_qkv()
    learnt = source.backbone.model.state_dict()
    for name, value in onto.model.state_dict().items():
        if name in learnt:
            value.copy_(learnt[name])
    pairs = ((source.backbone.image, onto.image), (source.backbone.text, onto.text))
    for tower, target in (
        pair for pair in pairs if not isinstance(pair[0], ResNetTower)
    ):  # it takes no deltas
        for index in range(tower.depth):
            for site in SITES:
                if _is_adapted(tower, index, site):
                    _write(target.linear_at(index, site), *_measured(tower, index, site))
    return onto


def _is_adapted(tower: Tower, index: int, site: str) -> bool:
    name = tower.linear_of(index, site)[1]
    return tower.has_deltas(index, name) or type(tower.linear_at(index, site)) is not nn.Linear


def _measured(tower: Tower, index: int, site: str) -> tuple[Tensor, Tensor]:
    """Return weight ``[out, in]`` and bias ``[out]`` of an adapted map, taken as linear."""
    _, name, start, stop = tower.linear_of(index, site)
    _, last_name, _, last_stop = tower.linear_of(index, "v")
    width = tower.site_shape(index, site)[0]
    probes = torch.cat([torch.zeros(1, width), torch.eye(width)])[None]
    # forward, not the call: a hook that adds the deltas would add them twice
    outputs = tower.linear_at(index, site).forward(probes)
    nothing = torch.zeros(*probes.shape[:2], last_stop if last_name == name else stop)
    outputs = (outputs + tower.add_deltas(index, name, probes, nothing)[..., start:stop])[0]
    return (outputs[1:] - outputs[0]).T, outputs[0]


def _write(linear: Any, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(bias)


# ---------------------------------------------------------------------------- features
def _inputs(batch: Any, kind: Kind) -> Tensor:
    inputs: Tensor = batch.images if kind == "image" else batch.token_ids
    return inputs


def _plain(backbone: Backbone, kind: Kind, batch: Any) -> Tensor:
    tower: Tower = getattr(backbone, kind)
    return tower.features(_inputs(batch, kind))


def _adapted(method: Method, kind: Kind, batch: Any) -> Tensor:
    """Return what a tower gives with the method's interventions and deltas, before its heads."""
    if kind == "image":
        return method.backbone.image.features(batch.images, interventions=method.image_interventions())
    ids = method.text_ids(batch.token_ids)
    return method.backbone.text.features(ids, interventions=method.text_interventions())


def _frozen_features(backbone: Backbone, batch: Any) -> list[Tensor]:
    return [functional.normalize(_plain(backbone, kind, batch), dim=-1) for kind in KINDS]


def _features(method: Method, batch: Any) -> list[Tensor]:
    return [method.encode_image(batch.images), method.encode_text(batch.token_ids)]


def _in_order(kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    chosen = set(kinds)
    return tuple(kind for kind in KINDS if kind in chosen)

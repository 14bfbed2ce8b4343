"""Questions to a method, answered by trying it on small models, and compared with its declarations.

Every question is a function that returns whether something holds and, where it does not, what was seen. The table of
``list methods`` asks them (:func:`capabilities`), and so do the checks that a method must pass (``checks.py``).

*changes a tower*: the tower's own features (interventions and deltas included, heads not) differ once the trained
values have moved. *cached*: the method declares that a tower's features are constant, and the features that follow
from stored ones equal the live ones. *labels*: the loss cannot be computed without them. *merges*: :func:`folded` gives
a plain backbone with the method's features. *unseen*: class lists of any length are scored, each class on its own.
*identity*: features equal the frozen model's before the first step. *resnet*: whether the method works where the image
tower is a ResNet, which has no tokens; if not, the line that says so.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone, Tower, load_backbone
from benchmark.backbones.towers.base import SITES
from benchmark.backbones.towers.resnet import ResNetTower
from benchmark.conformance.small_models import (
    FAMILIES,
    Build,
    bound,
    loss_of,
    made,
    moved,
    small_backbone,
    small_batch,
    small_resnet,
    worlds,
)
from benchmark.data.samples import Batch
from benchmark.errors import BenchmarkError
from benchmark.run.cost import parameter_counts
from methods.base import Method
from methods.supervision import Classes, Support

Kind = Literal["image", "text"]
KINDS: tuple[Kind, Kind] = ("image", "text")
COUNTED_ON = "random:tiny"


class Answer(NamedTuple):
    """Whether something holds; ``reason`` says what was seen where it does not."""

    holds: bool
    reason: str = ""


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
    """Ask a method every question.

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
        trained=trained_values(_of_five_classes(build(load_backbone(COUNTED_ON)))),
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


@torch.no_grad()
def _of_five_classes(method: Method) -> Method:
    """Return the method, fitted to five classes with one image each where its size depends on them."""
    if method.fits:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(2, 5, 1, method.backbone.embed_dim, generator=generator)
        classes = Classes(torch.full((5, 1, 2), 2), features[0])
        method.bind(classes)
        method.fit(Support(functional.normalize(features[1, :, 0], dim=-1), torch.arange(5), classes))
    return method


def _on_family(build: Build, family: str) -> Capabilities:
    method, batch = moved(build, family)
    trains, frozen = trained_values(method), small_backbone(family)
    changes = changed_towers(method, batch, frozen)
    cached = tuple(kind for kind in KINDS if cacheable(method, batch, kind, frozen).holds)
    merges = can_merge(method, batch, small_backbone(family)).holds if trains and not method.fits else None
    identity = not method.fits and starts_as_frozen(*made(build, family), frozen).holds
    unsaid = _in_order({*changes} - method.adapts)
    undone = tuple(kind for kind in KINDS if kind in method.adapts and kind not in changes)
    notes = [f"says that it leaves the {kind} tower alone, but changes it" for kind in unsaid]
    notes += [f"says that it changes the {kind} tower, but does not" for kind in undone]
    if method.identity_at_init and not identity:
        notes.append("says that it starts as the frozen model, but does not")
    if method.mergeable and merges is False:
        notes.append("says that it merges into the weights, but does not")
    needs_labels = method.needs_classes or not _loss_is_finite(method, batch)
    unseen = not method.class_bound and scores_unseen_classes(method, batch).holds
    return Capabilities(
        trains, changes, cached, needs_labels, merges, unseen, identity, (family,), tuple(notes)
    )


def _on_resnet(build: Build) -> tuple[str, list[str]]:
    """Return why a method does not work with a ResNet as image tower ("": it does), and a note if that is not clear."""
    try:
        torch.manual_seed(0)
        method = build(small_resnet())
        batch: Any = small_batch(method.backbone)
        loss_of(method, worlds(bound(method, batch), batch)[0])
        method.eval().similarity(batch.images, batch.token_ids)
    except BenchmarkError as error:
        return str(error), []
    except Exception as error:  # a stranger's method may raise anything
        reason = f"{type(error).__name__}: {error}"
        return reason, [f"with a ResNet as image tower it fails without a clear line: {reason}"]
    return "", []


# ---------------------------------------------------------------------------- one question each
def trained_values(method: Method) -> int:
    """Return how many values a method trains, its logit scale not counted."""
    return parameter_counts(method)["trainable_without_logit_scale"]


def close(ours: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> Answer:
    """Answer whether two tensors agree in shape and, to an absolute tolerance, in value."""
    if ours.shape != expected.shape:
        return Answer(False, f"{what}: shape {tuple(ours.shape)}, expected {tuple(expected.shape)}")
    error = float((ours - expected).abs().max())
    return Answer(error <= tolerance, f"{what}: differs by {error:.2g}, allowed {tolerance:.0e}")


def all_of(answers: Iterable[Answer]) -> Answer:
    """Return the first answer that does not hold."""
    return next((answer for answer in answers if not answer.holds), Answer(True))


@torch.no_grad()
def keeps_tower(
    method: Method, batch: Any, kind: Kind, frozen: Backbone, *, tolerance: float = 1e-5
) -> Answer:
    """Answer whether a tower's own features are the frozen ones (interventions and deltas act, heads do not)."""
    method.eval()
    interventions, inputs = getattr(method, f"{kind}_interventions")(), _inputs(batch, kind)
    if kind == "text":
        inputs = method.text_ids(inputs)
    ours = getattr(method.backbone, kind).features(inputs, interventions=interventions)
    plain = _plain(frozen, kind, batch)
    return close(ours, plain, f"{kind} tower is not declared as adapted", tolerance)


def changed_towers(method: Method, batch: Any, frozen: Backbone) -> tuple[Kind, ...]:
    """Return the towers whose own features differ from the frozen ones."""
    return tuple(kind for kind in KINDS if not keeps_tower(method, batch, kind, frozen).holds)


@torch.no_grad()
def cacheable(method: Method, batch: Any, kind: Kind, frozen: Backbone) -> Answer:
    """Answer whether a tower's features may be computed once: declared, and the frozen ones give the same."""
    if kind in method.adapts:
        return Answer(False, f"{kind} tower is declared as adapted")
    method.eval()
    live = getattr(method, f"encode_{kind}")(_inputs(batch, kind))
    stored = getattr(method, f"from_{kind}_features")(_plain(frozen, kind, batch))
    return close(live, stored, f"{kind} features from the cache", 1e-6)


@torch.no_grad()
def starts_as_frozen(method: Method, batch: Any, frozen: Backbone) -> Answer:
    """Answer whether a method that has not been trained gives the frozen backbone's features."""
    pairs = zip(KINDS, _features(method.eval(), batch), _frozen_features(frozen, batch), strict=True)
    return all_of(close(ours, plain, f"{kind} features at the start") for kind, ours, plain in pairs)


@torch.no_grad()
def can_merge(method: Method, batch: Any, frozen: Backbone) -> Answer:
    """Answer whether :func:`folded` gives a plain backbone with the method's features and similarities."""
    plain = _frozen_features(folded(method.eval(), frozen), batch)
    ours, logits = _features(method, batch), method.similarity(batch.images, batch.token_ids)
    what = "folded into the weights, what it has learnt gives other features"
    return all_of(
        close(mine, merged, what, tolerance)
        for mine, merged, tolerance in zip(
            (*ours, logits), (*plain, method.logits(*plain)), (1e-4, 1e-4, 5e-3), strict=True
        )
    )


@torch.no_grad()
def scores_unseen_classes(method: Method, batch: Any) -> Answer:
    """Answer whether class lists of any length are scored, and a class alike whatever stands beside it."""
    method.eval()
    prompts, images = batch.token_ids[:, None], Batch(images=batch.images)
    many = method.classify(images, method.prepare_classes(prompts))
    few = method.classify(images, method.prepare_classes(prompts[[2, 0]]))
    what = "the score of a class depends on the other classes, or is missing"
    alike = close(few, many[:, [2, 0]], what, 1e-4)
    return alike if bool(many.isfinite().all()) else Answer(False, what)


def registers_every_tensor(method: Method) -> Answer:
    """Answer whether every tensor that a method holds moves with it to another device."""
    registered = {id(tensor) for tensor in (*method.parameters(), *method.buffers())}
    strays = [place for place, tensor in reachable_tensors(method) if id(tensor) not in registered]
    return Answer(
        not strays,
        f"{', '.join(strays[:3])}: neither parameter nor buffer, so it stays behind on .to(device). "
        "Register it, or make it in the forward pass",
    )


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
    for kind in KINDS:
        tower, target = getattr(source.backbone, kind), getattr(onto, kind)
        for index in range(tower.depth):
            for site in (
                () if isinstance(tower, ResNetTower) else tower.sites_of(SITES)
            ):  # a ResNet takes none
                if _is_adapted(tower, index, site):
                    linear, (weight, bias) = target.linear_at(index, site), _measured(tower, index, site)
                    linear.weight.copy_(weight)
                    if linear.bias is not None:
                        linear.bias.copy_(bias)
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


# ---------------------------------------------------------------------------- tensors
def reachable_tensors(root: object, name: str = "method") -> Iterator[tuple[str, Tensor]]:
    """Yield (place, tensor) once for every tensor held by an object, its containers, closures and partials.

    Args:
        root: where to start.
        name: what the root is called in places, for example ``method.options.table``.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [(name, root)]
    while waiting:
        place, item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield place, item
        elif not isinstance(item, str | bytes | int | float | type | types.ModuleType):
            waiting += _held(place, item)


def _held(place: str, item: Any) -> list[tuple[str, object]]:
    if isinstance(item, Mapping):
        return [(f"{place}[{key!r}]", value) for key, value in item.items()]
    if isinstance(item, list | tuple | set | frozenset):
        return [(f"{place}[{index}]", value) for index, value in enumerate(item)]
    if isinstance(item, functools.partial):
        return [(place, value) for value in (item.func, *item.args, *item.keywords.values())]
    if isinstance(item, types.MethodType):
        return [(place, item.__self__), (place, item.__func__)]
    if isinstance(item, types.FunctionType):
        filled = [cell for cell in item.__closure__ or () if cell != types.CellType()]  # an empty one raises
        return [(f"{place}()", value) for value in (*(c.cell_contents for c in filled), item.__defaults__)]
    return [(f"{place}.{key}", value) for key, value in getattr(item, "__dict__", {}).items()]


# ---------------------------------------------------------------------------- features
def _inputs(batch: Any, kind: Kind) -> Tensor:
    inputs: Tensor = batch.images if kind == "image" else batch.token_ids
    return inputs


def _plain(backbone: Backbone, kind: Kind, batch: Any) -> Tensor:
    tower: Tower = getattr(backbone, kind)
    return tower.features(_inputs(batch, kind))


def _frozen_features(backbone: Backbone, batch: Any) -> tuple[Tensor, Tensor]:
    image, text = (functional.normalize(_plain(backbone, kind, batch), dim=-1) for kind in KINDS)
    return image, text


def _features(method: Method, batch: Any) -> tuple[Tensor, Tensor]:
    return method.encode_image(batch.images), method.encode_text(batch.token_ids)


def _in_order(kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    chosen = set(kinds)
    return tuple(kind for kind in KINDS if kind in chosen)

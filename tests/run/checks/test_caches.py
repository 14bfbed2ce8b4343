"""Nothing is read from a cache that was made from something else: each ingredient of each key is changed once.

And code that decides what a cache holds does not change unless its version number does (``cached_code.json``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.backbones import load_backbone
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data import features, tokens
from benchmark.data.datasets import phantom
from benchmark.data.prepare import prepare
from benchmark.phantom.chest import parts as phantom_parts
from benchmark.plan import CellSpec
from benchmark.run import identity, shared_results
from benchmark.run.shared_results import TowerResults
from tasks.base import DatasetResult
from tasks.heads import taps
from tasks.heads.images import DenseImages
from tests import small
from tests.cached_code import code_digest, known, number_of
from tests.data.opened import opened
from tests.data.toy import make_raw
from tests.data.toy import toy as toy_dataset

CODE = known()
Patch = pytest.MonkeyPatch


class World:
    """What the caches depend on; a test changes one thing of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backbone = load_backbone("tiny")
        self.digest, self.texts = "data", ["edema", "no edema"]
        self.entry: dict[str, Any] = {"dataset": "phantom", "part": "siim", "n": 2}
        self.options: dict[str, Any] = {"indices": (2, 11), "normed": "last"}
        self.precision, self.seed, self.limit = "fp32", 0, None
        self.device = small.CPU

    def frozen(self) -> features.FrozenFeatures:
        return features.FrozenFeatures(
            self.backbone,
            self.root / "features",
            precision=self.precision,
            batch_size=4,
            reporter=NullReporter(),
        )

    def context(self) -> Any:
        made = small.context(self.backbone, self.root)
        return dataclasses.replace(made, frozen=self.frozen(), precision=self.precision, device=self.device)


def image_features(world: World, made: list[str], patch: Patch) -> None:
    original = features.FrozenFeatures._compute
    patch.setattr(
        features.FrozenFeatures, "_compute", lambda self, *a: made.append("x") or original(self, *a)
    )
    world.frozen().of_images(small.images(count=2).pixels, world.digest)


def text_features(world: World, made: list[str], patch: Patch) -> None:
    original = features.FrozenFeatures._compute
    patch.setattr(
        features.FrozenFeatures, "_compute", lambda self, *a: made.append("x") or original(self, *a)
    )
    world.frozen().of_texts(world.backbone.tokenize(world.texts))


def token_ids(world: World, made: list[str], patch: Patch) -> None:
    original = tokens._made
    patch.setattr(tokens, "_made", lambda *a: made.append("x") or original(*a))
    world.frozen().token_ids(world.texts)


def maps(world: World, made: list[str], patch: Patch) -> None:
    original = taps.TapBatches._made
    patch.setattr(taps.TapBatches, "_made", lambda self, view: made.append("x") or original(self, view))
    store: Any = SimpleNamespace(pixels=small.images(count=2).pixels)
    images = DenseImages("Small", store, np.arange(2), None, ["a", "b"], ["a", "b"], world.digest)
    wrapped = small.methods.build("zero_shot", world.backbone)
    tapped = taps.Taps(wrapped, world.options["indices"], world.context(), world.options["normed"])
    list(taps.TapBatches(tapped, images, world.context()).in_order(2))


class Measures:
    """A task of the image tower that measures nothing."""

    image_only = True

    def __init__(self, made: list[str], options: Any) -> None:
        self.made, self.options = made, options

    def evaluate(self, *_: Any) -> DatasetResult:
        self.made.append("x")
        return DatasetResult(1, "binary", {}, {"image_id": np.array(["a"])})


def shared_result(world: World, made: list[str], patch: Patch) -> None:
    spec = CellSpec(
        suite_name="s", suite={}, backbone="tiny", pretrained=None, method="zero_shot", options={}, seed=world.seed,
        recipe=Recipe(precision=world.precision), tasks={}, data_root=world.root, limit=world.limit,
    )  # fmt: skip
    opened = SimpleNamespace(digests={"pixels.npy": world.digest, "manifest.csv": "rows"}, selection="")
    patch.setattr(shared_results, "load_dataset", lambda *_: opened)
    options = dataclasses.make_dataclass("Options", [("taps", tuple, world.options["indices"])])()
    towers = TowerResults(world.root / "shared", spec, world.context(), dict)
    method = small.methods.build("zero_shot", world.backbone)
    towers.evaluate(Measures(made, options), "t", "d", world.entry, method)  # type: ignore[arg-type]


@torch.no_grad()
def other_weights(world: World, patch: Patch) -> None:
    for tower in ("visual", "text"):
        next(getattr(world.backbone.model, tower).parameters()).view(-1)[0] += 1e-3


def other_settings(world: World, patch: Patch) -> None:
    world.backbone.settings = "another activation"


def other_normalisation(world: World, patch: Patch) -> None:
    spec = world.backbone.input_spec
    world.backbone.input_spec = dataclasses.replace(spec, mean=tuple(value + 0.01 for value in spec.mean))


def other_data(world: World, patch: Patch) -> None:
    world.digest, world.texts = "other data", ["edema", "no oedema"]


def other_taps(world: World, patch: Patch) -> None:
    world.options["indices"] = (5, 11)


def other_norm(world: World, patch: Patch) -> None:
    world.options["normed"] = "none"


def other_precision(world: World, patch: Patch) -> None:
    world.precision = "bf16"


def other_machine(world: World, patch: Patch) -> None:
    """The same words, "auto", mean another arithmetic there."""
    for module in (features, taps, shared_results):
        patch.setattr(module, "resolve", lambda precision, device: "bf16")


def other_device(world: World, patch: Patch) -> None:
    world.device = torch.device("cuda")


def other_seed(world: World, patch: Patch) -> None:
    world.seed = 1


def other_limit(world: World, patch: Patch) -> None:
    world.limit = 1


def other_entry(world: World, patch: Patch) -> None:
    world.entry["n"] = 3


def other_code(world: World, patch: Patch) -> None:
    for module in (features, tokens, taps):
        patch.setattr(module, "_VERSION", module._VERSION + 1)
    patch.setattr(identity, "NUMBERS", identity.NUMBERS + 1)


def other_tokenizer(world: World, patch: Patch) -> None:
    patch.setattr(tokens, "identity", lambda _: "another")


CACHES: dict[Callable[..., None], tuple[Callable[..., None], ...]] = {
    image_features: (
        other_weights, other_settings, other_normalisation, other_data, other_precision, other_code, other_machine,
    ),
    text_features: (other_weights, other_settings, other_data, other_precision, other_code, other_machine),
    token_ids: (other_tokenizer, other_data, other_code),
    maps: (
        other_weights, other_settings, other_normalisation, other_data, other_taps, other_norm, other_precision,
        other_code, other_machine,
    ),
    shared_result: (
        other_weights, other_settings, other_normalisation, other_data, other_taps, other_precision, other_seed,
        other_limit, other_entry, other_code, other_machine, other_device,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cache", CACHES)
def test_what_was_made_from_something_else_is_made_again(cache, tmp_path: Path) -> None:
    for number, change in enumerate(CACHES[cache]):
        made: list[str] = []
        world = World(tmp_path / str(number))
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                cache(world, made, patch)
        assert len(made) == 1, "made twice from the same"
        with pytest.MonkeyPatch.context() as patch:
            change(world, patch)
            cache(world, made, patch)
        assert len(made) == 2, change.__name__


def test_prepared_pixels_of_other_code_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw(tmp_path / "raw", 4)
    kinds = [prepare.prepare(toy_dataset, raw, tmp_path / "root", workers=1).made for _ in range(2)]
    assert kinds == [True, False]
    before = set((tmp_path / "root").rglob("*.npy"))
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION + 1)
    times = {path: path.stat().st_mtime_ns for path in before}
    assert prepare.prepare(toy_dataset, raw, tmp_path / "root", workers=1).made
    assert all(path.stat().st_mtime_ns != time for path, time in times.items())


def test_drawn_films_of_other_code_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(phantom.phantom, tmp_path, part="siim", n=2)
    monkeypatch.setattr(phantom_parts, "GENERATOR_VERSION", phantom_parts.GENERATOR_VERSION + 1)
    assert opened(phantom.phantom, tmp_path, part="siim", n=2).folder != first.folder


# ---------------------------------------------------------------------- versions follow the code
def test_code_digests_see_code_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "plain": 'def f(a):\n    return "# no comment", a + 1\n',
        "wordy": 'def f(a):\n    """Say."""\n    # why\n    return (\n'.replace("(\n", "")
        + '"# no comment", a + 1  # because\n',
        "other": 'def f(a):\n    return "# no comment", a + 2\n',
    }
    for name, text in texts.items():
        (tmp_path / f"code_{name}.py").write_text(text)
    plain, wordy, other = (code_digest(f"code_{name}:f") for name in texts)
    assert plain == wordy
    assert plain != other


@pytest.mark.parametrize("version", CODE)
def test_a_version_is_raised_with_the_code_that_it_stands_for(version: str) -> None:
    changed = [path for path, digest in CODE[version]["code"].items() if code_digest(path) != digest]
    assert (number_of(version), changed) == (CODE[version]["version"], []), (
        f"raise {version} if {', '.join(changed) or 'the code'} now gives other bits or numbers; then, or if it gives "
        "the same: python -m tests.cached_code"
    )

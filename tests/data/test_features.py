"""What is computed once: files that the first process makes, token ids, features and maps of frozen towers."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.console import NullReporter
from benchmark.data import tokens
from benchmark.data.augment import Augment
from benchmark.data.batches import PairBatches
from benchmark.data.cache import cached
from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import PairData
from benchmark.files import file_lock
from methods.base import Method
from tasks.heads.images import DenseImages
from tasks.heads.taps import TapBatches, Taps
from tasks.zeroshot import similarities
from tests.small import CPU, context, corpus, frozen, images


class Told(NullReporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, stage: str, total: int, part: object = None) -> None:
        self.stages.append(stage)

    def log(self, line: str) -> None:
        self.stages.append(line)


def number(path: Path | None, content: int, reporter: Told, made: list[int]) -> int:
    def make() -> int:
        made.append(content)
        return content

    return cached(
        path, make=make, read=lambda file: int(file.read_text()), what="a number", reporter=reporter,
        write=lambda file, value: file.write_text(str(value)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- files
def test_the_first_makes_it_and_the_others_read_it(tmp_path: Path) -> None:
    made: list[int] = []
    path = tmp_path / "new" / "number"
    assert [number(path, content, Told(), made) for content in (1, 2, 3)] == [1, 1, 1]
    assert made == [1]
    assert [file.name for file in path.parent.iterdir()] == ["number"]
    path.write_text("no number")
    assert number(path, 4, Told(), made) == 4
    assert number(None, 5, Told(), made) == 5
    assert made == [1, 4, 5]


def test_who_comes_meanwhile_waits_and_makes_nothing(tmp_path: Path) -> None:
    path, made, told, found = tmp_path / "number", [], Told(), []
    with file_lock(tmp_path / ".number.lock", wait=True):  # another process is at it
        waiting = threading.Thread(target=lambda: found.append(number(path, 2, told, made)))
        waiting.start()
        while not told.stages:
            time.sleep(0.01)
        path.write_text("1")
    waiting.join(timeout=30)
    assert (found, made, told.stages) == ([1], [], ["wait for a number"])


def test_without_a_place_to_write_it_is_returned_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told, made = Told(), []
    assert number(tmp_path / "file" / "number", 1, told, made) == 1
    assert made == [1]
    assert "a number cannot be kept in" in told.stages[0]


# ---------------------------------------------------------------------------------------------- token ids
def test_token_ids_are_the_tokenizers_own_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 7)
    backbone, texts, told = load_backbone("tiny"), corpus(20).texts, Told()
    first = tokens.token_ids(backbone, texts, tmp_path, told)
    again = tokens.token_ids(backbone, texts, tmp_path, told)
    assert told.stages == ["tokenise"]
    assert isinstance(again, np.memmap)
    assert first.dtype == again.dtype == np.int16
    for ids in (first, again):
        assert np.array_equal(ids, backbone.tokenize(texts).numpy())


def test_other_texts_and_other_tokenizers_have_other_ids(tmp_path: Path) -> None:
    backbone, told = load_backbone("tiny"), Told()
    texts = corpus(20).texts
    for some in (texts, texts[:19], ["".join(texts[:2]), *texts[2:]], texts[::-1]):
        tokens.token_ids(backbone, some, tmp_path, told)
    backbone.tokenizer.context_length = 32
    assert tokens.token_ids(backbone, texts, tmp_path, told).shape == (20, 32)
    assert told.stages == ["tokenise"] * 5


def test_wide_vocabularies_are_kept_whole(tmp_path: Path) -> None:
    backbone = load_backbone("tiny")
    backbone.tokenizer = Huge()
    for folder in (None, tmp_path, tmp_path):
        ids = tokens.token_ids(backbone, ["a", "b"], folder, Told())
        assert ids.tolist() == [[1, 49407], [1, 49407]]


@dataclasses.dataclass
class Huge:
    """A tokenizer whose ids need more than 16 bits."""

    largest: int = 49407
    version: str = "1"

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1, self.largest]] * len(texts))


class Hidden:
    """A tokenizer with a state that nobody can write down."""

    def __init__(self) -> None:
        self.state = object()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts), 3, dtype=torch.long)


def test_tokenizers_are_told_apart_by_what_their_ids_follow_from() -> None:
    tiny = load_backbone("tiny").tokenizer
    assert tokens.identity(tiny) == tokens.identity(load_backbone("tiny_b").tokenizer)
    assert tokens.identity(Huge(1)) != tokens.identity(Huge(2))
    assert tokens.identity(Huge(1)) == tokens.identity(Huge(1))
    assert tokens.identity(Hidden()) is None
    assert tokens.identity(Huge(1)) != tokens.identity(Huge(1, version="2"))
    assert tokens.identity(lambda texts: texts) is None


def test_open_clips_tokenizer_stays_the_same_when_it_remembers_words() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    before = tokens.identity(tokenizer)
    tokenizer(["pneumothorax"])
    assert before == tokens.identity(tokenizer)
    assert before != tokens.identity(SimpleTokenizer(context_length=32))
    assert tokens.identity(SimpleTokenizer(reduction_mask="random")) is None


def test_a_tokenizer_of_transformers_stays_the_same_after_a_call(tmp_path: Path) -> None:
    from open_clip.tokenizer import HFTokenizer
    from transformers import PreTrainedTokenizerFast

    rules = load_backbone("tiny").tokenizer._tokenizer
    PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="[PAD]").save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=16)
    before = tokens.identity(tokenizer)
    tokenizer(["edema of case"])
    assert before is not None
    assert before == tokens.identity(tokenizer)
    assert before != tokens.identity(HFTokenizer(str(tmp_path), context_length=8))


def test_a_tokenizer_that_hides_something_is_called_every_time(tmp_path: Path) -> None:
    backbone, told = load_backbone("tiny"), Told()
    backbone.tokenizer = Hidden()
    for _ in range(2):
        assert tokens.token_ids(backbone, ["a"], tmp_path, told).tolist() == [[1, 1, 1]]
    assert told.stages == ["tokenise"] * 2
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- frozen towers
@contextlib.contextmanager
def passes(backbone: Backbone) -> Iterator[dict[str, int]]:
    """Count the inputs that go through the untouched towers."""
    seen = {"image": 0, "text": 0}
    for tower in (backbone.image, backbone.text):

        def counted(inputs, *, interventions=(), _tower=tower, _run=tower.forward, **how):
            if not tuple(interventions):
                seen[_tower.kind] += len(inputs)
            return _run(inputs, interventions=interventions, **how)

        tower.forward = counted
    yield seen


def run(name: str, folder: Path, data: PairData, seed: int = 0) -> dict[str, int]:
    """Train a method for an epoch without optimiser; return how many inputs passed the frozen towers."""
    torch.manual_seed(seed)
    wrapped = methods.build(name, load_backbone("tiny"))
    with passes(wrapped.backbone) as seen:
        made = PairBatches(
            wrapped, data, frozen(wrapped.backbone, folder), batch_size=8, seed=seed, device=CPU
        )
        for batch in made.epoch(1):
            wrapped.train().loss(batch).backward()
    return seen


def test_one_pass_serves_all_methods_and_seeds(tmp_path: Path) -> None:
    data = corpus(16)
    assert run("taskres", tmp_path, data) == {"image": 16, "text": 16}
    for name, seed in (("taskres", 1), ("clip_adapter", 0), ("coop", 0), ("cocoop", 0), ("mmrl", 0)):
        assert run(name, tmp_path, data, seed) == {"image": 0, "text": 0}, name


def test_mmrl_takes_its_targets_from_one_pass_and_none_in_a_step(tmp_path: Path) -> None:
    assert run("mmrl", tmp_path, corpus(16)) == {"image": 16, "text": 16}
    assert run("mmrl", tmp_path, corpus(16), seed=1) == {"image": 0, "text": 0}


def test_evaluation_images_pass_the_frozen_tower_once(tmp_path: Path) -> None:
    scores = []
    for seed, expected in ((0, 24), (1, 0)):
        torch.manual_seed(seed)
        wrapped = methods.build("taskres", load_backbone("tiny")).eval()
        around = dataclasses.replace(
            context(wrapped.backbone, tmp_path), frozen=frozen(wrapped.backbone, tmp_path)
        )
        with passes(wrapped.backbone) as seen:
            scores.append(similarities(wrapped, images(), around, "test"))
        assert seen["image"] == expected
    live = methods.build("taskres", load_backbone("tiny")).eval()
    pixels = live.backbone.input_spec.to_input(images().pixels)
    ids = live.backbone.tokenize(
        [t.format(c) for c in images().classes for t in context(live.backbone, tmp_path).templates]
    )
    with torch.no_grad():
        expected = live.encode_image(pixels) @ live.class_features(ids.unflatten(0, (3, 2))).T
    np.testing.assert_allclose(scores[1], expected.double().numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------- maps
class Pixels:
    """Stands for a prepared dataset that only pixels are read of."""

    pixels = images().pixels


def part() -> DenseImages:
    count = len(Pixels.pixels)
    return DenseImages("Small", Pixels(), np.arange(count), None, ["id"] * count, ["id"] * count, "digest")


def maps(wrapped: Method, folder: Path, augment: Augment | None = None, rows: int = 24, **how) -> list:
    around = dataclasses.replace(
        context(wrapped.backbone, folder), frozen=frozen(wrapped.backbone, folder), **how
    )
    some = dataclasses.replace(part(), rows=np.arange(24)[-rows:])
    batches = TapBatches(Taps(wrapped, (2, 11), around), some, around, augment)
    drawn = batches.epoch(1, 5, 0) if augment else batches.in_order(5)
    return [one for batch in drawn for one in batch.maps]


def test_maps_of_a_tower_left_alone_are_made_once_for_all_methods_and_seeds(tmp_path: Path) -> None:
    first = methods.build("zero_shot", load_backbone("tiny"))
    live = maps(first, tmp_path / "other")
    assert len(list(tmp_path.iterdir())) == 1
    kept_maps = maps(first, tmp_path)
    for seed, name in enumerate(("taskres", "coop")):
        wrapped = methods.build(name, load_backbone("tiny"))
        with passes(wrapped.backbone) as seen:
            again = maps(wrapped, tmp_path, seed=seed)
        assert seen["image"] == 1  # a blank image, to see the maps' shapes
        for one, two, three in zip(live, kept_maps, again, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(two, three)


def test_maps_of_flips_are_kept_and_those_of_turns_are_not(tmp_path: Path) -> None:
    wrapped = methods.build("zero_shot", load_backbone("tiny"))
    flipped = maps(wrapped, tmp_path, Augment(hflip=0.5))
    assert len(list(tmp_path.iterdir())) == 2
    assert all(map(torch.equal, flipped, maps(wrapped, tmp_path, Augment(hflip=0.5))))
    maps(wrapped, tmp_path, Augment(rotation=5))
    assert len(list(tmp_path.iterdir())) == 2


def test_other_rows_precisions_and_towers_have_other_maps(tmp_path: Path) -> None:
    wrapped = methods.build("zero_shot", load_backbone("tiny"))
    maps(wrapped, tmp_path)
    maps(wrapped, tmp_path, rows=23)
    maps(wrapped, tmp_path, precision="bf16")
    with torch.no_grad():
        next(wrapped.backbone.model.visual.parameters()).add_(1e-3)
    maps(wrapped, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    maps(methods.build("clip_lora", load_backbone("tiny")), tmp_path)  # another tower for every seed
    assert len(list(tmp_path.iterdir())) == 4


def test_features_of_any_width_of_integers_have_one_key(tmp_path: Path) -> None:
    backbone, told = load_backbone("tiny"), Told()
    source = FrozenFeatures(backbone, tmp_path, precision="fp32", batch_size=16, reporter=told)
    ids = backbone.tokenize(corpus(8).texts)
    wide, narrow = source.of_texts(ids), source.of_texts(ids.numpy().astype(np.int16))
    assert torch.equal(wide, narrow)
    assert told.stages == ["frozen text features"]


def test_features_have_the_bits_of_the_towers_in_the_arithmetic_of_the_run(tmp_path: Path) -> None:
    backbone, pixels = load_backbone("tiny"), corpus(8).pixels
    ids = backbone.trim(backbone.tokenize(corpus(8).texts).long())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        image = backbone.image.features(backbone.input_spec.to_input(pixels, CPU)).float()
        text = backbone.text.features(ids).float()
    source = frozen(backbone, tmp_path, "bf16")
    assert torch.equal(source.of_images(pixels, "pixels"), image)
    assert torch.equal(source.of_texts(ids), text)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what a caller has switched on changes nothing
        exact = frozen(backbone, tmp_path, "fp32").of_images(pixels, "pixels")
    assert 0 < (exact - image).abs().max() < 0.1 * image.abs().max()


def test_features_of_one_kind_of_device_serve_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("tiny")
    source, ids = frozen(backbone, tmp_path), backbone.tokenize(corpus(2).texts)
    here = source.of_texts(ids)
    monkeypatch.setattr(FrozenFeatures, "_device", torch.device("cuda"))
    monkeypatch.setattr(FrozenFeatures, "_compute", lambda *_: torch.zeros(1))
    assert not torch.equal(source.of_texts(ids), here)

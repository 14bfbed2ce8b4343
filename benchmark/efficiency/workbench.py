"""Methods on synthetic pairs for measuring side by side; all share one frozen backbone in memory.

The content of images and texts changes neither time nor memory, so they are noise and random words. The learning rate
is 0: the optimiser does all its work, and every step starts from the same weights.
"""

from __future__ import annotations

import copy
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import methods
from benchmark.backbones import Backbone
from benchmark.backbones.towers.precision import TrainingArithmetic, autocast, scaler_of
from benchmark.config.run_config import Recipe
from benchmark.data.samples import Batch
from benchmark.efficiency.timing import step_memory
from benchmark.run.training.gradients import backward
from benchmark.run.training.trainer import make_optimiser
from methods.base import Method

_REPORT = (
    "the heart size is normal and both lungs are clear with no focal consolidation pleural effusion or large "
    "pneumothorax there was mild edema at left base small right upper lower opacity seen since last image"
)
_FINDINGS = ("edema", "effusion", "opacity", "consolidation", "pneumothorax")
_VOCABULARY = 1000


@dataclass(frozen=True)
class Form:
    """One way to build and feed a method.

    Attributes:
        method: its name. options: its keys. compiled: the towers' blocks compiled by torch.
        text: share of the text length that the longest text has.
        precision: of the towers.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    text: float = 1.0
    precision: str = "fp32"


RUN_PAIRS = 64
"""Pairs of a batch in the paper's runs."""


class MadeUpTokenizer:
    """Gives every word an id: for architectures whose vocabulary would be a download.

    Args:
        context_length: of the rows it returns.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids ``[N, context_length]``: start 2, words, end 3, padding 0."""
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            words = [4 + zlib.crc32(word.encode()) % (_VOCABULARY - 4) for word in text.split()]
            words = [2, *words[: self.context_length - 2], 3]
            ids[row, : len(words)] = torch.tensor(words)
        return ids


def shared_copy(backbone: Backbone) -> Backbone:
    """Return a copy of the modules whose parameters share memory but have separate gradients."""
    tensors: dict[int, Any] = {id(buffer): buffer for buffer in backbone.buffers()}
    for parameter in backbone.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(backbone, tensors)


class Workbench:
    """Builds methods on one backbone and pairs for them.

    Args:
        backbone: frozen, on its device; a tokenizer is made up if it has none.
        batch_size: pairs of a batch.
        text_length: tokens of the longest text, start and end included.
        seed: of the pairs and of what methods draw.
    """

    def __init__(self, backbone: Backbone, *, batch_size: int, text_length: int, seed: int = 0) -> None:
        self.backbone, self.batch_size, self.text_length = backbone, batch_size, text_length
        self.device = backbone.logit_scale.device
        if backbone.tokenizer is None:
            backbone.tokenizer = MadeUpTokenizer(backbone.text.context_length)
        self._seed = seed
        generator = torch.Generator().manual_seed(seed)
        size, channels = backbone.input_spec.size, len(backbone.input_spec.mean)
        self._images = torch.randn(batch_size, channels, *size, generator=generator).to(self.device)
        self._labels = torch.eye(batch_size).to(self.device)
        self._features: dict[str, Tensor] = {}

    def build(self, form: Form) -> Method:
        """Return a method on a shared copy of the backbone, trained values a little off their start."""
        torch.manual_seed(self._seed)
        method = self.make(form, shared_copy(self.backbone)).to(self.device)
        if form.compiled:
            for tower in (method.backbone.image, method.backbone.text):
                tower.compile_blocks()
        if not any(value.requires_grad for value in method.backbone.model.parameters()):
            with (
                torch.no_grad()
            ):  # full fine-tuning trains the shared weights themselves: they stay as they are
                for name, value in method.trainable_parameters().items():
                    if method.parameter_group(name) != "scale":
                        value.add_(0.02 * torch.randn_like(value))
        return method

    def make(self, form: Form, backbone: Backbone) -> Method:
        """Return a form's method on a backbone."""
        return methods.build(form.method, backbone, **form.options)

    def pads(self, method: Method) -> bool:
        """Return whether a method takes texts padded to the context length."""
        return method.text_padding == "context"

    def batch(self, method: Method, *, text: float = 1.0, cached: bool = False) -> Batch:
        """Return pairs as the method takes them.

        Args:
            method: decides about padding and frozen targets.
            text: share of the text length.
            cached: features in place of inputs, where the method leaves a tower alone.
        """
        ids = self._texts(max(4, round(text * self.text_length)))
        batch = Batch(labels=self._labels)
        if "image" in method.frozen_targets:
            batch.frozen_image = self._frozen("image")
        if "text" in method.frozen_targets:
            batch.frozen_text = self._frozen("text")
        constant = {"image", "text"} - method.adapts if cached else set()
        batch.image_features = self._frozen("image") if "image" in constant else None
        batch.text_features = self._frozen("text") if "text" in constant else None
        batch.images = None if "image" in constant else self._images
        if "text" not in constant:
            batch.token_ids = ids if self.pads(method) else self.backbone.trim(ids)
        return batch

    def prompts(self, method: Method | None = None) -> Tensor:
        """Return ids ``[C, T, L]`` of a few classes; of the context length where the method wants it."""
        ids = self.backbone.tokenize(self.prompt_texts).unflatten(0, (len(_FINDINGS), -1)).to(self.device)
        return ids if method is not None and self.pads(method) else self.backbone.trim(ids)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompts, classes in front."""
        return [
            text
            for name in _FINDINGS
            for text in (f"a chest X-ray image of {name} today", f"findings in this chest suggesting {name}")
        ]

    def reports(self, count: int, words: tuple[int, int]) -> list[str]:
        """Return made-up reports of between so many words."""
        known, generator = _REPORT.split(), torch.Generator().manual_seed(self._seed)
        lengths = torch.randint(words[0], words[1] + 1, (count,), generator=generator).tolist()
        drawn = (torch.randint(len(known), (length,), generator=generator).tolist() for length in lengths)
        return [" ".join(known[place] for place in places) for places in drawn]

    def frozen_pass(self, kind: str) -> Tensor:
        """Return the frozen tower's features of the pairs, ``[B, E]``."""
        with torch.no_grad():
            if kind == "image":
                return self.backbone.image.features(self._images)
            return self.backbone.text.features(self.backbone.trim(self._texts(self.text_length)))

    def _frozen(self, kind: str) -> Tensor:
        if kind not in self._features:
            self._features[kind] = self.frozen_pass(kind)
        return self._features[kind]

    def _texts(self, length: int) -> Tensor:
        """Return ids ``[B, context]``: random words, the first text ``length`` long, the others half of it or more."""
        sample = self.backbone.tokenize([_REPORT])[0]
        last = int(self.backbone.text.lengths(sample[None])) - 1
        words = sample[1:last]
        generator = torch.Generator().manual_seed(self._seed)
        ids = torch.full((self.batch_size, self.backbone.text.context_length), self.backbone.text.pad_id)
        lengths = [
            length,
            *torch.randint(max(4, length // 2), length + 1, (self.batch_size,), generator=generator),
        ]
        for row, count in enumerate(map(int, lengths[: self.batch_size])):
            drawn = torch.randint(len(words), (count - 2,), generator=generator)
            ids[row, :count] = torch.cat([sample[:1], words[drawn], sample[last : last + 1]])
        return ids.to(self.device)


class Candidate:
    """A built method with its optimiser: what is called when it is timed.

    Args:
        bench: where it was built.
        form: how.
        cached: whether towers that it leaves alone bring features, as in a run.
    """

    def __init__(self, bench: Workbench, form: Form, *, cached: bool = True) -> None:
        self.form, self._bench = form, bench
        self.method = bench.build(form)
        self.batch = bench.batch(self.method, text=form.text, cached=cached)
        self._many: Batch | None = None
        self.prompts = bench.prompts(self.method)
        self._images = Batch(images=bench.batch(self.method).images)
        self._training = TrainingArithmetic(form.precision, bench.device, self.method.backbone.model)
        self._scaler = scaler_of(form.precision, bench.device)
        self._steps = itertools.count(1)
        self._optimiser = make_optimiser(self.method, Recipe()) if self.trains else None
        for group in self._optimiser.param_groups if self._optimiser else ():
            group["lr"] = 0.0
        with torch.no_grad(), autocast(self.form.precision, self._bench.device):
            self.method.eval()
            self._classes = self.method.prepare_classes(self.prompts)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.method.trainable_parameters())

    def forward(self) -> Tensor:
        """Return the training loss with its graph."""
        self.method.train()
        with self._training():
            return self.method.loss(self.batch)

    @property
    def on_features(self) -> bool:
        """Whether the batch holds features alone, as no tower is adapted."""
        return self.batch.images is None and self.batch.token_ids is None

    def step_of_a_run(self) -> None:
        """Make one step on the features of ``RUN_PAIRS`` pairs: with fewer, it is calls that cost, not pairs."""
        if self._many is None:
            rows = torch.arange(RUN_PAIRS, device=self._bench.device) % self.batch.size
            self._many = Batch(labels=torch.eye(RUN_PAIRS, device=self._bench.device))
            for name in ("image_features", "text_features", "frozen_image", "frozen_text"):
                values = getattr(self.batch, name)
                setattr(self._many, name, None if values is None else values[rows])
        self.step(self._many)

    def step(self, batch: Batch | None = None) -> None:
        """Make one training step as the trainer does, at a learning rate of 0."""
        assert self._optimiser is not None  # asked for only where something trains
        self.method.train()
        with self._training():
            backward(self.method, self.batch if batch is None else batch, None, self._scaler)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.method.after_step(next(self._steps), 10**6)
        self._optimiser.zero_grad(set_to_none=True)

    def memory(self) -> int:
        """Return the peak memory of a training step."""
        return step_memory(self.forward, self.step, self.method.train(), self._training.copies)

    @torch.no_grad()
    def score(self) -> Tensor:
        """Score the images against classes prepared beforehand."""
        self.method.eval()
        with autocast(self.form.precision, self._bench.device):
            return self.method.classify(self._images, self._classes)

    def score_merged(self) -> Tensor:
        """The same with all that can be merged folded into the frozen weights."""
        towers = self.method.backbone
        with towers.image.without_deltas(only_foldable=True), towers.text.without_deltas(only_foldable=True):
            return self.score()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Prepare the classes and score the images: an evaluation from its beginning."""
        self.method.eval()
        with autocast(self.form.precision, self._bench.device):
            return self.method.classify(self._images, self.method.prepare_classes(self.prompts))

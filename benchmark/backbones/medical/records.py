"""A published medical model as data: its files, tensor names, parts, preprocessing and scale.

A record is all that differs between models; the code that loads and builds them knows no model by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmark.backbones.published import OPENAI_MEAN, OPENAI_STD, Repository
from benchmark.errors import ConfigError, unknown
from benchmark.preprocess import Preprocess

Rule = tuple[str, str | None]
"""Published name -> name here, first match wins. ``*`` stands for any text, in both in the same order; None drops.

After ``|`` comes what is done to the tensor: ``transpose``, ``squeeze`` (a 1x1 convolution as a matrix), ``log``, or
``part 0`` to ``part 2`` (q, k and v of one fused map). Two tensors with one name here must be equal. Rules are data and
not a function, so that a message can give the published name of a tensor that is missing.
"""

Steps = tuple[str, ...]
"""Layers of a head, in order: linear, matrix (linear without bias), batchnorm, plain_batchnorm (statistics alone),
layernorm, relu, gelu, constant (values appended to every cell). Their sizes are read from the tensors."""


HEAD_WIDTH = 64
"""Width of one attention head of ViT-B, BERT-base and CLIP; shapes do not tell the number of heads."""
QuantiserMode = Literal["straight_through", "published", "off"]


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint.

    Attributes:
        names: file names, the preferred first. home: hub repository; None: people download it themselves.
        prefix: stands in front of the names of its tensors. md5: of the published file, where it is known.
    """

    names: tuple[str, ...]
    home: Repository | None = None
    prefix: str = ""
    md5: str = ""


@dataclass(frozen=True)
class ImageSide:
    """The image tower.

    Attributes:
        trunk: "resnet" (torchvision's layout), "vit" (timm's), "modified_resnet" and "clip" (open_clip's), "ctvit"
            (CT-CLIP's, for volumes).
        upsample: side that images are stretched to inside the tower, corners aligned; dense tasks leave it out.
        cells: layers that act on each cell of the last map, before pooling.
        pool: "mean" of the cells, "attention" (CLIP's), or "token" (class token of a ViT).
        heads: of attention pooling; shapes do not tell it.
        head: layers after pooling.
        quick_gelu: activation of a "clip" trunk and its text transformer.
        box: voxels of a token of "ctvit": slices, rows, columns.
        quantiser: what that of "ctvit" does, see ``ctvit.Quantiser``.
    """

    trunk: Literal["resnet", "vit", "modified_resnet", "clip", "ctvit"] = "resnet"
    upsample: int | None = None
    cells: Steps = ()
    pool: Literal["mean", "attention", "token"] = "mean"
    heads: int | None = None
    head: Steps = ()
    quick_gelu: bool = False
    box: tuple[int, ...] = ()
    quantiser: QuantiserMode = "straight_through"


@dataclass(frozen=True)
class TextSide:
    """The text tower, a BERT (or RoBERTa, where shapes say so); not used with a "clip" trunk.

    Attributes:
        pool: "cls" (first token), "pooler" (BERT's own dense layer and tanh behind it), "sum4_mean" (last four layers
            summed, mean over ``max_length`` positions), "sentences" (prototypes of sentences, pooled by attention).
        head: layers after pooling; with "sentences" those in front of the prototypes.
        max_length: longest text, start and end tokens included.
        masked: whether padding is hidden from attention.
        vocabulary: hub repository of its word list; None: the file does not say, so the user has to.
        clean: "words" keeps runs of letters and digits in sentences of two and more of them, as GLoRIA and MGCA do.
        bank: how a sentence picks its prototype, "softmax" or "gumbel" (random, as published).
        heads: of the attention over sentences.
        head_width: of the transformer's attention; shapes do not tell it.
    """

    pool: Literal["cls", "pooler", "sum4_mean", "sentences"] = "cls"
    head: Steps = ()
    max_length: int = 77
    masked: bool = True
    vocabulary: str | None = None
    clean: Literal["words"] | None = None
    bank: Literal["softmax", "gumbel"] = "softmax"
    heads: int = 8
    head_width: int = HEAD_WIDTH


@dataclass(frozen=True)
class Option:
    """A choice after the colon of a backbone's name: ``pmc-clip:heads=8``.

    Attributes:
        changes: value -> fields of the record, ``image.`` and ``text.`` for those of its sides.
        why: reason to give when it is not chosen; empty: it has a default.
    """

    changes: Mapping[str, Mapping[str, Any]]
    why: str = ""


@dataclass(frozen=True)
class Record:
    """One published model.

    Attributes:
        name, title: of the backbone, and for people.
        files: ways in which its checkpoint is published, the usual one first; each a set of files.
        unwrap: dictionaries around the tensors, taken off where they are there; what stands beside them is left behind.
        names: see :data:`Rule`.
        shapes: published sizes of telling tensors, by their names here.
        spare: tensors that some forms of the model do without.
        image, text: its towers.
        preprocess: how images become its input.
        scale: what multiplies cosines; None: it is stored.
        rules: score rules that it offers, the headline first.
        extras: parts that rules need, name -> kind (``extras.KINDS``).
        options: choices in its name.
        chosen: the choices made.
        embed_dim: width of the shared space, as published.
        link, licence, pretrained_on, note: for people.
    """

    name: str
    title: str
    files: tuple[tuple[CheckpointFile, ...], ...]
    names: tuple[Rule, ...]
    image: ImageSide
    preprocess: Preprocess
    embed_dim: int
    text: TextSide = TextSide()
    unwrap: tuple[str, ...] = ("state_dict",)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spare: tuple[str, ...] = ()
    scale: float | None = None
    rules: tuple[str, ...] = ("global",)
    extras: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    link: str = ""
    licence: str = ""
    pretrained_on: str = ""
    note: str = ""

    def digest(self) -> str:
        """Return what the content of a converted file depends on, as a short hash."""
        content = [self.name.partition(":")[0], self.unwrap, self.names]
        prefixes = [[source.prefix for source in group] for group in self.files]
        return hashlib.sha256(json.dumps([content, prefixes]).encode()).hexdigest()[:16]

    def with_options(self, words: str, *, ask: bool = True) -> Record:
        """Return the record with the choices of ``option=value,option=value``.

        Args:
            words: the choices.
            ask: whether an option without a default has to be among them.

        Raises:
            ConfigError: an unknown option or value, or one that has to be chosen is missing.
        """
        record, chosen = self, {}
        for word in filter(None, words.split(",")):
            key, _, value = word.partition("=")
            if key not in self.options:
                raise ConfigError(f"--backbone {self.name}: {unknown('option', key, self.options)}")
            if value not in self.options[key].changes:
                known = self.options[key].changes
                raise ConfigError(f"--backbone {self.name}: {unknown(f'value of {key}', value, known)}")
            record, chosen[key] = _changed(record, self.options[key].changes[value]), value
        for key, option in self.options.items():
            if ask and option.why and key not in chosen:
                ways = " or ".join(f"{self.name}:{key}={value}" for value in option.changes)
                raise ConfigError(f"--backbone {self.name}: {option.why}. Say it: {ways}")
        return replace(record, chosen=chosen)


def _changed(record: Record, changes: Mapping[str, Any]) -> Record:
    for path, value in changes.items():
        side, _, key = path.rpartition(".")
        if side:
            record = replace(record, **{side: replace(getattr(record, side), **{key: value})})
        else:
            record = replace(record, **{key: value})
    return record


BERT_FILES, ROBERTA_FILES = ("vocab.txt",), ("vocab.json", "merges.txt")
"""Files of a word list."""
WORD_TABLE = "text.transformer.embeddings.word_embeddings.weight"
OPENAI = Preprocess((224, 224), OPENAI_MEAN, OPENAI_STD)
GREY_SQUARE = Preprocess(
    (224, 224), (0.5,) * 3, (0.5,) * 3, "longest_pad", side=256, interpolation="area", channels="grey"
)
RESNET_SHAPES = {
    "visual.trunk.conv1.weight": (64, 3, 7, 7),
    "visual.trunk.layer3.5.conv3.weight": (1024, 256, 1, 1),
    "visual.trunk.layer4.2.conv3.weight": (2048, 512, 1, 1),
}


def bert(prefix: str, *, pooler: bool = False) -> tuple[Rule, ...]:
    """Return the rules of a Hugging Face BERT below ``prefix``."""
    dropped: tuple[Rule, ...] = () if pooler else ((f"{prefix}pooler.*", None),)
    return ((f"{prefix}embeddings.position_ids", None), *dropped, (f"{prefix}*", "text.transformer.*"))


def bert_shapes(words: int, layers: int = 12) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a BERT-base with so many words and layers."""
    return {
        WORD_TABLE: (words, 768),
        f"text.transformer.encoder.layer.{layers - 1}.output.dense.weight": (768, 3072),
    }


def resnet(prefix: str) -> tuple[Rule, ...]:
    """Return the rules of a torchvision ResNet below ``prefix``, its classifier left out."""
    return ((f"{prefix}fc.*", None), (f"{prefix}*", "visual.trunk.*"))

"""A medical model from its record and the sizes of its tensors: modules, towers, scale, tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.backbones.backbone import Backbone, InputSpec, Tokenizer, VolumeSpec, from_open_clip
from benchmark.backbones.medical.extras import build_extras
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.records import WORD_TABLE, Record
from benchmark.backbones.medical.text import SentenceTower, build_text
from benchmark.backbones.medical.visual import build_visual, freeze_statistics, heads_of
from benchmark.backbones.medical.words import Words
from benchmark.backbones.towers.base import ImageTower
from benchmark.backbones.towers.ctvit import CTTower
from benchmark.backbones.towers.resnet import ResNetTower
from benchmark.backbones.towers.timm_vit import TimmVitTower
from benchmark.backbones.volumes import VolumePreprocess
from benchmark.errors import DataError

EXTRAS = "extras."


class TwoTowers(nn.Module):
    """An image encoder ``visual``, a text encoder ``text`` and the logarithm of what multiplies cosines."""

    def __init__(self, visual: nn.Module, text: nn.Module, scale: float) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def train(self, mode: bool = True) -> TwoTowers:
        """Set the mode; statistics of batch normalisation stay those of pretraining."""
        super().train(mode)
        freeze_statistics(self)
        return self


def build(record: Record, shapes: Shapes) -> Backbone:
    """Build a backbone with random weights.

    Args:
        record: of the model.
        shapes: of its tensors, by their names here.

    Raises:
        MissingTensor: a tensor that tells a size is not there.
        BenchmarkError: sizes that do not go together.
    """
    fitted = record.preprocess
    spec = InputSpec(fitted.size, fitted.mean, fitted.std)
    if isinstance(fitted, VolumePreprocess):
        spec = VolumeSpec(fitted.size, fitted.mean, fitted.std, fitted.window)
    if record.image.trunk == "clip":
        backbone = from_open_clip(_clip(record, shapes), input_spec=spec, name=record.name)
    else:
        backbone = _two_towers(record, shapes, spec)
    backbone.rules, backbone.preprocess = record.rules, record.preprocess
    return backbone.eval()


def _two_towers(record: Record, shapes: Shapes, spec: InputSpec) -> Backbone:
    visual: Any = build_visual(record.image, shapes, spec.size)
    towers: dict[str, Callable[[nn.Module], ImageTower]] = {"vit": TimmVitTower, "ctvit": CTTower}
    image = towers.get(record.image.trunk, ResNetTower)(visual)
    text, tower = build_text(record.text, shapes)
    model = TwoTowers(visual, text, record.scale or 1.0)
    backbone = Backbone(model, image, tower, input_spec=spec, name=record.name)
    backbone.extras = build_extras(record.extras, visual, tower, shapes)
    return backbone


def _clip(record: Record, shapes: Shapes) -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    width, _, patch, _ = shapes["visual.conv1.weight"]
    words, text_width = shapes["token_embedding.weight"]
    vision = CLIPVisionCfg(
        layers=shapes.count("visual.transformer.resblocks"),
        width=width,
        head_width=width // heads_of(width),
        patch_size=patch,
        image_size=record.preprocess.size[0],
    )
    text = CLIPTextCfg(
        context_length=shapes["positional_embedding"][0],
        vocab_size=words,
        width=text_width,
        heads=heads_of(text_width),
        layers=shapes.count("transformer.resblocks"),
    )
    return CLIP(shapes["visual.proj"][1], vision, text, quick_gelu=record.image.quick_gelu)


def names_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors of a backbone by the names that converted files use; changing them in place changes it."""
    extras = backbone.extras.state_dict()
    return {**backbone.model.state_dict(), **{EXTRAS + name: value for name, value in extras.items()}}


def tokenizer_of(record: Record, folder: Path | None, backbone: Backbone) -> Tokenizer:
    """Return the tokenizer of a loaded model, and tell the parts that need to know its words.

    Args:
        record: of the model.
        folder: of the word list; None: the byte pairs that open_clip brings.
        backbone: the loaded model.

    Raises:
        DataError: the word list is of another model.
    """
    text: Any = backbone.text
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=text.context_length)
    words = Words(folder, text.context_length, record.text.clean)
    rows = len(backbone.model.get_parameter(WORD_TABLE))
    if words.size != rows or words.pad_id != text.pad_id:
        raise DataError(
            f"{folder}: this word list is of another model: {words.size} words and padding {words.pad_id}, "
            f"{record.title} has {rows} and {text.pad_id}"
        )
    if isinstance(text, SentenceTower):
        text.full_stop = words.id_of(".")
    if "continues" in backbone.extras:
        table: Any = backbone.extras["continues"]
        table.table.copy_(words.continues())
    return words

"""Small published checkpoints on disk, one for each medical model, and the word list beside them."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone, load_backbone
from benchmark.registry import BACKBONES
from tests.backbones.medical_oracles import BioVil, ConVirt, Gloria, Kad, Mgca, Plip, PmcClip, Prior
from tests.backbones.medical_parts import WORDS, Layout

MODELS: dict[str, Callable[[], Layout]] = {
    "convirt": ConVirt,
    "gloria": Gloria,
    "mgca-r50": Mgca,
    "mgca-vit": lambda: Mgca(vit=True),
    "biovil": BioVil,
    "biovil-t": lambda: BioVil(temporal=True),
    "prior": Prior,
    "kad": Kad,
    "pmc-clip": PmcClip,
    "plip": Plip,
    "quiltnet": lambda: Plip(activation="gelu"),
}
RECORDS = {name: BACKBONES.get(name).record for name in MODELS}
NAMES = {"pmc-clip": "pmc-clip:heads=8"}
"""Names under which they are loaded, where that is not their own."""
_FOLDER = tempfile.TemporaryDirectory(prefix="medical-")  # removed when the process ends
CHANNELS = {"prior": 1}
SIDES = {"biovil": 96, "biovil-t": 96, "kad": 96}
"""Side of the images, where the model takes any; attention pools and ViTs need 224."""


@functools.cache
def layout(name: str) -> Any:
    """Return a random model in its published layout, moved off its start so that every tensor counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        model = stirred(MODELS[name]())
    if hasattr(model, "logit_scale"):
        model.logit_scale.data.fill_(2.1 if name == "prior" else 4.1)
    return model


@torch.no_grad()
def stirred(model: Any) -> Any:
    """Return a model whose every tensor has been moved off its start."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval().requires_grad_(False)


def write(name: str, folder: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """Write a model's published files and its words; return the file that is named on the command line."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    model = layout(name)
    if name.startswith("biovil"):
        image, text = (dict(part) for part in model.published_parts())
        torch.save(text, folder / "pytorch_model.bin")
        content, path = image, folder / RECORDS[name].files[0][0].names[0]
    else:
        content = copy.copy(model.published())
        path = folder / f"{name}.ckpt"
    if change is not None:
        change(content)
    torch.save(content, path)
    return path


def small_sizes(monkeypatch: Any) -> None:
    """Take the published sizes out of the records for a test; sizes are then read from the files alone."""
    for name, record in RECORDS.items():
        monkeypatch.setattr(BACKBONES.get(name), "record", replace(record, shapes={}))


def loaded(name: str, path: Path) -> Backbone:
    return load_backbone(NAMES.get(name, name), pretrained=str(path))


@functools.cache
def backbone(name: str) -> Backbone:
    """Return a small model's backbone, loaded once from its published file; options may follow its name."""
    with pytest.MonkeyPatch.context() as patch:
        small_sizes(patch)
        model = name.partition(":")[0]
        return load_backbone(NAMES.get(name, name), pretrained=str(_file(model)))


@functools.cache
def _file(model: str) -> Path:
    folder = Path(_FOLDER.name, model)
    folder.mkdir()
    return write(model, folder)


def images(name: str, count: int = 2) -> Tensor:
    side = SIDES.get(name, 224)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, CHANNELS.get(name, 3), side, side, generator=generator)


def ids(name: str, length: int = 16) -> Tensor:
    """Return texts of several lengths; one has two sentences."""
    end = 49407 if name in ("plip", "quiltnet") else WORDS.index("[SEP]")
    start, stop = WORDS.index("[CLS]"), WORDS.index(".")
    rows = [
        [start, 7, 16, 9, end],
        [start, 12, 13, 16, 17, stop, end],
        [start, 6, 7, stop, 6, 8, 16, stop, end],
    ]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])

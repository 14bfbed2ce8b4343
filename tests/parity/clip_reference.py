"""The tiny OpenAI-style CLIP of ``tests/golden/authors_tiny_a`` and what the methods' authors' code gave on it."""

from __future__ import annotations

import functools
import json
from typing import Any

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file
from torch import Tensor

from benchmark.backbones import Backbone, from_open_clip
from tests.parity.ace_reference import GOLDEN


@functools.cache
def facts() -> dict[str, Any]:
    """Return the JSON beside the tensors."""
    return json.loads((GOLDEN / "authors_tiny_a.json").read_text())


@functools.cache
def tensors() -> dict[str, Tensor]:
    """Return the stored tensors."""
    return load_file(GOLDEN / "authors_tiny_a.safetensors")


def under(prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors().items() if k.startswith(prefix)}


def clip_model() -> CLIP:
    """Build the model and load its weights strictly."""
    sizes = facts()["open_clip"]["constructor_arguments"]
    model = CLIP(
        embed_dim=sizes["embed_dim"],
        vision_cfg=CLIPVisionCfg(**sizes["vision_cfg"]),
        text_cfg=CLIPTextCfg(**sizes["text_cfg"]),
        quick_gelu=sizes["quick_gelu"],
    ).eval()
    model.load_state_dict(under("clip."), strict=True)
    return model


def clip_backbone() -> Backbone:
    """Return the wrapped model."""
    return from_open_clip(clip_model())

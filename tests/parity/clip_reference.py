"""The tiny OpenAI-style CLIP of ``tests/golden/authors_tiny_a`` and what the methods' authors' code gave on it."""

from __future__ import annotations

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from benchmark.backbones import Backbone, from_open_clip
from tests.parity.ace_reference import stored

facts, tensors, under = stored("authors_tiny_a")


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

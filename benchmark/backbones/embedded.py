"""Backbones that need no download: the tiny pretrained ones, and architectures with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from benchmark.backbones.published import BIOMEDCLIP, CONTEXT_LENGTH, PUBMED_BERT, build
from benchmark.errors import ConfigError, unknown
from benchmark.registry import register_backbone

if TYPE_CHECKING:
    from benchmark.backbones.backbone import Backbone

WEIGHTS = Path(__file__).parent / "weights"
IMAGE_SIZE, EMBED_DIM = 64, 64
"""Of the tiny models."""


def tiny_names() -> list[str]:
    """Return the names of the weights that are in the package."""
    return sorted(path.name.removesuffix(".safetensors") for path in WEIGHTS.glob("[!.]*.safetensors"))


@dataclass(frozen=True)
class TinyModel:
    """One of the tiny models, not loaded yet.

    Attributes:
        parameters: number of weights.
        fingerprint: that of the loaded backbone.
    """

    parameters: int
    fingerprint: str
    image_size: ClassVar[tuple[int, ...]] = (IMAGE_SIZE, IMAGE_SIZE)
    config = MappingProxyType({"embed_dim": EMBED_DIM})

    def values(self) -> int:
        """Return the number of weights."""
        return self.parameters

    def lines(self) -> list[str]:
        """Say that it is here."""
        return ["nothing to fetch"]


class TinyBackbone:
    """A registered tiny model."""

    def find(self, name: str, *, pretrained: str | None = None) -> TinyModel:
        """Return what is known of the model without loading it.

        Raises:
            ConfigError: weights are asked for.
        """
        refuse_weights(name, pretrained)
        about = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        return TinyModel(about["parameters"], about["fingerprint"])

    def __call__(self, name: str, *, pretrained: str | None = None) -> Backbone:
        """Load the model; raises as :meth:`find`."""
        from benchmark.backbones.tiny import load_tiny

        refuse_weights(name, pretrained)
        return _wrapped(name, *load_tiny(name))


tiny = register_backbone(
    "tiny", summary="0.36 M parameters, 64 px, pretrained on phantoms as a weak generalist"
)(TinyBackbone())
tiny_b = register_backbone("tiny_b", summary="the same from another pretraining seed")(TinyBackbone())


@register_backbone(
    "random",
    summary="random:biomedclip, random:tiny, random:ct_clip or random:<open_clip name>: untrained weights",
)
def random(name: str, *, pretrained: str | None = None) -> Backbone:
    """Build ``random:biomedclip``, ``random:tiny``, ``random:ct_clip`` or ``random:<open_clip name>``, untrained.

    For efficiency figures and tests; no tokenizer for ``biomedclip`` and ``ct_clip`` (their vocabulary is a download).
    """
    import torch

    from benchmark.backbones.backbone import from_open_clip

    refuse_weights(name, pretrained)
    _, _, architecture = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture == "biomedclip":
            return from_open_clip(build(BIOMEDCLIP, PUBMED_BERT), context_length=256, name=name)
        if architecture == "tiny":
            from benchmark.backbones.tiny import build_tiny, load_tiny

            _, tokenizer = load_tiny("tiny")
            return _wrapped(name, build_tiny(tokenizer.vocab_size), tokenizer)
        base, _, options = architecture.partition(":")
        if base == "ct_clip":
            from benchmark.backbones.ct import CT_CLIP
            from benchmark.backbones.medical.heads import Shapes
            from benchmark.backbones.medical.model import build as build_medical

            backbone = build_medical(CT_CLIP.with_options(options), Shapes(CT_CLIP.shapes))
            backbone.name = name
            return backbone
        return _random_open_clip(architecture, name)


def _random_open_clip(architecture: str, name: str) -> Backbone:
    import open_clip

    from benchmark.backbones.backbone import from_open_clip

    known = open_clip.list_models()
    if architecture not in known:
        raise ConfigError(f"--backbone {name}: " + unknown("open_clip model", architecture, known))
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    own_words = not config["text_cfg"].get("hf_tokenizer_name")  # other vocabularies are downloads
    tokenizer = open_clip.get_tokenizer(architecture) if own_words else None
    length = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
    return from_open_clip(build(config), tokenizer, context_length=length, name=name)


def _wrapped(name: str, model: Any, tokenizer: Any) -> Backbone:
    from benchmark.backbones.backbone import InputSpec, from_open_clip
    from benchmark.backbones.tiny import MEAN, STD

    spec = InputSpec((IMAGE_SIZE, IMAGE_SIZE), (MEAN,) * 3, (STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


def refuse_weights(name: str, pretrained: str | None) -> None:
    """Raise ConfigError where weights are asked for, of a backbone that brings its own."""
    if pretrained is not None:
        raise ConfigError(f"--pretrained: backbone '{name}' brings its own weights, got '{pretrained}'")

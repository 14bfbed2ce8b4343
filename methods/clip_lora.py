"""CLIP-LoRA: low-rank updates of the query, key and value maps of every block, both towers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmark.backbones import Backbone
from benchmark.errors import StoreError
from benchmark.registry import register_method
from methods.base import Method, MethodCard, PeftAdapter
from methods.layers.lora import LoRAOptions, count_lora, load_official_lora, place_lora
from methods.layers.official import flatten
from methods.layers.peft_layout import lora_as_peft, lora_from_peft, official_lora_options

official_options = official_lora_options


@register_method("clip_lora")
class ClipLoRA(Method):
    """LoRA on q, k, v; pooled features as in the frozen model."""

    card = MethodCard(
        title="CLIP-LoRA",
        paper="Zanella and Ben Ayed, CVPR Workshops 2024",
        arxiv="2405.18541",
        repository="MaxZanella/CLIP-LoRA",
        equation="y = W x + b + (alpha / sqrt r) B A drop(x) for q, k, v of every block",
        trains="A [r, in] and B [out, r] of each adapted map",
        count="sum over adapted maps of r (in + out): 110,592 r at BiomedCLIP's size",
        deviations=(
            "r = 4, alpha = 1, dropout 0.1: the settings of the ACE-LoRA paper's row (the authors' own: r = 2, 0.25)",
            "every A drawn independently; B (A x) as two thin products, never merged during training",
            "frozen towers stay in eval mode, so BERT's own dropout is off",
        ),
    )
    Options = LoRAOptions
    adapts = frozenset({"image", "text"})
    identity_at_init = True
    mergeable = True

    def setup(self) -> None:
        """Attach LoRA to the towers."""
        self.adapters = place_lora(self.backbone, self.options)

    def expected_parameters(self) -> int:
        """Return r (in + out) summed over the adapted maps."""
        return count_lora(self.backbone, self.options)

    def as_peft(self) -> PeftAdapter:
        """Return a LoRA adapter with the same scale (rank-stabilised where ``scaling`` is sqrt)."""
        return lora_as_peft(self.backbone, self.adapters, self.options, "adapters")

    @classmethod
    def options_from_peft(
        cls, config: Mapping[str, Any], tensors: Iterable[str], backbone: Backbone
    ) -> dict[str, Any]:
        """Return the options of a plain LoRA adapter."""
        return lora_from_peft(config, tensors, backbone)


def load_official(method: ClipLoRA, state: Mapping[str, Any]) -> None:
    """Load a checkpoint with the authors' names, flat or nested (``layer_0.q_proj.w_lora_A``, text blocks first).

    Raises:
        StoreError: if a tensor is missing or left over.
    """
    flat = flatten(state)
    try:
        used = load_official_lora(method.adapters, flat)
    except KeyError as error:
        raise StoreError(f"official checkpoint of CLIP-LoRA: tensor {error} is missing") from error
    left = sorted(set(flat) - used - {"logit_scale"})
    if left:
        raise StoreError(
            f"official checkpoint of CLIP-LoRA: {len(left)} tensors have no place, first '{left[0]}'"
        )
    if "logit_scale" in flat:
        method.logit_scale.set(float(flat["logit_scale"]))

"""CLIP-LoRA: low-rank updates of the query, key and value maps of every block, both towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.registry import register_method
from methods.base import MethodCard
from methods.layers.lora import LoRAOptions, count_lora
from methods.layers.lora_family import LoRAMethod, copy_official_lora, official_lora_options
from methods.layers.official import OfficialTensors

official_options = official_lora_options


@register_method("clip_lora")
class ClipLoRA(LoRAMethod):
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
    identity_at_init = True
    mergeable = True

    def expected_parameters(self) -> int:
        """Return r (in + out) summed over the adapted maps."""
        return count_lora(self.backbone, self.options)


def load_official(method: ClipLoRA, state: Mapping[str, Any]) -> None:
    """Load a checkpoint with the authors' names, flat or nested (``layer_0.q_proj.w_lora_A``, text blocks first).

    Raises:
        StoreError: if a tensor is missing, misshapen or left over.
    """
    tensors = OfficialTensors(method, state)
    copy_official_lora(tensors, method.adapters)
    tensors.finish()

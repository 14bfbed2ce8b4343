"""What methods with LoRA on the towers share: its placement, peft's layout of it, and the authors' checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from benchmark.backbones import Backbone
from benchmark.errors import StoreError
from methods.base import Method, PeftAdapter
from methods.layers.lora import LoRAOptions, place_lora
from methods.layers.official import OfficialTensors, flatten
from methods.layers.peft_layout import PREFIX, pattern, placement, places

_OFFICIAL_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


class LoRAMethod(Method):
    """Base of methods that adapt both towers by LoRA; ``adapters`` holds it by tower, block and map."""

    adapts = frozenset({"image", "text"})
    adapters: nn.ModuleDict

    def setup(self) -> None:
        """Attach LoRA to the towers."""
        self.adapters = place_lora(self.backbone, self.options)

    def as_peft(self) -> PeftAdapter | None:
        """Return a LoRA adapter of peft with the same scale (rank-stabilised where ``scaling`` is sqrt)."""
        options, tensors, names = self.options, {}, {}
        named = places(self.backbone, options.params, options.encoder, options.position)
        modules: Any = self.adapters
        for module, (kind, index, site) in named.items():
            for letter in ("A", "B"):
                name = f"{PREFIX}{module}.lora_{letter}.weight"
                tensors[name] = getattr(modules[kind][str(index)][site], letter).detach().clone()
                names[name] = f"adapters.{kind}.{index}.{site}.{letter}"
        alpha = options.lora_alpha
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": options.r,
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": options.lora_dropout,
            "use_rslora": options.scaling == "sqrt",
            "bias": "none",
            "target_modules": pattern(named),
        }
        return PeftAdapter(config, tensors, names)

    @classmethod
    def options_from_peft(
        cls, config: Mapping[str, Any], tensors: Iterable[str], backbone: Backbone
    ) -> dict[str, Any]:
        """Return the options of a plain LoRA adapter; see :meth:`Method.options_from_peft`."""
        kind = str(config.get("peft_type"))
        extras = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "use_qalora")
        more = [key for key in extras if config.get(key)]
        if kind.upper() != "LORA" or more or config.get("bias", "none") != "none":
            what = f"{kind} with {', '.join(more) or 'biases'}" if kind.upper() == "LORA" else kind
            raise StoreError(
                f"expected plain LoRA without biases, the adapter is {what}. Import it as peft:<tuner>"
            )
        sites, encoder, position = placement(backbone, tensors)
        return {
            "r": config.get("r", 8),
            "lora_alpha": config.get("lora_alpha", 8),
            "lora_dropout": config.get("lora_dropout", 0.0),
            "scaling": "sqrt" if config.get("use_rslora") else "linear",
            "params": sites,
            "encoder": encoder,
            "position": position,
        }


def copy_official_lora(tensors: OfficialTensors, adapters: nn.ModuleDict) -> None:
    """Fill placed LoRA from the authors' names (``layer_0.q_proj.w_lora_A``: text blocks first, then image blocks).

    Raises:
        StoreError: naming the first tensor that is missing or of another shape.
    """
    towers: Any = adapters.values()
    for number, block in enumerate(block for tower in towers for block in tower.values()):
        for part, lora in block.items():
            for letter in ("A", "B"):
                name = f"layer_{number}.{_OFFICIAL_PARTS.get(part, part)}.w_lora_{letter}"
                tensors.copy(name, getattr(lora, letter))


def official_lora_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of the CLIP-LoRA family tells of its options.

    Its ``metadata`` (`CLIP-LoRA: loralib/utils.py`, `ACE-LoRA: lora.py`), where it has one, and the rank of its
    matrices. ACE-LoRA's does not store alpha.
    """
    metadata = state.get("metadata")
    told: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else {}
    fields = {item.name for item in dataclasses.fields(LoRAOptions)}
    options = {key: value for key, value in told.items() if key in fields}
    if "alpha" in told:
        options["lora_alpha"] = told["alpha"]
    ranks = {
        len(value) for name, value in flatten(state).items() if name.endswith("w_lora_A") and value.ndim == 2
    }
    if len(ranks) == 1:
        options["r"] = ranks.pop()
    return options

"""Names in peft's layout: which modules of a backbone an adapter changes, and LoRA as a peft adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from benchmark.backbones import Backbone
from benchmark.backbones.towers.base import SITES
from benchmark.errors import StoreError
from methods.base import PeftAdapter
from methods.layers.lora import ENCODERS, POSITIONS, LoRAOptions, blocks_at, towers_of
from methods.layers.official import flatten

PREFIX = "base_model.model."
"""What peft puts before every name of the model it wraps."""

Place = tuple[str, int, str]
"""Tower, block and site of a linear map."""


def places(
    backbone: Backbone, sites: Iterable[str], encoder: str = "both", position: str = "all"
) -> dict[str, Place]:
    """Return the places that options choose, by the names of their modules (``Backbone.linear_name``)."""
    chosen = tuple(sites)
    return {
        backbone.linear_name(kind, index, site): (kind, index, site)
        for kind, tower in towers_of(backbone, encoder).items()
        for index in blocks_at(position, tower.depth)
        for site in chosen
    }


def pattern(names: Iterable[str]) -> str:
    """Return peft's ``target_modules`` for exactly these modules (a list would match by the end of names)."""
    return "|".join(re.escape(name) for name in names)


def placement(backbone: Backbone, tensors: Iterable[str]) -> tuple[tuple[str, ...], str, str]:
    """Return (sites, encoder, position) that choose the modules of an adapter's tensors.

    Raises:
        StoreError: a tensor belongs to no linear map of the towers, or no options choose these modules.
    """
    known = places(backbone, SITES)
    found: set[Place] = set()
    for tensor in tensors:
        if tensor.startswith(PREFIX):
            parts = tensor.removeprefix(PREFIX).split(".")
            owners = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            owner = next((name for name in owners if name in known), None)
            if owner is None:
                raise StoreError(
                    f"'{tensor}' belongs to no linear map of backbone '{backbone.name}' (q, k and v apart)"
                )
            found.add(known[owner])
    sites = tuple(site for site in SITES if site in {place[2] for place in found})
    for encoder in ENCODERS:
        for position in POSITIONS:
            if found and found == set(places(backbone, sites, encoder, position).values()):
                return sites, encoder, position
    raise StoreError(
        f"the adapter sits on {len(found)} linear maps of backbone '{backbone.name}' that no choice of sites, "
        "encoder and position describes"
    )


def lora_as_peft(
    backbone: Backbone, adapters: nn.ModuleDict, options: LoRAOptions, prefix: str
) -> PeftAdapter:
    """Return placed LoRA (``methods.layers.lora.place_lora``) as a peft adapter, with the same scale.

    Args:
        backbone: whose modules the names are of.
        adapters: the placed modules.
        options: what they were placed with.
        prefix: name of ``adapters`` in the method's trained state, for example "adapters".
    """
    named = places(backbone, options.params, options.encoder, options.position)
    tensors, names = {}, {}
    modules: Any = adapters
    for module, (kind, index, site) in named.items():
        for letter in ("A", "B"):
            name = f"{PREFIX}{module}.lora_{letter}.weight"
            tensors[name] = getattr(modules[kind][str(index)][site], letter).detach().clone()
            names[name] = f"{prefix}.{kind}.{index}.{site}.{letter}"
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


def lora_from_peft(config: Mapping[str, Any], tensors: Iterable[str], backbone: Backbone) -> dict[str, Any]:
    """Return the LoRA options (``LoRAOptions``) that give the form of a peft adapter.

    Raises:
        StoreError: it is no plain LoRA.
    """
    kind = str(config.get("peft_type"))
    more = [
        key
        for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "use_qalora")
        if config.get(key)
    ]
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

"""Names in peft's layout: which linear maps of a backbone an adapter changes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from benchmark.backbones import Backbone
from benchmark.backbones.towers.base import SITES
from benchmark.backbones.towers.deltas import FUSED
from benchmark.errors import StoreError
from methods.base import SIDES
from methods.layers.lora import Position, blocks_at, towers_of

PREFIX = "base_model.model."
"""What peft puts before every name of the model it wraps."""

LinearMap = tuple[str, int, str]
"""Tower, block and site of a linear map."""


def places(
    backbone: Backbone, sites: Iterable[str], encoder: str = "both", position: str = "all"
) -> dict[str, LinearMap]:
    """Return the places that options choose, by the names of their modules (``Backbone.linear_name``)."""
    chosen = tuple(sites)
    return {
        backbone.linear_name(kind, index, site): (kind, index, site)
        for kind, tower in towers_of(backbone, encoder).items()
        for index in blocks_at(position, tower.depth)
        for site in tower.sites_of(chosen)
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
    found: set[LinearMap] = set()
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
    adapted = {site for place in found for site in FUSED.get(place[2], (place[2],))}
    sites = tuple(site for site in SITES if site in adapted)
    for encoder in SIDES:
        for position in get_args(Position):
            if found and found == set(places(backbone, sites, encoder, position).values()):
                return sites, encoder, position
    raise StoreError(
        f"the adapter sits on {len(found)} linear maps of backbone '{backbone.name}' that no choice of sites, "
        "encoder and position describes"
    )

"""MoLRE: a mixture of low-rank experts whose weights a small router gives to each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.precision import at_least_fp32
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Method, MethodCard

_SITES = ("q", "k", "v")


@dataclass(frozen=True)
class MoLREOptions:
    """Where the experts sit, how many there are, and how the router looks."""

    experts: int = setting(6, "K, number of experts; 1 is one LoRA without a router", low=1)
    r: int = setting(8, "rank of an expert", low=1)
    site: Literal["feature", "qkv"] = setting(
        "feature", "feature: the image tower's feature; qkv: the query, key and value maps of its blocks"
    )
    reduction: int = setting(16, "the router's input width over its hidden width", low=1)
    activation: Literal["relu", "gelu"] = setting("relu", "of the router's hidden layer")


class Router(nn.Module):
    """g(x) = softmax(R2 act(R1 x + c1) + c2): x ``[..., D]`` -> weights ``[..., K]``, all 1/K at the start.

    Args:
        width: D. hidden: width of the hidden layer. experts: K. activation: "relu" or "gelu".
    """

    def __init__(self, width: int, hidden: int, experts: int, activation: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, experts)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self._activation = functional.relu if activation == "relu" else functional.gelu

    def forward(self, inputs: Tensor) -> Tensor:
        """Return weights that add up to 1, of the number type of ``inputs``."""
        scores = self.last(self._activation(self.first(inputs)))
        return at_least_fp32(scores).softmax(dim=-1).to(inputs.dtype)


class Experts(nn.Module):
    """sum_k g_k B_k A_k x: x ``[..., in]`` with weights ``[..., K]`` -> ``[..., out]``; zero at the start.

    Args:
        num_inputs, num_outputs: widths. experts: K. r: rank of each.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, experts: int, r: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(experts, r, num_inputs))
        self.B = nn.Parameter(torch.zeros(experts, num_outputs, r))
        nn.init.uniform_(self.A, -(num_inputs**-0.5), num_inputs**-0.5)  # as LoRA starts

    def forward(self, inputs: Tensor, weights: Tensor | None) -> Tensor:
        """Return the update; without ``weights`` all experts count fully."""
        low = functional.linear(inputs, self.A.flatten(0, 1))
        if weights is not None:
            low = (low.unflatten(-1, self.A.shape[:2]) * weights.to(low.dtype)[..., None]).flatten(-2)
        return functional.linear(low, self.B.transpose(0, 1).flatten(1))


class RoutedMap(nn.Module):
    """The experts of one linear map of a block, weighted by the block's router on the mean of the map's input."""

    draws: ClassVar[bool] = False  # read by the towers: a pass draws no random numbers

    def __init__(self, experts: Experts, router: Router | None) -> None:
        super().__init__()
        self.experts = experts
        self._router = (router,)  # in a tuple: it belongs to the block, not to each of its maps

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the update of ``inputs`` ``[B, N, in]``."""
        router = self._router[0]
        return self.experts(inputs, None if router is None else router(inputs.mean(dim=-2, keepdim=True)))


@register_method("molre", in_all=False)
class MoLRE(Method):
    """Experts on the image feature, or on q, k and v of the image tower's blocks."""

    card = MethodCard(
        title="MoLRE (our reading)",
        paper="Mixture of Low-Rank Experts for head CT, 2026; published without code",
        arxiv="2603.00675",
        equation="h = W0 x + sum_k g_k(x) B_k A_k x, g = softmax of a two-layer router",
        trains="A_k [r, in] and B_k [out, r] of K experts, and the router",
        count="K r (in + out) + router D h + h + h K + K, h = D // reduction: 49,152 + 16,614 at E = 512",
        deviations=(
            "our reading of a paper without code: it does not tell the router's width and activation, nor the sites",
            "the paper's encoders end in a pooled feature; here it is the projected one, W0 is the identity",
            "qkv: one router for each block, on the mean of each map's input; the paper routes by slice or volume",
            "experts=1 with r=48 is one LoRA with as many values as the six experts",
        ),
    )
    Options = MoLREOptions
    identity_at_init = True
    cost_hint = 0.3

    def setup(self) -> None:
        """Create experts and routers; attach them to the blocks where they sit there."""
        if self.options.site == "feature":
            width = self.backbone.embed_dim
            self.router = self._new_router(width)
            self.experts = self._new_experts(width, width)
            return
        self.adapts = frozenset({"image"})
        tower, blocks = self.backbone.image, nn.ModuleDict()
        for index in range(tower.depth):
            router = self._new_router(tower.width)
            maps = nn.ModuleDict({"router": router} if router is not None else {})
            for site in tower.sites_of(_SITES):
                maps[site] = RoutedMap(self._new_experts(*tower.site_shape(index, site)), router)
                tower.attach(index, site, maps[site])
            blocks[str(index)] = maps
        self.blocks = nn.ModuleDict({"image": blocks})

    def _new_experts(self, num_inputs: int, num_outputs: int) -> Experts:
        return Experts(num_inputs, num_outputs, experts=self.options.experts, r=self.options.r)

    def _new_router(self, width: int) -> Router | None:
        options = self.options
        if options.experts == 1:
            return None
        return Router(width, max(1, width // options.reduction), options.experts, options.activation)

    def image_head(self, features: Tensor) -> Tensor:
        """Add what the experts make of the feature."""
        if self.options.site != "feature":
            return features
        return features + self.experts(features, None if self.router is None else self.router(features))

    def parameter_group(self, name: str) -> str:
        """Return "image": both sites act on images alone."""
        group = super().parameter_group(name)
        return "image" if group == "shared" else group

    def counts(self) -> dict[str, int]:
        """Return trained values of "experts" and "router"."""
        options = self.options

        def router(width: int) -> int:
            hidden = max(1, width // options.reduction)
            return width * hidden + hidden + hidden * options.experts + options.experts

        if options.site == "feature":
            widths, shapes = [self.backbone.embed_dim], [(self.backbone.embed_dim,) * 2]
        else:
            tower = self.backbone.image
            widths = [tower.width] * tower.depth
            shapes = [
                tower.site_shape(index, site)
                for index in range(tower.depth)
                for site in tower.sites_of(_SITES)
            ]
        experts = options.experts * options.r * sum(map(sum, shapes))
        return {"experts": experts, "router": sum(map(router, widths)) if options.experts > 1 else 0}

    def expected_parameters(self) -> int:
        """Return K r (in + out) of every site, and the routers."""
        return sum(self.counts().values())

    @torch.no_grad()
    def figures(self, some: Callable[[], Any]) -> dict[str, float]:
        """Return the mean entropy of the routing of some images, in nats, its lowest value, and its bound log K.

        Every sample near 0 (one expert for all) or near log K (all alike) means that the router has learnt nothing.
        """
        if self.options.experts == 1:
            return {}
        routers = [module for module in self.modules() if isinstance(module, Router)]
        seen: list[Tensor] = []
        hooks = [
            router.register_forward_hook(lambda _module, _args, weights: seen.append(entropy(weights)))
            for router in routers
        ]
        try:
            self.embed_images(some())
        finally:
            for hook in hooks:
                hook.remove()
        values = torch.cat([each.flatten() for each in seen])
        return {
            "routing_entropy": float(values.mean()),
            "routing_entropy_lowest": float(values.min()),
            "routing_entropy_of_equal_weights": math.log(self.options.experts),
        }


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy ``[...]`` of weights ``[..., K]``, in nats."""
    return torch.special.entr(at_least_fp32(weights)).sum(dim=-1)

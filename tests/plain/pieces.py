"""Pieces of a method that are timed alone, fast or plain, and the one shortcut of the towers that can be left out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmark.backbones import Backbone, Intervention, TokenSequence, Tower
from benchmark.registry import METHODS
from methods.base import Method, from_options


def pieces(method: Method, batch: Any) -> dict[str, Callable[[], object]]:
    """Return what can be called alone, by name: of a method with hypergraphs ``graph_image`` and ``graph_text``.

    A call is one forward and backward pass, from what the towers give for the batch.

    Args:
        method: in its fast or its plain form, in training mode when the calls are made.
        batch: with inputs.
    """
    return {
        f"graph_{kind}": functools.partial(
            _refine, method, kind, functools.cache(_towers(method, kind, batch))
        )
        for kind in getattr(method, "graphs", {})
    }


def _towers(method: Any, kind: str, batch: Any) -> Callable[[], Any]:
    @torch.no_grad()
    def run() -> Any:
        image = kind == "image"
        tower = method.backbone.image if image else method.backbone.text
        return method.graph_of(tower, batch.images if image else batch.token_ids)

    return run


def _refine(method: Any, kind: str, towers: Callable[[], Any]) -> None:
    graph = towers()
    tokens, row = (value.detach().requires_grad_() for value in (graph.tokens, graph.row))
    method.refined(kind, dataclasses.replace(graph, tokens=tokens, row=row)).sum().backward()
    method.graphs[kind].zero_grad(set_to_none=True)


class _Watch(Intervention):
    """Changes nothing, but may look at every token that the last block gives."""

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        """Return the output as it is."""
        return after


class EveryToken(Method):
    """A method whose towers compute every token of their last block."""

    def image_interventions(self) -> Iterable[Intervention]:
        """Watch the last block."""
        return (*super().image_interventions(), _Watch())

    def text_interventions(self) -> Iterable[Intervention]:
        """Watch the last block."""
        return (*super().text_interventions(), _Watch())


def with_every_token(name: str, backbone: Backbone, **options: Any) -> Method:
    """Wrap a backbone with a method in its fast form but for the last block; arguments as for ``methods.build``."""
    method = METHODS.get(name)
    whole: type[Method] = type(f"Whole{method.__name__}", (EveryToken, method), {})
    return from_options(whole, backbone, options)

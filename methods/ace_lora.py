"""ACE-LoRA: LoRA on both towers, and a hypergraph over tokens that refines the global feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import TokenSequence, Tower, tokens_at
from benchmark.backbones.towers.precision import at_least_fp32, full_precision
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import SIDES, MethodCard, PeftAdapter, Sides
from methods.layers.hypergraph import (
    HypergraphNetwork,
    Incidence,
    Neighbours,
    neighbours,
    refine,
    refine_all,
    refine_chosen,
)
from methods.layers.lora import LoRAOptions, count_lora, share_first_a
from methods.layers.lora_family import LoRAMethod, copy_official_lora, official_lora_options
from methods.layers.official import OfficialTensors, flatten


@dataclass(frozen=True)
class AceLoRAOptions(LoRAOptions):
    """Options in the authors' spelling, on top of LoRA's.

    Raises:
        ConfigError: options that contradict each other.
    """

    topk: int = setting(5, "neighbours of every token; 1 with incidence=gnn", low=1)
    hidden_features: int = setting(128, "width of the bottlenecks", low=1)
    apply_to: Sides = setting(
        "both", "towers that the hypergraph refines; the other keeps its plain global feature"
    )
    text_graph: Literal["official", "masked"] = setting(
        "official",
        "official: padding takes part (texts padded to the context length, as published); masked: it does not, which "
        "allows padding to the batch",
    )
    prompt_ensemble: Literal["tokens", "features"] = setting(
        "tokens",
        "tokens: the templates of a class are averaged token by token before the hypergraph, as in the authors' "
        "evaluation; features: their final features are averaged",
    )
    incidence: Incidence = setting(
        "attention",
        "attention (the method) or one of the paper's ablation, for which no code is public: gat and gatv2 learn the "
        "weights of the kept entries, gnn joins every token with one other; gnn_one_stage is another reading of that "
        "row: hyperedges are not taken back to the vertices",
    )
    use_lora: bool = setting(True, "whether LoRA is there; without it the hypergraph alone trains")
    same_A: bool = setting(
        False,
        "start from one A for q, one for k and one for v, each the same in all blocks, as the authors' code does (it "
        "re-seeds in every block)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.incidence == "gnn" and self.topk not in (1, AceLoRAOptions.topk):
            raise ConfigError(f"topk: incidence=gnn has one neighbour, got topk={self.topk}; leave topk out")
        lora = ["same_A", *(field.name for field in fields(LoRAOptions))]
        changed = [name for name in lora if getattr(self, name) != getattr(AceLoRAOptions, name)]
        if changed and not self.use_lora:
            raise ConfigError(f"use_lora: without LoRA {', '.join(changed)} means nothing; leave it out")

    @property
    def neighbours(self) -> int:
        """Number of neighbours of every token."""
        return 1 if self.incidence == "gnn" else self.topk


@dataclass(frozen=True)
class Graph:
    """What the hypergraph sees of samples, global token first.

    Attributes:
        tokens: unit-norm projected tokens ``[B, N, E]``. row: scores of the global token ``[B, N-1]``.
        keep: bool ``[B, N]`` of the tokens that are no padding, or None.
        near: None when all tokens are there; else what was chosen: tokens and row are then those of its positions.
    """

    tokens: Tensor
    row: Tensor
    keep: Tensor | None
    near: Neighbours | None = None


@register_method("ace_lora")
class AceLoRA(LoRAMethod):
    """LoRA (q, k, v, both towers) and one hypergraph network per refined tower; the output replaces the feature."""

    card = MethodCard(
        title="ACE-LoRA",
        paper="ACE-LoRA, 2026",
        arxiv="2603.17079",
        repository="icon-lab/ACE-LoRA",
        equation="z = norm(f_n(A^T f_e(A X)))[0], A from the last block's attention (row 0) and token cosines",
        trains="LoRA's A and B; f_e and f_n (down, up, biases) of each refined tower; the logit scale",
        count="LoRA + 2 (2 E m + m + E) per refined tower: 442,368 + 526,848 at BiomedCLIP's size; "
        "incidence=gat adds E m + 2 m per refined tower, gatv2 2 E m + m",
        deviations=(
            "every A drawn independently (the code re-seeds in every block, so all blocks share one draw: same_A=true)",
            "networks of a tower that is not refined are not created (the code creates and saves them unused)",
            "frozen towers stay in eval mode (the code leaves BERT's embedding and FFN dropout on)",
            "text row after softmax wherever LoRA sits (the code falls back to raw scores without LoRA on top)",
            "logit scale in log space, clamped, not decayed, as for every method; logit_scale=linear is the code's",
        ),
    )
    Options = AceLoRAOptions
    cost_hint = 1.3

    def setup(self) -> None:
        """Attach LoRA and create the networks."""
        options, width = self.options, self.backbone.embed_dim
        self.adapters = nn.ModuleDict()
        if options.use_lora:
            super().setup()
        if options.same_A:
            share_first_a(self.adapters)
        self.graphs = nn.ModuleDict(
            {
                kind: HypergraphNetwork(width, options.hidden_features, options.incidence)
                for kind in SIDES[options.apply_to]
            }
        )

    @property
    def text_padding(self) -> Literal["longest", "context"]:
        """The published text graph contains the padding up to the context length."""
        official = "text" in self.graphs and self.options.text_graph == "official"
        return "context" if official else "longest"

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]``, refined where the hypergraph acts on images."""
        if "image" not in self.graphs:
            return super().encode_image(images)
        return self._encode(self.backbone.image, images)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]``, refined where the hypergraph acts on texts."""
        if "text" not in self.graphs:
            return super().encode_text(token_ids)
        return self._encode(self.backbone.text, token_ids)

    def patch_features(self, images: Tensor) -> Tensor:
        """Return unit-norm features ``[B, N, E]`` of the patches: rows of the whole hypergraph's output."""
        if "image" not in self.graphs:
            return super().patch_features(images)
        graph = self.graph_of(self.backbone.image, images)
        network: Any = self.graphs["image"]
        with full_precision(graph.tokens.device):
            output = refine_all(network, graph.tokens, graph.row, topk=self.options.neighbours)
        return functional.normalize(output[:, 1:], dim=-1)

    def graph_of(self, tower: Tower, inputs: Tensor) -> Graph:
        """Return tokens and attention row of images ``[B, C, H, W]`` or token ids ``[B, L]``."""
        output = tower.forward(inputs, global_row=True)
        assert output.global_row is not None  # requested above
        return self._graph(tower, output.sequence, output.global_row)

    def chosen_graph_of(self, tower: Tower, inputs: Tensor) -> Graph:
        """Return the part of it that reaches the loss, as far as the tower can leave out the rest.

        All tokens pass the last block without gradient, to choose by them; the chosen ones pass it again.
        """
        found: list[Neighbours] = []

        def choose(sequence: TokenSequence, row: Tensor) -> Tensor:
            graph = self._graph(tower, sequence, row)
            with full_precision(graph.tokens.device):
                found.append(
                    neighbours(graph.tokens, graph.row, topk=self.options.neighbours, keep=self._kept(graph))
                )
            order = _order(sequence)
            return found[0].positions if order is None else order.gather(1, found[0].positions)

        output = tower.forward(inputs, global_row=True, choose=choose)
        sequence, row, positions = output.sequence, output.global_row, output.positions
        assert row is not None  # requested above
        if positions is None:
            return self._graph(tower, sequence, row)
        first = positions[:, 1 : 1 + found[0].first.shape[1]]
        return Graph(_unit(tower, sequence.tokens), row.gather(1, first), None, found[0])

    def _encode(self, tower: Tower, inputs: Tensor) -> Tensor:
        fewer = self.training and torch.is_grad_enabled()
        graph = self.chosen_graph_of(tower, inputs) if fewer else self.graph_of(tower, inputs)
        return self.refined(tower.kind, graph)

    def _graph(self, tower: Tower, sequence: TokenSequence, row: Tensor) -> Graph:
        tokens, keep, order = _unit(tower, sequence.tokens), sequence.keep, _order(sequence)
        if order is not None:
            tokens, row = tokens_at(tokens, order), row.gather(1, order)
            keep = None if keep is None else keep.gather(1, order)
        return Graph(tokens, row[:, 1:], keep)

    def _kept(self, graph: Graph) -> Tensor | None:
        return graph.keep if self.options.text_graph == "masked" else None

    def refined(self, kind: str, graph: Graph) -> Tensor:
        """Return the refined unit-norm global feature ``[B, E]``."""
        network: Any = self.graphs[kind]
        with full_precision(graph.tokens.device):
            if graph.near is None:
                topk, keep = self.options.neighbours, self._kept(graph)
                output = refine(network, graph.tokens, graph.row, topk=topk, keep=keep)
            else:
                output = refine_chosen(network, graph.tokens, graph.row, graph.near)
        return functional.normalize(output, dim=-1)

    def class_features(self, token_ids: Tensor) -> Tensor:
        """Return class features ``[C, E]``: templates are averaged token by token, then refined once per class."""
        if "text" not in self.graphs or self.options.prompt_ensemble == "features":
            return super().class_features(token_ids)
        classes = token_ids.shape[:2]
        graph = self.graph_of(self.backbone.text, token_ids.flatten(0, 1))
        tokens, row = graph.tokens.unflatten(0, classes), graph.row.unflatten(0, classes)
        keep = None if graph.keep is None else graph.keep.unflatten(0, classes)
        if keep is None or self.options.text_graph == "official":
            return self.refined("text", Graph(tokens.mean(dim=1), row.mean(dim=1), None))
        count = keep.sum(dim=1).clamp(min=1)[..., None]
        mean = (tokens * keep[..., None]).sum(dim=1) / count
        return self.refined("text", Graph(mean, row.mean(dim=1), keep.any(dim=1)))

    def expected_parameters(self) -> int:
        """Return LoRA's count + that of the network of each refined tower."""
        options = self.options
        network = HypergraphNetwork.count(self.backbone.embed_dim, options.hidden_features, options.incidence)
        lora = count_lora(self.backbone, options) if options.use_lora else 0
        return lora + len(self.graphs) * network

    def as_peft(self) -> PeftAdapter | None:
        """Return the LoRA part with its scale, if there is one; the hypergraph has no form in peft."""
        return super().as_peft() if self.options.use_lora else None


def _unit(tower: Tower, tokens: Tensor) -> Tensor:
    """Return a tower's tokens ``[B, N, D]`` in the shared space, of length 1: ``[B, N, E]``."""
    return functional.normalize(at_least_fp32(tower.project(tokens)), dim=-1)


def _order(sequence: TokenSequence) -> Tensor | None:
    """Return the order ``[B, N]`` that brings the end token of causal text to the front and keeps the rest in order."""
    at = sequence.pooled_at
    if not isinstance(at, Tensor):
        return None
    steps = torch.arange(sequence.tokens.shape[1], device=at.device).expand(len(at), -1)
    rest = steps - (steps <= at[:, None]).long()
    return torch.where(steps == 0, at[:, None], rest)


def official_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an authors' checkpoint tells of its options: LoRA's, the neighbours, the bottleneck's width."""
    options, metadata = official_lora_options(state), state.get("metadata")
    if isinstance(metadata, Mapping) and "topk" in metadata:
        options["topk"] = metadata["topk"]
    down = flatten(state).get("img_edge_adapter.down.weight")
    if down is not None:
        options["hidden_features"] = len(down)
    return options


def load_official(method: AceLoRA, state: Mapping[str, Any]) -> None:
    """Load a checkpoint as the authors save it (``ACE_LoRA.pt``: {weights, metadata}), nested or flat.

    ``layer_0`` .. are the text blocks, then the image blocks; ``logit_scale`` is stored exponentiated.

    Raises:
        ConfigError: if the method learns more than the authors' does (incidence=gat, gatv2).
        StoreError: if a tensor is missing, misshapen or left over.
    """
    if method.options.incidence in ("gat", "gatv2"):
        raise ConfigError(
            "official checkpoint of ACE-LoRA: it holds no scores of neighbours; build with incidence=attention"
        )
    tensors = OfficialTensors(method, state)
    copy_official_lora(tensors, method.adapters)
    unused = []  # all four networks are in the file, whichever towers are refined
    for kind, prefix in (("image", "img"), ("text", "text")):
        for role in ("edge", "node"):
            if kind in method.graphs:
                tensors.copy_all(f"{prefix}_{role}_adapter", method.graphs[kind].get_submodule(role))
            else:
                unused.append(f"{prefix}_{role}_adapter.")
    tensors.finish(*unused)

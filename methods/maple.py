"""MaPLe: prompts in the first blocks of both towers, the image prompts coupled to the text prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.backbones import Intervention, TokenSequence, Tower
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from methods.base import Method, MethodCard, positive
from methods.layers.official import copy_into, flatten
from methods.layers.prompts import BlockTokens, InsertedPrompt, initial_context


@dataclass(frozen=True)
class MaPLeOptions:
    """Options in the authors' spelling.

    Attributes:
        n_ctx: prompt tokens. prompt_depth: prompted blocks J, the embedded input being the first; None takes three
            quarters of the shallower tower (the authors' 9 of 12).
        ctx_init: words that the first prompt starts from; "auto" and "" as for CoOp.
    """

    n_ctx: int = 2
    prompt_depth: int | None = None
    ctx_init: str = "auto"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: naming the option.
        """
        positive("n_ctx", self.n_ctx)
        if self.prompt_depth is not None:
            positive("prompt_depth", self.prompt_depth)


class AppendedPrompt(Intervention):
    """Append vectors to the embedded input (images: after positions, so they get none)."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Append the vectors."""
        return sequence.append(self._vectors)


@register_method("maple")
class MaPLe(Method):
    """Text prompts P_j and image prompts F_j(P_j) for blocks 1..J; later blocks run on what is there."""

    card = MethodCard(
        title="MaPLe",
        paper="Khattak et al., CVPR 2023",
        arxiv="2210.03117",
        repository="muzairkhattak/multimodal-prompt-learning",
        equation="V_j = P_j W_j^T + b_j; block j reads P_j (text, after the start token) and V_j (image, at the end)",
        trains="P_1..P_J [n_ctx, text width] and J couplings text width -> image width",
        count="J n_ctx w + J (w v + v), w and v the widths: 5,329,152 at BiomedCLIP's size (J = 9)",
        deviations=(
            "prompts are inserted in front of reports and templates (the authors replace the first words of theirs)",
        ),
    )
    Options = MaPLeOptions
    adapts = frozenset({"image", "text"})
    cost_hint = 1.2

    def setup(self) -> None:
        """Create prompts and couplings."""
        image, text = self.backbone.image, self.backbone.text
        shallower = min(image.depth, text.depth)
        self.depth = self.options.prompt_depth or max(1, 3 * shallower // 4)
        if self.depth > shallower:
            raise ConfigError(
                f"prompt_depth: expected at most {shallower} (the shallower tower), got {self.depth}"
            )
        count = self.options.n_ctx
        first = initial_context(self.backbone, count, self.options.ctx_init, cut=True)
        deeper = [torch.randn(count, text.width) * 0.02 for _ in range(self.depth - 1)]
        self.prompts = nn.ParameterList([nn.Parameter(value) for value in (first, *deeper)])
        first_coupling, other = nn.Linear(text.width, image.width), nn.Linear(text.width, image.width)
        clones = [copy.deepcopy(other) for _ in range(self.depth - 1)]  # all start equal, as the authors' do
        self.couplings = nn.ModuleDict({"image": nn.ModuleList([first_coupling, *clones])})

    def image_prompts(self) -> list[Tensor]:
        """Return V_1..V_J, each ``[n_ctx, image width]``."""
        couplings: Any = self.couplings["image"]
        return [couple(prompt) for couple, prompt in zip(couplings, self.prompts, strict=True)]

    def image_interventions(self) -> Iterable[Intervention]:
        """Append V_1, then overwrite it by V_j before block j."""
        vectors = self.image_prompts()
        deeper = {index: vectors[index] for index in range(1, self.depth)}
        return AppendedPrompt(vectors[0]), BlockTokens(deeper, inserted=True, at=-self.options.n_ctx)

    def text_interventions(self) -> Iterable[Intervention]:
        """Insert P_1, then overwrite it by P_j before block j."""
        deeper = {index: self.prompts[index] for index in range(1, self.depth)}
        return InsertedPrompt(self.prompts[0]), BlockTokens(deeper, inserted=True)

    def text_ids(self, token_ids: Tensor) -> Tensor:
        """Make room for the prompt."""
        return self.backbone.text.make_room(token_ids, self.options.n_ctx)

    def expected_parameters(self) -> int:
        """Return J n_ctx w + J (w v + v)."""
        text, image = self.backbone.text.width, self.backbone.image.width
        return self.depth * (int(self.options.n_ctx) * text + text * image + image)


def load_official(method: MaPLe, state: Mapping[str, Any]) -> None:
    """Load a ``prompt_learner`` (ctx, proj, compound_prompts_text, compound_prompt_projections).

    Raises:
        StoreError: if a tensor is missing or of another shape.
    """
    flat = {name.removeprefix("prompt_learner."): value for name, value in flatten(state).items()}
    couplings: Any = method.couplings["image"]
    for index, (prompt, coupling) in enumerate(zip(method.prompts, couplings, strict=True)):
        name = "ctx" if index == 0 else f"compound_prompts_text.{index - 1}"
        copy_into(prompt, flat, name, who="MaPLe")
        name = "proj" if index == 0 else f"compound_prompt_projections.{index - 1}"
        copy_into(coupling.weight, flat, f"{name}.weight", who="MaPLe")
        copy_into(coupling.bias, flat, f"{name}.bias", who="MaPLe")

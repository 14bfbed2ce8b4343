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
from benchmark.settings import setting
from methods.base import Method, MethodCard
from methods.layers.official import OfficialTensors
from methods.layers.prompts import BlockTokens, ContextOptions, InsertedPrompt, initial_context


@dataclass(frozen=True)
class MaPLeOptions(ContextOptions):
    """Options in the authors' spelling; ``ctx_init`` is what the first prompt starts from."""

    n_ctx: int = setting(2, "prompt tokens", low=1)
    prompt_depth: int | None = setting(
        None,
        "prompted blocks J, the embedded input being the first; none takes three quarters of the shallower tower (the "
        "authors' 9 of 12)",
        low=1,
    )


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
    tensors = OfficialTensors(method, state, "prompt_learner.")
    couplings: Any = method.couplings["image"]
    for index, (prompt, coupling) in enumerate(zip(method.prompts, couplings, strict=True)):
        tensors.copy("ctx" if index == 0 else f"compound_prompts_text.{index - 1}", prompt)
        tensors.copy_all("proj" if index == 0 else f"compound_prompt_projections.{index - 1}", coupling)

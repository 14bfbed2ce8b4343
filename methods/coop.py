"""CoOp: learned context vectors in front of the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from benchmark.backbones import Intervention
from benchmark.registry import register_method
from methods.base import Method, MethodCard, choice, positive
from methods.layers.official import copy_into, flatten
from methods.layers.prompts import InsertedPrompt, PromptAround, initial_context


@dataclass(frozen=True)
class ContextOptions:
    """Options of a learned context in the authors' spelling.

    Attributes:
        n_ctx: number of context vectors. ctx_init: words that they start from; "auto" takes "a photo of a" where the
            tokenizer makes exactly n_ctx pieces of it and draws N(0, 0.02^2) otherwise; "" always draws.
    """

    n_ctx: int = 4
    ctx_init: str = "auto"

    def __post_init__(self) -> None:
        """Check the number of vectors.

        Raises:
            ConfigError: if it is not positive.
        """
        positive("n_ctx", self.n_ctx)


@dataclass(frozen=True)
class CoOpOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's.

    Attributes:
        class_token_position: where the words of a text stand: at the "end", behind the context; at the "front",
            before it; in the "middle" of it. The last piece of a text (the full stop of a prompt) and the end token
            stay last in any case.
    """

    class_token_position: Literal["end", "middle", "front"] = "end"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: naming the option.
        """
        super().__post_init__()
        choice("class_token_position", self.class_token_position, ("end", "middle", "front"))


@register_method("coop")
class CoOp(Method):
    """One shared context, inserted between the start token and the text, in training and for class prompts."""

    card = MethodCard(
        title="CoOp",
        paper="Zhou et al., IJCV 2022",
        arxiv="2109.01134",
        repository="KaiyangZhou/CoOp",
        equation="t = text([start, ctx_1 .. ctx_n, words, end])",
        trains="ctx [n_ctx, text width]",
        count="n_ctx * text width",
        deviations=(
            "label-free: reports stand where class names stood; templates follow the context at zero-shot time",
            "context is inserted, so reports longer than the room lose their tail but keep the end token",
        ),
    )
    Options = CoOpOptions
    adapts = frozenset({"text"})
    cost_hint = 0.5

    def setup(self) -> None:
        """Create the context."""
        context = initial_context(self.backbone, self.options.n_ctx, self.options.ctx_init)
        self.text = nn.ParameterDict({"ctx": nn.Parameter(context)})

    def text_interventions(self) -> Iterable[Intervention]:
        """Insert the context among the word embeddings."""
        context, position = self.text["ctx"], self.options.class_token_position
        if position == "end":
            return (InsertedPrompt(context),)
        return (PromptAround(context, before=len(context) // 2 if position == "middle" else 0),)

    def text_ids(self, token_ids: Tensor) -> Tensor:
        """Make room for the context."""
        return self.backbone.text.make_room(token_ids, self.options.n_ctx)

    def expected_parameters(self) -> int:
        """Return n_ctx * text width."""
        return int(self.options.n_ctx) * self.backbone.text.width


def load_official(method: CoOp, state: Mapping[str, Any]) -> None:
    """Load ``ctx`` (or ``prompt_learner.ctx``); the class-dependent buffers of the authors' files are ignored.

    Raises:
        StoreError: if it is missing or of another shape.
    """
    flat = {name.removeprefix("prompt_learner."): value for name, value in flatten(state).items()}
    copy_into(method.text["ctx"], flat, "ctx", who="CoOp")

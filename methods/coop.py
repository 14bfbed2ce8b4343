"""CoOp: learned context vectors in front of the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.backbones import Intervention
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import MethodCard
from methods.layers.official import OfficialTensors
from methods.layers.prompts import ContextMethod, ContextOptions, PromptAround


@dataclass(frozen=True)
class CoOpOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's.

    The last piece of a text (the full stop of a prompt) and the end token stay last wherever the words stand.
    """

    class_token_position: Literal["end", "middle", "front"] = setting(
        "end", "where the words of a text stand: behind the context, in the middle of it or before it"
    )


@register_method("coop")
class CoOp(ContextMethod):
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
    cost_hint = 0.5

    def text_interventions(self) -> Iterable[Intervention]:
        """Insert the context among the word embeddings."""
        context, position = self.text["ctx"], self.options.class_token_position
        if position == "end":
            return super().text_interventions()
        return (PromptAround(context, before=len(context) // 2 if position == "middle" else 0),)


def load_official(method: CoOp, state: Mapping[str, Any]) -> None:
    """Load ``ctx`` (or ``prompt_learner.ctx``); the class-dependent buffers of the authors' files are ignored.

    Raises:
        StoreError: if it is missing or of another shape.
    """
    OfficialTensors(method, state, "prompt_learner.").copy("ctx", method.text["ctx"])

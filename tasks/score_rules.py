"""How images are scored against class prompts: cosines of global features, or a model's own published rule.

``global`` is the headline of every table. The other rules are those with which a model's authors score; a backbone
says which of them it offers (``Backbone.rules``), and brings the parts that they need (``Backbone.extras``).
docs/score_rules.md describes each rule.

Shape letters: B images, C classes, T templates, L pieces of a text, W words, N cells of an image, S sentences, E width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones import Backbone
from benchmark.backbones.towers.precision import at_least_fp32, full_precision, similarity
from benchmark.data.samples import Batch
from benchmark.errors import ConfigError, suggest, unknown
from methods.base import Method

GLOBAL = "global"
"""The method's own scores: cosines of unit features with the normalised mean of unit prompt features."""
_EPS = 1e-8


@dataclass(frozen=True)
class Prompts:
    """What classes are asked with.

    Attributes:
        names: C class texts. texts: C times T filled templates. ids: their token ids ``[C, T, L]``.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    ids: Tensor


class ScoreRule(ABC):
    """One rule, with its options; scores the images of a batch independently of one another.

    Class attributes:
        name: as it is asked for. choices: option -> its values, the default first.
        final: whether scores stand for themselves: AUROC ranks those of a class over images as they are. Otherwise they
            are multiplied by ``scale`` and compared by softmax.
        cells: whether images themselves are needed, not only their pooled features.
    """

    name: ClassVar[str]
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    final: ClassVar[bool] = False
    cells: ClassVar[bool] = False

    def __init__(self, **options: str) -> None:
        self.options = {key: options.get(key, values[0]) for key, values in self.choices.items()}

    @property
    def text(self) -> str:
        """The rule's name with the options that are not defaults."""
        said = [f"{key}={value}" for key, value in self.options.items() if value != self.choices[key][0]]
        return f"{self.name}:{','.join(said)}" if said else self.name

    @abstractmethod
    def prepare(self, model: Backbone, prompts: Prompts) -> Any:
        """Return what :meth:`scores` needs of the prompts; computed once per class list."""

    @abstractmethod
    def scores(self, model: Backbone, batch: Batch, classes: Any) -> Tensor:
        """Return scores ``[B, C]`` of images with classes as :meth:`prepare` returned them."""

    def finish(self, scores: Tensor) -> Tensor:
        """Return the scores ``[N, C]`` of a whole dataset, from those of its images one by one."""
        return scores

    def facts(self, model: Backbone, prompts: Prompts) -> dict[str, Any]:
        """Return what results must say beside name, options and scale."""
        return {}


class MeanThenNormalise(ScoreRule):
    """Cosines with the mean of prompt features that are not normalised one by one (BioViL)."""

    name = "mean_then_normalise"

    def prepare(self, model: Backbone, prompts: Prompts) -> Tensor:
        """Return unit class features ``[C, E]``."""
        return functional.normalize(_prompt_features(model, prompts).mean(dim=1), dim=-1)

    def scores(self, model: Backbone, batch: Batch, classes: Tensor) -> Tensor:
        """Return cosines."""
        return similarity(functional.normalize(_image_features(model, batch), dim=-1), classes)


class Dot(ScoreRule):
    """Dot products of features as they are, as KAD was trained; of several templates their mean."""

    name = "dot"

    def prepare(self, model: Backbone, prompts: Prompts) -> Tensor:
        """Return class features ``[C, E]``, not normalised."""
        return _prompt_features(model, prompts).mean(dim=1)

    def scores(self, model: Backbone, batch: Batch, classes: Tensor) -> Tensor:
        """Return dot products."""
        return similarity(_image_features(model, batch), classes)


class QueryNetwork(ScoreRule):
    """KAD's query network: class names attend to the cells of the image; the score is the log probability of presence.

    Queries attend to one another, so a score depends on the whole list; results keep it.
    """

    name = "tqn"
    final = True
    cells = True

    def prepare(self, model: Backbone, prompts: Prompts) -> Tensor:
        """Return the queries ``[C, E]``."""
        ids = model.trim(model.tokenize(self._queries(prompts)).long())
        return at_least_fp32(model.text.features(ids.to(prompts.ids.device)))

    def scores(self, model: Backbone, batch: Batch, classes: Tensor) -> Tensor:
        """Return log probabilities."""
        cells = at_least_fp32(model.extras["image_tokens"](batch.images))
        with full_precision(cells.device):
            return model.extras["tqn"](cells, classes).log_softmax(dim=-1)[..., 1]

    def facts(self, model: Backbone, prompts: Prompts) -> dict[str, Any]:
        """Return the list of queries."""
        return {"queries": self._queries(prompts)}

    @staticmethod
    def _queries(prompts: Prompts) -> list[str]:
        return [name.lower() for name in prompts.names]


class Gloria(ScoreRule):
    """GLoRIA's: global cosine and best word, the best prompt of a class, then z-scores over the images.

    Options:
        similarity: "both" (their mean), "local" or "global".
        zscore: "on": standardise each class over all images that are given, which is transductive.
        padding: "on": as published, a prompt has as many words as it has characters, the missing ones being zero, and
            its end token counts as one; "off": the prompt's own words.
    """

    name = "gloria"
    choices = {"similarity": ("both", "local", "global"), "zscore": ("on", "off"), "padding": ("on", "off")}
    final = True
    cells = True

    def prepare(self, model: Backbone, prompts: Prompts) -> tuple[Tensor, list[list[Tensor]]]:
        """Return unit prompt features ``[C, T, E]``, and words ``[W, E]`` per class and prompt."""
        pooled = functional.normalize(_prompt_features(model, prompts), dim=-1)
        words = []
        for texts, ids in zip(prompts.texts, prompts.ids, strict=True):
            pieces, keep = model.extras["text_tokens"](ids)
            begins = ~model.extras["continues"](ids)
            most = model.text.context_length - 1  # the start token is no word
            counts = [min(most, len(text.replace("[", ""))) for text in texts]
            found = zip(at_least_fp32(pieces), keep, begins, counts, strict=True)
            words.append([self._words(*prompt) for prompt in found])
        return pooled, words

    def scores(self, model: Backbone, batch: Batch, classes: tuple[Tensor, list[list[Tensor]]]) -> Tensor:
        """Return the similarity of each image with the best prompt of each class."""
        pooled, words = classes
        whole = _cosines(model, batch, pooled)
        if self.options["similarity"] == "global":
            return whole.amax(dim=-1)
        cells = at_least_fp32(model.extras["image_tokens"](batch.images))
        local = torch.stack(
            [torch.stack([best_word(cells, one) for one in of], dim=-1) for of in words], dim=1
        )
        both = local if self.options["similarity"] == "local" else (local + whole) / 2
        return both.amax(dim=-1)

    def finish(self, scores: Tensor) -> Tensor:
        """Return z-scores over images (a single image is left as it is); a constant class gets zeros."""
        if self.options["zscore"] == "off" or len(scores) == 1:
            return scores
        spread = scores.std(dim=0, correction=0)
        return (scores - scores.mean(dim=0)) / spread.where(spread > 0, torch.ones_like(spread))

    def facts(self, model: Backbone, prompts: Prompts) -> dict[str, Any]:
        """Return whether all images are scored together."""
        return {"transductive": True} if self.options["zscore"] == "on" else {}

    def _words(self, pieces: Tensor, keep: Tensor, begins: Tensor, count: int) -> Tensor:
        """Return the words ``[W, E]`` of a prompt: sums of their pieces ``[L, E]``, without the start token."""
        number = begins[keep].long().cumsum(dim=0) - 1
        words = pieces.new_zeros(int(number[-1]) + 1, pieces.shape[-1]).index_add(0, number, pieces[keep])[1:]
        if self.options["padding"] == "off":
            return words[:-1] if len(words) > 1 else words  # cleaning may leave a prompt without any
        return functional.pad(words, (0, 0, 0, max(0, count - len(words))))[:count]


def best_word(cells: Tensor, words: Tensor, *, sharpness: float = 4.0, temperature: float = 5.0) -> Tensor:
    """Return GLoRIA's local similarity ``[B]`` of images with a text: log of the largest exp(temperature * cosine).

    A word is compared with the mean of the cells that it looks at: softmax over words, then over cells. As the largest
    is taken, and not a sum as in training, this is the temperature times the cosine of the best word.

    Args:
        cells: of the images, ``[B, N, E]``.
        words: of the text, ``[W, E]``.
        sharpness: of the attention over cells.
        temperature: of the words.
    """
    attention = (sharpness * similarity(cells, words).softmax(dim=2)).softmax(dim=1)
    seen = similarity(attention.mT, cells.mT)
    norms = (words.norm(dim=-1) * seen.norm(dim=-1)).clamp_min(_EPS)
    return temperature * ((seen * words).sum(dim=-1) / norms).amax(dim=-1)


class Prior(ScoreRule):
    """PRIOR's: softmax of scaled cosines plus half the softmax of mean local attention; the logarithm of that sum.

    Of several prompts the best one counts globally, their mean locally. The published code averages attention over a
    batch, which is one image long; here each image is one by itself.
    """

    name = "prior"
    final = True
    cells = True

    def prepare(self, model: Backbone, prompts: Prompts) -> tuple[Tensor, list[list[Tensor]]]:
        """Return unit prompt features ``[C, T, E]``, and sentences ``[S, E]`` per class and prompt."""
        pooled = functional.normalize(_prompt_features(model, prompts), dim=-1)
        sentences = []
        for ids in prompts.ids:
            values, keep = model.extras["text_tokens"](ids)
            sentences.append([one[real] for one, real in zip(at_least_fp32(values), keep, strict=True)])
        return pooled, sentences

    def scores(self, model: Backbone, batch: Batch, classes: tuple[Tensor, list[list[Tensor]]]) -> Tensor:
        """Return log scores; the stored scale multiplies cosines directly."""
        pooled, sentences = classes
        whole = (model.logit_scale * _cosines(model, batch, pooled)).amax(dim=-1)
        cells = at_least_fp32(model.extras["image_tokens"](batch.images))
        local = torch.stack([self._attention(model, cells, texts) for texts in sentences], dim=1)
        return (whole.softmax(dim=1) + 0.5 * local.softmax(dim=1)).log()

    def facts(self, model: Backbone, prompts: Prompts) -> dict[str, Any]:
        """Return what multiplies cosines inside."""
        return {"inner_scale": float(model.logit_scale)}

    @staticmethod
    def _attention(model: Backbone, cells: Tensor, texts: list[Tensor]) -> Tensor:
        """Return mean attention ``[B]`` in both directions, over the prompts of a class."""
        means = []
        for sentences in texts:
            with full_precision(cells.device):
                by_image, by_text = model.extras["local_attention"](cells, sentences)
            means.append((by_image.mean(dim=(1, 2)) + by_text.mean(dim=(1, 2))) / 2)
        return torch.stack(means).mean(dim=0)


def _cosines(model: Backbone, batch: Batch, prompts: Tensor) -> Tensor:
    """Return the cosines ``[B, C, T]`` of images with unit features ``[C, T, E]`` of prompts."""
    image = functional.normalize(_image_features(model, batch), dim=-1)
    return similarity(image, prompts.flatten(0, 1)).unflatten(1, prompts.shape[:2])


def _image_features(model: Backbone, batch: Batch) -> Tensor:
    """Return pooled, projected features ``[B, E]``, not normalised."""
    if batch.image_features is not None:
        return at_least_fp32(batch.image_features)
    assert batch.images is not None  # a batch brings one or the other
    return at_least_fp32(model.image.features(batch.images))


def _prompt_features(model: Backbone, prompts: Prompts) -> Tensor:
    """Return features ``[C, T, E]`` of all prompts, not normalised."""
    features = model.text.features(prompts.ids.flatten(0, 1))
    return at_least_fp32(features).unflatten(0, tuple(prompts.ids.shape[:2]))


RULES: dict[str, type[ScoreRule]] = {
    rule.name: rule for rule in (MeanThenNormalise, Dot, QueryNetwork, Gloria, Prior)
}


def parse_rule(text: str) -> ScoreRule | None:
    """Return the rule of ``name`` or ``name:option=value,option=value``; None for the global one.

    Raises:
        ConfigError: an unknown name, option or value.
    """
    name, _, words = text.partition(":")
    if text == GLOBAL:
        return None
    if name not in RULES:
        raise ConfigError("rule: " + unknown("rule", name, [GLOBAL, *RULES]))
    rule, options = RULES[name], {}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key not in rule.choices:
            raise ConfigError("rule: " + unknown(f"option of rule {name}", key, rule.choices))
        if value not in rule.choices[key]:
            known = ", ".join(rule.choices[key])
            raise ConfigError(
                f"rule: {name}:{key}: expected one of {known}, got '{value}'.{suggest(value, rule.choices[key])}"
            )
        options[key] = value
    return rule(**options)


_FORM = (
    "image_interventions", "text_interventions", "image_head", "text_head", "text_ids", "encode_image", "encode_text",
    "from_image_features", "from_text_features", "class_features", "prepare_classes", "classify", "similarity",
)  # fmt: skip
"""What a method would override to score with anything else than the towers' own features."""


def check_rule(rule: ScoreRule, method: type[Method], backbone: str, rules: Sequence[str]) -> None:
    """Refuse a rule that a backbone does not offer, or that does not apply to a method.

    Args:
        rule: asked for.
        method: the class.
        backbone: its name.
        rules: names of those that the backbone offers.

    Raises:
        ConfigError: in one line, with what there is.
    """
    if rule.name not in rules:
        raise ConfigError(
            f"tasks.zeroshot.rule: backbone '{backbone}' does not offer '{rule.name}', only: {', '.join(rules)}"
        )
    if method.adapts or any(getattr(method, name) is not getattr(Method, name) for name in _FORM):
        raise ConfigError(
            f"tasks.zeroshot.rule: '{rule.name}' scores with the towers as they were published, and "
            f"{method.card.title} changes what they give: run it with rule={GLOBAL}, or "
            "take a method that changes nothing"
        )

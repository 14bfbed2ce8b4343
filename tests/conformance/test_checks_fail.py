"""Each check is seen to fail: one small broken method for each, all made from one that is sound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmark.conformance.checks import CHECKS, ConformanceError, matching, run_checks
from benchmark.conformance.small_models import FAMILIES
from benchmark.errors import ConfigError
from methods.base import Method, MethodCard

FAMILY = FAMILIES[1]  # the cheaper one


class Sound(Method):
    """A bottleneck beside the text feature."""

    card = MethodCard(title="Sound", paper="-", equation="-", trains="-", count="8 E")
    identity_at_init = True

    def setup(self):
        width = self.backbone.embed_dim
        self.text = nn.Sequential(nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False))
        nn.init.zeros_(self.text[1].weight)

    def text_head(self, features):
        return features + self.text(features)

    def expected_parameters(self):
        return 8 * self.backbone.embed_dim


def sound_but(**members: Any) -> type[Method]:
    """Return the sound method with some members replaced."""
    return type("Broken", (Sound,), members)


def sound_and(more) -> type[Method]:
    """Return the sound method with more done in its setup."""
    return sound_but(setup=lambda self: (Sound.setup(self), more(self)))


def touches_frozen(self, embeddings, labels):
    with torch.no_grad():
        next(self.backbone.image.blocks[0].parameters()).mul_(1.001)
    return Method.loss_of(self, embeddings, labels)


def attaches_undeclared(self):
    self.inside = nn.Linear(*self.backbone.text.site_shape(0, "up"))
    self.backbone.text.attach(0, "up", self.inside)


def head_by_row(self, features):
    place = torch.linspace(0.5, 2.0, len(features))[:, None]
    return features + place * self.text(features) + place


def head_in_fp32(self, features):
    return Sound.text_head(self, features + features @ torch.zeros(len(features.T), len(features.T)))


def overflows_in_bf16(self, embeddings, labels):
    if torch.is_autocast_enabled("cpu"):
        embeddings["text"].register_hook(lambda gradient: gradient * float("inf"))
    return Method.loss_of(self, embeddings, labels)


def wraps_frozen_again(self):
    """A frozen parameter that a dictionary wraps again, and so trains, where it has to be copied (AdaLoRA in peft)."""
    self.ranks = nn.ParameterDict({"text": nn.Parameter(torch.ones(1), requires_grad=False)})
    self.ranks["text"] = self.ranks["text"].to(self.backbone.logit_scale.dtype)


def closes_over_a_tensor(self):
    shift = torch.zeros(self.backbone.embed_dim)
    self.shifted = lambda features: features + shift


class ForgetsHalf(Sound):
    """What it saves is not all that it needs."""

    def setup(self):
        super().setup()
        self.register_buffer("shift", torch.randn(self.backbone.embed_dim))

    def text_head(self, features):
        return super().text_head(features) + self.shift


class SharedState(Sound):
    """Its values are held by the class, so a copy is no copy."""

    store: dict = {}

    def text_head(self, features):
        return features + type(self).store.setdefault("text", self.text)(features)


LearnsNothing = sound_but(text_head=lambda self, features: features + 1e-9 * self.text(features))
NOISY = sound_but(text_head=lambda self, x: x + self.text(x) + 0.1 * torch.randn_like(x))
SEES_MATES = sound_but(text_head=lambda self, x: x + self.text(x - x.mean(dim=0)))
SEES_PADDING = sound_but(
    encode_text=lambda self, ids: functional.normalize(
        Method.encode_text(self, ids) + 0.01 * ids.shape[1], dim=-1
    )
)


def embeds_by_size(self, batch):
    embeddings = Method.embed(self, batch)
    return {**embeddings, "text": embeddings["text"] * len(embeddings["text"])}


def rounds_logits(self, embeddings, labels):
    return self.objective(self.logit_scale() * embeddings["image"] @ embeddings["text"].T, labels)


def draws_anew(self, support):
    generator = torch.Generator()
    generator.seed()
    with torch.no_grad():
        self.text[0].weight.copy_(torch.randn(self.text[0].weight.shape, generator=generator))


BROKEN = {
    "declared parameter count": [
        (sound_but(expected_parameters=lambda self: 7), "its formula says 7"),
        (sound_but(parameter_group=lambda self, name: "sound"), "parameter group 'sound'"),
    ],
    "frozen tensors stay bit identical": [
        (sound_but(loss_of=touches_frozen), "frozen tensors changed in three steps")
    ],
    "trained tensors receive gradients": [
        (sound_and(lambda self: setattr(self, "spare", nn.Parameter(torch.zeros(3)))), "gradient: spare")
    ],
    "identity at initialisation": [
        (
            sound_and(lambda self: nn.init.ones_(self.text[1].weight)),
            "text features at the start: differs by",
        )
    ],
    "towers it leaves alone keep their features": [
        (sound_and(attaches_undeclared), "text tower is not declared as adapted")
    ],
    "features are unit norm": [
        (
            sound_but(encode_text=lambda self, ids: 2 * Method.encode_text(self, ids)),
            "feature norms: differs by 1",
        )
    ],
    "evaluation is deterministic": [(NOISY, "two passes in eval mode")],
    "batch mates and padding do not matter": [
        (SEES_MATES, "pair 0 alone"),
        (SEES_PADDING, "alone: differs"),
    ],
    "order of pairs does not matter": [(sound_but(text_head=head_by_row), "permuted logits")],
    "zero shot path equals training path": [
        (
            sound_but(class_features=lambda self, ids: Method.class_features(self, ids.flip(0))),
            "logits: differs",
        )
    ],
    "classes supervise what is evaluated": [
        (
            sound_but(
                from_class_features=lambda self, features: functional.normalize(features[:, 0], dim=-1)
            ),
            "scores in training: differs",
        ),
        (
            sound_but(embed_classes=lambda self, batch, classes: {"cosines": torch.zeros(3)}),
            "batch not in front",
        ),
    ],
    "class bound methods refuse other classes": [
        (sound_but(class_bound=True), "class_bound without needs_classes"),
        (sound_but(class_bound=True, needs_classes=True), "classes that it was not fitted to are scored"),
    ],
    "a fit is the same twice and helps": [
        (sound_but(fits=True, fit=draws_anew), "two fits differ in: text.0.weight"),
        (sound_but(fits=True, fit=lambda self, support: None), "zero-shot on"),
    ],
    "trained state survives the store": [(ForgetsHalf, "logits after saving and loading")],
    "overfits sixteen pairs": [(LearnsNothing, "loss went from")],
    "parts of a batch give its gradients": [(sound_but(embed=embeds_by_size), "gradient of ")],
    "runs in bf16 and float64": [(sound_but(text_head=head_in_fp32), "RuntimeError")],
    "makes a step in bf16": [(sound_but(loss_of=overflows_in_bf16), "no finite gradient for text.")],
    "similarities and loss are not rounded": [
        (
            sound_but(classify=lambda self, batch, y: (self.encode_image(batch.images) @ y.T).float()),
            "classify is rounded to bf16",
        ),
        (sound_but(loss_of=rounds_logits), "loss under bf16 autocast: differs"),
    ],
    "every tensor moves with the method": [
        (
            sound_and(lambda self: setattr(self, "tables", {"shift": [torch.zeros(3)]})),
            "method.tables['shift'][0]: neither parameter nor buffer",
        ),
        (sound_and(closes_over_a_tensor), "method.shifted()"),
    ],
    "trains the same tensors once moved": [
        (
            sound_and(wraps_frozen_again),
            "built on a moved backbone, it trains 1 other tensors: ranks.text",
        )
    ],
    "a copy stands on its own": [(SharedState, "changes nothing in the copy")],
    "classes are scored one by one": [
        (
            sound_but(classify=lambda self, batch, y: Method.classify(self, batch, y).softmax(dim=-1)),
            "depends on the other classes",
        )
    ],
    "declared merge gives the same features": [(sound_but(mergeable=True), "gives other features")],
    "seeds and prints nothing": [
        (
            sound_but(setup=lambda self: (torch.manual_seed(42), Sound.setup(self))),
            "it seeds by itself",
        ),
        (sound_and(lambda self: print("ready")), "prints 'ready"),  # noqa: T201
    ],
}


@pytest.fixture(autouse=True)
def _empty_store():
    SharedState.store.clear()


def test_every_check_has_a_method_that_breaks_it():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_the_sound_method_passes(check):
    CHECKS[check](Sound, FAMILY)


@pytest.mark.parametrize(
    ("check", "broken", "says"), [(check, *case) for check, cases in BROKEN.items() for case in cases]
)
def test_a_broken_method_fails(check, broken, says, monkeypatch):
    monkeypatch.setattr("benchmark.conformance.checks.FAMILIES", (FAMILY,))
    (result,) = run_checks(broken, [check])
    assert says in result.reason


def test_an_unfit_large_method_is_told_what_was_expected():
    class Large(LearnsNothing):
        def setup(self):
            super().setup()
            self.more = nn.Parameter(torch.zeros(32 * self.backbone.embed_dim))

        def text_head(self, features):
            return super().text_head(features) + 0 * self.more.sum()

    with pytest.raises(ConformanceError, match=r"expected 1\.39 \(1,280 trained values could store"):
        CHECKS["overfits sixteen pairs"](Large, FAMILY)


def test_words_select_checks():
    assert matching(["COUNT", "float64"]) == ["declared parameter count", "runs in bf16 and float64"]
    assert matching([]) == list(CHECKS)
    with pytest.raises(ConfigError, match="--only: unknown check 'unit norms'. Did you mean"):
        matching(["unit norms"])

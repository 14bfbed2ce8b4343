"""Each check is seen to fail: one small broken method for each, all made from one that is sound."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmark.conformance.checks import CHECKS, ConformanceError, matching, verdicts
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


class WrongCount(Sound):
    def expected_parameters(self):
        return 7


class WrongGroup(Sound):
    def parameter_group(self, name):
        return "sound"


class TouchesFrozen(Sound):
    def loss_of(self, embeddings, labels):
        with torch.no_grad():
            next(self.backbone.image.blocks[0].parameters()).mul_(1.001)
        return super().loss_of(embeddings, labels)


class Unused(Sound):
    def setup(self):
        super().setup()
        self.spare = nn.Parameter(torch.zeros(3))


class NotIdentity(Sound):
    def setup(self):
        super().setup()
        nn.init.ones_(self.text[1].weight)


class HiddenDelta(Sound):
    """Acts inside a tower that it says it leaves alone."""

    def setup(self):
        super().setup()
        inputs, outputs = self.backbone.text.site_shape(0, "up")
        self.inside = nn.Linear(inputs, outputs)
        self.backbone.text.attach(0, "up", self.inside)


class Long(Sound):
    def encode_text(self, token_ids):
        return 2 * super().encode_text(token_ids)


class Noisy(Sound):
    def text_head(self, features):
        return features + self.text(features) + 0.1 * torch.randn_like(features)


class SeesMates(Sound):
    def text_head(self, features):
        return features + self.text(features - features.mean(dim=0))


class SeesPadding(Sound):
    """The whole batch as it is padded shifts the feature, but rows do not see each other."""

    def encode_text(self, token_ids):
        return functional.normalize(super().encode_text(token_ids) + 0.01 * token_ids.shape[1], dim=-1)


class SeesOrder(Sound):
    def text_head(self, features):
        place = torch.linspace(0.5, 2.0, len(features))[:, None]
        return features + place * self.text(features) + place


class OtherPrompts(Sound):
    def class_features(self, token_ids):
        return super().class_features(token_ids.flip(0))


class ForgetsHalf(Sound):
    """What it saves is not all that it needs."""

    def setup(self):
        super().setup()
        self.register_buffer("shift", torch.randn(self.backbone.embed_dim))

    def text_head(self, features):
        return super().text_head(features) + self.shift


class LearnsNothing(Sound):
    """Its gradients are there, and are nothing."""

    def text_head(self, features):
        return features + 1e-9 * self.text(features)


class LossOfParts(Sound):
    """Its embedding depends on how the batch was cut."""

    def embed(self, batch):
        embeddings = super().embed(batch)
        return {**embeddings, "text": embeddings["text"] * len(embeddings["text"])}


class OnlySingle(Sound):
    def text_head(self, features):
        return super().text_head(features + features @ torch.zeros(len(features.T), len(features.T)))


class Overflows(Sound):
    """Its gradient does not survive bf16."""

    def loss_of(self, embeddings, labels):
        if torch.is_autocast_enabled("cpu"):
            embeddings["text"].register_hook(lambda gradient: gradient * float("inf"))
        return super().loss_of(embeddings, labels)


class TrainsWhatWasReplaced(Sound):
    """A frozen parameter that a dictionary wraps again, and so trains, where it has to be copied (AdaLoRA in peft)."""

    def setup(self):
        super().setup()
        self.ranks = nn.ParameterDict({"text": nn.Parameter(torch.ones(1), requires_grad=False)})
        self.ranks["text"] = self.ranks["text"].to(self.backbone.logit_scale.dtype)


class RoundsCosines(Sound):
    def classify(self, batch, classes):
        return (self.encode_image(batch.images) @ classes.T).float()


class RoundsLogits(Sound):
    def loss_of(self, embeddings, labels):
        return self.objective(self.logit_scale() * embeddings["image"] @ embeddings["text"].T, labels)


class StaysBehind(Sound):
    def setup(self):
        super().setup()
        self.tables = {"shift": [torch.zeros(self.backbone.embed_dim)]}


class StaysInClosure(Sound):
    def setup(self):
        super().setup()
        shift = torch.zeros(self.backbone.embed_dim)
        self.shifted = lambda features: features + shift


class SharedState(Sound):
    """Its values lie in the class, so a copy is no copy."""

    store: dict = {}

    def text_head(self, features):
        type(self).store.setdefault("text", self.text)
        return features + type(self).store["text"](features)


class SoftmaxOverClasses(Sound):
    def classify(self, batch, classes):
        return super().classify(batch, classes).softmax(dim=-1)


class NoMerge(Sound):
    mergeable = True


class SeedsItself(Sound):
    def setup(self):
        torch.manual_seed(42)
        super().setup()


class Talks(Sound):
    def setup(self):
        super().setup()
        print("ready")  # noqa: T201


BROKEN = {
    "declared parameter count": [(WrongCount, "its formula says 7"), (WrongGroup, "parameter group 'sound'")],
    "frozen tensors stay bit identical": [(TouchesFrozen, "frozen tensors changed in three steps")],
    "trained tensors receive gradients": [(Unused, "without gradient: spare")],
    "identity at initialisation": [(NotIdentity, "text features at the start: differs by")],
    "towers it leaves alone keep their features": [(HiddenDelta, "text tower is not declared as adapted")],
    "features are unit norm": [(Long, "feature norms: differs by 1")],
    "evaluation is deterministic": [(Noisy, "two passes in eval mode")],
    "batch mates and padding do not matter": [(SeesMates, "pair 0 alone"), (SeesPadding, "alone: differs")],
    "order of pairs does not matter": [(SeesOrder, "permuted logits")],
    "zero shot path equals training path": [(OtherPrompts, "logits: differs")],
    "trained state survives the store": [(ForgetsHalf, "logits after saving and loading")],
    "overfits sixteen pairs": [(LearnsNothing, "loss went from")],
    "parts of a batch give its gradients": [(LossOfParts, "gradient of ")],
    "runs in bf16 and float64": [(OnlySingle, "RuntimeError")],
    "makes a step in bf16": [(Overflows, "no finite gradient for text.")],
    "similarities and loss are not rounded": [
        (RoundsCosines, "classify is rounded to bf16"),
        (RoundsLogits, "loss under bf16 autocast: differs"),
    ],
    "every tensor moves with the method": [
        (StaysBehind, "method.tables['shift'][0]: neither parameter nor buffer"),
        (StaysInClosure, "method.shifted()"),
    ],
    "trains the same tensors once moved": [
        (TrainsWhatWasReplaced, "built on a moved backbone, it trains 1 other tensors: ranks.text")
    ],
    "a copy stands on its own": [(SharedState, "changes nothing in the copy")],
    "classes are scored one by one": [(SoftmaxOverClasses, "depends on the other classes")],
    "declared merge gives the same features": [(NoMerge, "gives other features")],
    "seeds and prints nothing": [(SeedsItself, "it seeds by itself"), (Talks, "prints 'ready")],
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
    ("check", "broken", "says"),
    [(check, *case) for check, cases in BROKEN.items() for case in cases],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_method_fails(check, broken, says, monkeypatch):
    monkeypatch.setattr("benchmark.conformance.checks.FAMILIES", (FAMILY,))
    (verdict,) = verdicts(broken, [check])
    assert says in verdict.reason


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

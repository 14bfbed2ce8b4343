"""Capabilities are found by trying: known answers, promises that are not kept, and the page that shows them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import methods
from benchmark.conformance import page
from benchmark.conformance.probes import capabilities, changed_towers, folded
from benchmark.conformance.small_models import FAMILIES, moved, small_backbone
from benchmark.files import ROOT
from benchmark.registry import METHODS
from methods.base import Method, MethodCard


class Probe(Method):
    card = MethodCard(title="Probe", paper="-", equation="-", trains="-", count="-")

    def setup(self):
        self.text = nn.Linear(self.backbone.embed_dim, 1)

    def text_head(self, features):
        return features + self.text(features)


@pytest.fixture(scope="module")
def rows():
    """The rows of all single methods."""
    return page.method_rows([name for name in METHODS.names() if not METHODS.entry(name).family])


def test_methods_page_shows_what_was_found(rows):
    stored = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert stored == page.markdown(rows), "python run_benchmark.py list methods --markdown > docs/methods.md"


def test_no_method_is_broken_or_promises_too_much(rows):
    assert page.remarks(rows) == []


@pytest.mark.parametrize(
    ("name", "changes", "cached", "merges", "identity"),
    [
        ("zero_shot", (), ("image", "text"), None, True),
        ("taskres", (), ("image", "text"), False, True),
        ("coop", ("text",), ("image",), False, False),
        ("clip_lora", ("image", "text"), (), True, True),
        ("full_ft", ("image", "text"), (), True, True),
        ("ace_lora", ("image", "text"), (), False, False),
    ],
)
def test_known_answers(rows, name, changes, cached, merges, identity):
    row = next(row for row in rows if row["name"] == name)
    assert (row["changes"], row["cached"], row["merges"], row["identity"]) == (
        changes,
        cached,
        merges,
        identity,
    )
    assert row["families"] == FAMILIES
    assert row["unseen_classes"]
    assert not row["needs_labels"]


def test_options_change_what_is_found():
    found = capabilities(functools.partial(methods.build, "clip_lora", encoder="vision"))
    assert found.changes == ("image",)
    assert found.notes == ("says that it changes the text tower, but does not",)


def test_unkept_promises_are_named():
    class Promises(Probe):
        identity_at_init = True
        mergeable = True

        def setup(self):
            super().setup()
            inputs, outputs = self.backbone.image.site_shape(0, "up")
            self.inside = nn.Linear(inputs, outputs)
            self.backbone.image.attach(0, "up", self.inside)

    found = capabilities(Promises)
    assert found.cached == ("text",)
    assert set(found.notes) == {
        "says that it leaves the image tower alone, but changes it",
        "says that it starts as the frozen model, but does not",
        "says that it merges into the weights, but does not",
    }


def test_a_loss_that_needs_labels_is_found():
    class Needs(Probe):
        def loss_of(self, embeddings, labels):
            return super().loss_of(embeddings, labels) + 0 * labels.sum()

    assert capabilities(Needs).needs_labels


def test_a_family_that_does_not_work_is_left_out_with_its_reason():
    class OnlyFused(Probe):
        def setup(self):
            super().setup()
            if self.backbone.name == "random:small_clip":
                raise RuntimeError("no trunk")

    found = capabilities(OnlyFused)
    assert found.families == ("timm+bert",)
    assert found.notes == ("open_clip: RuntimeError: no trunk",)


def test_a_method_that_works_nowhere_raises_its_own_error():
    def build(backbone):
        raise RuntimeError("never")

    with pytest.raises(RuntimeError, match="never"):
        capabilities(build)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["q", "v", "o", "down"])
def test_folding_writes_the_product_of_a_linear_delta_into_the_weight(family, site):
    class OneSite(Probe):
        def setup(self):
            inputs, outputs = self.backbone.text.site_shape(1, site)
            self.inside = nn.Linear(inputs, outputs)
            self.backbone.text.attach(1, site, self.inside)

        text_head = Method.text_head

    method, batch = moved(OneSite, family)
    plain = folded(method.eval(), small_backbone(family))
    before = small_backbone(family)
    before.split_qkv()
    old, new = before.text.linear_at(1, site), plain.text.linear_at(1, site)
    torch.testing.assert_close(new.weight - old.weight, method.inside.weight.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(new.bias - old.bias, method.inside.bias.detach(), rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            plain.text.features(batch.token_ids),
            method.backbone.text.features(batch.token_ids),
            rtol=0,
            atol=1e-3,
        )


def test_a_delta_that_is_not_linear_does_not_merge():
    class Bent(Probe):
        adapts = frozenset({"text"})

        def setup(self):
            inputs, outputs = self.backbone.text.site_shape(0, "up")
            self.inside = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh())
            self.backbone.text.attach(0, "up", self.inside)

        text_head = Method.text_head

    assert capabilities(Bent).merges is False


def test_heads_do_not_count_as_a_change_of_a_tower():
    method, batch = moved(Probe, FAMILIES[1])
    assert changed_towers(method, batch, small_backbone(FAMILIES[1])) == ()

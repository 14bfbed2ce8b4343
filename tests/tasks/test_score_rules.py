"""Score rules, each against the plain computation that its authors published, on small random tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import methods
from benchmark.config.load import load_config
from benchmark.data.samples import Batch
from benchmark.errors import ConfigError
from benchmark.registry import METHODS
from methods.base import Method
from tasks.base import TaskContext
from tasks.score_rules import Prompts, ScoreRule, check_rule, parse_rule
from tasks.zeroshot import ZeroShotOptions, ZeroShotTask, prompts_of, rule_scores
from tests import small
from tests.backbones.medical_files import backbone as medical

WIDTH, CELLS, IMAGES = 6, 5, 4
NAMES = ("Edema", "No Finding", "Pleural Effusion")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rule(text: str) -> ScoreRule:
    found = parse_rule(text)
    assert found is not None
    return found


def model(**extras: Any) -> Any:
    """Return what a rule sees of a backbone: an image is its pooled feature and its cells, a text its ids."""
    return SimpleNamespace(
        name="fake",
        image=SimpleNamespace(features=lambda images: images[:, 0]),
        text=SimpleNamespace(features=lambda ids: TABLE[ids].sum(dim=1), context_length=12),
        tokenize=lambda texts: torch.tensor([[len(text), ord(text[0]) % 20] for text in texts]),
        trim=lambda ids: ids,
        logit_scale=torch.tensor(3.0),
        extras={"image_tokens": lambda images: images[:, 1:], **extras},
    )


TABLE = draw(50, WIDTH, seed=1)
IMAGE = draw(IMAGES, 1 + CELLS, WIDTH, seed=2)
IDS = torch.randint(1, 50, (3, 2, 4), generator=torch.Generator().manual_seed(3))
PROMPTS = Prompts(NAMES, tuple((f"a {name}", f"{name} here.") for name in NAMES), IDS)


def scored(one: ScoreRule, fake: Any, images: Tensor = IMAGE, prompts: Prompts = PROMPTS) -> np.ndarray:
    return one.finish(one.scores(fake, Batch(images=images), one.prepare(fake, prompts))).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-8))


def texts() -> np.ndarray:
    """Return features ``[C, T, E]`` of the prompts, not normalised."""
    return TABLE[IDS].sum(dim=2).numpy()


# ---------------------------------------------------------------------------- pooled features
def test_mean_then_normalise_weighs_prompts_by_their_length() -> None:
    image, text = IMAGE[:, 0].numpy(), texts()
    expected = [[cosine(one, of.mean(axis=0)) for of in text] for one in image]
    found = scored(rule("mean_then_normalise"), model())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    unit = text / np.linalg.norm(text, axis=-1, keepdims=True)
    plain = np.array([[cosine(one, of.mean(axis=0)) for of in unit] for one in image])
    assert np.abs(found - plain).max() > 0.01


def test_dot_is_the_mean_product_of_features_as_they_are() -> None:
    expected = np.einsum("be,cte->bct", IMAGE[:, 0].numpy(), texts()).mean(axis=2)
    np.testing.assert_allclose(scored(rule("dot"), model()), expected, atol=1e-5)


# ---------------------------------------------------------------------------- KAD
def attention(cells: Tensor, queries: Tensor) -> Tensor:
    """Return logits ``[B, Q, 2]``; queries see one another, as in a decoder."""
    mixed = (queries @ queries.T / 20).softmax(dim=1) @ queries
    seen = (mixed @ cells.transpose(1, 2) / 9).softmax(dim=2) @ cells
    return torch.stack([seen.sum(dim=2), (seen * mixed).sum(dim=2)], dim=2)


def test_tqn_is_the_probability_that_a_bare_name_gets() -> None:
    fake = model(tqn=attention)
    queries = TABLE[fake.tokenize([name.lower() for name in NAMES])].sum(dim=1)
    logits = attention(IMAGE[:, 1:], queries).double().numpy()
    expected = np.exp(logits[..., 1]) / np.exp(logits).sum(axis=2)
    np.testing.assert_allclose(np.exp(scored(rule("tqn"), fake)), expected, atol=1e-6)
    assert rule("tqn").facts(fake, PROMPTS) == {"queries": ["edema", "no finding", "pleural effusion"]}


# ---------------------------------------------------------------------------- GLoRIA
PIECES = {1: "[CLS]", 2: "[SEP]", 3: "a", 4: "pleur", 5: "##al", 6: "here", 7: "##nt"}
GLORIA_IDS = torch.tensor(
    [[[1, 3, 4, 5, 2, 0], [1, 4, 5, 7, 6, 2]], [[1, 6, 2, 0, 0, 0], [1, 3, 3, 6, 7, 2]]]
)
GLORIA = Prompts(("x", "y"), (("a pl", "pleuralnt h"), ("h", "a [a hernt")), GLORIA_IDS)


def gloria_model() -> Any:
    return model(
        text_tokens=lambda ids: (TABLE[ids], ids != 0),
        continues=lambda ids: torch.tensor(
            [[PIECES.get(int(i), "")[:2] == "##" for i in row] for row in ids]
        ),
    )


def published_words(ids: list[int], text: str, longest: int) -> np.ndarray:
    """Sum pieces to words, pad with zeros, and take as many from the second on as the text has characters."""
    words: list[np.ndarray] = []
    for i in ids:
        if i == 0:
            break
        vector = TABLE[i].numpy()
        if PIECES[i].startswith("##"):
            words[-1] = words[-1] + vector
        else:
            words.append(vector)
    words += [np.zeros(WIDTH)] * (longest - len(words))
    count = len([letter for letter in text if not letter.startswith("[")])
    return np.stack(words)[1 : count + 1]


def published_local(words: np.ndarray, cells: np.ndarray) -> float:
    """Attention of each word, its cosine with what it sees, exp(5 .), the largest, log."""
    over_words = np.exp(cells @ words.T)
    over_words /= over_words.sum(axis=1, keepdims=True)
    over_cells = np.exp(4 * over_words)
    over_cells /= over_cells.sum(axis=0, keepdims=True)
    rows = [np.exp(5 * cosine(word, over_cells[:, i] @ cells)) for i, word in enumerate(words)]
    return float(np.log(max(rows)))


def published_gloria(similarity: str = "both") -> np.ndarray:
    scores = np.zeros((IMAGES, 2))
    for image in range(IMAGES):
        for index in range(2):
            per_prompt = []
            for ids, text in zip(GLORIA_IDS[index].tolist(), GLORIA.texts[index], strict=True):
                whole = cosine(IMAGE[image, 0].numpy(), TABLE[torch.tensor(ids)].sum(dim=0).numpy())
                local = published_local(published_words(ids, text, 12), IMAGE[image, 1:].numpy())
                per_prompt.append({"both": (whole + local) / 2, "local": local, "global": whole}[similarity])
            scores[image, index] = max(per_prompt)
    return scores


@pytest.mark.parametrize("similarity", ["both", "local", "global"])
def test_gloria_is_the_published_computation(similarity: str) -> None:
    found = scored(rule(f"gloria:similarity={similarity},zscore=off"), gloria_model(), prompts=GLORIA)
    np.testing.assert_allclose(found, published_gloria(similarity), atol=1e-5)


def test_gloria_standardises_each_class_over_the_images() -> None:
    plain = published_gloria()
    expected = (plain - plain.mean(axis=0)) / plain.std(axis=0)
    found = scored(rule("gloria"), gloria_model(), prompts=GLORIA)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert rule("gloria").facts(gloria_model(), GLORIA) == {"transductive": True}
    assert rule("gloria:zscore=off").facts(gloria_model(), GLORIA) == {}
    # one image alone is not standardised, and a class that tells no images apart is no division by zero
    alone = scored(rule("gloria"), gloria_model(), IMAGE[:1], GLORIA)
    np.testing.assert_allclose(alone, plain[:1], atol=1e-5)
    twice = scored(rule("gloria"), gloria_model(), IMAGE[:1].expand(3, -1, -1), GLORIA)
    np.testing.assert_array_equal(twice, np.zeros((3, 2)))


def test_glorias_padding_is_what_missing_characters_leave() -> None:
    fake = gloria_model()
    (_, with_padding), (_, without) = (
        rule(f"gloria:padding={value}").prepare(fake, GLORIA) for value in ("on", "off")
    )
    assert [len(words) for of in with_padding for words in of] == [4, 11, 1, 9]  # characters; at most 11
    assert [len(words) for of in without for words in of] == [2, 2, 1, 3]
    torch.testing.assert_close(without[0][0][1], TABLE[4] + TABLE[5])
    assert scored(rule("gloria:similarity=local,zscore=off"), fake, prompts=GLORIA).min() >= -1e-6


# ---------------------------------------------------------------------------- PRIOR
def prior_model() -> Any:
    keep = torch.tensor([[True, True], [True, False]])
    first, second = draw(WIDTH, WIDTH, seed=6), draw(WIDTH, WIDTH, seed=7)

    def local(cells: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        by_image = (cells @ first @ sentences.T).sigmoid()
        by_text = (sentences @ second @ cells.transpose(1, 2)).sigmoid()
        return by_image, by_text

    return model(text_tokens=lambda ids: (TABLE[ids][:, :2], keep[: len(ids)]), local_attention=local)


def published_prior(images: Tensor) -> np.ndarray:
    fake, rows = prior_model(), []
    for image in images:  # batches of one
        whole, local = [], []
        for of, ids in zip(texts(), IDS, strict=True):
            whole.append(max(3.0 * cosine(image[0].numpy(), text) for text in of))
            means = []
            for prompt, count in zip(ids, (2, 1), strict=True):
                by_image, by_text = fake.extras["local_attention"](image[None, 1:], TABLE[prompt][:count])
                means.append((float(by_text.mean()) + float(by_image.mean())) / 2)
            local.append(sum(means) / len(means))
        shares = [np.exp(values) / np.exp(values).sum() for values in (np.array(whole), np.array(local))]
        rows.append(shares[0] + 0.5 * shares[1])
    return np.stack(rows)


def test_prior_is_the_published_computation_of_batches_of_one() -> None:
    found = scored(rule("prior"), prior_model())
    np.testing.assert_allclose(np.exp(found), published_prior(IMAGE), atol=1e-5)
    for row, image in zip(found, IMAGE, strict=True):
        np.testing.assert_allclose(scored(rule("prior"), prior_model(), image[None])[0], row, atol=1e-5)


def test_priors_scale_multiplies_cosines_as_it_is() -> None:
    assert rule("prior").facts(prior_model(), PROMPTS) == {"inner_scale": 3.0}
    fake = prior_model()
    fake.logit_scale = torch.tensor(3.0).exp()
    assert np.abs(scored(rule("prior"), fake) - scored(rule("prior"), prior_model())).max() > 0.01


# ---------------------------------------------------------------------------- words of the option
def test_rules_are_spelt_in_one_way() -> None:
    assert parse_rule("global") is None
    assert rule("gloria:zscore=on,similarity=local").text == "gloria:similarity=local"
    assert rule("gloria:padding=on").text == "gloria"
    assert ZeroShotOptions(rule="gloria:zscore=on").rule == "gloria"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("globel", "unknown rule 'globel'. Did you mean 'global'.*Known: dot, global, gloria, mean_then"),
        ("gloria:zscores=on", "unknown option of rule gloria 'zscores'. Did you mean 'zscore'"),
        ("gloria:zscore=yes", "rule: gloria:zscore: expected one of on, off, got 'yes'"),
        ("dot:scale=2", "unknown option of rule dot 'scale'"),
        ("global:x=1", "unknown rule|unknown option"),
    ],
)
def test_wrong_rules_are_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ZeroShotOptions(rule=text)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- the task
class Cut(nn.Module):
    """Stands for cells: parts of the image's own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images[:, :1], 12).flatten(1).unflatten(1, (-1, WIDTH))


class Pieces(nn.Module):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return TABLE[ids % 50], ids != 0


class Every(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids % 3 == 1


def offering(name: str, *rules: str, **options: object) -> Method:
    """Return a method on the tiny backbone, which offers some rules here."""
    wrapped = small.method(name, **options).eval()
    wrapped.backbone.rules = ("global", *rules)
    for part, module in {"image_tokens": Cut(), "text_tokens": Pieces(), "continues": Every()}.items():
        wrapped.backbone.extras[part] = module
    return wrapped


def test_a_result_says_its_rule_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = offering("zero_shot", "mean_then_normalise", "gloria")
    data = replace(small.images(count=24), kind="binary", targets=np.arange(24) % 2, classes=NAMES[:2])
    monkeypatch.setattr("tasks.zeroshot.read_images", lambda *_: data)
    around = small.context(wrapped.backbone, tmp_path)

    def result(text: str) -> Any:
        task = ZeroShotTask(ZeroShotOptions(bootstrap=5, rule=text))
        task.check(type(wrapped), "tiny", wrapped.backbone.rules)
        return task.evaluate(wrapped, {}, "small", around)

    usual, mean, published = (result(text) for text in ("global", "mean_then_normalise", "gloria:zscore=off"))
    own = float(wrapped.logit_scale().detach())
    assert [one.info["rule"] for one in (usual, mean, published)] == [
        "global", "mean_then_normalise", "gloria:zscore=off"
    ]  # fmt: skip
    assert [one.info["logit_scale"] for one in (usual, mean, published)] == [own, own, 1.0]
    assert np.abs(usual.predictions["similarity"] - mean.predictions["similarity"]).max() > 1e-4
    assert "transductive" not in published.info
    assert result("gloria").info["transductive"] is True
    # final scores are ranked as they are: the second class against the rest, no softmax of both
    score, target = (published.predictions[key] for key in ("similarity", "target"))
    pairs = score[target == 1, 1][:, None] - score[target == 0, 1][None]
    by_hand = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert published.metrics["auroc"]["value"] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "text"), [("gloria", "gloria:zscore=off"), ("prior", "prior"), ("kad", "tqn"), ("biovil", "dot")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rules_run_on_the_parts_that_models_bring(
    tmp_path: Path, name: str, text: str, precision: str
) -> None:
    backbone = medical(name)
    wrapped, side = methods.build("zero_shot", backbone), backbone.input_spec.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, *side), dtype=np.uint8)
    data = replace(small.images(count=2), pixels=pixels, digest=name)
    around = replace(small.context(backbone, tmp_path), precision=precision)
    found = rule_scores(rule(text), wrapped, data, prompts_of(wrapped, data.classes, around), around, "t")
    rounded = torch.from_numpy(found).bfloat16().double().numpy()
    assert np.mean(found == rounded) < 0.5, "scores were rounded to bf16"
    assert found.shape == (2, 3)
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).min() > 0
    assert text.partition(":")[0] in (*backbone.rules, "dot")


@pytest.mark.parametrize("text", ["mean_then_normalise", "gloria"])
def test_batch_size_does_not_matter(tmp_path: Path, text: str) -> None:
    wrapped, data = offering("zero_shot", text), small.images(count=7)

    def scores(batch_size: int) -> np.ndarray:
        around: TaskContext = small.context(wrapped.backbone, tmp_path, batch_size=batch_size)
        prompts = prompts_of(wrapped, data.classes, around)
        return rule_scores(rule(text), wrapped, data, prompts, around, "t")

    np.testing.assert_allclose(scores(1), scores(64), atol=1e-4)


def test_a_rule_that_is_not_offered_is_refused_with_those_that_are() -> None:
    asked = METHODS.get("zero_shot"), "tiny", ("global", "dot", "tqn")
    with pytest.raises(ConfigError, match="backbone 'tiny' does not offer 'gloria', only: global, dot, tqn"):
        ZeroShotTask(ZeroShotOptions(rule="gloria")).check(*asked)
    ZeroShotTask(ZeroShotOptions(rule="dot")).check(*asked)
    ZeroShotTask().check(METHODS.get("coop"), "tiny", ("global",))


@pytest.mark.parametrize("name", [name for name in METHODS.names(extras=False) if name != "zero_shot"])
def test_methods_that_change_features_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match="'dot' scores with the towers as they were published, and .* changes"
    ):
        check_rule(rule("dot"), METHODS.get(name), "tiny", ("global", "dot"))


def test_the_default_rule_leaves_settings_and_hashes_as_they_were() -> None:
    usual = load_config({"methods": "zero_shot", "tasks": "zeroshot"}).task_options["zeroshot"]
    assert set(usual) == {"datasets", "bootstrap", "bootstrap_seed"}
    said = load_config({"methods": "zero_shot", "tasks": "zeroshot"}, ["tasks.zeroshot.rule=global"])
    assert said.task_options["zeroshot"] == usual
    other = load_config({"methods": "zero_shot", "tasks": "zeroshot"}, ["tasks.zeroshot.rule=dot"])
    assert other.task_options["zeroshot"] == usual | {"rule": "dot"}

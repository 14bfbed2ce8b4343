"""What goes wrong silently with these models: order of operations, activations, padding, statistics, randomness."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import methods
from benchmark.backbones.medical.words import Words, sentences_of_words
from benchmark.data.samples import Batch
from benchmark.errors import BenchmarkError
from tasks.dense import Taps
from tests.backbones.medical_files import backbone as load
from tests.backbones.medical_files import ids, images, layout, loaded, small_sizes, write
from tests.backbones.medical_parts import WORDS, ClipPool
from tests.small import context


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


def apart(one: Tensor, other: Tensor) -> float:
    """Return how far two features are apart: 1 - cosine, of the first row."""
    return 1 - float(functional.cosine_similarity(one[:1], other[:1]))


# ---------------------------------------------------------------------------- images
@torch.no_grad()
def test_biovil_projects_before_the_mean() -> None:
    backbone, model, pixels = load("biovil"), layout("biovil"), images("biovil")
    mean = model.encoder.encoder(pixels)[-1].mean(dim=(2, 3), keepdim=True)
    wrong = model.projector.model(mean).flatten(1)
    right = backbone.image.features(pixels)
    assert float((right - wrong).abs().max()) > 1e-3 * float(right.abs().max())
    close(backbone.image.patch_features(pixels).mean(dim=1), right)


@pytest.mark.parametrize("name", ["gloria", "mgca-r50"])
@torch.no_grad()
def test_images_are_stretched_to_299_with_corners_aligned(name: str) -> None:
    tower, pixels = load(name).image, images(name)
    right = tower.features(pixels)
    for how in ({"mode": "bilinear", "align_corners": False}, {"mode": "bicubic", "align_corners": True}):
        other = tower._visual.head(_pooled(tower, functional.interpolate(pixels, (299, 299), **how)))
        assert float((other - right).abs().max()) > 1e-4 * float(right.abs().max())
    assert tower.grid == (10, 10)
    assert tower.patch_features(pixels).shape[1] == 100


def _pooled(tower: Any, pixels: Tensor) -> Tensor:
    return tower.forward(pixels).sequence.tokens.mean(dim=1)


@pytest.mark.parametrize("name", ["gloria", "mgca-r50", "prior", "biovil-t", "pmc-clip:heads=8"])
@torch.no_grad()
def test_dense_tasks_see_four_stages_of_the_image_as_it_is(name: str, tmp_path: Path) -> None:
    backbone = load(name)
    taps = Taps(methods.build("zero_shot", backbone), (2, 4, 7, 9, 11), context(backbone, tmp_path))
    side = backbone.input_spec.size[0]
    assert [shape[1] for shape in taps.shapes] == [side // stride for stride in (4, 8, 16, 32)]
    pixels = images(name.partition(":")[0], 1)[
        ..., :96, :96
    ]  # pooling at one size alone does not matter here
    output = backbone.image.forward(pixels, taps=(1, 2, 3))
    assert [output.taps[stage].shape[-1] for stage in (1, 2, 3)] == [12, 6, 3]


def test_attention_pools_take_one_size() -> None:
    with pytest.raises(
        BenchmarkError, match="attention pooling of this backbone needs images of 224x224 pixels"
    ):
        load("prior").image.features(torch.zeros(1, 1, 256, 256))


@torch.no_grad()
def test_pmc_clip_with_8_and_32_heads_are_two_models() -> None:
    pixels, model = images("pmc-clip"), layout("pmc-clip")
    eight, more = (load(f"pmc-clip:heads={heads}").image.features(pixels) for heads in (8, 32))
    assert float((eight - more).abs().max()) > 1e-3 * float(eight.abs().max())
    model.heads = 32
    close(more, model.image(pixels))
    model.heads = 8


@torch.no_grad()
def test_the_activation_is_part_of_the_model() -> None:
    pixels = images("plip")
    plain, quick = (load(f"quiltnet:quick_gelu={value}").image.features(pixels) for value in ("off", "on"))
    close(plain, load("quiltnet").image.features(pixels))
    assert float((plain - quick).abs().max()) > 1e-3 * float(plain.abs().max())
    own = layout("plip").clip
    assert own.config.vision_config.hidden_act == own.config.text_config.hidden_act == "quick_gelu"
    modules = [type(module).__name__ for module in load("plip").model.modules()]
    assert modules.count("QuickGELU") == 4
    assert "QuickGELU" not in [type(module).__name__ for module in load("quiltnet").model.modules()]


# ---------------------------------------------------------------------------- batch statistics
@torch.no_grad()
def test_mgca_ends_in_statistics_so_one_image_is_enough() -> None:
    backbone, pixels = load("mgca-r50"), images("mgca-r50")
    close(backbone.image.features(pixels[:1]), backbone.image.features(pixels)[:1])


@pytest.mark.parametrize("name", ["mgca-vit", "biovil"])
def test_training_leaves_the_statistics_of_pretraining(name: str) -> None:
    method = methods.build("full_ft", copy.deepcopy(load(name)))
    before = {key: value.clone() for key, value in method.named_buffers()}
    optimiser = torch.optim.SGD(method.trainable_parameters().values(), lr=1e-4)
    method.train().loss(Batch(images(name), ids(name)[:2])).backward()
    assert all(value.grad is not None for value in method.trainable_parameters().values())
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in method.named_buffers())
    assert any(
        module.training for module in method.backbone.model.modules() if isinstance(module, nn.Dropout)
    )


# ---------------------------------------------------------------------------- text
@torch.no_grad()
def test_gloria_sums_real_tokens_and_divides_by_97() -> None:
    backbone, texts = load("gloria"), ids("gloria", 97)
    pieces, keep = backbone.extras["text_tokens"](texts)
    assert torch.equal(keep, texts != 0)
    padded_mean = torch.where(keep[..., None], pieces, torch.zeros(())).mean(dim=1)
    close(backbone.text.features(texts), padded_mean)
    assert torch.equal(backbone.text.features(texts), backbone.text.features(texts))


@torch.no_grad()
def test_gloria_offers_regions_pieces_and_words() -> None:
    backbone, model, pixels, texts = load("gloria"), layout("gloria"), images("gloria"), ids("gloria")
    regions = backbone.extras["image_tokens"](pixels)
    assert regions.shape == (2, 361, 128)
    close(regions, model.regions(pixels).flatten(2).transpose(1, 2))
    pieces, keep = backbone.extras["text_tokens"](texts)
    goes_on = backbone.extras["continues"](texts)
    assert goes_on.sum(dim=1).tolist() == [1, 2, 1]  # "##s"
    for row, words in enumerate(model.words(texts)):
        number = (~goes_on[row] & keep[row]).long().cumsum(0) - 1
        ours = torch.zeros_like(words).index_add(0, number[keep[row]], pieces[row][keep[row]])
        close(ours, words)


def test_text_is_cleaned_as_its_authors_did() -> None:
    report = "FINDINGS: No edema.\n1. Left-sided effusion is 2.5 cm. Clear. Chest x-ray"
    assert sentences_of_words(report) == "findings no edema left sided effusion is 5 cm chest x ray"
    assert sentences_of_words("Pneumonia.") == ""  # a sentence of one word goes, as published


def test_words_are_small_and_the_end_token_stays(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    plain = Words(tmp_path, 8)
    end, pad = WORDS.index("[SEP]"), WORDS.index("[PAD]")
    tokens = plain(["No EDEMA.", "the heart is clear there is no effusion", ""])
    assert tokens[0].tolist() == [2, *map(WORDS.index, ("no", "edema", ".")), end, pad, pad, pad]
    assert tokens[1, -1] == end
    assert tokens[2].tolist() == [2, end, *[pad] * 6]
    assert plain("hearts")[0, 2] == WORDS.index("##s")


def test_words_are_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=True)
    texts = ["No EDEMA, the Heart.", "l\u00e4ngs clear", "x-ray  of\tlungs", "[SEP] \u4e2d a"]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=9)["input_ids"]
    assert Words(tmp_path, 9)(texts).tolist() == expected


@torch.no_grad()
def test_pmc_clip_looks_at_padding_unless_told_otherwise() -> None:
    texts, model = ids("pmc-clip", 77), layout("pmc-clip")
    base = load("pmc-clip:heads=8")
    assert base.trim(texts).shape[1] == 77
    assert apart(base.text.features(texts), base.text.features(texts[:, :9])) > 1e-6
    presets = {"quick_start": (True, False), "biomedcoop": (True, True), "masked_cls": (False, True)}
    for preset, (pooler, masked) in presets.items():
        backbone = load(f"pmc-clip:heads=8,text={preset}")
        close(backbone.text.features(texts), model.text(texts, pooler=pooler, masked=masked))
        assert backbone.trim(texts).shape[1] == (9 if masked else 77)


@torch.no_grad()
def test_prior_gives_the_same_twice() -> None:
    texts, plain = ids("prior"), load("prior")
    assert torch.equal(plain.text.features(texts), plain.text.features(texts))
    noisy = load("prior:bank=gumbel")
    first = noisy.text.features(texts)
    assert torch.equal(noisy.text.features(texts), first)
    noisy.model.text.bank.seed = 1
    assert apart(noisy.text.features(texts), first) > 1e-6
    assert apart(first, plain.text.features(texts)) > 1e-6


@torch.no_grad()
def test_prior_pools_one_sentence_by_two_maps() -> None:
    backbone = load("prior")
    prototypes, keep = backbone.extras["text_tokens"](ids("prior"))
    assert keep.tolist() == [[True, False], [True, False], [True, True]]
    pool: ClipPool = layout("prior").global_text_attention
    parts: Any = pool
    close(backbone.text.features(ids("prior")[:2]), parts.c_proj(parts.v_proj(prototypes[:2, 0])))
    theirs = layout("prior").prototypes(ids("prior"))
    close(prototypes[keep], torch.cat(theirs))


@torch.no_grad()
def test_prompts_belong_to_the_sentence_that_they_stand_in() -> None:
    backbone = load("prior")
    method = methods.build("coop", backbone, n_ctx=3)
    (act,) = method.text_interventions()
    sequence: Any = act.on_embeddings(backbone.text.embed(ids("prior")), backbone.text)
    assert sequence.sentence[2, :13].tolist() == [-1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, -1]


@torch.no_grad()
def test_prior_offers_its_local_parts() -> None:
    backbone, model, pixels = load("prior"), layout("prior"), images("prior")
    trunk = model.image_encoder.encoder(pixels)[-1]
    cells = model.local_image_projection(trunk.reshape(2, -1, trunk.shape[1]))  # not turned, as published
    close(backbone.extras["image_tokens"](pixels), cells)
    texts, parts = torch.randn(3, 24), model.local_cross_attention
    by_image, by_text = backbone.extras["local_attention"](cells, texts)
    close(by_image[1], torch.sigmoid(parts.query1(cells[1]) @ parts.key2(texts).T / 24**0.5))
    close(by_text[1], torch.sigmoid(parts.query2(texts) @ parts.key1(cells[1]).T / 24**0.5))


@torch.no_grad()
def test_kad_features_are_not_of_unit_length() -> None:
    backbone, pixels, texts = load("kad"), images("kad"), ids("kad")
    for features in (backbone.image.features(pixels), backbone.text.features(texts)):
        assert float((features.norm(dim=1) - 1).abs().min()) > 0.05
    close(backbone.extras["image_tokens"](pixels).mean(dim=1), backbone.image.features(pixels))


@torch.no_grad()
def test_kad_queries_know_one_another() -> None:
    backbone, model, pixels = load("kad"), layout("kad"), images("kad")
    cells, queries = backbone.extras["image_tokens"](pixels), backbone.text.features(ids("kad"))
    logits = backbone.extras["tqn"](cells, queries)
    assert logits.shape == (2, 3, 2)
    close(logits, model.present(pixels, queries))
    alone = backbone.extras["tqn"](cells, queries[:1])
    assert float((alone[:, 0] - logits[:, 0]).abs().max()) > 1e-3
    close(backbone.text.features(ids("kad")[:1]), queries[:1])


@torch.no_grad()
def test_convirt_knows_a_roberta_by_its_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96,
        max_position_embeddings=34, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    theirs = transformers.RobertaModel(config).eval()

    def change(content: dict[str, Any]) -> None:
        state = {key: value for key, value in content["model"].items() if not key.startswith("linguistic")}
        state |= {f"linguistic.encoder.{key}": value for key, value in theirs.state_dict().items()}
        state["lin_proj.0.weight"] = state["lin_proj.0.weight"][:, :64]
        content["model"] = state

    path = write("convirt", tmp_path, change)
    (tmp_path / "vocab.txt").unlink()
    write_roberta_words(tmp_path)
    backbone = loaded("convirt", path)
    assert (backbone.text.pad_id, backbone.text.context_length) == (1, 32)
    texts = backbone.tokenize(["no edema", "no"])
    assert texts[1].tolist()[0] == 0
    assert backbone.text.lengths(texts).tolist() == [int((row != 1).sum()) for row in texts]
    head = layout("convirt").lin_proj
    output = theirs(input_ids=texts, attention_mask=(texts != 1).long()).pooler_output
    weight = head[0].weight[:, :64]
    close(
        backbone.text.features(texts),
        head[2](functional.relu(functional.linear(output, weight, head[0].bias))),
    )
    close(backbone.text.features(backbone.trim(texts)), backbone.text.features(texts))


def write_roberta_words(folder: Path) -> None:
    """Write a byte-level vocabulary of 300 pieces without merges."""
    import json

    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    pieces += [f"unused{index}" for index in range(300 - len(pieces))]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")

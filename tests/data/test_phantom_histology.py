"""The histology generator: determinism, composition, captions, stain shift, its cache, and the suite."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from open_clip.model import CustomTextCLIP
from PIL import Image

from benchmark.backbones.tiny import CONTEXT_LENGTH, WordPieceTokenizer, load_tiny
from benchmark.console import NullReporter
from benchmark.data.entries import data_entries, load_dataset
from benchmark.data.samples import labelled_images, pairs
from benchmark.files import configs
from benchmark.phantom.chest.render import IMAGE_SIZE
from benchmark.phantom.chest.studies import BLOCK, block_rng
from benchmark.phantom.histology.captions import WORDS, caption
from benchmark.phantom.histology.parts import NAMES, PARTS, PartData, describe, draw_part
from benchmark.phantom.histology.sections import TILES, Sections, render, sample_sections
from benchmark.phantom.histology.tissues import ARTICLES, LC25000, MHIST, Lab
from benchmark.phantom.pretraining import contact_sheet, probe
from benchmark.phantom.shapes import Array
from benchmark.preprocess import Fitting

GOLDEN = {"pmc_oa": "b6f869e779cf", "pmc_oa_val": "1d70ce982650", "mhist": "ad59727b9bde"}
SUITE = yaml.safe_load(configs("suites", "phantom_histology.yaml").read_text())


@pytest.fixture(scope="module")
def small() -> dict[str, PartData]:
    return {name: draw_part(name, 96, seed=0) for name in PARTS}


@pytest.fixture(scope="module")
def tiny() -> tuple[CustomTextCLIP, WordPieceTokenizer]:
    return load_tiny("tiny")


def tiles(label: str, lab: Lab = ARTICLES, grade: float = 1.0, stream: str = "test") -> Array:
    """Draw a block of one tissue at one grade."""
    sections = Sections(np.full(BLOCK, NAMES.index(label)), np.full(BLOCK, grade, np.float32))
    return render(block_rng(5, stream), sections, lab, IMAGE_SIZE)


@pytest.mark.parametrize("name", PARTS)
def test_a_tile_does_not_depend_on_how_many_are_asked_for(small, name):
    fewer = draw_part(name, 45, 0)
    assert (fewer.images == small[name].images[:45]).all()
    assert (fewer.tissue == small[name].tissue[:45]).all()
    assert fewer.manifest.equals(small[name].manifest.iloc[:45])


def test_another_seed_and_another_part_draw_other_tiles(small):
    assert not (draw_part("mhist", 32, 1).images == small["mhist"].images[:32]).all()
    same_lab = small["pmc_oa"], small["pmc_oa_val"]
    assert not (same_lab[0].images == same_lab[1].images).all((1, 2, 3)).any()
    assert not set(same_lab[0].manifest["patient_id"]) & set(same_lab[1].manifest["patient_id"])


def test_labels_and_captions_are_those_of_this_version(small):
    """Pixels may differ in the last bit between processors; labels and words may not (GENERATOR_VERSION)."""
    texts = {name: small[name].manifest.to_csv(index=False, lineterminator="\n") for name in GOLDEN}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()} == GOLDEN


@pytest.mark.parametrize("name", PARTS)
def test_tiles_are_in_colour_and_labels_are_the_truth(small, name):
    data = small[name]
    assert data.images.shape == (96, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert data.images.dtype == np.uint8
    columns = [column for column in data.manifest if column.startswith("label_")]
    if PARTS[name].split == "train":
        assert columns == []
        return
    assert columns == [f"label_{label}" for label in PARTS[name].classes]
    shown = data.manifest[columns].to_numpy()
    assert (shown.sum(1) == 1).all()
    assert [PARTS[name].classes[at] for at in shown.argmax(1)] == [NAMES[at] for at in data.tissue]


@pytest.mark.parametrize("name", [name for name in PARTS if PARTS[name].split != "train"])
def test_classes_of_labelled_parts_are_balanced(small, name):
    counts = np.bincount(small[name].tissue, minlength=len(NAMES))
    assert np.ptp(counts[counts > 0]) <= TILES
    assert (counts > 0).sum() == len(PARTS[name].classes)


def test_a_patient_has_two_tiles_of_one_tissue_in_one_stain(small):
    patients = small["pmc_oa"].manifest["patient_id"]
    assert (patients.value_counts() == TILES).all()
    tissue = small["pmc_oa"].tissue.reshape(-1, TILES)
    assert (tissue[:, 0] == tissue[:, 1]).all()
    colour = tiles("Normal brain").mean((1, 2)).reshape(-1, TILES, 3)
    within, between = np.abs(colour[:, 0] - colour[:, 1]), np.abs(colour[:-1, 0] - colour[1:, 0])
    assert within.mean() < 0.5 * between.mean()


def test_every_tissue_of_the_corpus_is_drawn():
    assert set(draw_part("pmc_oa", 192, 0).tissue) == set(range(len(NAMES)))


def test_grade_moves_glands_towards_the_classic_picture():
    """Two colon tissues drawn with the same random numbers differ more the higher their grade."""
    gap = {}
    for grade in (0.0, 1.0):
        pair = [
            tiles(name, grade=grade).astype(float)
            for name in ("Colon adenocarcinoma", "Benign colonic tissue")
        ]
        gap[grade] = np.abs(pair[0] - pair[1]).mean()
    assert gap[1.0] > 1.3 * gap[0.0] > 0


def test_what_a_tissue_is_known_by_is_in_the_picture():
    light = {name: tiles(name).mean(-1) for name in NAMES}
    assert (
        light["Benign lung"].mean((1, 2)) > light["Lung squamous cell carcinoma"].mean((1, 2))
    ).mean() > 0.9
    assert light["Benign lung"].mean() > light["Lung fibrosis"].mean()  # more air
    assert light["Sessile serrated adenoma"].mean() > light["Hyperplastic polyp"].mean()  # wider lumens
    assert light["Brain tumor"].mean() < light["Normal brain"].mean()  # more nuclei


def test_laboratories_differ_in_stain():
    """Per colour channel, the same tissue in the three laboratories; the shift is larger than the error of the mean."""
    colour = {lab.name: tiles("Normal brain", lab).mean((1, 2)) for lab in (ARTICLES, LC25000, MHIST)}
    means = {name: values.mean(0) for name, values in colour.items()}
    assert means["lc25000"][0] < means["mhist"][0] - 10 or means["lc25000"][2] < means["mhist"][2] - 10
    for name in ("lc25000", "mhist"):
        error = colour[name].std(0) / np.sqrt(BLOCK / TILES)
        assert (np.abs(means[name] - means["articles"]) > 3 * error).any(), name


def said(count: int = 1024) -> list[tuple[str, str]]:
    """Return (tissue, caption) of many tiles."""
    drawn = []
    for block in range(count // BLOCK):
        rng = block_rng(0, "caption-test", block)
        sections = sample_sections(rng, rng.integers(0, len(NAMES), BLOCK // TILES), ARTICLES)
        drawn += [(NAMES[sections.tissue[at]], caption(rng, sections, at)) for at in range(BLOCK)]
    return drawn


def test_captions_name_the_tissue_as_often_as_stated_and_never_another():
    named = 0
    for tissue, text in said(2048):
        named += any(name in text for name in WORDS[tissue].names)
        for other in NAMES:
            distinct = [
                name for name in WORDS[other].names if not any(name in own for own in WORDS[tissue].names)
            ]
            assert other == tissue or not any(f" {name}." in text for name in distinct), text
    assert named / 2048 == pytest.approx(0.7, abs=0.03)


def test_captions_fit_the_text_tower_and_use_no_prompt(tiny):
    _, tokenizer = tiny
    prompts = [template.format("") for template in SUITE["templates"] if template.endswith("{}")]
    for _, text in said(256):
        assert len(tokenizer.tokens(text)) <= CONTEXT_LENGTH
        assert not any(text.startswith(prompt) for prompt in prompts)


def test_class_names_are_words_of_the_vocabulary(tiny):
    _, tokenizer = tiny
    pieces = [piece for label in NAMES for piece in tokenizer.tokens(label)]
    assert not any(piece.startswith("##") or piece == "[UNK]" for piece in pieces)


def test_recipe_tells_parts_from_each_other():
    assert describe("lc25000_lung", 4, 0)["laboratory"] == describe("lc25000_colon", 4, 0)["laboratory"]
    assert describe("lc25000_lung", 4, 0) != describe("lc25000_colon", 4, 0)


def test_suite_reads_every_part_as_it_says(tmp_path):
    used = set()
    for entry in data_entries(SUITE):
        data = load_dataset({**entry, "n": 48}, tmp_path, NullReporter(), Fitting((IMAGE_SIZE, IMAGE_SIZE)))
        used.add(entry["part"])
        if entry is SUITE["corpus"]:
            assert pairs("pmc_oa", data).labels is None
        else:
            images = labelled_images(entry["part"], data, entry)
            assert len(np.unique(images.targets)) == len(entry["classes"])
            assert images.clusters is not None
            assert len(set(images.clusters)) == 48 // TILES
    assert used == set(PARTS)


def test_suite_asks_with_the_words_and_the_loss_of_the_real_one():
    real = yaml.safe_load(configs("suites", "histopathology.yaml").read_text())
    assert SUITE["templates"] == real["templates"]
    assert SUITE["recipe"]["loss"] == real["recipe"]["loss"] == "clip"
    assert SUITE["paper"]["table_3"] == real["paper"]["table_3"]
    assert SUITE["paper"]["comparable"] is False
    for name, entry in real["tasks"]["zeroshot"]["datasets"].items():
        ours = SUITE["tasks"]["zeroshot"]["datasets"][name]
        assert {key: ours.get(key) for key in ("kind", "classes", "positive")} == {
            key: entry.get(key) for key in ("kind", "classes", "positive")
        }


def test_probe_finds_the_classes(tiny, monkeypatch):
    smaller = SimpleNamespace(
        PARTS={"lc25000_lung": PARTS["lc25000_lung"]},
        NAMES=NAMES,
        draw_part=lambda name, count, seed: draw_part(name, min(count, 96), seed),
    )
    monkeypatch.setattr(probe, "histology", smaller)
    scores = probe.tissue_probe(tiny[0], seed=0)
    assert set(scores) == {"lc25000_lung"}
    assert scores["lc25000_lung"]["auroc"] > 0.75


def test_sheet_has_a_row_per_tissue_and_test_class(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "COLUMNS", 1)
    contact_sheet.main(["--suite", "phantom_histology", str(tmp_path / "sheet.png")])
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.height == 10 * (IMAGE_SIZE + contact_sheet.TILE_GAP + contact_sheet.HEADING)
        assert len(picture.convert("RGB").getcolors(10**6)) > 8

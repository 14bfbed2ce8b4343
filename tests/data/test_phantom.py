"""The phantom generator: determinism, composition, truth, reports, and its cache."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from benchmark.phantom.chest import grammar
from benchmark.phantom.chest.domains import MIMIC, NIH
from benchmark.phantom.chest.parts import FIVE, PARTS, RSNA_OTHERS, draw_part
from benchmark.phantom.chest.render import IMAGE_SIZE, render
from benchmark.phantom.chest.reports import ASSERTED, DENIED, DOUBTED, OMIT, labels_of, report
from benchmark.phantom.chest.studies import (
    BLOCK,
    BOTH,
    CHEXPERT_LABELS,
    FINDINGS,
    INDEX,
    NIH_LABELS,
    Studies,
    block_rng,
    chexpert_truth,
    nih_truth,
    sample_present,
    sample_studies,
)

GOLDEN = {"mimic": "d1ae5f1e5e00", "nih": "d64503129bba", "siim": "c4d8fc9295d8"}


@pytest.fixture(scope="module")
def small() -> dict[str, object]:
    return {name: draw_part(name, 320, seed=0) for name in PARTS}


def _studies(*findings: str, severity: float = 0.6, count: int = BLOCK) -> Studies:
    present = np.zeros((count, len(FINDINGS)), bool)
    present[:, [INDEX[name] for name in findings]] = True
    studies = sample_studies(block_rng(5, "test"), present, MIMIC)
    studies.severity[:] = severity
    return studies


@pytest.mark.parametrize("name", PARTS)
def test_a_study_does_not_depend_on_how_many_are_asked_for(small, name):
    fewer = draw_part(name, 45, 0)
    assert (fewer.images == small[name].images[:45]).all()
    assert (fewer.masks == small[name].masks[:45]).all()
    assert fewer.manifest.equals(small[name].manifest.iloc[:45])


def test_another_seed_draws_other_studies(small):
    assert not (draw_part("rsna", 32, 1).images == small["rsna"].images[:32]).all()


def test_labels_and_reports_are_those_of_this_version():
    """Pixels may differ in the last bit between processors; labels and words may not (GENERATOR_VERSION)."""
    drawn = {name: draw_part(name, 64, 0).manifest for name in GOLDEN}
    tables = {name: table.to_csv(index=False, lineterminator="\n") for name, table in drawn.items()}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in tables.items()} == GOLDEN


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_its_fourteen_labels(small, name):
    names = NIH_LABELS if name == "nih" else CHEXPERT_LABELS
    columns = [column for column in small[name].manifest if column.startswith("label_")]
    assert columns == [f"label_{label}" for label in names]


def test_corpus_prevalences_lie_near_the_stated_ones():
    rng = block_rng(0, "prevalence")
    present = sample_present(rng, 8192, MIMIC)
    truth = chexpert_truth(sample_studies(rng, present, MIMIC)).mean(0)
    stated = {
        "No Finding": 0.33,
        "Cardiomegaly": 0.135,
        "Lung Opacity": 0.49,
        "Edema": 0.113,
        "Pneumonia": 0.126,
    }
    for label, share in stated.items():
        assert truth[CHEXPERT_LABELS.index(label)] == pytest.approx(share, abs=0.02), label


def test_five_by_two_hundred_has_exactly_one_of_five(small):
    truth = chexpert_truth(small["chexpert_5x200"].studies)[:, [CHEXPERT_LABELS.index(name) for name in FIVE]]
    assert (truth.sum(1) == 1).all()
    assert (truth.sum(0) == 64).all()


@pytest.mark.parametrize(
    ("name", "label", "clear"), [("rsna", "Pneumonia", 0.43), ("siim", "Pneumothorax", 0.5)]
)
def test_binary_sets_are_balanced_and_their_negatives_are_hard(small, name, label, clear):
    truth = chexpert_truth(small[name].studies)
    positive = truth[:, CHEXPERT_LABELS.index(label)]
    assert positive.mean() == 0.5
    normal = truth[~positive, CHEXPERT_LABELS.index("No Finding")].mean()
    assert normal == pytest.approx(clear, abs=0.1)


def test_every_validation_class_has_sixty_positives():
    part, positives = PARTS["nih"], np.zeros(len(NIH_LABELS))
    for block in range(part.count // BLOCK):
        rng = block_rng(0, "nih", block)
        positives += nih_truth(sample_studies(rng, part.present(rng, block * BLOCK, NIH), NIH)).sum(0)
    assert positives.min() >= 60


def test_label_logic():
    assert chexpert_truth(_studies("fibrosis"))[:, CHEXPERT_LABELS.index("Lung Opacity")].all()
    devices = chexpert_truth(_studies("support_devices"))
    assert devices[:, CHEXPERT_LABELS.index("No Finding")].all()
    assert not chexpert_truth(_studies("hernia"))[:, CHEXPERT_LABELS.index("No Finding")].any()
    assert nih_truth(_studies("lung_lesion", severity=0.9))[0, NIH_LABELS.index("Mass")]
    assert nih_truth(_studies("lung_lesion", severity=0.3))[0, NIH_LABELS.index("Nodule")]


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name != "support_devices"])
def test_every_finding_changes_the_picture_where_it_is_and_only_there(finding):
    clear, there = _studies(), _studies(finding, severity=0.9)
    rows = np.arange(BLOCK) % 2 == 0
    there.present[~rows] = False
    pictures = [render(block_rng(1, "look"), each, MIMIC).maps for each in (clear, there)]
    if finding in ("fracture", "emphysema", "hernia", "infiltration", "pleural_other"):
        pictures = [render(block_rng(1, "look"), each, MIMIC).images.astype(float) for each in (clear, there)]
    changed = np.abs(pictures[0] - pictures[1]).reshape(BLOCK, -1).max(1)
    assert changed[rows].min() > 0.02


def test_masks_are_there_exactly_with_a_pneumothorax(small):
    data = small["siim"]
    assert (data.masks.any((1, 2)) == data.studies.has("pneumothorax")).all()
    assert 0.02 < data.masks[data.studies.has("pneumothorax")].mean() < 0.08


def test_boxes_are_there_exactly_with_pneumonia_and_lie_in_the_image(small):
    data = small["rsna"]
    boxes = [json.loads(value) for value in data.manifest["boxes"]]
    assert ([bool(each) for each in boxes] == data.studies.has("pneumonia")).all()
    for x1, y1, x2, y2 in (box for each in boxes for box in each):
        assert 0 <= x1 < x2 <= IMAGE_SIZE
        assert 0 <= y1 < y2 <= IMAGE_SIZE
        assert min(x2 - x1, y2 - y1) >= 4


def test_films_for_detection_show_two_findings_beside_the_one_with_boxes(small):
    data = small["rsna_boxes"]
    others = data.studies.present[:, [INDEX[name] for name in RSNA_OTHERS]]
    assert data.studies.has("consolidation").all()
    assert (others.sum(1) == 2).all()
    assert others.mean(0).min() > 0.25  # a third each
    boxed = [len(json.loads(value)) for value in data.manifest["boxes"]]
    both = data.studies.side[:, INDEX["consolidation"]] == BOTH
    assert (np.array(boxed) == 1 + both).all()


def test_a_box_is_brighter_than_the_same_place_without_the_finding():
    clear, there = _studies(), _studies("consolidation", severity=1.0)
    before, after = (render(block_rng(1, "look"), each, MIMIC) for each in (clear, there))
    for row, boxes in enumerate(after.boxes):
        for x1, y1, x2, y2 in boxes:
            inside = np.s_[row, y1:y2, x1:x2]
            assert after.images[inside].mean() > before.images[inside].mean() + 10


def _reports(count: int = 1024):
    for block in range(count // BLOCK):
        rng = block_rng(0, "report-test", block)
        studies = sample_studies(rng, sample_present(rng, BLOCK, MIMIC), MIMIC)
        for row in range(BLOCK):
            yield studies.present[row], report(rng, studies, row)


def test_reports_affirm_only_what_is_present_and_deny_only_what_is_absent():
    for present, said in _reports():
        for finding, mention in said.mentions.items():
            if mention == ASSERTED:
                assert present[INDEX[finding]], said
            if mention == DENIED:
                assert not present[INDEX[finding]], said


def test_an_absent_finding_is_never_worded_as_present():
    """Names of absent findings may stand only in a denial or a doubt."""
    names = {
        name: grammar.NAMES[name] for name in ("pneumothorax", "cardiomegaly", "emphysema", "atelectasis")
    }
    doubts = [form.format(name) for form in grammar.DOUBTS for name in names.values()]
    for present, said in _reports():
        affirmed = [
            part
            for part in said.text.rstrip(".").split(". ")
            if not part.startswith("no ") and part not in doubts
        ]
        for finding, name in names.items():
            if not present[INDEX[finding]]:
                assert not any(name in part for part in affirmed), said.text


def test_findings_are_omitted_and_doubted_at_the_stated_rates():
    seen = {"all": 0, "omitted": 0, "doubted": 0, "main": 0}
    for present, said in _reports(4096):
        here = [FINDINGS[at] for at in np.flatnonzero(present)]
        seen["all"] += len(here)
        seen["main"] += any(name != "support_devices" for name in here)
        seen["omitted"] += sum(name not in said.mentions for name in here)
        seen["doubted"] += sum(said.mentions.get(name) == DOUBTED for name in here)
    assert seen["omitted"] / (seen["all"] - seen["main"]) == pytest.approx(OMIT, abs=0.015)
    assert 0.02 < seen["doubted"] / seen["all"] < 0.05


def test_corpus_labels_are_those_of_the_report():
    values = []
    for present, said in _reports():
        labels = labels_of(said)
        values.append(labels)
        named = dict(zip(CHEXPERT_LABELS, labels, strict=True))
        assert named["No Finding"] in (1,) or np.isnan(named["No Finding"])
        if named["Pneumonia"] == 1:
            assert present[INDEX["pneumonia"]]
            assert named["Lung Opacity"] == 1
    stacked = np.stack(values)
    assert 0.003 < (stacked == -1).mean() < 0.03
    assert 0.4 < np.isnan(stacked).mean() < 0.8


def test_impressions_name_the_findings_of_the_report_plainly():
    from benchmark.phantom.chest.grammar import NAMES, NORMAL

    texts = draw_part("mimic", 256, 0).manifest["text"]
    ends = [text.rsplit("impression: ", 1)[1].removesuffix(".") for text in texts if "impression: " in text]
    assert 0.8 < len(ends) / len(texts) < 0.95  # nine in ten, fewer where nothing but doubts were written
    known = {*NAMES.values(), *NORMAL}
    assert all(part in known for end in ends for part in ([end] if end in NORMAL else end.split(" and ")))

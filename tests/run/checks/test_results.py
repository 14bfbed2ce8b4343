"""Classes that nobody can score, answers that are not whole, classes in another order, texts that are too long."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmark.backbones import load_backbone
from benchmark.backbones.backbone import cut_texts
from benchmark.data.entries import load_dataset
from benchmark.data.prepared import Prepared
from benchmark.data.samples import labelled_images, pairs
from benchmark.errors import CellError, ConfigError
from benchmark.metrics.bootstrap import metrics_report
from benchmark.metrics.classification import unscored_classes
from benchmark.metrics.segmentation import Overlaps, segmentation_metrics
from benchmark.run.checks.pairs import pairs_match, warning
from benchmark.run.checks.results import check_result
from benchmark.run.training.trainer import Trainer
from tasks import zeroshot
from tests import small

NAMES = ("edema", "pneumonia", "pneumothorax")


def result(tmp_path: Path, kind: str, targets: np.ndarray, classes: tuple[str, ...] = NAMES) -> Any:
    """Score random images whose labels are given."""
    data = dataclasses.replace(
        small.images(kind, len(targets)), targets=targets, classes=classes, facts={"data_notes": ["old"]}
    )
    similarity = np.random.default_rng(0).random((len(targets), len(classes)))
    around = small.context(load_backbone("tiny"), tmp_path)
    return zeroshot.scored(data, similarity, 10.0, around, zeroshot.ZeroShotOptions(bootstrap=5))


def test_a_class_without_images_is_left_out_and_named(tmp_path: Path) -> None:
    whole = result(tmp_path, "multiclass", np.array([0, 1, 2] * 4))
    assert "unscored_classes" not in whole.info
    assert whole.info["data_notes"] == ["old"]
    without = result(tmp_path, "multiclass", np.array([0, 1] * 6))
    assert without.info["unscored_classes"] == {"pneumothorax": "no positives"}
    assert without.info["data_notes"] == ["old", "AUROC over 2 of 3 classes (pneumothorax: no positives)"]
    assert 0 < without.metrics["auroc"]["value"] < 1


def test_what_no_class_defines_is_null_with_its_reason(tmp_path: Path) -> None:
    for targets, reason in ((np.zeros(6, np.int64), "no positives"), (np.ones(6, np.int64), "no negatives")):
        one = result(tmp_path, "binary", targets, NAMES[:2])
        assert one.metrics["auroc"]["value"] is None
        assert one.info["unscored_classes"] == {"pneumonia": reason}
        assert one.info["data_notes"][-1] == f"AUROC over 0 of 1 classes (pneumonia: {reason})"
    many = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]])
    reasons = {"edema": "no negatives", "pneumonia": "no positives"}
    assert result(tmp_path, "multilabel", many).info["unscored_classes"] == reasons
    assert unscored_classes("multilabel", many, NAMES) == reasons


def test_masks_with_nothing_to_find_have_no_dice() -> None:
    nothing = Overlaps.of(np.zeros((3, 4, 4)), np.zeros((3, 4, 4)))
    found = metrics_report(segmentation_metrics(nothing), 3, resamples=5)
    assert {name: one["value"] for name, one in found.items()} == {
        "dice": None,
        "dice_pooled": None,
        "iou": None,
    }
    some = Overlaps.of(np.zeros((2, 4, 4)), np.stack([np.zeros((4, 4)), np.ones((4, 4))]))
    assert metrics_report(segmentation_metrics(some), 2, resamples=5)["dice"]["value"] == 0.5


def test_validation_says_which_classes_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    around = small.context(load_backbone("tiny"), tmp_path)
    around.reporter.log = said.append  # type: ignore[method-assign]
    entry = {"kind": "multilabel", "min_positives": 1}
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    data = dataclasses.replace(small.images("multilabel", 3), targets=targets)
    monkeypatch.setattr(zeroshot, "read_images", lambda *_: data)
    task = zeroshot.ZeroShotTask()
    task.validator(entry, around)
    assert said == [
        "validation: mean over 1 of 3 classes, as pneumonia, pneumothorax have too few positives or no negative"
    ]
    data = dataclasses.replace(data, targets=targets[:, [1, 2, 2]])
    with pytest.raises(ConfigError, match="no class has 1 positives and a negative"):
        task.validator(entry, around)


def test_a_validation_score_that_is_no_number_selects_nothing(tmp_path: Path) -> None:
    method = small.method("taskres")
    trainer = Trainer(
        method, small.batches(method), small.RECIPE, validate=lambda _: {"auroc": float("nan")}, metric="auroc",
        checkpoint=SimpleNamespace(load=lambda *_: None, save=lambda _: None),  # type: ignore[arg-type]
        device=small.CPU, reporter=small.NullReporter(),
    )  # fmt: skip
    with pytest.raises(
        CellError, match="validation gave auroc nan in epoch 0, by which no epoch can be selected"
    ):
        trainer.run()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda p: p.update(image_id=p["image_id"][:-1]), "11 rows of 'image_id' for 12 images"),
        (lambda p: p.update(similarity=p["similarity"][1:]), "11 rows of 'similarity' for 12 images"),
        (lambda p: p["image_id"].__setitem__(3, p["image_id"][0]), "1 images are answered more than once"),
        (lambda p: p["similarity"].__setitem__((0, 0), np.nan), "1 scores are not finite numbers"),
    ],
)
def test_answers_that_are_not_whole_are_refused(tmp_path: Path, spoil: Any, line: str) -> None:
    whole = result(tmp_path, "multiclass", np.array([0, 1, 2] * 4))
    check_result(whole, "zeroshot, 'x'")
    spoil(whole.predictions)
    with pytest.raises(CellError, match=f"zeroshot, 'x': {line}"):
        check_result(whole, "zeroshot, 'x'")


def test_targets_follow_the_names_of_classes_in_any_order(tmp_path: Path) -> None:
    labels = {f"label_{name}": [float(i % 3 == k) for i in range(9)] for k, name in enumerate(NAMES)}
    frame = pd.DataFrame({"image_id": [f"i{i}" for i in range(9)], **labels})
    pixels = small.images(count=9).pixels
    data = Prepared("x", tmp_path, pixels, frame, None, {}, {"pixels.npy": "a", "manifest.csv": "b"})
    prompts = {name: f"signs of {name}" for name in NAMES}
    method, around = small.method("zero_shot").eval(), small.context(load_backbone("tiny"), tmp_path)
    scores = []
    for order in (NAMES, NAMES[::-1], (NAMES[1], NAMES[2], NAMES[0])):
        seen = labelled_images("x", data, {"kind": "multiclass", "classes": list(order), "prompts": prompts})
        assert [seen.classes[k] for k in seen.targets] == [prompts[NAMES[i % 3]] for i in range(9)]
        similarity = zeroshot.similarities(method, seen, around, "test")
        scores.append(similarity[np.arange(9), seen.targets])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-6)
    for order in (NAMES[:2], NAMES[1::-1]):
        spec = {"kind": "binary", "classes": list(order), "positive": "pneumonia"}
        seen = labelled_images("x", data, spec)
        assert seen.classes == ("edema", "pneumonia")
        assert seen.targets.tolist() == [int(i % 3 == 1) for i in range(9)]


def test_prompts_longer_than_the_context_are_counted(tmp_path: Path) -> None:
    backbone = load_backbone("tiny")
    long = " ".join(["edema"] * 500)
    assert cut_texts(backbone, backbone.tokenize(["edema", long, "pneumonia"])) == 1
    method = small.method("zero_shot")
    around = small.context(backbone, tmp_path)
    assert zeroshot.cut_prompts(method, ("edema",), around) == {}
    assert zeroshot.cut_prompts(method, ("edema", long), around) == {"cut_prompts": 2}  # two templates


def test_a_corpus_whose_texts_are_shuffled_is_doubted(tmp_path: Path) -> None:
    backbone = load_backbone("tiny")
    entry = {"dataset": "phantom", "part": "mimic", "n": 96}
    data = pairs("phantom", load_dataset(entry, tmp_path, small.NullReporter()))
    assert warning(data, pairs_match(data, small.frozen(backbone))) == ""
    texts = [data.texts[row] for row in np.random.default_rng(0).permutation(len(data))]
    shuffled = dataclasses.replace(data, texts=texts)
    doubt = warning(shuffled, pairs_match(shuffled, small.frozen(backbone)))
    assert doubt.startswith(
        "corpus 'phantom': the frozen model likes its pairs no more than permuted ones (p = 0."
    )

"""Views of prepared datasets: pairs, classes, the rows that count, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark.console import NullReporter
from benchmark.data.entries import data_entries, load_dataset
from benchmark.data.prepared import Prepared, Rows, write_prepared
from benchmark.data.samples import Batch, labelled_images, pairs, share
from benchmark.errors import ConfigError, DataError, PluginError
from benchmark.preprocess import Fitting
from methods.losses import label_mask

LABELS = {
    "Edema": [1, 0, 0, 1, 0, None],
    "Effusion": [0, 1, 0, 1, -1, None],
    "Mass": [0, 0, 0, 0, 0, 1],
}


def prepared(folder: Path, **columns: Any) -> Prepared:
    frame = pd.DataFrame(
        {"image_id": [f"i{k}" for k in range(6)], "patient_id": [f"p{k // 2}" for k in range(6)]}
    )
    for name, values in LABELS.items():
        frame[f"label_{name}"] = values
    for name, values in columns.items():
        frame[name] = values
    pixels = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), dtype=np.uint8)
    return write_prepared(folder / "set", name="set", pixels=pixels, manifest=frame, info={})


def test_pairs_keep_rows_together(tmp_path: Path) -> None:
    data = pairs("set", prepared(tmp_path, text=[f"text {k}" for k in range(6)]), limit=4)
    assert data.texts == ["text 0", "text 1", "text 2", "text 3"]
    assert data.label_names == ("Edema", "Effusion", "Mass")
    assert [int(p[0, 0]) for p in data.pixels] == [0, 1, 2, 3]
    np.testing.assert_array_equal(data.labels, [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    assert data.digest != pairs("set", prepared(tmp_path / "b", text=["t"] * 6)).digest


VALUES = [[1.0, -1.0, None], [0.0, None, None], [None, None, None], [-1.0, -1.0, -1.0]]


def labels_of(folder: Path, **policy: str) -> list[list[float]]:
    """Return the corpus labels of VALUES under a policy; the third row has no labels."""
    frame = pd.DataFrame({"image_id": list("abcd"), "text": ["t"] * 4})
    for column, name in enumerate(("A", "B", "C")):
        frame[f"label_{name}"] = [row[column] for row in VALUES]
    if "labelled" in policy:
        frame["labelled"] = policy.pop("labelled").split(",")
    pixels = np.zeros((4, 2, 2), np.uint8)
    data = write_prepared(folder, name="set", pixels=pixels, manifest=frame, info={})
    found = pairs("set", data, **policy)
    assert found.labels.dtype == np.float32
    return found.labels.tolist()


NAN = pytest.approx(float("nan"), nan_ok=True)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [[1, 0, 0], [0, 0, 0], [NAN] * 3, [0, 0, 0]]),
        ({"uncertain": "one"}, [[1, 1, 0], [0, 0, 0], [NAN] * 3, [1, 1, 1]]),
        ({"uncertain": "distinct"}, [[1, 2, 0], [0, 0, 0], [NAN] * 3, [2, 2, 2]]),
        ({"blank": "distinct"}, [[1, 0, 3], [0, 3, 3], [NAN] * 3, [0, 0, 0]]),
        ({"uncertain": "distinct", "blank": "distinct"}, [[1, 2, 3], [0, 3, 3], [NAN] * 3, [2, 2, 2]]),
        # a labeler that mentions nothing is not a study without labels, and a label that is not to be used is none
        ({"labelled": "1,1,1,"}, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [NAN] * 3]),
    ],
)
def test_label_policies_by_hand(tmp_path: Path, policy: dict[str, str], expected: list[list[float]]) -> None:
    assert labels_of(tmp_path / "set", **policy) == expected


def test_tests_follow_the_policies_and_say_what_was_set_to_what(tmp_path: Path) -> None:
    data = prepared(tmp_path, text=["t"] * 6)
    spec = {"kind": "multilabel", "classes": ["Edema", "Effusion"]}
    view = labelled_images("x", data, spec)
    assert view.targets.tolist()[4:] == [[0, 0], [0, 0]]
    counts = {"uncertain": {"count": 1, "set_to": "zero"}, "blank": {"count": 2, "set_to": "zero"}}
    assert view.facts == {"labels": counts}
    one = labelled_images("x", data, spec | {"uncertain": "one"})
    assert one.targets.tolist()[4:] == [[0, 1], [0, 0]]
    assert one.facts["labels"]["uncertain"] == {"count": 1, "set_to": "one"}
    assert one.digest != view.digest
    corpus = pairs("set", data, uncertain="distinct", blank="distinct")
    assert corpus.facts["labels"] == {
        "uncertain": {"count": 1, "set_to": "distinct"}, "blank": {"count": 2, "set_to": "distinct"},
    }  # fmt: skip
    for key in ("uncertain", "blank"):
        with pytest.raises(ConfigError, match=f"{key}: 'distinct' is for a corpus; a test set takes zero"):
            labelled_images("x", data, spec | {key: "distinct"})


def test_no_finding_is_none_of_all_labels_of_a_labelled_row(tmp_path: Path) -> None:
    data = prepared(tmp_path, label_Mass=[0, 0, 1, 0, 0, None])
    spec = {"kind": "multilabel", "classes": ["No Finding", "Edema"]}
    # i2 shows a mass, which is no class; i4 is uncertain; i5 has no labels at all
    view = labelled_images("x", data, spec)
    assert view.targets[:, 0].tolist() == [0, 0, 0, 0, 1, 0]
    assert view.facts["labels"] == {"uncertain": {"count": 1, "set_to": "zero"}, "rows_without": 1}
    assert view.facts["data_notes"] == ["images without any label, counted as negative: 1"]
    assert labelled_images("x", data, spec | {"uncertain": "one"}).targets[:, 0].sum() == 0


def test_the_policies_decide_which_pairs_the_loss_leaves_out(tmp_path: Path) -> None:
    def left_out(name: str, **policy: str) -> set[tuple[int, int]]:
        keep = label_mask(torch.tensor(labels_of(tmp_path / name, **policy)))
        return {(i, j) for i in range(4) for j in range(i) if not keep[i, j]}

    assert left_out("a") == {(3, 1)}  # all absent; the row without labels matches nothing
    assert left_out("b", uncertain="distinct") == set()
    assert left_out("c", labelled="1,1,1,1") == {(2, 1), (3, 1), (3, 2)}
    assert left_out("d", labelled="1,1,1,1", blank="distinct") == set()


def many(folder: Path, **columns: Any) -> Prepared:
    """Return 60 rows: 20 patients of one to five images each, in no order."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(20), np.tile([1, 2, 3, 4, 5], 4))
    generator.shuffle(owners)
    frame = pd.DataFrame({"image_id": [f"i{k}" for k in range(60)], "text": [f"text {k}" for k in range(60)]})
    for name, values in {"patient_id": [f"p{k}" for k in owners], **columns}.items():
        frame[name] = values
    pixels = np.zeros((60, 2, 2), np.uint8)
    return write_prepared(folder / "many", name="many", pixels=pixels, manifest=frame, info={})


def test_shares_are_nested_whole_patients_and_large_enough(tmp_path: Path) -> None:
    data = many(tmp_path)
    owner = dict(zip(data.manifest["image_id"], data.manifest["patient_id"], strict=True))
    before: set[str] = set()
    for fraction in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0):
        part = pairs("many", data, fraction=fraction)
        ids = set(part.ids)
        others = {owner[item] for item in owner if item not in ids}
        assert before <= ids
        assert not others & {owner[item] for item in ids}  # no patient is cut in two
        assert fraction * 60 <= len(part) < fraction * 60 + 5
        assert part.texts == [f"text {item[1:]}" for item in part.ids]  # rows stay together, in their order
        before = ids
    assert len(pairs("many", data, fraction=0.5, limit=7)) == 7


def test_a_share_follows_from_the_ids_alone(tmp_path: Path) -> None:
    data = many(tmp_path)
    backwards = data.select(np.arange(60)[::-1], "backwards")
    assert set(pairs("many", backwards, fraction=0.3).ids) == set(pairs("many", data, fraction=0.3).ids)
    digests = {pairs("many", data, fraction=value).digest for value in (0.3, 0.31, 1.0)}
    assert len(digests) == 3
    assert pairs("many", data).digest == pairs("many", data, fraction=1.0).digest


def test_without_patients_studies_stay_whole_and_else_single_images(tmp_path: Path) -> None:
    studies = [f"s{k // 3}" for k in range(60)]
    by_study = share(many(tmp_path / "a", patient_id="", study_id=studies), 0.5).manifest["study_id"]
    assert set(by_study.value_counts()) == {3}
    assert len(share(many(tmp_path / "b", patient_id=""), 0.5)) == 30
    known = ["p"] * 30 + [""] * 30  # one patient of thirty images, thirty images of nobody
    sizes = {len(share(many(tmp_path / f"c{k}", patient_id=known), k / 60)) for k in range(1, 31)}
    assert max(sizes) >= 30


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_what_is_no_share_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match="corpus.fraction: expected a number above 0 and up to 1, got"):
        share(many(tmp_path), fraction)


def test_unknown_policies_are_named_and_the_digest_knows_them(tmp_path: Path) -> None:
    data = prepared(tmp_path, text=["t"] * 6)
    with pytest.raises(ConfigError, match="corpus.uncertain: unknown policy 'ones'. Did you mean 'one'"):
        pairs("set", data, uncertain="ones")
    digests = {pairs("set", data, uncertain=value).digest for value in ("zero", "one", "distinct")}
    assert len(digests) == 3


def test_a_part_is_a_view_with_a_digest_of_its_own(tmp_path: Path) -> None:
    data = prepared(tmp_path, text=[f"text {k}" for k in range(6)])
    part = data.select(np.array([4, 1, 2]), "split=test")
    view = pairs("set", part)
    assert isinstance(view.pixels, Rows)
    assert view.texts == ["text 4", "text 1", "text 2"]
    assert [int(p[0, 0]) for p in view.pixels] == [4, 1, 2]
    other = data.select(np.array([4, 1, 3]), "split=val")
    assert len({pairs("set", item).digest for item in (data, part, other)}) == 3
    spec = {"kind": "multilabel", "classes": ["Mass"]}
    assert labelled_images("x", part, spec, limit=2).ids == ["i4", "i1"]
    assert labelled_images("x", part, spec | {"classes": ["Edema"]}).facts == {}


def test_unknown_patients_stand_for_themselves(tmp_path: Path) -> None:
    data = prepared(tmp_path, patient_id=["p", "p", "", "", "q", "q"])
    view = labelled_images("x", data, {"kind": "multilabel", "classes": ["Mass"]})
    assert view.clusters == ["p", "p", "image i2", "image i3", "q", "q"]


def test_images_of_another_size_than_the_backbone_takes_are_refused(tmp_path: Path) -> None:
    entry = {"dataset": "phantom", "part": "rsna", "n": 1}
    assert load_dataset(entry, tmp_path, NullReporter(), Fitting((64, 64))).pixels.shape == (1, 64, 64)
    with pytest.raises(DataError, match="has images of 64 x 64 pixels, the backbone takes 224 x 224"):
        load_dataset(entry, tmp_path, NullReporter(), Fitting((224, 224)))


def test_pairs_need_a_text_in_every_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'text' is missing"):
        pairs("set", prepared(tmp_path))
    with pytest.raises(DataError, match="2 empty reports, first 'i1'"):
        pairs("set", prepared(tmp_path / "b", text=["a", "", "b", " ", "c", "d"]))


def test_binary_targets_follow_the_positive_class(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    spec = {"kind": "binary", "classes": ["No Finding", "Edema"], "positive": "Edema"}
    for classes in (["No Finding", "Edema"], ["Edema", "No Finding"]):
        view = labelled_images("x", data, spec | {"classes": classes})
        assert view.targets.tolist() == [1, 0, 0, 1, 0, 0]
        assert view.classes == ("No Finding", "Edema")
    assert view.clusters == ["p0", "p0", "p1", "p1", "p2", "p2"]


def test_prompts_replace_label_names(tmp_path: Path) -> None:
    spec = {"kind": "multilabel", "classes": ["Mass", "Edema"], "prompts": {"Mass": "Lung Mass"}}
    view = labelled_images("x", prepared(tmp_path), spec)
    assert view.classes == ("Lung Mass", "Edema")
    assert view.targets.tolist() == [[0, 1], [0, 0], [0, 0], [0, 1], [0, 0], [1, 0]]


def test_multiclass_needs_exactly_one_class_or_exclusive_rows(tmp_path: Path) -> None:
    data, spec = prepared(tmp_path), {"kind": "multiclass", "classes": ["No Finding", "Edema", "Effusion"]}
    with pytest.raises(DataError, match="image 'i3' has not exactly one"):
        labelled_images("x", data, spec)
    view = labelled_images("x", data, spec | {"exclusive": True})
    # i3 shows two findings, i5 shows one that is not asked for; i4 is uncertain, so nothing is shown
    assert view.ids == ["i0", "i1", "i2", "i4"]
    assert view.targets.tolist() == [1, 2, 0, 0]
    assert [int(p[0, 0]) for p in view.pixels] == [0, 1, 2, 4]
    assert view.digest != labelled_images("x", data, {"kind": "multilabel", "classes": ["Edema"]}).digest


def test_an_unknown_label_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown label 'Edem'. Did you mean 'Edema'"):
        labelled_images("x", prepared(tmp_path), {"kind": "multilabel", "classes": ["Edem"]})


def test_batches_split_in_order() -> None:
    batch = Batch(images=torch.arange(5.0)[:, None], labels=torch.arange(5.0)[:, None])
    parts = batch.split(2)
    assert [part.size for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert parts[0].token_ids is None


def test_loading_refuses_unknown_datasets_and_keys(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="phantom"):
        load_dataset({"dataset": "fantom"}, tmp_path, NullReporter())
    with pytest.raises(ConfigError, match="unknown option of dataset 'phantom' 'colour'"):
        load_dataset({"dataset": "phantom", "part": "rsna", "colour": 1}, tmp_path, NullReporter())


def test_entries_of_a_suite() -> None:
    suite = {
        "corpus": {"dataset": "a"},
        "validation": None,
        "tasks": {"t": {"datasets": {"x": {"dataset": "b"}}}},
    }
    assert [entry["dataset"] for entry in data_entries(suite)] == ["a", "b"]

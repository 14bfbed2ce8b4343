"""Views of prepared datasets: pairs, classes, the rows that count, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark.console import NullReporter
from benchmark.data.load import data_entries, load_dataset
from benchmark.data.prepared import Prepared, write_prepared
from benchmark.data.samples import Batch, labelled_images, pairs
from benchmark.errors import ConfigError, DataError, PluginError

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
    assert np.isnan(pairs("set", prepared(tmp_path / "b", text=["t"] * 6)).labels[5, 0])


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
    with pytest.raises(ConfigError, match="dataset 'phantom'.*'colour'"):
        load_dataset({"dataset": "phantom", "part": "rsna", "colour": 1}, tmp_path, NullReporter())


def test_entries_of_a_suite() -> None:
    suite = {
        "corpus": {"dataset": "a"},
        "validation": None,
        "tasks": {"t": {"datasets": {"x": {"dataset": "b"}}}},
    }
    assert [entry["dataset"] for entry in data_entries(suite)] == ["a", "b"]

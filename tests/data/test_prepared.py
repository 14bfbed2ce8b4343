"""The prepared folder: round trip, refusals, and damage told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.data.prepared import Rows, folder_transforms, load_prepared, take, write_prepared
from benchmark.errors import DataError


def _write(folder: Path, **changes: object):
    content = {
        "name": "toy/part",
        "pixels": np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5),
        "manifest": pd.DataFrame(
            {
                "image_id": ["a", "b", "c"],
                "text": ["one, two", "", "NA"],
                "label_Edema": pd.array([1, None, -1], dtype="Int8"),
                "original_width": [5, 5, 5],
            }
        ),
        "masks": np.ones((3, 4, 5), bool),
        "info": {"seed": 3},
    }
    return write_prepared(folder, **{**content, **changes})


def test_round_trip(tmp_path):
    _write(tmp_path / "deep" / "toy")
    read = load_prepared(tmp_path / "deep" / "toy", verify=True)
    assert read.name == "toy/part"
    assert read.info == {"seed": 3}
    assert read.pixels.dtype == np.uint8
    assert (read.pixels == np.arange(60).reshape(3, 4, 5)).all()
    assert read.masks is not None
    assert read.masks.all()
    assert list(read.manifest["text"]) == ["one, two", "", "NA"]
    assert read.labels() == ["Edema"]
    assert np.array_equal(read.manifest["label_Edema"], [1, np.nan, -1], equal_nan=True)
    assert isinstance(read.pixels, np.memmap)


def test_the_folder_of_another_process_is_kept(tmp_path):
    first = _write(tmp_path / "toy")
    second = _write(tmp_path / "toy", info={"seed": 4})
    assert second.info == first.info
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros((2, 4, 5), np.uint8)},
        {"pixels": np.zeros((3, 4, 5), np.float32)},
        {"pixels": np.zeros((3, 4, 5, 2), np.uint8)},
        {"masks": np.zeros((3, 4, 4), bool)},
        {"manifest": pd.DataFrame({"image_id": ["a", "a", "b"]})},
        {"manifest": pd.DataFrame({"text": ["a", "a", "b"]})},
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes):
    with pytest.raises(DataError):
        _write(tmp_path / "toy", **changes)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("verify", [False, True])
def test_altered_bytes_are_found(tmp_path, verify):
    _write(tmp_path / "toy")
    file = tmp_path / "toy" / "pixels.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"pixels\.npy: contents differ"):
        load_prepared(tmp_path / "toy", verify=verify)


def test_rows_read_only_what_is_asked_for(tmp_path):
    data = _write(tmp_path / "toy")
    view = Rows(data.pixels, np.array([2, 0, 2]))
    whole = np.asarray(data.pixels)
    assert (len(view), view.shape, view.dtype, view.ndim) == (3, (3, 4, 5), np.uint8, 3)
    np.testing.assert_array_equal(view[0], whole[2])
    np.testing.assert_array_equal(view[1:], whole[[0, 2]])
    np.testing.assert_array_equal(view[np.array([1, 0])], whole[[0, 2]])
    np.testing.assert_array_equal(view.take(np.array([1, 2]))[:], whole[[0, 2]])
    np.testing.assert_array_equal(np.asarray(view), whole[[2, 0, 2]])
    np.testing.assert_array_equal(list(view), whole[[2, 0, 2]])
    with pytest.raises(IndexError):
        view[3]


def test_consecutive_rows_stay_a_slice_of_the_file(tmp_path):
    data = _write(tmp_path / "toy")
    assert isinstance(take(data.pixels, np.array([1, 2])), np.memmap)
    assert isinstance(take(data.pixels, np.array([2, 1])), Rows)
    assert len(take(data.pixels, np.array([], dtype=int))) == 0
    part = data.select(np.array([2, 0]), "split=test").select(np.array([1]), "limit")
    assert part.manifest["image_id"].tolist() == ["a"]
    assert part.selection == "split=test;limit;"
    np.testing.assert_array_equal(part.pixels[0], data.pixels[0])
    assert part.masks is not None
    assert part.masks.shape == (1, 4, 5)


def test_a_folder_without_a_report_has_no_transforms(tmp_path):
    assert folder_transforms(tmp_path / "none") == []
    _write(tmp_path / "toy")
    assert folder_transforms(tmp_path / "toy") == []
    with pytest.raises(DataError, match=r"pixels-squash-4x4\.npy: missing"):
        load_prepared(tmp_path / "toy", transform="squash-4x4")

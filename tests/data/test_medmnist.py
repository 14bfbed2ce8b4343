"""MedMNIST: npz files of arrays become a prepared folder; labels, captions, streams and damage."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmark.cli import main
from benchmark.data.datasets.medmnist import PARTS, SETS, NpzImages, Options, medmnist
from benchmark.data.prepare.prepare import prepare
from benchmark.data.samples import labelled_images, pairs
from benchmark.errors import ConfigError, DataError
from benchmark.files import configs
from benchmark.preprocess import Fitting
from tests.data.opened import opened

COUNTS = (5, 3, 4)


def npz(
    folder: Path, name: str, *, width: int = 16, suffix: str = "_224", **changes: np.ndarray
) -> dict[str, np.ndarray]:
    """Write a small file in MedMNIST's layout."""
    folder.mkdir(exist_ok=True)
    generator, subset = np.random.default_rng(0), SETS[name]
    arrays = {}
    for part, count in zip(PARTS, COUNTS, strict=True):
        shape = (count, width, width) if name != "pathmnist" else (count, width, width, 3)
        arrays[f"{part}_images"] = generator.integers(0, 256, shape, dtype=np.uint8)
        columns, high = (len(subset.labels), 2) if subset.several else (1, len(subset.labels))
        arrays[f"{part}_labels"] = generator.integers(0, high, (count, columns)).astype(np.uint8)
    arrays |= changes
    np.savez_compressed(folder / f"{name}{suffix}.npz", **arrays)
    return arrays


def made(folder: Path, name: str, **changes: object):
    return prepare(medmnist, folder, folder / "root", **{
        "fitting": Fitting((8, 8)), "workers": 1, "accept_split": True, "options": {"name": name}, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("name", ["pneumoniamnist", "pathmnist", "chestmnist"])
def test_parts_labels_and_pixels(tmp_path: Path, name: str) -> None:
    arrays = npz(tmp_path, name)
    done = made(tmp_path, name)
    assert done.folder == tmp_path / "root" / "medmnist" / name
    for part, count in zip(PARTS, COUNTS, strict=True):
        data = opened(medmnist, tmp_path / "root", name=name, part=part, fitting=Fitting((8, 8)))
        assert len(data) == count
        for i in range(count):
            np.testing.assert_array_equal(
                data.pixels[i], Fitting((8, 8), "shortest_crop").pixels(arrays[f"{part}_images"][i])
            )
        labels = arrays[f"{part}_labels"]
        expected = labels if SETS[name].several else np.eye(len(SETS[name].labels))[labels[:, 0]]
        columns = [f"label_{label}" for label in SETS[name].labels]
        np.testing.assert_array_equal(data.manifest[columns], expected)
    assert not made(tmp_path, name).made


def test_captions_say_the_labels_and_no_more(tmp_path: Path) -> None:
    labels = np.zeros((5, 14), np.uint8)
    labels[1, [2, 12]] = 1
    npz(tmp_path, "chestmnist", train_labels=labels)
    made(tmp_path, "chestmnist")
    corpus = pairs("chestmnist", opened(medmnist, tmp_path / "root", name="chestmnist", part="train"))
    assert corpus.texts[:2] == [
        "a chest X-ray image showing no finding.",
        "a chest X-ray image showing effusion and pleural thickening.",
    ]
    assert corpus.labels[0].tolist() == [0.0] * 14


def test_a_count_that_is_not_the_published_one_is_refused_or_told(tmp_path: Path) -> None:
    npz(tmp_path, "pneumoniamnist")
    with pytest.raises(
        DataError, match="'pneumoniamnist_train' is not the published split: 5 ids instead of 4,708"
    ):
        made(tmp_path, "pneumoniamnist", accept_split=False)
    made(tmp_path, "pneumoniamnist")
    data = opened(medmnist, tmp_path / "root", name="pneumoniamnist", part="test")
    spec = {"kind": "binary", "classes": ["normal", "pneumonia"], "positive": "pneumonia"}
    assert len(labelled_images("x", data, spec).facts["data_notes"]) == 3


def test_the_widest_file_is_taken(tmp_path: Path) -> None:
    npz(tmp_path, "pneumoniamnist", width=10, suffix="")
    assert made(tmp_path, "pneumoniamnist").report["columns"]["split"] == {"train": 5, "test": 4, "val": 3}
    small = opened(medmnist, tmp_path / "root", name="pneumoniamnist").manifest["original_width"]
    npz(tmp_path, "pneumoniamnist", width=16, suffix="_64")
    made(tmp_path, "pneumoniamnist")
    wide = opened(medmnist, tmp_path / "root", name="pneumoniamnist").manifest["original_width"]
    assert (set(small), set(wide)) == ({10}, {16})


def test_images_are_streamed_across_parts_and_backwards(tmp_path: Path) -> None:
    arrays = npz(tmp_path, "pathmnist")
    whole = np.concatenate([arrays[f"{part}_images"] for part in PARTS])
    images = NpzImages(tmp_path / "pathmnist_224.npz")
    assert images.shape == whole.shape
    np.testing.assert_array_equal(images[3:9], whole[3:9])
    np.testing.assert_array_equal(images[10:12], whole[10:12])
    np.testing.assert_array_equal(images[0:2], whole[0:2])
    assert len(images[12:12]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": np.full((3, 1), 2, np.uint8)}, r"val_labels: expected \[N, 1\] of 0 to 1"),
        ({"val_labels": np.zeros((2, 1), np.uint8)}, "12 images but 11 labels"),
        ({"val_images": np.zeros((3, 16, 16), np.float32)}, "val_images: expected uint8"),
        ({"val_images": np.zeros((3, 8, 8), np.uint8)}, "images of different shapes"),
        (
            {"val_labels": np.array([[None]] * 3, dtype=object)},
            "val_labels cannot be read: .*download it again",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    npz(tmp_path, "pneumoniamnist", **changes)
    with pytest.raises(DataError, match=message):
        made(tmp_path, "pneumoniamnist")


def test_mutated_files_are_read_or_named(tmp_path: Path) -> None:
    npz(tmp_path, "pneumoniamnist", width=8)
    path, generator = tmp_path / "pneumoniamnist_224.npz", np.random.default_rng(0)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        changed = content.copy()
        changed[generator.integers(0, len(content), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        with contextlib.suppress(DataError):
            table = medmnist.read(tmp_path, Options("pneumoniamnist"))
            assert len(table.pixels[:]) == len(table.table)


def test_missing_sets_files_and_folders(tmp_path: Path, capsys) -> None:
    with pytest.raises(DataError, match="none of pneumoniamnist_224.npz, .* is there. Get it at"):
        made(tmp_path, "pneumoniamnist")
    (tmp_path / "pneumoniamnist_224.npz").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"pneumoniamnist_224\.npz: not a MedMNIST file"):
        made(tmp_path, "pneumoniamnist")
    with pytest.raises(ConfigError, match="'pneumonia'. Did you mean 'pneumoniamnist'"):
        made(tmp_path, "pneumonia")
    with pytest.raises(DataError, match=r"prepare medmnist --raw DIR --data-root .* name=pathmnist\."):
        opened(medmnist, tmp_path / "root", name="pathmnist")
    assert main(["prepare", "medmnist", "--raw", str(tmp_path), "name=chest"]) == 2
    assert "Did you mean 'chestmnist'" in capsys.readouterr().err


def test_the_suite_names_what_the_sets_have() -> None:
    suite = yaml.safe_load(configs("suites", "medmnist.yaml").read_text())
    entries = [suite["validation"], *suite["tasks"]["zeroshot"]["datasets"].values()]
    assert suite["corpus"]["name"] == "chestmnist"
    for entry in entries:
        assert tuple(entry["classes"]) == SETS[entry["name"]].labels
        assert entry["part"] in PARTS

"""Split files of CoOp's format find their images in every layout of the copies, and say what is wrong in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.console import NullReporter
from benchmark.data.dataset import build_options
from benchmark.data.datasets.coop_json import CoopOptions
from benchmark.data.entries import load_dataset
from benchmark.data.prepare import splits
from benchmark.data.prepared import NotMadeError
from benchmark.data.samples import labelled_images
from benchmark.errors import BenchmarkError, ConfigError, DataError
from benchmark.files import ROOT, file_sha256
from benchmark.preprocess import Fitting
from tests.data import real

OPTIONS = {item.name for item in dataclasses.fields(CoopOptions)}
SIZE = Fitting((8, 8), "squash")
CLASSES = ("glioma tumor", "normal brain")
VIEW = {"kind": "multiclass", "classes": list(CLASSES)}


def image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((10, 12), grey, np.uint8)).save(path)


def split(path: Path, content: Any = None) -> Path:
    """Write a split of two classes whose files have the same names in both folders, as those of BTMRI have."""
    if content is None:
        content = {part: [[f"{name.replace(' ', '_')}/{part}{i}.jpg", label, name]
                          for label, name in enumerate(CLASSES) for i in range(count)]
                   for part, count in (("train", 3), ("val", 1), ("test", 2))}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def tree(folder: Path, file: Path, rename: dict[str, str] | None = None) -> None:
    """Write the images of a split; the grey of each is its place in the file."""
    rows = [row for rows in json.loads(file.read_text()).values() for row in rows]
    for number, (path, *_) in enumerate(rows):
        parent, _, name = path.rpartition("/")
        image(folder / (rename or {}).get(parent, parent) / name, 10 + 10 * number)


def load(
    root: Path, file: Path | str, part: str | None = "test", fitting: Fitting | None = SIZE, **keys: Any
):
    entry = {"dataset": "coop_json", "file": str(file), "part": part, **keys}
    return load_dataset(entry, root, NullReporter(), fitting)


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Path:
    """Return a data root with a split in the layout of the published archives: SET/split_SET.json, SET/SET/class/."""
    root = tmp_path_factory.mktemp("brain")
    tree(root / "BRAIN" / "BRAIN", split(root / "BRAIN" / "split_BRAIN.json"))
    for name in ("a/x.png", "b/x.png"):
        image(root / "any" / name, 5)
    return root


def test_the_published_layout_is_read_from_the_data_root(brain):
    parts = {part: load(brain, "BRAIN/split_BRAIN.json", part) for part in ("train", "val", "test")}
    assert [len(data) for data in parts.values()] == [6, 2, 4]
    test = labelled_images("brain", parts["test"], VIEW)
    assert test.ids == [f"{name}/test{i}.jpg" for name in ("glioma_tumor", "normal_brain") for i in (0, 1)]
    np.testing.assert_array_equal(test.targets, [0, 0, 1, 1])
    greys = np.asarray(parts["test"].pixels).mean(axis=(1, 2))
    np.testing.assert_allclose(greys, [90, 100, 110, 120], atol=3)  # the 9th to 12th image of the file
    assert test.facts["data_split"]["test"] == {"count": 4, "sha256": splits.fingerprint(test.ids)}
    assert len(load(brain, "BRAIN/split_BRAIN.json", None)) == 12


def test_rows_are_known_before_anything_is_decoded(brain, tmp_path):
    (tmp_path / "BRAIN").symlink_to(brain / "BRAIN")
    rows = load(tmp_path, "BRAIN/split_BRAIN.json", "train", None)
    assert labelled_images("brain", rows, VIEW).targets.tolist() == [0, 0, 0, 1, 1, 1]
    entry = {"dataset": "coop_json", "file": "BRAIN/split_BRAIN.json"}
    with pytest.raises(NotMadeError):
        load_dataset(entry, tmp_path, NullReporter(), SIZE, make=False)


def test_folders_of_other_names_are_named_or_found_by_unique_file_names(tmp_path):
    """The copies of BUSI say benign, its split says benign_tumor; file names of BTMRI do not tell classes apart."""
    file, others = split(tmp_path / "split.json"), {"glioma_tumor": "g", "normal_brain": "notumor/a"}
    tree(tmp_path / "raw", file, others)
    image(tmp_path / "raw" / "g" / ".ipynb_checkpoints" / "test0.jpg", 0)
    with pytest.raises(DataError, match=r"'glioma_tumor/train0.jpg' may be '.*' or '.*name the folder"):
        load(tmp_path, file, images=str(tmp_path / "raw"))
    folders = {"glioma_tumor": ["glioma", "g"], "normal_brain": "notumor/a"}
    named = load(tmp_path, file, images="raw", folders=folders)
    unique = split(tmp_path / "unique.json", {"test": [["x/one.png", 0, "a"], ["y/two.png", 1, "b"]]})
    tree(tmp_path / "copy", unique, {"x": "X/images", "y": "Y"})
    assert len(named) == 4
    assert len(load(tmp_path, unique, images=str(tmp_path / "copy"))) == 2
    with pytest.raises(DataError, match=r"2 of 2 images are not in '.*copy', first 'x/one.png'.$"):
        load(tmp_path, unique, images=str(tmp_path / "copy"), match="path")


def test_one_file_is_not_taken_for_two_images(tmp_path):
    file = split(tmp_path / "split.json", {"test": [["x/one.png", 0, "a"], ["y/one.png", 1, "b"]]})
    image(tmp_path / "raw" / "one.png", 9)
    with pytest.raises(DataError, match=r"'x/one.png' and 'y/one.png' both lead to the file 'raw/one.png'"):
        load(tmp_path, file)


def test_an_image_of_two_parts_stays_in_both(tmp_path):
    rows = {"train": [["a/x.png", 0, "a"], ["b/y.png", 1, "b"]], "test": [["a/x.png", 1, "b"]]}
    tree(tmp_path, split(tmp_path / "split.json", rows))
    train, test = (load(tmp_path, tmp_path / "split.json", part) for part in ("train", "test"))
    assert train.manifest["image_id"].tolist() == ["a/x.png", "b/y.png"]
    assert test.manifest[["image_id", "label_b"]].to_numpy().tolist() == [["a/x.png (test)", 1.0]]


@pytest.mark.parametrize(
    ("group", "path", "patient"),
    [
        (r"bus_(\d+)-", "benign_tumor/bus_0525-r.png", "0525"),
        (r"/(\d+)[LR]\.", "healthy_knee/9001695L.png", "9001695"),
        (r"^(\w+)/(\d+)_(?:left|right)", "cataract/103_left.jpg", "cataract 103"),
        (r"^(\w+)/(\d+)_(?:left|right)", "cataract/_9_1244013.jpg", ""),
        (r"(CRC-Prim-HE-\d+)", "debris/1008B_CRC-Prim-HE-08_021.tif_Row_1651_Col_1051.tif", "CRC-Prim-HE-08"),
    ],
)
def test_patients_are_read_off_paths(tmp_path, group, path, patient):
    tree(tmp_path, split(tmp_path / "split.json", {"test": [[path, 0, "a"]]}))
    assert (
        load(tmp_path, tmp_path / "split.json", fitting=None, group=group).manifest["patient_id"].item()
        == patient
    )


def test_a_published_split_is_recognised_and_another_is_refused_or_told(brain, tmp_path, monkeypatch):
    file = brain / "BRAIN" / "split_BRAIN.json"
    rows = json.loads(file.read_text())
    paths = {part: [row[0] for row in rows[part]] for part in rows}
    known = {"BRAIN_file": {"count": 12, "sha256": file_sha256(file), "source": "here"}} | {
        f"BRAIN_{part}": {"count": len(names), "sha256": splits.fingerprint(names), "source": "here"}
        for part, names in paths.items()
    }
    monkeypatch.setattr(splits, "FOLDER", tmp_path)
    (tmp_path / "coop_json.json").write_text(json.dumps(known))
    data = load(brain, file, fitting=None, published="BRAIN")
    assert data.info["split"]["published"] == "BRAIN"
    assert data.info["notes"] == []
    assert data.info["split"]["test"]["status"] == "published"
    same = split(tmp_path / "same.json", json.dumps(rows, indent=1))
    fewer = split(tmp_path / "fewer.json", {**rows, "val": rows["val"][1:]})
    line = "BRAIN: not the published split (the file is another)"
    for other, count in ((same, 1), (fewer, 2)):
        keys = {"images": str(brain / "BRAIN"), "published": "BRAIN", "fitting": None}
        with pytest.raises(DataError) as caught:
            load(brain, other, **keys)
        assert f"{line}; take the published file, or go on with accept_split: true" in str(caught.value)
        told = load(brain, other, accept_split=True, **keys).info["notes"]
        assert (told[0], len(told)) == (line, count)
    assert told[1] == "BRAIN_val: not the published split (1 ids instead of 2)"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "cannot be read as JSON"),
        ("<html>login", "is a web page"),
        ("[]", "expected the lists train, val and test, got list"),
        ({"training": []}, "expected the lists train, val and test, got training"),
        ({"train": {}}, "train: expected a list, got {}"),
        ({"test": []}, "names no image"),
        ({"test": [["a.png", "0", "a"]]}, r"test\[0\]: expected \[path, label, class name\]"),
        ({"test": [["a.png", True, "a"]]}, r"test\[0\]: expected"),
        ({"test": [["a.png", -1, "a"]]}, r"test\[0\]: expected"),
        ({"test": [["", 0, "a"]]}, r"test\[0\]: expected"),
        ({"test": [["a.png", 0, "a"], ["a.png", 0, "a"]]}, r"test\[1\]: 'a.png' stands further up already"),
        ({"test": [["a.png", 0, "a"], ["b.png", 0, "b"]]}, "label '0' stands for several: 0 'a', 0 'b'"),
        ({"test": [["a.png", 0, "a"], ["b.png", 1, "a"]]}, "class 'a' stands for several: 0 'a', 1 'a'"),
        ({"test": [["../a.png", 0, "a"]]}, "leads out of the folder"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, content, line):
    image(tmp_path / "a.png", 1)
    file = split(tmp_path / "in" / "split.json", content)
    with pytest.raises(DataError, match=f"split.json.*{line}") as caught:
        load(tmp_path, file, fitting=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"published": "BUSY"}, "unknown published split 'BUSY'. Did you mean 'BUSI'"),
        ({"group": "("}, "group: not a regular expression"),
        ({"group": "a+"}, r"group: no \(group\) says what the patient is"),
        ({"folders": "benign"}, "folders: expected names"),
        ({"match": "hash"}, "match"),
    ],
)
def test_wrong_keys_are_one_line(brain, keys, line):
    with pytest.raises(ConfigError, match=line):
        load(brain, "BRAIN/split_BRAIN.json", **keys)


def test_a_missing_file_says_where_it_was_looked_for_and_where_it_is_published(tmp_path):
    get = r"Get it at HealthX-Lab/BiomedCoOp 7ceb5a8: data/BUSI/split_BUSI.json; images: huggingface.co/.*BUSI.zip"
    with pytest.raises(DataError, match=rf"'no.json' is neither in .* nor in .*\. {get}"):
        load(tmp_path, "no.json", published="BUSI")


def test_images_that_cannot_be_read_stop_or_are_left_out(tmp_path):
    file = split(tmp_path / "split.json", {"test": [["a/x.png", 0, "a"], ["a/y.png", 0, "a"]]})
    tree(tmp_path, file)
    (tmp_path / "a" / "y.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 images cannot be read, first 'a/y.png'.*on_bad_image: skip"):
        load(tmp_path, file)
    data = load(tmp_path, file, on_bad_image="skip")
    assert len(data) == 1
    assert "1 images that cannot be read" in data.info["notes"][0]


ROW = st.one_of(
    st.tuples(
        st.sampled_from(["a/x.png", "b/x.png", "x.png", "q"]), st.integers(-1, 2), st.sampled_from("ab")
    ),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4),
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["train", "val", "test", "all"]), st.lists(ROW, max_size=4), max_size=3)
)
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(brain, content):
    try:
        data = load(brain, split(brain / "any" / "split.json", content), None, None)
    except BenchmarkError as error:
        assert "\n" not in str(error)  # noqa: PT017  (both ends are right)
    else:
        assert len(data) == sum(map(len, content.values()))
        assert (data.manifest.filter(like="label_").sum(axis=1) == 1).all()


def test_the_real_busi_is_the_published_split():
    """Hash of file and lists, and every image of it under folders of other names."""
    folder = real.folder("busi")
    data = load(folder, folder / "split_BUSI.json", None, None, published="BUSI")
    assert len(data) == 780
    assert data.info["notes"] == []
    assert data.manifest.filter(like="label_").sum().to_dict() == {
        "label_benign tumor": 437, "label_malignant tumor": 210, "label_normal scan": 133}  # fmt: skip


@pytest.mark.parametrize("suite", ["fewshot_biomed", "fewshot_ultrasound", "fewshot_brain"])
def test_the_suites_have_the_classes_and_counts_of_the_published_splits(suite):
    """Against a census of the split files themselves; only OCTMNIST's is not among them."""
    census = real.folder("busi").parents[1] / "specs" / "data" / "fewshot_splits.csv"
    if not census.is_file():
        pytest.skip(f"no census: {census} is not there")
    rows = pd.read_csv(census, dtype={"split_sha256_12": str}).drop_duplicates(["dataset", "label"])
    entries = yaml.safe_load((ROOT / "configs" / "suites" / f"{suite}.yaml").read_text())["tasks"][
        "zeroshot"
    ]["datasets"]
    known = splits.published("coop_json")
    for entry in entries.values():
        name, own = entry["published"], rows[rows["dataset"] == entry["published"]].sort_values("label")
        assert (
            build_options(CoopOptions, {key: entry[key] for key in entry if key in OPTIONS}, "").part
            == "test"
        )
        if own.empty:
            assert (name, known[f"{name}_file"]["sha256"]) == ("OCTMNIST", None)
            continue
        assert entry["classes"] == own["classname"].tolist()
        assert known[f"{name}_file"]["sha256"].startswith(own["split_sha256_12"].iloc[0])
        for part in ("train", "val", "test"):
            assert known[f"{name}_{part}"]["count"] == own[f"n_{part}"].sum()

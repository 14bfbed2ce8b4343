"""Faults that would give wrong numbers in silence are planted, and each is told or stops the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmark import files as verified
from benchmark.cli import main
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data.dataset import LoadRequest, NoOptions
from benchmark.data.prepared import Prepared, load_prepared, write_prepared
from benchmark.errors import CellError, DataError
from benchmark.plan import CellSpec
from benchmark.registry import DATASETS, register_dataset
from benchmark.run import cell, prepare_suite
from benchmark.run.checks.frozen import check_frozen, check_mode, frozen_digests
from benchmark.run.checks.image_hashes import imprint, row_numbers
from benchmark.run.checks.overlap import check, facts, overlaps
from benchmark.store.cells import Store
from tests import small

QUIET = NullReporter()
SIZES = {"films": 24, "watched": 12, "tested": 12, "others": 8}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with the datasets of ``SIZES``: noise of 64 x 64 pixels, none of it twice."""
    DATASETS.names()  # all that there are, before copies stand in for them
    for table in ("_entries", "_objects", "_origins"):
        monkeypatch.setattr(DATASETS, table, dict(getattr(DATASETS, table)))
    generator = np.random.default_rng(0)
    for name, count in SIZES.items():
        pixels = generator.integers(0, 256, (count, 64, 64), dtype=np.uint8)
        write(tmp_path, name, pixels)
        register_dataset(name)(opener(name))
    return tmp_path


def opener(name: str) -> Any:
    class Opener:
        Options = NoOptions

        def load(self, options: NoOptions, request: LoadRequest) -> Prepared:
            return load_prepared(request.data_root / name)

    return Opener


def write(root: Path, name: str, pixels: np.ndarray, **columns: list[str]) -> Prepared:
    rows = range(len(pixels))
    table = {
        "image_id": [f"{name}-{i}" for i in rows],
        "text": [f"{('normal', 'edema')[i % 2]} of case {i}" for i in rows],
        "label_Edema": [str(i % 2) for i in rows],
        "label_Normal": [str(1 - i % 2) for i in rows],
    }
    folder = root / name
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return write_prepared(folder, name=name, pixels=pixels, manifest=pd.DataFrame(table | columns), info={})


def pixels_of(root: Path, name: str) -> np.ndarray:
    return np.array(load_prepared(root / name).pixels)


def suite(**datasets: Any) -> dict[str, Any]:
    labels = {"kind": "multiclass", "classes": ["Normal", "Edema"]}
    tested = datasets or {"tested": {"dataset": "tested"}, "others": {"dataset": "others"}}
    return {
        "name": "small",
        "templates": ["a picture of {}."],
        "corpus": {"dataset": "films"},
        "validation": {"task": "zeroshot", "metric": "auroc", "dataset": "watched", **labels},
        "tasks": {
            "zeroshot": {"bootstrap": 5, "datasets": {name: labels | one for name, one in tested.items()}}
        },
    }


def spec(root: Path, method: str = "taskres", **changes: Any) -> CellSpec:
    wanted = suite()
    values: dict[str, Any] = {
        "suite_name": "small", "suite": wanted, "backbone": "tiny", "pretrained": None, "method": method,
        "options": {}, "seed": 0, "recipe": Recipe(epochs=1, batch_size=8), "tasks": wanted["tasks"],
        "data_root": root,
    }  # fmt: skip
    return CellSpec(**values | changes)


def run(root: Path, **changes: Any) -> Any:
    one = spec(root, **changes)
    folder = Store(root / "out").cell(one.folder)
    cell.run_cell(one, folder, QUIET)
    return folder


# ---------------------------------------------------------------------- images that datasets share
def plant(root: Path, source: str, target: str, rows: int = 2) -> None:
    """Put images of one dataset into another, under the names that stand there, as coloured files."""
    pixels = np.repeat(pixels_of(root, target)[..., None], 3, axis=3)
    pixels[-rows:] = pixels_of(root, source)[:rows].reshape(rows, 64, 64, -1)
    write(root, target, pixels)


@pytest.mark.parametrize(
    ("source", "words"),
    [("films", "the corpus 'films'"), ("watched", "the validation set 'watched'")],
)
def test_a_test_image_that_a_model_has_seen_stops_the_run_before_it_begins(
    data: Path, source: str, words: str
) -> None:
    prepare_suite.prepare_suite(suite(), data, QUIET)
    plant(data, source, "tested")
    line = (
        rf"test set 'tested' \(zeroshot\): 2 of 12 images are also in {words} \('tested-10', "
        r"'tested-11'\), by content: take them out of one of the two, or go on with allow_overlap=true"
    )
    with pytest.raises(DataError, match=line):
        prepare_suite.prepare_suite(suite(), data, QUIET)
    with pytest.raises(DataError, match=line):
        run(data)
    assert not Store(data / "out").cell(spec(data).folder).exists("adapter.safetensors")


def test_an_overlap_that_is_allowed_stands_in_the_results(data: Path) -> None:
    clean = run(data).read_json("zeroshot.json")["datasets"]
    assert "overlaps" not in clean["tested"]["info"]
    plant(data, "films", "tested")
    plant(data, "tested", "others", 3)
    prepare_suite.prepare_suite(suite(), data, QUIET, allow_overlap=True)
    found = run(data, allow_overlap=True, seed=1).read_json("zeroshot.json")["datasets"]
    assert found["tested"]["info"]["data_notes"] == ["2 of 12 images are also in the corpus 'films'"]
    assert found["others"]["info"]["overlaps"] == [
        {
            "with": "test set 'tested' (zeroshot)",
            "images": 3,
            "near_copies": 0,
            "images_of_patients": 0,
            "patients": 0,
            "seen": False,
            "leak": False,
            "text": "3 of 8 images are also in test set 'tested' (zeroshot); "
            "3 of 8 images have other labels in test set 'tested' (zeroshot)",
        }
    ]
    assert "data_notes" not in found["others"]["info"]  # test sets may share images
    untrained = run(data, method="zero_shot").read_json("zeroshot.json")["datasets"]["tested"]["info"]
    assert [item["with"] for item in untrained["overlaps"]] == ["test set 'others' (zeroshot)"]
    assert "data_notes" not in untrained  # it has seen no corpus


def test_rows_that_the_run_does_not_use_are_no_overlap(data: Path) -> None:
    plant(data, "films", "tested", 12)  # the first twelve of the corpus, all of the test set
    assert [len(item.images) for item in overlaps(suite(), data, QUIET) if item.leak] == [12]
    few = suite() | {"corpus": {"dataset": "films", "limit": 5}}
    assert [len(item.images) for item in overlaps(few, data, QUIET) if item.leak] == [5]
    assert [item.of for item in overlaps(suite(), data, QUIET, limit=4) if item.leak] == [4]


def test_a_head_may_not_be_trained_on_its_own_test_images(data: Path) -> None:
    parts = {"train": {"dataset": "watched"}, "val": {"dataset": "others"}, "test": {"dataset": "tested"}}
    wanted = {"tasks": {"segmentation": {"datasets": {"siim": {"dataset": "tested", **parts}}}}}
    assert overlaps(wanted, data, QUIET) == []
    plant(data, "watched", "tested", 1)
    with pytest.raises(
        DataError, match=r"part 'test' of 'siim' .* 1 of 12 images are also in part 'train' of 'siim'"
    ):
        check(overlaps(wanted, data, QUIET), allow=False)


def test_repeated_images_and_shared_patients_are_reported(data: Path) -> None:
    twice = pixels_of(data, "tested")
    twice[3] = twice[7] = twice[1]
    write(data, "tested", twice, patient_id=[f"p{i}" for i in range(12)])
    write(data, "others", pixels_of(data, "others"), patient_id=[f"p{i}" for i in range(4, 12)])
    found = overlaps(suite(), data, QUIET)
    assert [str(item) for item in found] == [
        "test set 'tested' (zeroshot): 2 of 12 images occur more than once ('tested-3', 'tested-7')"
    ]  # patients of two folders may have the same ids
    check(found, allow=False)
    assert facts(found, "zeroshot", "tested")["overlaps"][0]["with"] == "itself"
    for name in ("tested", "others"):
        DATASETS.get(name).patients = "clinic"
    lines = [str(item) for item in overlaps(suite(), data, QUIET)]
    assert (
        "test set 'tested' (zeroshot): 8 of 12 images are of 8 patients of test set 'others' (zeroshot)"
        in [line.partition(" ('tested-")[0] for line in lines]
    )


def test_blank_images_are_nobodys_copy(data: Path) -> None:
    for name, grey in (("films", 0), ("tested", 0)):
        pixels = pixels_of(data, name)
        pixels[:3] = grey
        write(data, name, pixels)
    assert overlaps(suite(), data, QUIET) == []


def test_the_same_file_is_found_in_another_fitting(data: Path) -> None:
    for name in ("films", "tested"):
        count = SIZES[name]
        files = [f"{name}{i}".encode().hex().ljust(64, "0") for i in range(count)]
        files[2] = "ab" * 32
        write(data, name, pixels_of(data, name), sha256=files)
    assert [item.images for item in overlaps(suite(), data, QUIET)] == [("tested-2",)]


def test_numbers_of_images_are_kept_for_the_pixels_they_are_of(data: Path, monkeypatch) -> None:
    loaded = load_prepared(data / "tested")
    first = imprint(loaded, "", data / "hashes", QUIET)
    plant(data, "films", "tested")
    again = imprint(load_prepared(data / "tested"), "", data / "hashes", QUIET)
    assert (first.pixels != again.pixels).sum() == 2
    monkeypatch.setattr("benchmark.run.checks.image_hashes._VERSION", 2)
    assert imprint(loaded, "", None, QUIET).key != first.key
    monkeypatch.setattr(
        "benchmark.run.checks.image_hashes.row_numbers", lambda *_: pytest.fail("hashed twice")
    )
    monkeypatch.setattr("benchmark.run.checks.image_hashes._VERSION", 1)
    assert imprint(loaded, "", data / "hashes", QUIET).key == first.key


def test_grey_and_coloured_copies_have_one_number() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=3)
    tinted = colour.copy()
    tinted[0, 0, 0, 1] ^= 1
    np.testing.assert_array_equal(row_numbers(grey, QUIET), row_numbers(colour, QUIET))
    assert (row_numbers(tinted, QUIET) != row_numbers(grey, QUIET)).tolist() == [True, False, False]
    assert row_numbers(grey.reshape(3, 4, 16), QUIET)[0] != row_numbers(grey, QUIET)[0]


def test_validate_says_the_same_before_anything_runs(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    monkeypatch.chdir(data)
    (data / "small.yaml").write_text(yaml.safe_dump(suite() | {"backbone": "tiny"}))
    plant(data, "films", "tested")
    words = ["validate", "--suite", "small.yaml", "--methods", "taskres", "--data-root", str(data), "--device", "cpu",
             "--batch-size", "8", "--output-dir", "out", "--json"]  # fmt: skip
    for more, state, code in (
        ([], None, 0),
        (["--images"], "missing", 2),
        (["--images", "--allow-overlap"], "note", 0),
    ):
        assert main([*words, *more]) == code
        items = json.loads(capsys.readouterr().out)["items"]
        about = {item["name"]: item for item in items if " and " in item["name"]}
        assert [item["state"] for item in about.values()] == ([state] if state else [])


# ---------------------------------------------------------------------- rows bound to pixels
def shuffled_rows(folder: Path) -> None:
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")


def swapped_images(folder: Path) -> None:
    pixels = np.load(folder / "pixels.npy")
    np.save(folder / "pixels.npy", pixels[[1, 0, *range(2, len(pixels))]])


def another_array(folder: Path) -> None:
    np.save(folder / "pixels.npy", np.zeros_like(np.load(folder / "pixels.npy")))


@pytest.mark.parametrize(
    ("spoil", "file"),
    [(shuffled_rows, "manifest.csv"), (swapped_images, "pixels.npy"), (another_array, "pixels.npy")],
)
def test_images_and_rows_that_were_moved_against_each_other_are_found(data: Path, spoil, file: str) -> None:
    folder = data / "tested"
    time.sleep(0.15)  # files that have settled are not read a second time
    load_prepared(folder)
    assert set(json.loads((folder / verified.SEEN).read_text())) == {"manifest.csv", "pixels.npy"}
    spoil(folder)
    with pytest.raises(DataError, match=rf"{file}: contents differ from the sha256 .* prepare it again"):
        load_prepared(folder)


def test_a_file_is_compared_once_per_change(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = data / "tested", []
    original = verified.file_sha256
    monkeypatch.setattr(verified, "file_sha256", lambda path: read.append(path.name) or original(path))
    time.sleep(0.15)
    load_prepared(folder)
    load_prepared(folder)
    assert read == ["manifest.csv", "pixels.npy"]
    (folder / "pixels.npy").touch()
    load_prepared(folder)
    assert read == ["manifest.csv", "pixels.npy", "pixels.npy"]


# ---------------------------------------------------------------------- what adaptation must leave alone
def meddling(monkeypatch: pytest.MonkeyPatch, method: str, what: Any) -> None:
    """Let a method do something with itself after every step."""
    from benchmark.registry import METHODS

    cls = METHODS.get(method)
    original = cls.after_step

    def after_step(self: Any, step: int, total: int) -> None:
        original(self, step, total)
        what(self)

    monkeypatch.setattr(cls, "after_step", after_step)


@torch.no_grad()
def nudge(method: Any) -> None:
    next(method.backbone.model.visual.parameters()).view(-1)[0] += 1e-3


def test_a_method_that_changes_frozen_weights_loses_its_cell(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddling(monkeypatch, "taskres", nudge)
    with pytest.raises(CellError, match=r"TaskRes changed 'backbone\.\S+' during adaptation"):
        run(data)
    assert not Store(data / "out").cell(spec(data).folder).exists("adapter.safetensors")


def test_a_frozen_tower_in_train_mode_is_named_at_the_first_step(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.registry import METHODS

    cls = METHODS.get("clip_adapter")
    monkeypatch.setattr(cls, "train", lambda self, mode=True: nn.Module.train(self, mode), raising=False)
    meddling(monkeypatch, "clip_adapter", lambda _: pytest.fail("a step was made"))
    with pytest.raises(
        CellError, match=r"CLIP-Adapter: 'backbone\S*' is frozen, but in train mode during training"
    ):
        run(data, method="clip_adapter")


def test_a_module_that_stays_in_train_mode_is_named_at_evaluation() -> None:
    method = small.method("clip_adapter")
    method.eval()
    check_mode(method)
    next(module for name, module in method.named_modules() if name.startswith("backbone.model.")).train()
    with pytest.raises(CellError, match=r"'backbone\.model\S*' is in train mode during evaluation"):
        check_mode(method)


def test_statistics_of_batch_normalisation_count_as_frozen() -> None:
    method = small.method("clip_adapter")
    method.backbone.model.visual.extra = norm = nn.BatchNorm1d(4)
    norm.requires_grad_(True)  # its weights train, its statistics must not
    method.train()
    check_mode(method)
    before = frozen_digests(method)
    norm.train()
    with pytest.raises(CellError, match=r"visual\.extra' is frozen, but in train mode"):
        check_mode(method)
    norm(torch.randn(8, 4))
    with pytest.raises(CellError, match=r"'backbone\.model\.visual\.extra\.running_mean' and 2 more"):
        check_frozen(method, before)


def test_training_everything_leaves_running_statistics_alone() -> None:
    method = small.method("full_ft")
    method.backbone.model.visual.extra = nn.BatchNorm1d(4)
    method.train()
    assert method.backbone.model.visual.training
    assert not method.backbone.model.visual.extra.training
    check_mode(method)


def test_a_corpus_of_texts_that_are_too_long_says_so(data: Path) -> None:
    assert "cut_texts" not in run(data).read_json("adapt.json")
    long = [f"case {i} " + "edema " * 300 * (i < 5) for i in range(24)]
    write(data, "films", pixels_of(data, "films"), text=long)
    assert run(data, seed=1).read_json("adapt.json")["cut_texts"] == 5

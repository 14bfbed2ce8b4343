"""Preparation: what is made, that it goes on after a kill, does nothing twice, and notices what has changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from benchmark import files as verified
from benchmark.data.prepare import decode
from benchmark.data.prepare.images import read_image
from benchmark.data.prepare.prepare import prepare
from benchmark.data.prepare.raw import RawTable
from benchmark.data.prepared import load_prepared
from benchmark.errors import ConfigError, DataError
from benchmark.files import ROOT
from benchmark.preprocess import THUMBNAIL, Fitting
from tests.data import toy as toy_module
from tests.data.opened import opened, read
from tests.data.toy import make_raw, toy

SIZE = (8, 8)
FITTING = Fitting(SIZE)
SHORTEST = Fitting(SIZE, "shortest_crop")
NAME = "shortest_crop-8x8"


def made(raw: Path, root: Path, **changes: object):
    return prepare(toy, raw, root, **{"fitting": FITTING, "workers": 1, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."
    }


@pytest.fixture
def counted(monkeypatch):
    """The images that were decoded, in order."""
    read: list[str] = []

    def reading(path: Path, *bounds: int):
        read.append(path.name)
        return read_image(path)

    monkeypatch.setattr(decode, "read_image", reading)
    return read


def test_the_folder_holds_what_was_asked_for(tmp_path):
    raw = make_raw(tmp_path / "raw", 40)
    done = made(raw, tmp_path / "root")
    assert done.made
    assert sorted(files(done.folder)) == [
        "manifest.csv", f"masks-{NAME}.npy", f"pixels-{NAME}.npy", "prepare_report.json", f"thumbnails-{NAME}.npy",
    ]  # fmt: skip
    data = load_prepared(done.folder, transform=NAME, verify=True)
    assert data.pixels.shape == (40, *SIZE)
    for i in (0, 39):
        image = read_image(raw / f"{i:03d}.png")
        np.testing.assert_array_equal(data.pixels[i], SHORTEST.pixels(image.pixels))
        np.testing.assert_array_equal(data.thumbnails[i], THUMBNAIL.pixels(image.pixels))
        assert data.manifest["sha256"][i] == image.sha256
    # 12 x 20 to 8 x 8: resized to 8 x 13, 2 columns cut off at the left; column c shows the original's column
    # (c + 2.5) * 20 / 13, which is 3 for the first, left of the mask of image 4
    assert data.masks is not None
    np.testing.assert_array_equal(data.masks[4][0], [False] + [True] * 7)
    assert list(data.manifest.columns) == [
        "image_id", "image", "text", "split", "split_detection", "patient_id", "label_Edema",
        "original_width", "original_height", "sha256",
    ]  # fmt: skip
    assert data.manifest["label_Edema"].tolist()[:3] == [1, 0, -1]
    assert (data.manifest["original_width"][0], data.manifest["original_height"][0]) == (20, 12)
    report = done.report
    assert report["steps"] == [["files", 40], ["images in the manifest", 40]]
    assert report["columns"]["label_Edema"] == {"1": 10, "0": 10, "-1": 10, "": 10}
    assert report["splits"]["test"]["count"] == 12
    assert data.info == {"options": {"texts": "short", "first": 0}, "notes": [], "transform": NAME}


def test_a_second_run_decodes_nothing_and_changes_nothing(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 40)
    done = made(raw, tmp_path / "root")
    assert len(counted) == 40
    before = {path: path.stat().st_mtime_ns for path in done.folder.glob("*.*")}
    again = made(raw, tmp_path / "root")
    assert not again.made
    assert again.report == done.report
    assert len(counted) == 40
    assert {path: path.stat().st_mtime_ns for path in done.folder.glob("*.*")} == before


def test_one_and_two_workers_make_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    raw = make_raw(tmp_path / "raw", 70, colour=True)
    one = made(raw, tmp_path / "one", workers=1)
    (tmp_path / "log").unlink()
    two = made(raw, tmp_path / "two", workers=2)
    assert files(one.folder) == files(two.folder)
    seen = {tuple(line.split()[1:]) for line in (tmp_path / "log").read_text().splitlines()}
    assert str(os.getpid()) not in {pid for pid, _ in seen}
    assert {threads for _, threads in seen} == {"1"}


def test_a_late_colour_image_turns_the_file_into_colour(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 70, colour=True)
    data = load_prepared(made(raw, tmp_path / "root").folder, transform=NAME, verify=True)
    assert data.pixels.shape == (70, *SIZE, 3)
    for i in (0, 31, 32, 68, 69):
        pixels = SHORTEST.pixels(read_image(raw / f"{i:03d}.png").pixels)
        expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        np.testing.assert_array_equal(data.pixels[i], expected)
    assert counted.count("000.png") == 1  # what was decoded grey is widened, not decoded again


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    raw = make_raw(tmp_path / "raw", 160)
    whole = files(made(raw, tmp_path / "whole").folder)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    words = [sys.executable, str(ROOT / "run_benchmark.py"), "prepare", "toy", "--plugins", toy_module.__file__,
             "--raw", str(raw), "--data-root", str(tmp_path / "root"), "--size", "8", "--num-workers", "2"]  # fmt: skip
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journal = tmp_path / "root" / "toy" / f"pixels-{NAME}.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert not (tmp_path / "root" / "toy" / "prepare_report.json").exists()
    finished = [item for line in journal.read_text().splitlines()[1:] for item in json.loads(line)["facts"]]
    assert 32 <= len(finished) < 160
    time.sleep(1.0)  # the orphaned workers have ended by now
    (tmp_path / "log").write_text("")
    done = made(raw, tmp_path / "root")
    again = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(again) == len(set(again)) == 160 - len(finished)
    assert files(done.folder) == whole


def test_a_torn_journal_line_is_decoded_again(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 70)
    whole = files(made(raw, tmp_path / "whole").folder)
    folder = made(raw, tmp_path / "root").folder
    target = decode.Target(
        *(folder / f"{kind}-{NAME}.npy" for kind in ("pixels", "thumbnails", "masks")), SHORTEST, None
    )
    # as if the process had died before the report: two whole runs, half a line, an unfinished file
    work_key = _key_of_a_run_that_stops(raw, tmp_path / "other")
    (folder / "prepare_report.json").unlink()
    facts = read_facts(raw, 70)
    lines = [{"key": work_key}, {"start": 0, "facts": facts[:32]}, {"start": 32, "facts": facts[32:64]}]
    target.journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"start": 64, "fa')
    counted.clear()
    assert files(made(raw, tmp_path / "root").folder) == whole
    assert counted == [f"{i:03d}.png" for i in range(64, 70)]


def read_facts(raw: Path, count: int) -> list[dict]:
    images = [read_image(raw / f"{i:03d}.png") for i in range(count)]
    return [{"sha256": x.sha256, "width": x.width, "height": x.height, "notes": x.notes} for x in images]


def _key_of_a_run_that_stops(raw: Path, root: Path) -> str:
    def stop(*_: object, **__: object):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.data.prepare.prepare.decode_all", stop)
        with pytest.raises(KeyboardInterrupt):
            made(raw, root)
    return json.loads((root / "toy" / f"pixels-{NAME}.journal").read_text().splitlines()[0])["key"]


def test_another_size_is_added_and_the_first_kept(tmp_path):
    raw = make_raw(tmp_path / "raw", 40)
    first = files(made(raw, tmp_path / "root").folder)
    done = made(raw, tmp_path / "root", fitting=Fitting((6, 10), "squash"))
    now = files(done.folder)
    assert {name.partition("-")[0] for name in now if name not in first} == {"pixels", "masks", "thumbnails"}
    assert all(now[name] == first[name] for name in first if name != "prepare_report.json")
    assert sorted(done.report["transforms"]) == [NAME, "squash-6x10"]
    assert opened(toy, tmp_path / "root", crop="squash", fitting=Fitting((6, 10))).pixels.shape == (40, 6, 10)
    assert not made(raw, tmp_path / "root").made
    arrays = {name: facts for name, facts in done.report["files"].items() if name[0] in "pm" and "-" in name}
    assert {name: facts["sha256"][:16] for name, facts in arrays.items()} == {  # of all earlier versions too
        "pixels-shortest_crop-8x8.npy": "6fd18a7c015f1d9c", "masks-shortest_crop-8x8.npy": "72b03f69fcff9b70",
        "pixels-squash-6x10.npy": "f9b7678209e2e7b1", "masks-squash-6x10.npy": "190ba63930287903",
    }  # fmt: skip


GREY = Fitting((8, 8), "longest_pad", 12, "area", "grey")


def test_a_models_own_rule_is_prepared_beside_the_others(tmp_path):
    raw = make_raw(tmp_path / "raw", 40, colour=True)
    made(raw, tmp_path / "root")
    done = made(raw, tmp_path / "root", fitting=GREY)
    assert sorted(done.report["transforms"]) == [GREY.name, NAME]
    data = opened(toy, tmp_path / "root", fitting=GREY)
    assert data.info["transform"] == "longest_pad12-8x8-area-grey"
    assert data.pixels.shape == (40, 8, 8)  # grey, though one image has colours
    for i in (0, 39):
        np.testing.assert_array_equal(data.pixels[i], GREY.pixels(read_image(raw / f"{i:03d}.png").pixels))
        drawn = toy_module.mask({"_left": i % 5}, (12, 20))
        np.testing.assert_array_equal(data.masks[i], GREY.mask(drawn))
    # the model's rule against the dataset's own and an explicit one
    assert opened(toy, tmp_path / "root", fitting=FITTING).info["transform"] == NAME
    assert (
        opened(toy, tmp_path / "root", crop="shortest_crop", fitting=Fitting((8, 8), "squash")).info[
            "transform"
        ]
        == NAME
    )
    assert opened(toy, tmp_path / "root").info["transform"] == NAME
    with pytest.raises(DataError, match=r"not as squash-8x8-bilinear: .* --transform squash-8x8-bilinear$"):
        opened(toy, tmp_path / "root", fitting=Fitting((8, 8), "squash", interpolation="bilinear"))


def test_any_preparation_serves_where_no_model_asks(tmp_path):
    raw = make_raw(tmp_path / "raw", 4)
    made(raw, tmp_path / "root", fitting=GREY)
    assert opened(toy, tmp_path / "root").info["transform"] == GREY.name
    with pytest.raises(
        DataError, match=r"as longest_pad12-8x8-area-grey, not as squash-224x224: .*--crop squash"
    ):
        opened(toy, tmp_path / "root", crop="squash")


def test_a_changed_table_alone_decodes_nothing(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 40)
    folder = made(raw, tmp_path / "root").folder
    without_thumbnails(folder)  # as a folder of an earlier version
    first = files(folder)
    counted.clear()
    done = made(raw, tmp_path / "root", options={"texts": "long"})
    assert done.made
    assert counted == []
    now = files(done.folder)
    assert now[f"pixels-{NAME}.npy"] == first[f"pixels-{NAME}.npy"]
    data = opened(toy, tmp_path / "root", fitting=FITTING)
    assert data.manifest["text"][0] == "long text 0"
    assert data.manifest["sha256"][3] == read_image(raw / "003.png").sha256
    load_prepared(done.folder, transform=NAME, verify=True)


def without_thumbnails(folder: Path) -> None:
    report = json.loads((folder / "prepare_report.json").read_text())
    del report["files"][f"thumbnails-{NAME}.npy"], report["transforms"][NAME]["thumbnails.npy"]
    (folder / "prepare_report.json").write_text(json.dumps(report))
    (folder / f"thumbnails-{NAME}.npy").unlink()


def test_changed_images_are_noticed_and_touched_ones_are_not_decoded(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 40)
    made(raw, tmp_path / "root")
    counted.clear()
    os.utime(raw / "007.png", (1, 1))
    assert not made(raw, tmp_path / "root").made
    assert counted == []
    content = bytearray((raw / "008.png").read_bytes())
    PIL.Image.fromarray(255 - np.asarray(PIL.Image.open(raw / "007.png"))).save(raw / "007.png")
    done = made(raw, tmp_path / "root")
    assert done.made
    assert len(counted) == 40
    expected = SHORTEST.pixels(read_image(raw / "007.png").pixels)
    np.testing.assert_array_equal(load_prepared(done.folder, transform=NAME).pixels[7], expected)
    # same size, other content: only the hash tells
    (raw / "007.png").write_bytes(content)
    made(raw, tmp_path / "root")
    (raw / "007.png").write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    counted.clear()
    assert made(raw, tmp_path / "root").made
    assert len(counted) == 40


def swap_with_times(path: Path, content: bytes) -> None:
    """Replace a file by another of equal size and time of change, as unpacking or a copy that keeps times does."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_files_replaced_by_others_of_equal_size_and_time_are_noticed(tmp_path, counted, monkeypatch):
    raw, read = make_raw(tmp_path / "raw", 4), []
    original = verified.file_sha256
    monkeypatch.setattr(
        "benchmark.data.prepare.prepare.file_sha256", lambda path: read.append(path.name) or original(path)
    )
    for i in (1, 2):  # not compressed, so that all have one size
        PIL.Image.open(raw / f"00{i}.png").save(raw / f"00{i}.png", format="bmp")
    made(raw, tmp_path / "root")
    read.clear()
    (raw / "003.png").chmod(0o600)  # another time, the same content: compared once
    assert [made(raw, tmp_path / "root").made for _ in range(2)] == [False, False]
    assert read == ["003.png"]
    swap_with_times(raw / "001.png", (raw / "002.png").read_bytes())
    done = made(raw, tmp_path / "root")
    assert done.made
    pixels = load_prepared(done.folder, transform=NAME).pixels
    np.testing.assert_array_equal(pixels[1], pixels[2])


def test_an_array_file_replaced_by_another_of_equal_size_and_time_is_noticed(tmp_path):
    def reader(raw: Path) -> RawTable:
        table = pd.DataFrame({"image_id": [str(i) for i in range(3)]})
        return RawTable(table, pixels=np.load(raw / "all.npy"), sources=("all.npy",))

    arrays = replace(toy, read=reader, reader_options=None, mask=None)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    (tmp_path / "raw").mkdir()
    file = tmp_path / "raw" / "all.npy"
    np.save(file, pixels)
    prepare(arrays, tmp_path / "raw", tmp_path / "root", fitting=FITTING, workers=1)
    file.touch()
    assert not prepare(arrays, tmp_path / "raw", tmp_path / "root", fitting=FITTING, workers=1).made
    np.save(tmp_path / "other.npy", 255 - pixels)
    swap_with_times(file, (tmp_path / "other.npy").read_bytes())
    done = prepare(arrays, tmp_path / "raw", tmp_path / "root", fitting=FITTING, workers=1)
    np.testing.assert_array_equal(load_prepared(done.folder, transform=NAME).pixels, 255 - pixels)


def test_bad_images_are_all_found_then_named(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 70)
    for name in ("003.png", "004.png", "005.png", "066.png"):
        (raw / name).write_bytes(b"<!doctype html>")
    with pytest.raises(DataError, match=r"4 of 70 images cannot be read: 003\.png: a web page.* and 1 more"):
        made(raw, tmp_path / "root")
    counted.clear()
    for name in ("003.png", "004.png", "005.png", "066.png"):
        (raw / name).write_bytes((raw / "000.png").read_bytes())
    assert made(raw, tmp_path / "root").report["images"] == 70


def test_skipped_images_leave_no_row_and_are_told_everywhere(tmp_path, counted):
    raw = make_raw(tmp_path / "raw", 70)
    (raw / "001.png").write_bytes(b"")
    (raw / "040.png").write_bytes(b"{}")
    done = made(raw, tmp_path / "root", on_bad_image="skip")
    assert done.report["bad_images"][1] == {
        "file": "040.png", "reason": "a JSON text, not an image: often the error message of a download server",
    }  # fmt: skip
    assert done.report["steps"][-2:] == [["images that cannot be read", -2], ["images in the manifest", 68]]
    data = load_prepared(done.folder, transform=NAME, verify=True)
    assert len(data.pixels) == len(data.manifest) == len(data.masks) == 68
    assert "001" not in set(data.manifest["image_id"])
    place = data.manifest["image_id"].tolist().index("041")
    expected = SHORTEST.pixels(read_image(raw / "041.png").pixels)
    np.testing.assert_array_equal(data.pixels[place], expected)
    assert data.info["notes"] == ["2 images that cannot be read were left out (of 70 in all parts together)"]
    counted.clear()
    assert not made(raw, tmp_path / "root", on_bad_image="skip").made
    other = made(raw, tmp_path / "root", on_bad_image="skip", fitting=Fitting((4, 4)))
    assert len(load_prepared(other.folder, transform="shortest_crop-4x4").pixels) == 68
    table = made(raw, tmp_path / "root", on_bad_image="skip", options={"texts": "long"})
    assert table.report["images"] == 68
    assert opened(toy, tmp_path / "root", fitting=FITTING).info["notes"] == data.info["notes"]
    for path in raw.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="70 of 70 images cannot be read"):
        made(raw, tmp_path / "root", on_bad_image="skip")


def test_missing_files_stop_before_anything_is_replaced(tmp_path):
    raw = make_raw(tmp_path / "raw", 40)
    table = read(toy_module, raw)
    whole = replace(toy, read=lambda raw, _: table)
    prepare(whole, raw, tmp_path / "root", fitting=FITTING, workers=1)
    before = files(tmp_path / "root" / "toy")
    (raw / "002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 40 image files are missing or empty: '002\.png'"):
        prepare(whole, raw, tmp_path / "root", fitting=FITTING, workers=1)
    assert files(tmp_path / "root" / "toy") == before


def test_a_list_that_differs_from_the_first_preparation(tmp_path):
    raw = make_raw(tmp_path / "raw", 40)
    made(raw, tmp_path / "root")
    (raw / "000.png").unlink()
    with pytest.raises(
        DataError, match=r"list 'test' is not the published split.*missing \(first '000'\).*--accept-split"
    ):
        made(raw, tmp_path / "root")
    done = made(raw, tmp_path / "root", accept_split=True)
    assert done.report["images"] == 39
    (note,) = opened(toy, tmp_path / "root", fitting=FITTING).info["notes"]
    # what gets into results names no image
    assert note == "test: not the published split (against the first preparation here, 4 missing and 4 new)"


def test_options_are_checked_with_the_nearest(tmp_path):
    raw = make_raw(tmp_path / "raw", 3)
    with pytest.raises(ConfigError, match="unknown option of dataset 'toy' 'text'. Did you mean 'texts'"):
        made(raw, tmp_path / "root", options={"text": "long"})
    with pytest.raises(ConfigError, match="texts: expected one of short, long"):
        made(raw, tmp_path / "root", options={"texts": "big"})
    with pytest.raises(DataError, match="no image is left to prepare"):
        made(raw, tmp_path / "root", options={"first": "3"})
    with pytest.raises(
        DataError, match=r"--raw: folder .*none' does not exist. Get it at https://example.org/toy"
    ):
        made(tmp_path / "none", tmp_path / "root")


def test_two_at_once_are_refused(tmp_path):
    from benchmark.files import file_lock

    raw = make_raw(tmp_path / "raw", 3)
    with (
        file_lock(tmp_path / "root" / "toy" / ".lock", wait=True),
        pytest.raises(DataError, match="another process is preparing it"),
    ):
        made(raw, tmp_path / "root")


def test_a_full_disk_is_told_before_decoding(tmp_path, monkeypatch, counted):
    raw = make_raw(tmp_path / "raw", 3)
    monkeypatch.setattr(decode.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"needs 0\.0 GiB, more than is free"):
        made(raw, tmp_path / "root")
    assert counted == []


# ---------------------------------------------------------------------- opening
def test_a_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        opened(toy, tmp_path)
    assert f"run_benchmark.py prepare toy --raw DIR --data-root {tmp_path}" in str(caught.value)
    assert "Get it at https://example.org/toy (open access): toy.zip" in str(caught.value)


def test_parts_protocols_and_what_is_not_there(tmp_path):
    raw = make_raw(tmp_path / "raw", 40)
    made(raw, tmp_path / "root")
    test = opened(toy, tmp_path / "root", part="test", fitting=FITTING)
    assert test.manifest["image_id"].tolist()[:4] == ["000", "001", "002", "010"]
    whole = load_prepared(tmp_path / "root" / "toy", transform=NAME)
    np.testing.assert_array_equal(test.pixels[3], whole.pixels[10])
    np.testing.assert_array_equal(test.masks[1:4], whole.masks[[1, 2, 10]])
    assert len(opened(toy, tmp_path / "root")) == 40
    assert opened(toy, tmp_path / "root", protocol="detection").manifest["image_id"].tolist() == [
        "000",
        "010",
        "020",
        "030",
    ]
    with pytest.raises(DataError, match="unknown part 'tset'. Did you mean 'test'"):
        opened(toy, tmp_path / "root", part="tset")
    with pytest.raises(DataError, match="unknown protocol 'detect'. Did you mean 'detection'"):
        opened(toy, tmp_path / "root", part="test", protocol="detect")
    with pytest.raises(
        DataError,
        match=r"as shortest_crop-8x8, not as shortest_crop-9x9: .*--crop shortest_crop --size 9x9",
    ):
        opened(toy, tmp_path / "root", fitting=Fitting((9, 9)))

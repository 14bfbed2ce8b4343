"""The prepare command: what it lists, prints and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.cli import prepare as verb
from tests.data.toy import make_raw

TOY = str(Path(__file__).parent.parent / "data" / "toy.py")


@pytest.fixture(autouse=True)
def _no_signal_handler(monkeypatch):
    monkeypatch.setattr(verb.signal, "signal", lambda *_: None)


def prepare(*words: str) -> int:
    return main(["prepare", *words])


def refused(capsys, *words: str) -> str:
    assert prepare(*words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_without_a_name_it_lists_what_can_be_prepared(capsys):
    assert prepare() == 0
    out = capsys.readouterr().out
    assert "medmnist" in out
    assert "zenodo.org" in out
    assert "open" in out
    assert "phantom" not in out


def test_it_prints_counts_and_a_second_time_that_all_is_there(tmp_path, capsys):
    raw = make_raw(tmp_path / "raw", 20)
    (raw / "019.png").write_bytes(b"<html>")
    words = ["toy", "--plugins", TOY, "--raw", str(raw), "--data-root", str(tmp_path / "root"), "--size", "8",
             "--num_workers", "1", "--on-bad-image", "skip", "texts=long"]  # fmt: skip
    assert prepare(*words) == 0
    out = capsys.readouterr().out
    assert "19  images in the manifest" in out
    assert "split: train 13, test 6" in out
    assert "left out 019.png: a web page" in out
    assert "list 'test': 6 ids, as first prepared here" in out
    assert "prepared in" in out
    assert prepare(*words) == 0
    assert "was prepared already, nothing to do" in capsys.readouterr().out


def test_wrong_requests_are_one_line_each(tmp_path, capsys):
    raw = str(make_raw(tmp_path / "raw", 3))
    root = ["--raw", raw, "--data-root", str(tmp_path / "root"), "--plugins", TOY]
    assert "unknown dataset 'toyy'. Did you mean 'toy'" in refused(capsys, "toyy", *root)
    assert "unknown crop 'squish'. Did you mean 'squash'" in refused(capsys, "toy", *root, "--crop", "squish")
    assert "--size: expected N or HxW, got 'big'" in refused(capsys, "toy", *root, "--size", "big")
    assert "expected a name such as" in refused(capsys, "toy", *root, "--transform", "squash")
    assert "--transform: unknown crop 'squish'" in refused(capsys, "toy", *root, "--transform", "squish-8x8")
    words = ("--transform", "squash-8x8", "--size", "8")
    assert "leave out --crop and --size" in refused(capsys, "toy", *root, *words)
    assert "unknown choice 'skipp'" in refused(capsys, "toy", *root, "--on-bad-image", "skipp")
    assert "expected a value of at least 1" in refused(capsys, "toy", *root, "--num-workers", "0")
    assert "Did you mean 'texts'" in refused(capsys, "toy", *root, "text=long")
    assert "needs no preparation" in refused(capsys, "phantom", *root)
    assert "--raw: say where the downloads are. Get them at https" in refused(capsys, "toy", "--plugins", TOY)
    assert "unknown MedMNIST set: name = 'None'" in refused(capsys, "medmnist", *root)

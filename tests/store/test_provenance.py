"""Provenance says enough to repeat a run and nothing about people or machines' names."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess

import pytest

from benchmark.machine import available_memory, usable_cores
from benchmark.store.provenance import git_state, provenance, scrub


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/ann/data/x.csv", "x.csv"),
        ("~/data/x.csv", "x.csv"),
        ('File "/usr/lib/python3/a.py", line 3', 'File "a.py", line 3'),
        ("no such file: '/data/site a/x'", "no such file: 'x'"),
        ("/data/Jane Doe/site a/x.csv", "x.csv"),
        ("local-dir:/data/Jane Doe/model", "local-dir:model"),
        ("~jane/data/x.csv: row 3", "x.csv: row 3"),
        ("file:///home/ann/x.csv and //server/ann/x", "x.csv and x"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("images/s and 3 / 4 and a/b", "images/s and 3 / 4 and a/b"),
        ("hf-hub:org/model", "hf-hub:org/model"),
        ("../alice.smith/films.csv", "films.csv"),
        ("./alice/films.csv: row 3", "films.csv: row 3"),
        ("alice.smith/films.csv", "films.csv"),
        ("local-dir:../carol.jones/model", "local-dir:model"),
        ("/data/Prof. Bob (Uni, lab)/films.csv: row 3", "films.csv: row 3"),
        ("see /data/Prof. Bob (Uni, lab)/films.csv, row 3", "see films.csv, row 3"),
        ("Pneumonia/Infiltrate and 1.5/2.5", "Pneumonia/Infiltrate and 1.5/2.5"),
    ],
)
def test_absolute_paths_lose_their_folders(text, clean):
    assert scrub(text) == clean


def test_a_home_folder_with_a_blank_does_not_show(monkeypatch):
    monkeypatch.setenv("HOME", "/home/Jane Doe")
    assert scrub("/home/Jane Doe/data/x.csv: row 3") == "x.csv: row 3"


def test_scrub_reaches_nested_values():
    assert scrub({"a": ["/x/y.csv", 3], "b": {"c": ("/z/w",)}}) == {"a": ["y.csv", 3], "b": {"c": ["w"]}}


def test_provenance_names_versions_and_hides_people(tmp_path):
    found = provenance({"seed": 3, "limit": 8, "pretrained": f"{tmp_path}/weights.bin"}, "abc")
    text = json.dumps(found)
    assert found["seed"] == 3
    assert found["limited"] == 8
    assert found["config_hash"] == "abc"
    assert found["config"]["pretrained"] == "weights.bin"
    assert found["packages"]["numpy"]
    assert found["hardware"]["cores"] == usable_cores()
    words = text.replace('"', " ").replace(",", " ").split()
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words
    assert str(tmp_path) not in text


def test_git_state_tells_a_clean_checkout_from_a_changed_one(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert git_state(tmp_path)["commit"] is None
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "a.py").write_text("x = 1\n")
    (tmp_path / "run_benchmark.py").touch()
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    git_state.cache_clear()
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "benchmark" / "a.py").write_text("x = 2\n")
    git_state.cache_clear()
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / "run_benchmark.py").unlink()  # a copy that is installed in the checkout of something else
    git_state.cache_clear()
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_memory_and_cores_are_plausible():
    assert usable_cores() >= 1
    assert available_memory() > 0

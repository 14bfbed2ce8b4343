"""Nothing from outside is run, and no name in it leads out of its folder: by reading the source, and by trying."""

from __future__ import annotations

import json
import os
import pickle
import re
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from benchmark import registry
from benchmark.backbones.checkpoints import read_foreign, read_state
from benchmark.cli import main
from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.prepare.images import FolderGuard
from benchmark.data.prepare.prepare import prepare
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepared import write_prepared
from benchmark.errors import BenchmarkError, DataError, StoreError
from benchmark.files import ROOT
from benchmark.run import adapters
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.store.cells import CellFolder

SOURCES = [
    path for folder in ("benchmark", "methods", "tasks", "results") for path in (ROOT / folder).rglob("*.py")
]
UNSAFE = re.compile(
    r"""torch\.load\((?![^()]*(\([^()]*\)[^()]*)*weights_only=True) | (allow_pickle|trust_remote_code)=(?!False)
    | \.extract(all)?\( | unpack_archive | subprocess\.\w+\(\s*f?["'] | getoutput\( | getstatusoutput\(
    | yaml\.(unsafe|full)_load | yaml\.load_all | \b(joblib|dill|cloudpickle|marshal|shelve)\.
    | ^\s*(import|from)\ (requests|httpx|urllib\.request|http\.client|ftplib|smtplib)\b""",
    re.MULTILINE | re.VERBOSE,
)
"""What the rules S of ruff (pyproject.toml: eval, exec, shells, pickle, yaml.load, mktemp) do not find."""
RESTRICTED = ("benchmark/backbones/checkpoints.py",)
"""Reads pickles with an unpickler that finds nothing but what builds tensors; it is tried below."""


# --- the source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "import requests", "torch.load(path)", "torch.load(str(path), weights_only=False)", "tar.extractall(folder)",
        "x.load(p, allow_pickle=flag)", "yaml.unsafe_load(text)", "subprocess.run(f'ls {x}')", "joblib.load(path)",
        "from_pretrained(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_scan_finds(line: str) -> None:
    assert UNSAFE.search(line)


def test_the_source_runs_nothing_that_it_reads() -> None:
    assert len(SOURCES) > 150
    found = [
        str(path.relative_to(ROOT)) for path in SOURCES if UNSAFE.search(path.read_text(encoding="utf-8"))
    ]
    assert tuple(found) == RESTRICTED


def test_templates_escape_everything_and_the_script_writes_text_alone():
    folder = ROOT / "benchmark" / "report" / "html"
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|autoescape|javascript:|\son\w+=", text), path.name
    script = (folder / "script.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", script)


# --- what is planted stays inert ----------------------------------------------------------------------------


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """A payload; the test fails when it went off."""
    target = tmp_path / "went-off"
    yield Planted(target)
    assert not target.exists()


def refused(*words: object) -> None:
    assert main([str(word) for word in words]) == 2


def test_the_payload_works(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "x")))
    assert (tmp_path / "x").is_dir()


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickled_checkpoint_is_refused(tmp_path, trap, plain):
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(trap)) if plain else torch.save({"weights": trap}, path)
    with pytest.raises(StoreError, match="could run code|not a file of tensors"):
        adapters.read_checkpoint(path)
    with pytest.raises(DataError, match="refused|not a file of tensors"):
        read_state(path)
    assert Checkpoint(path, "key").load() is None
    with pytest.raises(DataError, match="refused|holds no tensors"):
        read_foreign(path)


def test_a_pickle_before_an_archive_is_refused(tmp_path, trap):
    """A file may be a pickle to one library and an archive to another."""
    path = tmp_path / "weights.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    path.write_bytes(pickle.dumps(trap) + path.read_bytes())
    assert zipfile.is_zipfile(path)
    with pytest.raises(DataError, match="refused"):
        read_foreign(path)


def test_a_small_pickle_takes_little_memory(tmp_path):
    """Python's reader in C keeps a list as long as the largest number of an object: one kilobyte takes gigabytes."""
    torch.save({"weights": torch.zeros(2), "path": Path("x")}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "weights.pt") as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as target:
        for name, data in members.items():
            many = b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x01" + pickle.POP
            target.writestr(name, data[:2] + many + data[2:] if name.endswith("data.pkl") else data)
    tracemalloc.start()
    try:
        assert set(read_foreign(tmp_path / "weights.pt").tensors) == {"weights"}
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_long_name_in_a_pickle_takes_no_time(tmp_path):
    """torch searches the error about it in a time that grows with the square: this one took minutes."""
    torch.save({"weights": torch.zeros(2)}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "weights.pt") as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as target:
        for name, data in members.items():
            target.writestr(name, data.replace(b"ctorch", b"ctorch" + b"]" * 50_000))
    began = time.process_time()
    with pytest.raises(
        DataError, match=r"weights\.pt: refused, it holds Python objects|not a file of tensors"
    ):
        read_state(tmp_path / "weights.pt")
    assert time.process_time() - began < 5


def test_objects_in_arrays_are_refused(tmp_path, trap):
    cell = CellFolder(tmp_path / "cell")
    (cell.path / "predictions").mkdir(parents=True)
    np.savez(cell.path / "predictions" / "zeroshot-x.npz", image_id=np.array([trap], dtype=object))
    with pytest.raises(StoreError, match="damaged"):
        cell.read_npz("predictions/zeroshot-x.npz")


def test_yaml_builds_no_objects(tmp_path, trap, capsys):
    text = f"!!python/object/apply:os.mkdir ['{trap.path}']"
    (tmp_path / "suite.yaml").write_text(f"name: {text}\n")
    refused("--suite", tmp_path / "suite.yaml", "--dry-run", "--output-dir", tmp_path / "out")
    refused("--config", tmp_path / "suite.yaml", "--dry-run", "--output-dir", tmp_path / "out")
    refused("--dry-run", f"recipe.lr={text}", "--output-dir", tmp_path / "out")
    cell = CellFolder(tmp_path / "cell")
    cell.path.mkdir()
    (cell.path / "config.yaml").write_text(f"seed: {text}\n")
    with pytest.raises(StoreError, match="damaged"):
        cell.read_config()
    assert "Traceback" not in capsys.readouterr().err


PLUGIN = """
import os
from benchmark.registry import register_method
os.mkdir({path!r})
@register_method("planted")
class Planted: pass
"""


def test_plugins_run_only_when_they_are_named(tmp_path, trap, monkeypatch, capsys):
    for name in ("planted.py", "methods/planted.py", "tasks/planted.py", "medpeft_bench.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PLUGIN.format(path=str(trap.path)))
    (tmp_path / "suite.yaml").write_text("name: x\nplugins: [planted.py]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["list", "methods", "--names"]) == 0
    assert "planted" not in capsys.readouterr().out
    refused("--suite", "suite.yaml", "--dry-run")  # a suite names no plugins
    assert "unknown key 'plugins'" in capsys.readouterr().err
    assert registry.scan_plugins(["planted.py"]) == []  # its names are read, its code is not run
    assert "planted" in registry.METHODS.names()
    assert registry.load_plugins(["planted.py"]) == []
    trap.path.rmdir()  # named, it has run


# --- names stay in their folder -----------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """A raw folder beside a secret image, with links into and out of it."""
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "secret.png", tmp_path / "elsewhere" / "secret.png", raw / "images" / "a.png"):
        PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    (raw / "out.png").symlink_to(tmp_path / "secret.png")
    (raw / "in.png").symlink_to("images/a.png")
    (raw / "folder").symlink_to(tmp_path / "elsewhere")
    return raw


OUTSIDE = (
    "../secret.png",
    "images/../../secret.png",
    "/etc/hostname",
    "out.png",
    "folder/secret.png",
    "a\0.png",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_told(site, name):
    assert FolderGuard(site).problem(name)


def test_names_inside_are_not_held_up(site, tmp_path):
    (tmp_path / "link").symlink_to(site)
    for root in (site, tmp_path / "link"):
        for name in ("images/a.png", "in.png", "images/missing.png", "new/..png"):
            assert FolderGuard(root).problem(name) == ""
    everything = FolderGuard(site, allow_outside=True)
    assert [bool(everything.problem(name)) for name in OUTSIDE] == [False] * 5 + [True]


@pytest.mark.parametrize("name", OUTSIDE[:-1])
def test_a_table_of_a_download_cannot_name_foreign_files(site, tmp_path, name):
    table = pd.DataFrame({"image_id": ["a", "b"], "file": ["images/a.png", name]})
    access = Access("open", "", "", "")
    dataset = RawDataset("planted", "Planted", access, "", lambda raw: RawTable(table))
    with pytest.raises(DataError, match="--allow-outside"):
        prepare(dataset, site, tmp_path / "data", workers=1)
    assert not list((tmp_path / "data").rglob("*.npy"))


def test_ones_own_table_cannot_either_unless_asked(site, tmp_path):
    def rows(**keys: Any) -> int:
        entry = {"dataset": "csv", "file": str(site / "films.csv"), **keys}
        return len(load_dataset(entry, tmp_path / "data", NullReporter()))

    (site / "films.csv").write_text("path\nimages/a.png\n../secret.png\n")
    with pytest.raises(
        DataError, match=r"row 3, column 'path': '../secret.png' is not read: its name leads out"
    ):
        rows()
    assert rows(allow_outside=True) == 2


def test_reports_in_an_archive_are_read_and_never_unpacked(tmp_path):
    from benchmark.data.datasets.mimic_cxr import _from_zip

    text = b"FINAL REPORT\n FINDINGS: The lungs are clear today.\n"
    with zipfile.ZipFile(tmp_path / "reports.zip", "w") as archive:
        for name in ("../../s1.txt", "/s2.txt"):
            archive.writestr(name, text)
    before = sorted(tmp_path.parent.rglob("*"))
    sections = _from_zip(tmp_path / "reports.zip")
    assert [sections("10", study) is not None for study in ("1", "2")] == [True, True]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_prepared_folder_names_no_files_elsewhere(tmp_path):
    folder = tmp_path / "rsna"
    manifest = pd.DataFrame({"image_id": ["a"]})
    data = write_prepared(folder, name="x", pixels=np.zeros((1, 2, 2), np.uint8), manifest=manifest, info={})
    report = json.loads((data.folder / "prepare_report.json").read_text())
    report["transforms"] = {"squash-2x2/../../secret": {}}
    (folder / "prepare_report.json").write_text(json.dumps(report))
    with pytest.raises(BenchmarkError):
        load_dataset({"dataset": "rsna"}, tmp_path, NullReporter())

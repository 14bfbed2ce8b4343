"""Drawn datasets on disk: drawn once, drawn again when damaged, one folder per recipe."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from benchmark.console import NullReporter
from benchmark.data.datasets._drawn import DrawnDataset
from benchmark.data.datasets.phantom import phantom
from benchmark.data.datasets.phantom_histology import phantom_histology
from benchmark.errors import BenchmarkError
from tests.data.opened import opened


class Listener(NullReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("dataset", "part"), [(phantom, "siim"), (phantom_histology, "mhist")])
def test_a_part_is_drawn_once_and_again_when_damaged(
    tmp_path: Path, dataset: DrawnDataset, part: str
) -> None:
    told = Listener()
    first = opened(dataset, tmp_path, part=part, n=40)
    file = first.folder / "pixels.npy"
    stamp, good = file.stat().st_mtime_ns, file.read_bytes()
    assert first.folder.parent == tmp_path / dataset.name
    assert (first.masks is None) is (dataset is phantom_histology)
    assert opened(dataset, tmp_path, reporter=told, part=part, n=40).folder == first.folder
    assert (file.stat().st_mtime_ns, told.lines) == (stamp, [])
    file.write_bytes(good[:-100])
    opened(dataset, tmp_path, reporter=told, part=part, n=40)
    assert file.read_bytes() == good
    assert len(told.lines) == 1
    assert "pixels.npy" in told.lines[0]
    assert opened(dataset, tmp_path, part=part, n=40, seed=1).folder != first.folder


def test_counts_and_version_stand_in_the_report(tmp_path: Path) -> None:
    info = opened(phantom_histology, tmp_path, part="mhist", n=40).info
    assert info["counts"]["Hyperplastic polyp"] == {"1": 20, "0": 20, "-1": 0, "blank": 0}
    assert opened(phantom, tmp_path, part="rsna", n=40).masks is None


def _load(folder: str) -> str:
    return str(opened(phantom, Path(folder), part="siim", n=64).pixels.sum())


def test_processes_may_ask_for_the_same_part_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_load, [str(tmp_path)] * 4, chunksize=1)
    assert len(set(sums)) == 1
    assert len(list((tmp_path / "phantom").iterdir())) == 1


@pytest.mark.parametrize(
    ("dataset", "keys", "message"),
    [
        (phantom, {"part": "sim"}, "unknown part of dataset phantom 'sim'. Did you mean 'siim'"),
        (phantom_histology, {"part": "mhst"}, "part of dataset phantom_histology.*Did you mean 'mhist'"),
        (phantom, {"part": "siim", "n": 0}, "n: expected a value of at least 1"),
        (phantom, {}, "dataset 'tested' needs part="),
    ],
)
def test_wrong_requests_are_refused(
    tmp_path: Path, dataset: DrawnDataset, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        opened(dataset, tmp_path, **keys)

"""The dataset of docs/add_a_dataset.md is one file outside the tree, and runs as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.files import ROOT

TEXT = (ROOT / "docs" / "add_a_dataset.md").read_text()


def _block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)
    return block


def test_the_example_runs_with_the_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("squares.py").write_text(_block("python"))
    Path("squares.yaml").write_text(_block("yaml"))
    command = shlex.split(_block("bash"))
    assert command[:2] == ["python", "run_benchmark.py"]
    words = [*command[2:], "--data-root", "data", "--device", "cpu", "--jobs", "1"]
    assert main([*words, "corpus.count=1", "corpus.cuont=2", "validation.part=tset"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" Known:")[0] for line in lines if line.startswith("error: ")] == [
        "error: corpus.count: expected a value of at least 2, got 1",
        "error: corpus.cuont: unknown data key 'cuont'. Did you mean 'count'?",
        "error: validation.part: expected one of train, val, test (Did you mean 'test'?), got 'tset'",
    ]
    assert not Path("data").exists()
    assert main(words) == 0
    result = Path("results/runs/squares/tiny/taskres/seed-0/zeroshot.json")
    assert json.loads(result.read_text())["datasets"]["squares"]["metrics"]["acc"]["n"] == 40
    assert len(list(Path("data/squares").iterdir())) == 3

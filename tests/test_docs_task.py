"""The task of docs/add_a_task.md is short, and runs as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.files import ROOT

TEXT = (ROOT / "docs" / "add_a_task.md").read_text()


def _block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)
    return block


def test_the_example_task_is_shorter_than_sixty_lines() -> None:
    assert len(_block("python").strip().splitlines()) < 60


@pytest.mark.slow
def test_the_example_task_runs_with_the_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linear_probe.py").write_text(_block("python"))
    Path("probe.yaml").write_text(_block("yaml"))
    command = shlex.split(_block("bash"))
    assert command[:2] == ["python", "run_benchmark.py"]
    assert main([*command[2:], "--data-root", "data", "--device", "cpu", "--jobs", "1"]) == 0
    for method in ("zero_shot", "clip_lora"):
        result = Path(f"results/runs/probe/tiny/{method}/seed-0/linear_probe.json")
        score = json.loads(result.read_text())["datasets"]["chexpert_5x200"]["metrics"]["acc"]
        assert score["n"] == 200
        assert 0.3 < score["ci_low"] < score["value"] < score["ci_high"]  # one class of five: chance is 0.2
    table = Path("results/report/table_1.md").read_text()
    assert "CheXpert 5x200 ACC [%], n = 200 | CheXpert 5x200 log loss [nats], n = 200 |" in table
    assert "- CheXpert 5x200 log loss: CLIP-LoRA (" in table
    assert " nats, p " in table

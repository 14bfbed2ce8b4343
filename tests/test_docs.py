"""The page for newcomers is true: every command and file on it is run, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.conformance.checks import CHECKS
from benchmark.files import ROOT
from tests.run_page import BLOCK

PAGE = ROOT / "docs" / "add_a_method.md"
TEXT = PAGE.read_text(encoding="utf-8")
SUITE = """
name: small
backbone: tiny
corpus: {dataset: phantom, part: mimic, n: 64}
templates: ["a chest X-ray image of {}."]
validation:
  {task: zeroshot, dataset: phantom, part: nih, n: 64, kind: multilabel, metric: auroc, min_positives: 1,
   classes: [Effusion, Edema]}
tasks:
  zeroshot:
    datasets:
      rsna: {dataset: phantom, part: rsna, n: 64, kind: binary, classes: [No Finding, Pneumonia], positive: Pneumonia}
recipe: {epochs: 1, batch_size: 32}
"""


def copy_of_the_checkout(folder: Path) -> Path:
    """Copy what a user works in; commands started there write there."""
    for name in ("benchmark", "methods", "tasks", "configs", "results/paper", "tests/plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_benchmark.py", "pyproject.toml", "tests/run_page.py"):
        shutil.copy(ROOT / name, folder / Path(name).name)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)  # each command has a limit of its own
def test_the_page_runs_from_top_to_bottom(tmp_path):
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    (tmp_path / "small.yaml").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "run_page.py", str(PAGE), str(tmp_path / "small.yaml")],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    assert (tmp_path / "elsewhere" / "my_other.py").is_file()
    results = (checkout / "results" / "results.csv").read_text()
    assert "small,tiny,my_gate,1,zeroshot,rsna" in results


@pytest.mark.parametrize(
    ("code", "limit", "says"),
    [("def rest(): import time; time.sleep(60)\nrest()", 1.0, "in rest"), ("raise SystemExit(3)", 60.0, "")],
)
def test_a_command_that_hangs_or_fails_ends_the_page(code, limit, says):
    page = f"from tests.run_page import run; run('bad', ['-c', {code!r}], {limit}); print('not reached')"
    done = subprocess.run([sys.executable, "-c", page], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "$ bad\n"
    assert done.stderr.endswith(f"'bad' ended with {1 if says else 3}\n")
    assert says in done.stderr


def test_every_check_is_explained():
    table = set(re.findall(r"^\| ([a-z].*?) \|", TEXT.split("## 5.")[1].split("## 6.")[0], flags=re.M))
    assert table - {"check"} == set(CHECKS)


def test_every_block_is_run_or_compared():
    languages = {block["language"] for block in BLOCK.finditer(TEXT) if not block["file"]}
    assert languages == {"bash", "python", "toml"}
    (toml,) = (block["code"] for block in BLOCK.finditer(TEXT) if block["language"] == "toml")
    assert toml in (ROOT / "tests" / "plugins" / "sample" / "pyproject.toml").read_text()


def test_files_that_the_page_names_exist():
    named = re.findall(r"`((?:benchmark|methods|tests|configs|docs)/[\w/.]+)`", TEXT)
    made = {"methods/my_gate.py", "configs/methods/my_gate.yaml", "tests/methods/test_my_gate.py"}
    assert [name for name in named if name not in made and not (ROOT / name).exists()] == []


def test_methods_on_the_page_cost_at_most_60_lines():
    files = [block["code"] for block in BLOCK.finditer(TEXT) if (block["file"] or "").endswith(".py")]
    assert all(code.count("\n") <= 60 for code in files)

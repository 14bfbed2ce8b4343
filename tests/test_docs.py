"""Pages are true: commands parse and links lead somewhere; docs/add_a_method.md runs in a copy of the checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medpeft_bench as mb
import methods
from benchmark.cli import main
from benchmark.cli._parser import ArgumentParser, normalised, verb_module, verbs
from benchmark.conformance.checks import CHECKS, run_checks
from benchmark.files import ROOT
from benchmark.registry import load_plugins
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


def test_methods_on_the_page_cost_at_most_60_lines():
    files = [block["code"] for block in BLOCK.finditer(TEXT) if (block["file"] or "").endswith(".py")]
    assert all(code.count("\n") <= 60 for code in files)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/*.md")]
COMMAND = re.compile(
    r"^ *(?:\w+=\w+ |torchrun \S+ |python )*(?:run_benchmark\.py|medpeft-bench) (.*?)(?: [>|] .*)?$", re.M
)


def commands() -> list[list[str]]:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return [shlex.split(re.sub(r"[][]", "", command), comments=True) for command in COMMAND.findall(pages)]


def test_every_command_on_a_page_has_verbs_and_flags_that_exist():
    assert len(commands()) > 70
    for words in commands():
        verb = words.pop(0) if words and words[0] in verbs() else "run"
        parser = ArgumentParser(verb)
        verb_module(verb).add_arguments(parser)
        parser.read(normalised(words))


def test_files_that_pages_name_exist():
    made = {"methods/my_gate.py", "configs/methods/my_gate.yaml", "tests/methods/test_my_gate.py"}
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`((?:benchmark|methods|tasks|tests|configs|docs)/[\w/.]+)`", pages))
    assert [name for name in sorted(named - made) if not (ROOT / name).exists()] == []


def test_links_between_pages_lead_to_files_and_headings():
    lost = []
    for page in PAGES:
        for target, heading in re.findall(
            r"\]\((?!http)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")
        ):
            file = (page.parent / target).resolve() if target else page
            text = file.read_text(encoding="utf-8") if heading and file.is_file() else ""
            heads = {
                re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines()
                if line[:1] == "#"
            }
            lost += (
                [f"{page.name}: {target}#{heading}"]
                if not file.exists() or (heading and heading not in heads)
                else []
            )
    assert lost == []


# ---------------------------------------------------------------------- README
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)


def test_the_readmes_method_is_a_plugin_that_conforms(tmp_path):
    (tmp_path / "text_gain.py").write_text(code_of(README, "python")[0])
    assert load_plugins([str(tmp_path / "text_gain.py")]) == []
    results = run_checks(lambda backbone: methods.build("text_gain", backbone))
    assert [result for result in results if result.reason] == []


def test_the_readmes_python_example_names_what_there_is():
    tree = ast.parse(code_of(README, "python")[1])
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = {*dir(mb), *dir(mb.Results), *mb.Results.__dataclass_fields__, *dir(mb.Adapted)}
    assert used <= known  # tests/test_python.py runs them
    assert {"run", "best", "load_adapted", "predict"} <= used
    assert set(re.findall(r"also \.(\w+), \.(\w+)\(\"1\"\), \.(\w+)", README)[0]) <= known


def test_the_readme_is_short_and_its_result_can_be_replaced():
    assert len(README.splitlines()) <= 150
    assert README.count("<!-- result: begin -->") == README.count("<!-- result: end -->") == 1
    for word in ("suite", "corpus", "backbone", "cell", "Heads"):
        assert f"**{word}**" in README


def test_ci_uses_the_readmes_commands():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ('pip install -e ".[dev]"', "python -m pytest -q -n 2", "--methods all --tasks zeroshot"):
        assert command in README
        assert command.removeprefix("pip install ") in ci


# ---------------------------------------------------------------------- docs/add_a_task.md
@pytest.mark.slow
def test_the_example_task_is_short_and_runs_with_the_command_of_the_page(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "add_a_task.md").read_text(encoding="utf-8")
    (code,), (suite,), (command,) = (code_of(page, language) for language in ("python", "yaml", "bash"))
    assert len(code.strip().splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    Path("linear_probe.py").write_text(code)
    Path("probe.yaml").write_text(suite)
    words = shlex.split(command)
    assert words[:2] == ["python", "run_benchmark.py"]
    assert main([*words[2:], "--data-root", "data", "--device", "cpu", "--jobs", "1"]) == 0
    for method in ("zero_shot", "clip_lora"):
        result = Path(f"results/runs/probe/tiny/{method}/seed-0/linear_probe.json")
        score = json.loads(result.read_text())["datasets"]["chexpert_5x200"]["metrics"]["acc"]
        assert score["n"] == 200
        assert 0.3 < score["ci_low"] < score["value"] < score["ci_high"]  # one class of five: chance is 0.2
    table = Path("results/report/table_1.md").read_text()
    assert "CheXpert 5x200 ACC [%], n = 200 | CheXpert 5x200 log loss [nats], n = 200 |" in table
    assert "- CheXpert 5x200 log loss: CLIP-LoRA (" in table
    assert " nats, p " in table

"""Every wrong request is one clear line per problem and exit code 2; nothing is written, and no traceback is shown."""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmark import files as paths
from benchmark.cli import _parser, main
from benchmark.cli import report as report_verb
from benchmark.config import layers
from benchmark.files import SEEN
from tests.bad_input import adapters, configs, data, plugins, prepared, results, verbs, weights, words
from tests.bad_input.case import RUN, Case, files, small, snapshot, together

TABLES = (words, verbs, configs, plugins, data, prepared, results, adapters, weights)
CASES: list[Case] = [case for table in TABLES for case in table.CASES]
BEGINS = {"", *(getattr(_parser.verb_module(verb), "BEGINS", "") for verb in _parser.verbs())}
_UNCLEAR = re.compile(r"Traceback|fault of the program|object at 0x")
_RAISED = re.compile(r"\b[A-Z]\w*Error\b")
"""An exception of Python; only what a plugin raises may be named, and then the case says so."""


@pytest.fixture(autouse=True)
def _process_put_back(tmp_path, monkeypatch):
    """Run each case in its own folder, without a cache of models, and put signals and variables back."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


def test_no_case_stands_there_twice():
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    assert len({(tuple(case.argv), case.name) for case in CASES}) >= 150


def check(case: Case, status: int, output: str, before: dict[str, bytes], folder: Path) -> None:
    """Hold what a command did to its case."""
    errors = [line for line in output.splitlines() if not line.startswith("warning: ") and line not in BEGINS]
    assert status == 2, errors
    assert not any(_UNCLEAR.search(line) for line in errors), errors
    assert all(name in " ".join(case.lines) for line in errors for name in _RAISED.findall(line)), errors
    assert all(line.startswith("error: ") for line in errors), errors
    assert len(errors) == len(case.lines), errors
    for text in case.lines:
        assert any(text in line for line in errors), (text, errors)
    after = snapshot(folder)
    # what is known of files that were hashed, once they are old enough to be known
    new = [name for name in after if after[name] != before.get(name) and not name.endswith(SEEN)]
    assert [name for name in new if not any(fnmatch.fnmatch(name, glob) for glob in case.leaves)] == []
    assert before.keys() <= after.keys()


def begun(case: Case, folder: Path) -> dict[str, bytes]:
    """Write the files of a case and return what is there."""
    if case.setup is not None:
        case.setup(folder)
    return snapshot(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_request_is_refused(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = begun(case, tmp_path)
    check(case, main(case.argv), capsys.readouterr().err, before, tmp_path)


BY_A_SHELL = (
    "a verb with a typo", "run: a flag with a typo", "a flag without its value", "--methods zero_shoot",
    "list metods", "recipe.lrr=1", "suite: an open bracket", "suite: bytes",
    "--config: - lr: 1", "--plugins nowhere_at_all", "report --output-dir nowhere", "export-adapter",
)  # fmt: skip


@pytest.mark.parametrize("name", BY_A_SHELL)
def test_a_shell_sees_the_same(name: str, tmp_path: Path):
    """In a process of its own, with a terminal of forty columns and a locale without umlauts."""
    case = next(case for case in CASES if case.name == name)
    before = begun(case, tmp_path)
    done = subprocess.run(
        [sys.executable, str(paths.ROOT / "run_benchmark.py"), *case.argv],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "40", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.rstrip("\n") in BEGINS
    check(case, done.returncode, done.stderr, before, tmp_path)


METHOD_FILES = {
    "recipe: {lr: [1\n": "zero_shot.yaml: not valid YAML in line 2",
    "- 1\n": "zero_shot.yaml: expected keys and values, got list",
    "optoins: {}\n": "methods.zero_shot.optoins: unknown key 'optoins'. Did you mean 'options'?",
    "source: 3\n": "zero_shot.yaml:methods.zero_shot.source: expected a text, got 3",
    "options: {authors: 3}\n": "methods.zero_shot.options.authors: expected keys and values, got 3",
    "recipe: 3\n": "zero_shot.yaml:methods.zero_shot.recipe: expected keys and values, got 3",
    "recipe: {common: {lr: fast}}\n": "zero_shot.yaml:methods.zero_shot.recipe.common.lr: expected a number",
    "recipe: {authors: 3}\n": "methods.zero_shot.recipe.authors: expected keys and values, got 3",
    "options: {r: 3}\n": "methods.zero_shot.options.r: unknown option of method 'zero_shot' 'r'",
}


@pytest.mark.parametrize(("content", "says"), METHOD_FILES.items())
def test_the_settings_of_a_method(content, says, tmp_path, monkeypatch, capsys):
    small(tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "zero_shot.yaml").write_text(content)
    monkeypatch.setattr(
        layers,
        "configs",
        lambda *parts: tmp_path.joinpath(*parts) if parts[0] == "methods" else paths.configs(*parts),
    )
    case = Case("", RUN, says)
    before = snapshot(tmp_path)
    check(case, main(case.argv), capsys.readouterr().err, before, tmp_path)


def test_what_only_a_run_finds_fails_its_cell_with_one_line(tmp_path, capsys):
    together(small, weights.model, files({weights.WEIGHTS: b"cut"}))(tmp_path)
    words = f"{RUN} --backbone local-dir:model --cell zero_shot/seed-0"  # no report, which takes long
    assert main(words.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: runs/small/")
    assert "open_clip_model.safetensors: cannot be read as weights" in line
    assert not list(tmp_path.glob("out/runs/*/*/*/*/zeroshot.json"))


def test_debug_shows_where_it_arose(capsys):
    assert main(["--debug", "--suite", "phantm"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.splitlines()[-1].startswith("error: --suite: unknown suite 'phantm'")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RuntimeError("far"), 3, "error: RuntimeError: far: this is a fault of the program, or of a plugin."),
        (
            OSError(28, "No space left on device", "out/a.csv"),
            2,
            "error: 'out/a.csv': No space left on device",
        ),
        (KeyboardInterrupt(), 130, "warning: stopped. The same command goes on from here"),
    ],
)
def test_what_no_one_foresaw_is_one_line_too(error, status, line, monkeypatch, capsys):
    def raising(*_):
        raise error

    monkeypatch.setattr(report_verb, "main", raising)
    assert main(["report"]) == status
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith(line)

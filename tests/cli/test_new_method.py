"""The verb new-method: three files or none, and they work as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from benchmark.cli import main, new_method
from benchmark.files import ROOT, read_yaml
from benchmark.registry import METHODS


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout, and the current folder in it."""
    root = tmp_path / "checkout"
    (root / "methods" / "layers").mkdir(parents=True)
    monkeypatch.setattr(new_method, "ROOT", root)
    monkeypatch.chdir(root)
    return root


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_in_the_checkout_files_go_where_they_are_found(checkout, capsys):
    assert main(["new-method", "two_words"]) == 0
    written = ["configs/methods/two_words.yaml", "methods/two_words.py", "tests/methods/test_two_words.py"]
    assert files_in(checkout) == written
    out = capsys.readouterr().out
    assert "wrote methods/two_words.py" in out
    assert "python run_benchmark.py --methods zero_shot,two_words\n" in out
    assert "--plugins" not in out
    settings = read_yaml(checkout / "configs/methods/two_words.yaml")
    assert settings["options"] == {"hidden": 8}
    assert set(settings["recipe"]) == {"common", "authors"}


def test_elsewhere_files_lie_side_by_side_and_the_commands_name_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "two_words"]) == 0
    assert files_in(tmp_path) == ["test_two_words.py", "two_words.py", "two_words.yaml"]
    assert (
        "--methods zero_shot,two_words --plugins two_words.py --config two_words.yaml"
        in capsys.readouterr().out
    )
    assert list(read_yaml(tmp_path / "two_words.yaml")["methods"]["two_words"]) == [
        "source",
        "options",
        "recipe",
    ]


def test_a_folder_can_be_chosen_from_within_the_checkout(checkout):
    assert main(["new-method", "two_words", "--to", "mine/new"]) == 0
    assert files_in(checkout) == [
        f"mine/new/{name}" for name in ("test_two_words.py", "two_words.py", "two_words.yaml")
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (["cliplora"], "'cliplora' is another spelling of the method 'clip_lora'"),
        (["layers"], "'layers' is a folder beside the new file"),
        (["method"], "'method' gives a class that the file imports as well"),
    ],
)
def test_names_that_cannot_be_used_are_refused_in_one_line(checkout, capsys, name, says):
    assert main(["new-method", *name]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert files_in(checkout) == []


def test_aliases_are_taken_too(checkout, capsys, world):
    from benchmark.registry import load_plugins

    load_plugins([str(world / "plugin.py")])
    assert main(["new-method", "fake_one", "--to", str(checkout)]) == 2
    assert "'fake_one' is a method already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "there", ["methods/two_words.py", "configs/methods/two_words.yaml", "tests/methods/test_two_words.py"]
)
def test_nothing_is_written_over(checkout, capsys, there):
    (checkout / there).parent.mkdir(parents=True, exist_ok=True)
    (checkout / there).write_text("mine")
    assert main(["new-method", "two_words"]) == 2
    assert f"'{there}' is there already" in capsys.readouterr().err
    assert files_in(checkout) == [there]
    assert (checkout / there).read_text() == "mine"


def test_all_three_or_none(checkout, capsys):
    (checkout / "tests").write_text("a file where a folder should be")
    assert main(["new-method", "two_words"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert files_in(checkout) == ["tests"]


def test_templates_cost_at_most_60_lines_and_are_clean(checkout):
    shutil.copy(ROOT / "pyproject.toml", checkout)
    assert main(["new-method", "a_name_of_thirty_letters_in_all"[:30].rstrip("_")]) == 0
    assert main(["new-method", "gate", "--to", "tests/elsewhere"]) == 0
    assert all(
        (checkout / name).read_text().count("\n") <= 60 for name in files_in(checkout) if name.endswith(".py")
    )
    ours = "lint.isort.known-first-party=['benchmark', 'methods']"
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", ours, "."],
            cwd=checkout, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_written_method_and_its_test_work_outside_the_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "gate_of_mine"]) == 0
    assert main(["check-method", "gate_of_mine.py", "--only", "count", "identity"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not passes_the_checks",
         "test_gate_of_mine.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed, 1 deselected" in done.stdout  # tests/test_docs.py runs the other one


def test_settings_of_the_written_file_are_read(tmp_path, monkeypatch):
    from benchmark.config.load import load_config

    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "gate_of_ours"]) == 0
    (tmp_path / "gate_of_ours.yaml").write_text(
        (tmp_path / "gate_of_ours.yaml")
        .read_text()
        .replace("hidden: 8", "hidden: 5")
        .replace("lr: 1.0e-3", "lr: 2.0e-3")
    )
    config = load_config(
        {"plugins": ["gate_of_ours.py"], "methods": ["gate_of_ours"]}, (), "gate_of_ours.yaml"
    )
    assert config.options["gate_of_ours"] == {"hidden": 5}
    assert config.recipes["gate_of_ours"].lr == 2e-3
    assert METHODS.get("gate_of_ours").identity_at_init

"""Every command of the README works, one after another, in one folder: none is a dead end for the next.

The cells themselves are stood in for (tests/config/test_short.py and tests/run have real ones), and what methods can
do (tests/conformance/test_probes.py); planning, storing, reporting, comparing and all checks of settings are real.
"""

from __future__ import annotations

import csv
import re
import shlex

import numpy as np
import PIL.Image
import pytest

from benchmark.cli import list as list_verb
from benchmark.cli import main
from benchmark.cli import run as run_verb
from benchmark.conformance import checks
from benchmark.files import ROOT
from benchmark.report import report
from tests.test_docs import README, code_of

COMMAND = re.compile(r"^ {4}(?:python3 -m venv .*? && )?python run_benchmark\.py(.*)$", re.M)


def commands():
    found = [shlex.split(command, comments=True) for command in COMMAND.findall(README)]
    main_job = re.search(r"python run_benchmark\.py (--methods all --tasks zeroshot)$", README, re.M)[
        1
    ].split()
    return [main_job, *(words for words in found if words != main_job)]


def cell(spec, folder, reporter):
    """Store what a cell leaves, with made-up scores."""
    generator = np.random.default_rng([len(spec.cell), spec.seed])
    folder.write_tensors("adapter.safetensors", {})
    folder.write_json("efficiency.json", {"trainable_parameters": 0 if spec.method == "zero_shot" else 9})
    folder.write_json("adapt.json", {"adapt_hash": spec.adapt_hash, "pairs": 1, "best": None})
    ids = np.array([f"i{at}" for at in range(20)])
    for task, options in spec.tasks.items():
        results = {}
        for name, entry in options["datasets"].items():
            value = float(generator.uniform(0.4, 0.8))
            metric = {"zeroshot": "acc", "segmentation": "dice", "detection": "map"}.get(task, "pointing")
            scores = {metric: {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 20}}
            classes = len(entry.get("classes") or "ab")
            folder.write_npz(
                f"predictions/{task}-{name}.npz",
                {"image_id": ids, "patient_id": ids, "similarity": generator.random((20, classes), np.float32),
                 "target": generator.integers(0, 2, 20)},
            )  # fmt: skip
            kind = entry.get("kind", task)
            results[name] = {"n": 20, "kind": kind, "metrics": scores, "info": {"logit_scale": 1.0}}
        folder.write_json(
            f"{task}.json",
            {"task": task, "status": "success", "task_hash": spec.task_hash(task), "datasets": results},
        )


@pytest.fixture
def checkout(tmp_path, monkeypatch, stand_in):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "text_gain.py").write_text(code_of(README, "python")[0])
    with (tmp_path / "films.csv").open("w", newline="") as file:
        rows = [["path", "report", "part", "finding"]]
        for at in range(16):
            PIL.Image.fromarray(np.full((64, 64), 9 * at, np.uint8)).save(tmp_path / f"{at}.png")
            part = ("train", "train", "val", "test")[at % 4]
            rows.append([f"{at}.png", f"Film {at} is of some kind.", part, ("a", "b")[(at // 4) % 2]])
        csv.writer(file).writerows(rows)
    stand_in(cell)
    monkeypatch.setattr(run_verb, "_report", lambda *_: None)  # the verb `report` writes it, once
    monkeypatch.setattr(report, "write_figures", lambda *_: [])
    monkeypatch.setattr(report, "page", lambda *_: "")
    few = {name: checks.CHECKS[name] for name in ("declared parameter count", "identity at initialisation")}
    monkeypatch.setattr(checks, "CHECKS", few)
    nothing = dict.fromkeys(("rows", "columns", "cells", "remarks", "usable"), ())
    monkeypatch.setattr(list_verb, "_probed", lambda *_: nothing)
    return tmp_path


@pytest.mark.slow
def test_the_commands_work_one_after_another_in_one_folder(checkout, capsys):
    found = commands()
    assert len(found) > 14
    for words in found:
        runs = words[0].startswith("-")
        more = ["--jobs", "1", "--device", "cpu"] if runs else []
        code = main([*words, *more])
        said = capsys.readouterr()
        if {"DATA", "DOWNLOADS/rsna"} & set(words) and "--methods" not in words:
            assert code == 2, words  # the data are the reader's
            assert "error: " in said.err
            continue
        assert code == 0, (words, said.err[-2000:])
    with (checkout / "results/results.csv").open() as file:
        rows = {(row["method"], row["seed"]) for row in csv.DictReader(file)}
    assert {
        ("clip_lora", "0"),
        ("clip_lora+recipe.epochs=8,recipe.lr=0.003", "2"),
        ("ace_lora+incidence=gat", "0"),
    } <= rows
    table = (checkout / "results/report/table_1.md").read_text()
    assert "CLIP-LoRA (recipe.epochs=8,recipe.lr=0.003)" in table
    assert "| CLIP-LoRA |" in table or "| CLIP-LoRA\\* |" in table

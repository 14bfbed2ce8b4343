"""reproduce: a cell runs again from its folder alone, and whatever is different is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmark.cli import main
from benchmark.errors import BenchmarkError, ConfigError, StoreError
from benchmark.files import ROOT
from benchmark.run import reproduce as reproduction
from benchmark.run.execute import Outcome
from benchmark.run.reproduce import read_cell
from benchmark.store.cells import CellFolder
from benchmark.store.compare import compare_cells, differing_origin

SUITE = """
name: small
backbone: tiny
templates: ["a film of {}."]
corpus: {dataset: phantom, part: mimic, n: 24}
validation: {task: zeroshot, dataset: phantom, part: nih, n: 32, kind: multilabel, metric: auroc, min_positives: 1,
             classes: [Edema, Effusion, Pneumothorax]}
tasks:
  zeroshot:
    bootstrap: 10
    datasets:
      siim: {dataset: phantom, part: siim, n: 24, kind: binary, positive: Pneumothorax,
             classes: [No Finding, Pneumothorax]}
recipe: {epochs: 2, batch_size: 8, lr: 0.01, eval_batch_size: 32}
"""
CELL = "runs/small/tiny/clip_lora/seed-0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished cell in ``out``, and in ``again`` what reproduce made of it in a process of its own."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "suite.yaml").write_text(SUITE)
    flags = ["--suite", "suite.yaml", "--methods", "clip_lora", "--jobs", "1", "--cell", "clip_lora/seed-0"]
    steps = ["--limit", "20", "--max-steps", "3", "--data-root", "data", "--output-dir", "out"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*flags, *steps]) == 0
    finally:
        os.chdir(before)
    (folder / "suite.yaml").unlink()  # the cell's own folder is enough
    command = [
        sys.executable,
        str(ROOT / "run_benchmark.py"),
        "reproduce",
        f"out/{CELL}",
        "--data-root",
        "data",
    ]
    done = subprocess.run(
        [*command, "--output-dir", "again"], cwd=folder, capture_output=True, text=True, check=False
    )
    (folder / "said.txt").write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    return folder


@pytest.fixture
def changed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellFolder:
    """A copy of the cell, for changes; running it again gives what it gave before."""

    def copy(stored: Any, store: Any, _: Any) -> Outcome:
        shutil.copytree(made / "again" / CELL, store.cell(stored.spec.folder).path)
        return Outcome("done")

    monkeypatch.setattr(reproduction, "run_again", copy)
    return CellFolder(Path(shutil.copytree(made / "out" / CELL, tmp_path / CELL)))


def rewrite(cell: CellFolder, name: str, **values: Any) -> None:
    path = cell.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reproduce(cell: CellFolder, *words: str) -> int:
    return main(["reproduce", str(cell.path), *words])


def test_the_same_machine_gives_the_same_bits(made: Path) -> None:
    code, *said = (made / "said.txt").read_text().splitlines()
    assert (code, "equal, bit for bit" in said) == ("0", True), said
    rows = [line for line in said if "bit-identical" in line]
    assert [row.split()[0] for row in rows] == [
        "adapter.safetensors", "history.jsonl", "adapt.json", "zeroshot.json", "predictions/zeroshot-siim.npz",
    ]  # fmt: skip
    files = compare_cells(CellFolder(made / "out" / CELL), CellFolder(made / "again" / CELL), ["zeroshot"])
    assert files[0].count > 9_000  # every trained number
    assert sum(file.differing for file in files) == 0


def test_without_an_output_dir_nothing_is_left(changed: CellFolder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert reproduce(changed) == 0
    assert list((tmp_path / "temporary").iterdir()) == []


def test_one_changed_weight_is_named(changed: CellFolder, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = changed.read_tensors("adapter.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(-1)[0] += 0.25
    changed.write_tensors("adapter.safetensors", tensors)
    assert reproduce(changed) == 1
    out = capsys.readouterr().out
    assert f"largest difference 0.25, at {name}" in out
    assert "different: 1 of 5 files" in out
    assert "Was a file of the cell changed" in out
    assert reproduce(changed, "--tolerance", "0.3") == 0
    assert "equal within 0.3" in capsys.readouterr().out


def test_changed_metrics_texts_and_predictions_are_named(
    changed: CellFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    result = changed.read_json("zeroshot.json")["datasets"]
    result["siim"]["metrics"]["acc"]["value"] += 1e-12
    result["siim"]["info"]["classes"][1] = "Edema"
    rewrite(changed, "zeroshot.json", datasets=result)
    arrays = changed.read_npz("predictions/zeroshot-siim.npz")
    changed.write_npz("predictions/zeroshot-siim.npz", arrays | {"target": arrays["target"][1:]})
    history = changed.read_history()
    history[1]["val_auroc"], history[1]["seconds"] = None, 1e9  # times are never the same
    changed.write_history(history[:2])
    assert reproduce(changed, "--tolerance", "1") == 1
    out = capsys.readouterr().out
    assert "siim.info.classes.1: Edema then, Pneumothorax now" in out
    assert "target: shape (19,) then, (20,) now" in out
    assert "row 1.val_auroc: " in out
    assert "different: 3 of 5 files" in out


def test_other_versions_threads_and_commits_are_the_likely_reason(
    changed: CellFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = changed.read_json("provenance.json")
    rewrite(changed, "provenance.json", python="3.9.1", packages=origin["packages"] | {"torch": "1.0"})
    rewrite(changed, "efficiency.json", threads=64)
    assert reproduce(changed) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("although these differ:") + 1 :]
    assert [line.partition(":")[0].strip() for line in listed] == ["python", "packages.torch", "threads"]
    assert listed[2] == "  threads: 64 then, 1 now"
    rewrite(changed, "adapt.json", pairs=7)
    assert reproduce(changed) == 1
    assert "likely because of:" in capsys.readouterr().out


def test_clocks_and_machines_say_nothing(made: Path) -> None:
    assert differing_origin(CellFolder(made / "out" / CELL), CellFolder(made / "again" / CELL)) == []


# --- what is read ---------------------------------------------------------------------------------------------


def settings(cell: CellFolder, **values: Any) -> CellFolder:
    path = cell.path / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    return cell


def read(cell: CellFolder, **words: Any) -> Any:
    return read_cell(cell.path, **{"data_root": Path("data"), **words})


def test_settings_come_from_the_folder_and_places_from_the_user(changed: CellFolder, tmp_path: Path) -> None:
    stored = read(changed)
    assert stored.spec.adapt_hash == changed.read_config()["adapt_hash"]
    assert (stored.spec.limit, stored.spec.recipe.max_steps, stored.threads) == (20, 3, 1)
    assert stored.spec.data_root == Path("data")
    suite = changed.read_config()["suite"]
    suite["corpus"] = {"dataset": "csv", "file": "films.csv"}
    cell = settings(changed, suite=suite, pretrained="w.bin", backbone="local-dir:model")
    before = read(cell).spec
    places = [Path("/far away/films.csv"), Path("/far away/w.bin"), Path("/far away/model")]
    placed = read(cell, files=places).spec
    assert placed.suite["corpus"]["file"] == "/far away/films.csv"
    assert (placed.pretrained, placed.backbone) == ("/far away/w.bin", "local-dir:/far away/model")
    assert placed.adapt_hash == before.adapt_hash


def test_what_the_weights_do_not_depend_on_may_differ(changed: CellFolder) -> None:
    cell = settings(changed, device="cuda:7", num_workers=3)
    assert read(cell, device="cpu").spec.adapt_hash == cell.read_config()["adapt_hash"]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device"):
            read(cell)


def test_a_cell_names_plugins_but_does_not_run_them(changed: CellFolder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import os\nos.mkdir('ran')\n")
    cell = settings(changed, plugins=["mine.py"])
    with pytest.raises(
        ConfigError, match="made with the plugins mine.py, which are code: name them with --plugins"
    ):
        read(cell)
    assert not (tmp_path / "ran").exists()
    assert read(cell, plugins=("mine.py",)).spec.plugins == ("mine.py",)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({"adapter.safetensors": "half"}, "adapter.safetensors: missing or damaged"),
        ({"zeroshot.json": "{"}, "zeroshot.json: damaged"),
        ({"predictions/zeroshot-siim.npz": "PK"}, "zeroshot-siim.npz: missing or damaged"),
        ({"history.jsonl": "{"}, "history.jsonl: damaged"),
        (
            {"adapter.safetensors": None, "zeroshot.json": None},
            "is unfinished: there is nothing to compare with",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(changed: CellFolder, capsys, damage: dict[str, Any], line: str) -> None:
    for name, text in damage.items():
        changed.remove(name) if text is None else changed.inside(name).write_text(text)
    assert reproduce(changed) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert error.count("\n") == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seed": "0/../../../x"}, "config.yaml: "),
        ({"recipe": {"lr": 1}}, "betas"),
        ({"recipe": None}, "not the settings of a cell"),
        ({"later": 1}, "or of another version"),
        ({"method": "methd"}, "unknown method 'methd'"),
        ({"tasks": {"../x": {}}}, "unknown task '../x'"),
        ({"tasks": [1]}, "tasks: "),
    ],
)
def test_foreign_settings_are_one_line(changed: CellFolder, values: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        read(settings(changed, **values))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- running again --------------------------------------------------------------------------------------------


def test_an_imported_adapter_is_evaluated_again(made: Path, tmp_path: Path, monkeypatch) -> None:
    cell = CellFolder(Path(shutil.copytree(made / "out" / CELL, tmp_path / CELL)))
    cell.remove("history.jsonl")  # nothing was trained
    rewrite(cell, "adapt.json", imported={"file": "a.pt", "sha256": "0", "not_in_file": []})
    monkeypatch.setattr("benchmark.run.cell.Trainer", lambda *_, **__: pytest.fail("trained"))
    words = ("--data-root", str(made / "data"), "--output-dir", str(tmp_path / "again"))
    assert reproduce(cell, *words) == 0
    assert CellFolder(tmp_path / "again" / CELL).read_json("provenance.json")["imported"]["file"] == "a.pt"
    assert reproduce(cell, *words) == 2  # the second run is there already


def test_a_second_run_that_fails_is_told(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    cell = CellFolder(Path(shutil.copytree(made / "out" / CELL, tmp_path / CELL)))
    monkeypatch.setattr(
        "benchmark.run.cell.run_cell", lambda *_: (_ for _ in ()).throw(StoreError("no room"))
    )
    assert reproduce(cell, "--data-root", str(made / "data")) == 1
    assert "the second run failed: no room" in capsys.readouterr().err


# --- comparing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "differing", "largest"),
    [
        (np.float32([1, 2]), np.float32([1, 2.5]), 1, 0.5),
        (np.float32([np.nan, 1]), np.float32([np.nan, 1]), 0, 0.0),
        (np.float32([np.nan]), np.float32([1]), 1, np.inf),
        (np.float32([0.0]), np.float32([-0.0]), 1, 0.0),
        (np.float32([1]), np.float64([1]), 1, np.inf),
        (np.array(["a", "b"]), np.array(["a", "long"]), 1, np.inf),
        (np.array([True, False]), np.array([True, True]), 1, np.inf),
        (np.int64([3, 4]), np.int64([3, 9]), 1, 5.0),
    ],
)
def test_arrays_are_compared_by_their_bits(tmp_path: Path, then, now, differing, largest) -> None:
    cells = []
    for name, values in (("then", then), ("now", now)):
        cell = CellFolder(tmp_path / name)
        cell.write_config({})
        cell.write_json("t.json", {"datasets": {"d": {}}})
        cell.write_npz("predictions/t-d.npz", {"x": values})
        cells.append(cell)
    found = compare_cells(cells[0], cells[1], ["t"])[1]
    assert (found.count, found.differing, found.largest) == (then.size, differing, largest)
    assert found.within(0.0) == (differing == 0)
    assert found.within(10.0) == (largest < 10)


def test_ids_that_are_hashed_with_another_key_are_the_same_ids(tmp_path: Path) -> None:
    def cell(name: str, ids: list[str], hashed: bool) -> CellFolder:
        found = CellFolder(tmp_path / name)
        found.write_config({"hash_ids": hashed})
        found.write_json("t.json", {"datasets": {"d": {}}})
        found.write_npz("predictions/t-d.npz", {"patient_id": np.array(ids)})
        return found

    first = cell("a", ["p", "q", "p"], True)
    assert compare_cells(first, cell("b", ["1", "2", "1"], True), ["t"])[1].notes
    assert compare_cells(first, cell("c", ["1", "2", "2"], True), ["t"])[1].differing == 3
    assert compare_cells(first, cell("d", ["1", "2", "1"], False), ["t"])[1].differing == 3

"""A finished run is reused only while it would be made of the same data, weights, arithmetic and formulas."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark import files
from benchmark.backbones import load_backbone
from benchmark.backbones.published import build
from benchmark.cli import main
from benchmark.cli import run as run_verb
from benchmark.config.load import load_config
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter, Stopped
from benchmark.data.entries import load_dataset
from benchmark.errors import StoreError
from benchmark.plan import CellSpec, make_plan
from benchmark.preprocess import Fitting
from benchmark.run import cell, identity
from benchmark.run.execute import execute_cell
from benchmark.run.shared_results import TowerResults
from benchmark.store.cells import CellFolder, Store
from benchmark.store.compare import differing_origin
from tasks.base import DatasetResult

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SUITE = """
name: own
templates: ["a film of {}."]
corpus: {dataset: csv, file: FOLDER/films.csv, part: train, label_columns: [Edema]}
validation: {task: zeroshot, dataset: csv, file: FOLDER/films.csv, part: val, kind: multilabel, metric: auroc,
             min_positives: 1, classes: [Edema]}
tasks:
  zeroshot:
    bootstrap: 5
    datasets:
      films: {dataset: csv, file: FOLDER/films.csv, part: test, kind: binary, classes: [normal, Edema], positive: Edema}
recipe: {epochs: 1, batch_size: 8}
"""
CELL = "runs/own/local-dir-model/zero_shot/seed-0"


def write_data(folder: Path) -> Path:
    """Write 24 images with reports and labels, 8 each to adapt, validate and test on, and a suite."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "split", "patient_id", "Edema"])
        for i in range(24):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{i:02d}.png")
            part = ("train", "val", "test")[i // 8]
            writer.writerow([f"{i:02d}.png", f"Report {i}.", part, f"p{i}", i % 2])
    (folder / "own.yaml").write_text(SUITE.replace("FOLDER", str(folder)))
    return folder


def write_model(folder: Path, **vision: Any) -> Path:
    """Write a small CLIP with random weights as a repository of the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CLIP | {"vision_cfg": {**CLIP["vision_cfg"], **vision}}
    torch.manual_seed(0)
    save_file(build(config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def words(home: Path, *more: str, data: str = "A", model: str = "A/model") -> list[str]:
    return [
        "--suite", str(home / data / "own.yaml"), "--backbone", f"local-dir:{home / model}", "--max-steps", "1",
        "--methods", "zero_shot,taskres", "--jobs", "1", "--device", "cpu", "--output-dir", str(home / "out"),
        "--data-root", str(home / "root"), *more,
    ]  # fmt: skip


def auroc(home: Path) -> float:
    result = CellFolder(home / "out" / CELL).read_json("zeroshot.json")
    return float(result["datasets"]["films"]["metrics"]["auroc"]["value"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model, and their finished runs."""
    home = tmp_path_factory.mktemp("site")
    write_data(home / "A")
    write_model(home / "A" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_verb, "_report", lambda *_: None)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        assert main(words(home)) == 0
    return home


@pytest.fixture
def home(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same; what a test does to it is undone, and no run writes a report."""
    monkeypatch.setattr(run_verb, "_report", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(site / "cache"))
    shutil.copytree(site, tmp_path / "kept")
    yield site
    shutil.rmtree(site)
    shutil.copytree(tmp_path / "kept", site)


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def flip_labels(home: Path, part: str = ",test,", data: str = "A") -> None:
    def flipped(line: str) -> str:
        return line[:-2] + ("0" if line[-2] == "1" else "1") + "\n" if part in line else line

    edit(home / data / "films.csv", lambda lines: [flipped(line) for line in lines])


def edit_corpus(home: Path) -> None:
    edit(home / "A" / "films.csv", lambda lines: [line.replace("Report 3.", "Another.") for line in lines])


def replace_image(home: Path) -> None:
    shutil.copy(home / "A" / "01.png", home / "A" / "20.png")


def replace_weights(home: Path) -> None:
    path = home / "A" / "model" / "open_clip_model.safetensors"
    save_file({name: value + (value.ndim > 1) for name, value in load_file(path).items()}, path)


def change_activation(home: Path) -> None:
    path = home / "A" / "model" / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": CLIP | {"quick_gelu": True}}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (flip_labels, "and 1 more: finished with other data (zeroshot/films: labels or texts changed)"),
        (edit_corpus, "taskres/seed-0: finished with other data (corpus: labels or texts changed)"),
        (replace_image, "and 1 more: finished with other data (zeroshot/films: images changed)"),
        (replace_weights, "and 1 more: finished with other weights or settings of the backbone"),
        (change_activation, "and 1 more: finished with other weights or settings of the backbone"),
    ],
)
def test_what_was_made_of_something_else_is_not_reused(
    home: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], named: str
) -> None:
    change(home)
    before = {path: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()}
    for verb in (["run"], ["run", "--dry-run"], ["validate"]):
        assert main([*verb, *words(home)]) == 2, verb
        told = " ".join(capsys.readouterr().err.split())
        assert f"{named}. --overwrite replaces them, or choose another --output-dir" in told, verb
    assert before == {path: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()}


def test_other_formulas_and_other_arithmetic(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("benchmark.backbones.towers.precision.resolve", lambda *_: "bf16")
        assert main(words(home)) == 2
        assert "finished with other arithmetic (fp32, now bf16)." in capsys.readouterr().err
    now = identity.NUMBERS + 1
    monkeypatch.setattr(identity, "NUMBERS", now)
    assert main(words(home)) == 2
    older = f"finished with an older version of the program (numbers {now - 1}, now {now})."
    assert older in capsys.readouterr().err
    folder = CellFolder(home / "out" / CELL)
    stored = folder.read_json("adapt.json")
    folder.write_json("adapt.json", {key: stored[key] for key in stored if key != identity.KEY})
    assert main(words(home)) == 2
    assert f"(numbers 0, now {now})" in capsys.readouterr().err  # of a program that kept no identities


def test_names_that_end_alike_share_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "A", home / "B")
    suite = home / "B" / "own.yaml"
    suite.write_text(SUITE.replace("FOLDER", str(home / "B")))
    assert main(words(home, data="B", model="B/model")) == 0  # the same content elsewhere is the same
    assert "2 reused" in capsys.readouterr().out

    flip_labels(home, data="B")
    assert main(words(home, data="B")) == 2
    assert "other data (zeroshot/films: labels or texts changed)" in capsys.readouterr().err
    (home / "B" / "films.csv").unlink()
    assert main(words(home, data="B")) == 2
    assert "Finished runs cannot be compared with it: `report` shows them" in capsys.readouterr().err

    write_model(home / "B" / "model", mlp_ratio=2.0)
    assert main(words(home, model="B/model")) == 2
    assert "other weights or settings of the backbone" in capsys.readouterr().err


def test_a_touched_file_is_read_once_and_changes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = files.file_sha256
    assert main(words(home)) == 0
    monkeypatch.setattr(files, "file_sha256", lambda path: read.append(path.name) or original(path))
    for path in (home / "A").rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    time.sleep(0.2)  # what changed a moment ago is read again, as it may change once more
    for _ in range(2):
        assert main(words(home)) == 0
        assert "2 reused" in capsys.readouterr().out
    assert read == ["open_clip_model.safetensors"]


def test_data_that_are_made_again_are_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(home / "root")
    assert main(words(home, "--dry-run")) == 0
    assert not (home / "root").exists()
    assert "not everything could be compared" in capsys.readouterr().err
    assert main(words(home)) == 0
    assert "2 reused" in capsys.readouterr().out


def test_flipped_labels_give_the_other_auroc_once_that_is_asked_for(home: Path) -> None:
    before = auroc(home)
    flip_labels(home)
    assert main(words(home, "--eval-only")) == 0  # the adapters still are what they were
    assert auroc(home) == pytest.approx(1 - before)
    assert main(words(home)) == 0

    flip_labels(home, part=",train,")
    assert main(words(home)) == 2
    assert main(words(home, "--overwrite")) == 0
    assert main(words(home)) == 0


GAIN = """
import torch
from torch import nn

from benchmark.registry import register_method
from methods.base import Method, MethodCard


@register_method("mine")
class Mine(Method):
    card = MethodCard(title="Mine", paper="none", equation="t' = g * t", trains="g", count="E")
    deterministic = True

    def text_head(self, features):
        return 1.0 * features

    def expected_parameters(self):
        return 0
"""


def test_other_code_of_a_plugin(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = home / "mine.py"
    plugin.write_text(GAIN)
    asked = words(home, "--plugins", str(plugin), "--methods", "mine")
    for code in (0, 0):
        assert main(asked) == code
    plugin.write_text(GAIN.replace("1.0 *", "-1.0 *"))
    capsys.readouterr()
    assert main(asked) == 2
    assert "mine/seed-0: finished with other code of a plugin." in capsys.readouterr().err


def test_what_another_process_has_finished_meanwhile_is_looked_at_too(home: Path) -> None:
    flags = dict(
        zip((word[2:].replace("-", "_") for word in words(home)[::2]), words(home)[1::2], strict=True)
    )
    spec = make_plan(load_config(flags | {"methods": ["zero_shot"]}), Store(home / "out")).cells[0].spec
    assert execute_cell(spec, Store(home / "out"), NullReporter()).status == "reused"
    flip_labels(home)
    outcome = execute_cell(spec, Store(home / "out"), NullReporter())
    assert outcome.error.startswith("another process finished it with other data (zeroshot/films: labels")


def test_one_request_cannot_ask_for_one_cell_of_two_folders(home: Path) -> None:
    shutil.copytree(home / "A", home / "B")
    (home / "B" / "own.yaml").write_text(SUITE.replace("FOLDER", str(home / "B")))
    configs = [load_config({"suite": str(home / name / "own.yaml"), "methods": ["taskres"]}) for name in "AB"]
    with pytest.raises(StoreError, match="taskres/seed-0 is asked for with files of two folders"):
        make_plan(configs, Store(home / "new"))


def test_a_second_run_names_what_it_was_made_of(tmp_path: Path) -> None:
    one, other = CellFolder(tmp_path / "one"), CellFolder(tmp_path / "other")
    for folder, corpus in ((one, "a-b"), (other, "a-c")):
        folder.write_json("adapt.json", {"identity": {"numbers": 1, "data": {"corpus": corpus}}})
    assert differing_origin(one, other) == ["made of (adapt.json).data.corpus: a-b then, a-c now"]


def test_what_a_cell_is_made_of_stands_in_its_files(site: Path) -> None:
    folders = {path.parent.name: CellFolder(path) for path in (site / "out").glob("runs/*/*/*/seed-0")}
    adapted = {name: folder.read_json("adapt.json")["identity"] for name, folder in folders.items()}
    assert adapted["zero_shot"]["data"] == {}
    assert adapted["taskres"]["data"].keys() == {"corpus", "validation"}
    for name, folder in folders.items():
        result = folder.read_json("zeroshot.json")["identity"]
        assert result["data"].keys() == {"films"}
        assert result["adapter"] == identity.digest(adapted[name])
        assert str(site) not in json.dumps([result, adapted])
    with (site / "out" / "results.csv").open() as file:
        assert len({(row["config_hash"], row["identity"]) for row in csv.DictReader(file)}) == 2


# --- caches -------------------------------------------------------------------------------------------------


def test_models_that_differ_in_their_description_alone_share_no_cache(tmp_path: Path) -> None:
    write_model(tmp_path / "A" / "model")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    change_activation_of = {"model_cfg": CLIP | {"quick_gelu": True}}
    (tmp_path / "B" / "model" / "open_clip_config.json").write_text(json.dumps(change_activation_of))
    one, other = (load_backbone(f"local-dir:{tmp_path / name / 'model'}") for name in "AB")
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint("image") != other.fingerprint("image")
    pixels = torch.rand(1, 3, 32, 32)
    assert not torch.equal(one.image.features(pixels), other.image.features(pixels))


def test_files_of_one_name_with_other_images_share_no_cache(tmp_path: Path) -> None:
    for name in "AB":
        write_data(tmp_path / name)
    shutil.copy(tmp_path / "B" / "00.png", tmp_path / "B" / "20.png")
    opened = {
        (name, part): load_dataset(
            {"dataset": "csv", "file": str(tmp_path / name / "films.csv"), "part": part},
            tmp_path / "root", NullReporter(), Fitting((8, 8)),
        )
        for name in "AB"
        for part in ("train", "test")
    }  # fmt: skip
    assert opened["A", "train"].digests == opened["B", "train"].digests
    assert opened["A", "test"].digests["pixels.npy"] != opened["B", "test"].digests["pixels.npy"]
    assert opened["A", "test"].folder != opened["B", "test"].folder


class _Measures:
    """A task of the image tower that measures nothing, against an untrained tower too."""

    image_only, metrics = True, (SimpleNamespace(name="dice"),)
    options = dataclasses.make_dataclass("Options", [("untrained", bool, True)])()

    def __init__(self) -> None:
        self.made = 0

    def evaluate(self, *_: Any) -> DatasetResult:
        self.made += 1
        return DatasetResult(1, "binary", {"dice": {"value": 0.5}}, {"image_id": np.array(["a"])})


def test_the_untrained_tower_is_that_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CellSpec(
        suite_name="s", suite={}, backbone="local-dir:model", pretrained=None, method="zero_shot", options={}, seed=0,
        recipe=Recipe(), tasks={}, data_root=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr("benchmark.run.shared_results.tower_digest", lambda _: "tower")
    monkeypatch.setattr(TowerResults, "_untrained", lambda _: None)
    method: Any = SimpleNamespace(backbone=None, adapts=())
    task: Any = _Measures()
    context: Any = SimpleNamespace(device=torch.device("cpu"))
    for weights in ("one", "one", "other"):
        towers = TowerResults(tmp_path / "shared", spec, context, dict, weights)
        towers.evaluate(task, "t", "d", {}, method)
    assert task.made == 3  # the frozen tower once, the untrained one for each of the weights


# --- checkpoints --------------------------------------------------------------------------------------------


class _Trains(NullReporter):
    """Keeps what is said; asks to stop after so many steps."""

    def __init__(self, steps: int = 99) -> None:
        self.steps, self.lines = steps, list[str]()

    def stopping(self) -> bool:
        self.steps -= 1
        return self.steps < 1

    def log(self, line: str) -> None:
        self.lines.append(line)


def test_a_checkpoint_of_another_corpus_is_not_gone_on_with(tmp_path: Path) -> None:
    home = write_data(tmp_path / "A").parent
    own = {"dataset": "csv", "file": str(home / "A" / "films.csv")}
    suite = {
        "name": "own",
        "templates": ["a film of {}."],
        "corpus": {**own, "part": "train"},
        "validation": {**own, "part": "val", "task": "zeroshot", "kind": "multilabel", "metric": "auroc",
                       "classes": ["Edema"]},
    }  # fmt: skip
    spec = CellSpec(
        suite_name="own", suite=suite, backbone="tiny", pretrained=None, method="taskres", options={}, seed=0,
        recipe=Recipe(epochs=3, batch_size=4, select="last"), tasks={}, data_root=home / "root",
    )  # fmt: skip
    folder, fresh = (Store(home / name).cell(spec.folder) for name in ("out", "fresh"))
    with pytest.raises(Stopped):
        cell.run_cell(spec, folder, _Trains(3))
    assert folder.exists("checkpoint/state.pt")
    edit_corpus(home)
    again = _Trains()
    cell.run_cell(spec, folder, again)
    assert [line for line in again.lines if "checkpoint of other settings, data or another version" in line]
    cell.run_cell(spec, fresh, NullReporter())
    one, other = (one.read_tensors("adapter.safetensors") for one in (folder, fresh))
    assert all(torch.equal(one[name], other[name]) for name in other)

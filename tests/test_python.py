"""The module medpeft_bench: a run, its results, an adapted model; the notebook of docs/ runs from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

import medpeft_bench as mb
from benchmark.files import ROOT
from benchmark.run.adapters import export_adapter
from benchmark.store.cells import CellFolder

SUITE = """
name: small
backbone: tiny
corpus: {dataset: phantom, part: mimic, n: 32}
templates: ["a chest X-ray image of {}.", "Findings suggesting {}."]
validation:
  {task: zeroshot, dataset: phantom, part: nih, n: 48, kind: multilabel, metric: auroc, classes: [Effusion, Edema]}
tasks:
  zeroshot:
    bootstrap: 20
    datasets:
      rsna: {dataset: phantom, part: rsna, n: 24, kind: binary, classes: [No Finding, Pneumonia], positive: Pneumonia}
recipe: {epochs: 1, batch_size: 16}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    (folder / "small.yaml").write_text(SUITE)
    return mb.run(
        methods=["zero_shot", "clip_lora"], tasks="zeroshot", suite=folder / "small.yaml", output_dir=folder / "out",
        data_root=folder / "data", device="cpu", **{"methods.clip_lora.r": 3},
    )  # fmt: skip


def test_results_are_a_tidy_frame_tables_and_the_best_of_each_column(results):
    assert results.failed == {}
    assert [folder.parent.name for folder in results.cells] == ["zero_shot", "clip_lora"]
    frame = results.frame
    assert set(frame["method"]) == {"zero_shot", "clip_lora"}
    assert {"suite", "dataset", "metric", "value", "ci_low", "ci_high", "n"} <= set(frame.columns)
    one = frame.query("method == 'clip_lora' and metric == 'auroc'").iloc[0]
    stored = CellFolder(results.cells[1]).read_json("zeroshot.json")["datasets"]["rsna"]["metrics"]["auroc"]
    assert (one["value"], one["n"]) == (stored["value"], 24)
    assert CellFolder(results.cells[1]).read_config()["options"]["r"] == 3
    best = results.best()
    assert list(best["metric"]) == ["acc", "auroc"]
    top = frame[frame["metric"] == "auroc"]["value"].max()
    assert best.iloc[1]["value"] == pytest.approx(top)
    assert {"zero_shot", "clip_lora"} <= set(results.table("1")["method"])


def test_a_run_of_other_settings_is_results_of_its_own(results):
    config = results.config
    again = mb.run(
        methods="clip_lora", tasks="none", suite=config.output_dir.parent / "small.yaml", output_dir=config.output_dir,
        data_root=config.data_root, device="cpu", **{"methods.clip_lora.r": 2},
    )  # fmt: skip
    assert [folder.parent.name for folder in again.cells] == ["clip_lora+r=2"]
    assert again.frame.empty


def test_wrong_requests_raise_the_line_that_the_command_line_prints(tmp_path):
    with pytest.raises(mb.BenchmarkError, match="unknown method 'clip_lroa'. Did you mean 'clip_lora'"):
        mb.run(methods="clip_lroa", output_dir=tmp_path)
    with pytest.raises(mb.BenchmarkError, match="unknown recipe key|unknown key 'epoch'"):
        mb.run(methods="zero_shot", epoch=3, output_dir=tmp_path)


@pytest.mark.parametrize("exported", [False, True])
def test_an_adapted_model_answers_as_its_evaluation_did(results, tmp_path, exported):
    folder = results.cells[1]
    if exported:
        export_adapter(folder, tmp_path / "adapter")
        card = huggingface_hub.ModelCard.load(tmp_path / "adapter" / "README.md")
        assert card.data.to_dict()["library_name"] == "peft"
        for words in (
            "# CLIP-LoRA on tiny",
            "licence of the base",
            "options: r 3",
            "dataset phantom, part mimic, n 32",
        ):
            assert words in card.text
        assert re.search(
            r"\| zeroshot \| rsna \| AUROC \| 0\.\d{3} \| 0\.\d{3} to [01]\.\d{3} \| 24 \|", card.text
        )
    model = mb.load_adapted(tmp_path / "adapter" if exported else folder)
    data = next((results.config.data_root / "phantom").glob("rsna-*"))
    pixels = (
        np.load(data / "pixels.npy")
        if (data / "pixels.npy").exists()
        else np.load(next(data.glob("pixels*.npy")))
    )
    files = [tmp_path / f"{at}.png" for at in range(3)]
    for file, film in zip(files, pixels, strict=False):
        PIL.Image.fromarray(film).save(file)
    found = model.predict(files, ["No Finding", "Pneumonia"])
    assert list(found.columns) == ["No Finding", "Pneumonia"]
    assert list(found.index) == list(map(str, files))
    assert np.allclose(found.sum(axis=1), 1)
    stored = CellFolder(folder).read_npz("predictions/zeroshot-rsna.npz")["similarity"][:3]
    scale = float(model.method.logit_scale().detach())
    expected = torch.tensor(scale * stored).softmax(dim=1).numpy()
    assert np.allclose(found.to_numpy(), expected, atol=2e-3)
    loose = model.predict([pixels[0], PIL.Image.fromarray(pixels[1])], {"a": "No Finding", "b": "Pneumonia"})
    assert np.allclose(loose.to_numpy(), found.to_numpy()[:2], atol=1e-6)
    assert list(loose.columns) == ["a", "b"]


def test_features_have_unit_length(results):
    model = mb.load_adapted(results.cells[1])
    images = model.encode_images(np.zeros((70, 64), np.uint8))
    texts = model.encode_texts(["Edema.", "No acute finding."])
    assert (images.shape[0], texts.shape[0]) == (1, 2)
    assert np.allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    with pytest.raises(mb.BenchmarkError, match="expected uint8 pixels"):
        model.predict([np.zeros((8, 8))], ["a"])
    with pytest.raises(mb.BenchmarkError, match="neither a finished cell"):
        mb.load_adapted(results.config.output_dir)


def test_names_that_plugins_import_are_there():
    assert all(hasattr(mb, name) for name in mb.__all__)
    assert {"Method", "MethodCard", "register_method", "register_task", "register_dataset"} <= set(mb.__all__)


class _Handle:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, _: object, display_id: bool) -> _Handle:
        return self

    def update(self, content: object) -> None:
        self.shown.append(content._repr_html_())  # type: ignore[attr-defined]


def test_a_notebook_shows_progress_in_one_place():
    handle = _Handle()
    console = mb._Notebook(handle)
    with console.board(2) as board:
        board.cell_started(0, "a <b>")
        board.reporter(0).start("adapt", 10)
        board.cell_finished(0, "done")
    assert "0 of 2 cells" in handle.shown[0]
    assert "value='0' max='10'" in handle.shown[0]
    assert "a &lt;b&gt;: adapt 0/10" in handle.shown[0]
    assert handle.shown[-1] == "1 of 2 cells"


@pytest.mark.slow
def test_the_notebook_runs_from_install_to_a_decision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    world: dict[str, object] = {}
    for cell in code:
        exec(cell, world)
    assert world["results"].failed == {}  # type: ignore[attr-defined]
    assert isinstance(world["scores"], pd.DataFrame)
    assert len(world["scores"]) == 9  # type: ignore[arg-type]
    assert Path("quickstart/results.csv").is_file()
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])

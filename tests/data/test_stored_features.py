"""Features from files: every kind of file, what does not fit, and a run that equals the one on volumes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from benchmark.backbones import load_backbone
from benchmark.cli import main
from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import pairs
from benchmark.errors import ConfigError, DataError
from benchmark.phantom.ct.anatomy import FINDINGS
from benchmark.preprocess import Fitting

CLASSES = ["Lung nodule", "Atelectasis", "Coronary artery wall calcification"]
IDS = ["a", "b", "c"]
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def opened(folder: Path, size: tuple[int, ...] = (4,), **entry: Any) -> Any:
    (folder / "rows.csv").write_text("image_id,text\nc,three\na,one\n")
    given = {"dataset": "features", "file": str(folder / "rows.csv"), **entry}
    return load_dataset(given, folder, NullReporter(), Fitting(size))


def test_every_kind_of_file_is_joined_by_ids_or_in_order(tmp_path: Path) -> None:
    save_file({"features": VALUES}, tmp_path / "f.safetensors", {"ids": json.dumps(IDS)})
    np.save(tmp_path / "f.npy", VALUES[[2, 0]])
    names = ["f.safetensors", "f.npy"]
    if importlib.util.find_spec("pyarrow"):
        pd.DataFrame({"image_id": IDS, "features": list(VALUES)}).to_parquet(tmp_path / "f.parquet")
        names += ["f.parquet"]
    for name in names:
        data = opened(tmp_path, features=str(tmp_path / name))
        np.testing.assert_array_equal(np.asarray(data.pixels), VALUES[[2, 0]])
        assert data.manifest["text"].tolist() == ["three", "one"]


@pytest.mark.parametrize(
    ("values", "size", "said"),
    [
        (VALUES, (4,), "3 rows without ids, and 2 in"),
        (VALUES[:2], (5,), r"features of \[4\], the backbone takes \[5\]"),
        (np.full((2, 4), np.nan, dtype=np.float32), (4,), "not finite"),
        (np.zeros((2, 4), dtype=np.int64), (4,), "expected float numbers"),
        (np.array([{}, {}], dtype=object), (4,), "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_one_line(
    tmp_path: Path, values: np.ndarray, size: tuple[int, ...], said: str
) -> None:
    np.save(tmp_path / "f.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=said) as caught:
        opened(tmp_path, size, features=str(tmp_path / "f.npy"))
    assert "\n" not in str(caught.value)


def test_an_id_without_features_is_named(tmp_path: Path) -> None:
    save_file({"features": VALUES}, tmp_path / "f.safetensors", {"ids": json.dumps(["a", "b", "d"])})
    with pytest.raises(DataError, match="row 2, column 'image_id': 'c' is not among the ids"):
        opened(tmp_path, features=str(tmp_path / "f.safetensors"))


def test_backbones_of_features_name_another_one() -> None:
    with pytest.raises(ConfigError, match="say whose features they are"):
        load_backbone("features")
    with pytest.raises(ConfigError, match="tokens are pooled for a CTViT alone"):
        load_backbone("token_features:tiny")


def test_tokens_pass_the_pooling_and_projection_of_their_backbone() -> None:
    source, stored = load_backbone("tiny_ct"), load_backbone("token_features:tiny_ct")
    volumes = np.random.default_rng(0).integers(-1000, 1000, (2, 24, 48, 48)).astype(np.int16)
    with torch.no_grad():
        inputs = source.input_spec.to_input(volumes)
        tokens = source.image.forward(inputs).sequence.tokens
        assert tokens.shape[1:] == stored.input_spec.size
        again = stored.image.features(stored.input_spec.to_input(tokens.numpy()))
        assert torch.equal(again, source.image.features(inputs))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a frozen pass keeps of drawn volumes, with the table of its rows."""
    folder = tmp_path_factory.mktemp("frozen")
    backbone = load_backbone("tiny_ct")
    kept = FrozenFeatures(backbone, folder / "kept", precision="fp32", batch_size=8, reporter=NullReporter())
    tables = []
    for part in ("train", "test"):
        data = load_dataset({"dataset": "phantom_ct", "part": part, "n": 16}, folder, NullReporter())
        kept.of_labelled(pairs(part, data))
        tables.append(data.manifest.assign(split=part))
    for number, file in enumerate(sorted((folder / "kept").glob("*.safetensors"))):
        file.rename(folder / f"{number}.safetensors")
    pd.concat(tables).to_csv(folder / "rows.csv", index=False)
    values, ids = zip(*(read(folder / f"{number}.safetensors") for number in (0, 1)), strict=True)
    save_file(
        {"features": np.concatenate(values)}, folder / "all.safetensors", {"ids": json.dumps(sum(ids, []))}
    )
    return folder


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    from benchmark.data.datasets.features import read_features

    values, ids = read_features(path, "image_id")
    assert ids is not None
    return values, ids


def suite(folder: Path, entry: dict[str, Any]) -> Path:
    found = {"classes": CLASSES, "kind": "multilabel"}
    test = {**entry, **found, "part": "test", "title": "Here"}
    path = folder / f"{entry['dataset']}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": entry["dataset"],
                "corpus": {**entry, "part": "train"},
                "templates": ["{} is present."],
                "validation": {**test, "task": "findings", "metric": "auroc"},
                "tasks": {"findings": {"min_positives": 1, "datasets": {"here": test}}},
                "recipe": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
            }
        )
    )
    return path


def test_a_run_on_features_equals_the_run_on_volumes(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [f"label_{name}" for name in FINDINGS]
    stored = {
        "dataset": "features", "file": str(frozen / "rows.csv"), "features": str(frozen / "all.safetensors"),
        "label_columns": labels,
    }  # fmt: skip
    words = ["--methods", "zero_shot,taskres", "--device", "cpu", "--jobs", "1", "--data-root", str(frozen)]
    words += ["allow_overlap=true"]
    found = []
    for entry, backbone in (({"dataset": "phantom_ct", "n": 16}, "tiny_ct"), (stored, "features:tiny_ct")):
        out = tmp_path / backbone.replace(":", "-")
        where = ["--suite", str(suite(tmp_path, entry)), "--backbone", backbone, "--output-dir", str(out)]
        assert main([*words, *where]) == 0, capsys.readouterr().err
        frame = pd.read_csv(out / "results.csv")
        found.append(frame[["method", "metric", "value", "ci_low", "ci_high"]])
    pd.testing.assert_frame_equal(*found)
    assert main([*words[2:], *where, "--methods", "clip_lora"]) == 1
    assert "image features come from a file here" in capsys.readouterr().err

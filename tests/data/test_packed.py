"""Datasets of Hugging Face and shards of webdataset are read as files of one's own, through the real libraries."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest

from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.prepared import NotMadeError
from benchmark.data.samples import labelled_images, pairs
from benchmark.errors import ConfigError, DataError
from benchmark.preprocess import Fitting

SIZE = Fitting((8, 8), "squash")
FINDINGS = ("edema", "normal")


def _png(number: int) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.full((10, 12), 20 * number, np.uint8)).save(out, "PNG")
    return out.getvalue()


def _rows(part: str) -> dict[str, object]:
    return {"text_column": "text", "split_column": "split", "part": part, "class_column": "finding"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = {}
    for split in ("train", "test"):
        images = [{"bytes": _png(at + 6 * (split == "test")), "path": None} for at in range(6)]
        columns = {
            "image": images,
            "text": [f"Report {at}" for at in range(6)],
            "finding": list(FINDINGS) * 3,
        }
        parquet.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
        made[split] = datasets.Dataset.from_parquet(
            str(tmp_path / f"{split}.parquet"), cache_dir=str(tmp_path / "hf")
        )
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    return {"dataset": "hub", "source": str(tmp_path / "saved")}


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    for shard in range(2):
        with tarfile.open(tmp_path / f"films-{shard}.tar", "w") as tar:
            for at in range(6):
                about = {"split": ("train", "test")[shard], "finding": FINDINGS[at % 2]}
                files = {
                    "png": _png(at + 6 * shard),
                    "txt": f"Report {at}".encode(),
                    "json": json.dumps(about).encode(),
                }
                for ending, content in files.items():
                    info = tarfile.TarInfo(f"{shard}{at:03d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"dataset": "shards", "shards": str(tmp_path / "films-{0..1}.tar")}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("kind", ["hub", "shards"])
def test_packed_images_are_corpus_and_dataset(kind, request, tmp_path):
    entry = request.getfixturevalue(kind)
    with pytest.raises(NotMadeError):
        load_dataset(entry | _rows("train"), tmp_path / "data", NullReporter(), SIZE, make=False)
    corpus = load_dataset(entry | _rows("train"), tmp_path / "data", NullReporter(), SIZE)
    found = pairs(kind, corpus)
    assert found.texts == [f"Report {at}" for at in range(6)]
    assert [int(image.mean()) for image in found.pixels] == [0, 20, 40, 60, 80, 100]
    view = {"kind": "multiclass", "classes": list(FINDINGS)}
    test = load_dataset(entry | _rows("test") | view, tmp_path / "data", NullReporter(), SIZE)
    images = labelled_images("x", test, view)
    assert images.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert int(images.pixels[0].mean()) == 120
    again = load_dataset(entry | _rows("test") | view, tmp_path / "data", NullReporter(), SIZE, make=False)
    assert again.digests == test.digests


@pytest.mark.filterwarnings("ignore")
def test_a_parquet_file_and_wrong_columns(hub, tmp_path):
    entry = {"dataset": "hub", "source": str(tmp_path / "train.parquet"), "text_column": "text"}
    assert len(load_dataset(entry, tmp_path / "data", NullReporter())) == 6
    with pytest.raises(DataError, match=r"no column 'film' \(image_column\). Columns: image, text, finding"):
        load_dataset(entry | {"image_column": "film"}, tmp_path / "other", NullReporter())


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset({"dataset": "hub", "source": str(tmp_path / "gone")}, tmp_path, NullReporter())
    with pytest.raises(ConfigError, match="needs shards"):
        load_dataset({"dataset": "shards"}, tmp_path, NullReporter())

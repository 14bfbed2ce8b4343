"""Damaged prepared folders: reports, manifests and pixel files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.files import file_sha256
from tests.bad_input.case import TRAIN, Says, Setup, files, spoilt, together

_PICS = '''
"""Twelve pictures."""
import numpy as np
import pandas as pd
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.registry import register_dataset


def read(raw):
    table = pd.DataFrame({
        "image_id": [f"p{i}" for i in range(12)], "split": ["train", "val", "test"] * 4,
        "text": [f"picture {i}" for i in range(12)], "label_Edema": [i // 3 % 2 for i in range(12)],
        "label_Normal": [1 - i // 3 % 2 for i in range(12)],
        "boxes": ["[[1, 2, 3, 4]]" if i // 3 % 2 else "" for i in range(12)],
    })
    return RawTable(table, pixels=np.random.default_rng(0).integers(0, 255, (12, 64, 64), dtype=np.uint8))


ACCESS = Access("open", "https://pics", "pics.zip", "none")
pics = register_dataset("pics")(RawDataset("pics", "Pics", ACCESS, "DIR", read))
'''
_VIEW = "dataset: pics, kind: multiclass, classes: [Normal, Edema]"
_PICS_SUITE = f"""\
name: pics
backbone: tiny
templates: ["a picture of {{}}."]
corpus: {{dataset: pics, part: train}}
validation: {{{_VIEW}, task: zeroshot, metric: auroc, part: val}}
tasks: {{zeroshot: {{datasets: {{pics: {{{_VIEW}, part: test}}}}}}}}
recipe: {{epochs: 1, batch_size: 2}}
"""
FOLDER, REPORT = "data/pics", "data/pics/prepare_report.json"
_PIXELS = f"{FOLDER}/pixels-shortest_crop-64x64.npy"


def prepared(folder: Path) -> None:
    """Write the plugin and its suite, and prepare the pictures."""
    from benchmark.data.prepare.prepare import prepare
    from benchmark.preprocess import Fitting
    from benchmark.registry import DATASETS, load_plugins

    files({"pics.py": _PICS, "s.yaml": _PICS_SUITE, "raw/x": "x"})(folder)
    load_plugins([str(folder / "pics.py")])
    prepare(DATASETS.get("pics"), folder / "raw", folder / "data", fitting=Fitting((64, 64)), workers=1)


def _report(drop: str = "", **values: Any) -> Setup:
    def do(folder: Path) -> None:
        content = json.loads((folder / REPORT).read_text()) | values
        content.pop(drop, None)
        (folder / REPORT).write_text(json.dumps(content))

    return together(prepared, do)


def _changed(name: str, change: Callable[[str], str] | bytes) -> Setup:
    """Change the text of a file or replace it; the report gets its new size and SHA-256."""

    def do(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change if isinstance(change, bytes) else change(path.read_text()).encode())
        report = json.loads((folder / REPORT).read_text())
        report["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        (folder / REPORT).write_text(json.dumps(report))

    return together(prepared, do)


def _array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _pixels(values: np.ndarray) -> Setup:
    return _changed(_PIXELS, _array(values))


def _manifest(*change: str) -> Setup:
    """Replace all of the manifest, or one text by another."""
    return _changed(
        f"{FOLDER}/manifest.csv", change[0].encode() if len(change) == 1 else lambda t: t.replace(*change)
    )


_PREPARED: dict[str, tuple[Setup, Says]] = {
    "nothing": (
        files({"pics.py": _PICS, "s.yaml": _PICS_SUITE}),
        "dataset 'pics' is not prepared in data: run_benchmark.py prepare",
    ),
    "a report that is no JSON": (
        together(prepared, files({REPORT: "{"})),
        "prepare_report.json: not valid JSON",
    ),
    "a report that is a list": (
        together(prepared, files({REPORT: "[]"})),
        "prepare_report.json: not a prepare report; delete",
    ),
    "a report of bytes": (
        together(prepared, files({REPORT: b"\xff\xfe"})),
        "prepare_report.json: not valid JSON",
    ),
    "a report of a newer version": (
        _report(format_version=9),
        "format 9 was written by a newer version; update",
    ),
    "a report without files": (_report("files"), "prepare_report.json: not a prepare report"),
    "a report of files that are none": (_report(files={"manifest.csv": 3}), "not a prepare report"),
    "a report whose transforms are a number": (_report(transforms=3), "not a prepare report"),
    "a report whose facts are a list": (_report(info=[]), "not a prepare report"),
    "another size": (
        _report(transforms={"squash-8x8": {}}),
        "dataset 'pics' is prepared in data ",
    ),
    "no manifest": (
        together(prepared, lambda f: (f / FOLDER / "manifest.csv").unlink()),
        "manifest.csv: missing; delete",
    ),
    "pixels that are cut off": (
        together(prepared, files({_PIXELS: b"cut"})),
        "bytes, got 3 (truncated copy?); delete",
    ),
    "pixels that are no array": (
        _changed(_PIXELS, b"cut"),
        "pixels-shortest_crop-64x64.npy: not a NumPy array",
    ),
    "pixels that are objects": (
        _pixels(np.array([{}], dtype=object)),
        "pixels-shortest_crop-64x64.npy: not a NumPy array",
    ),
    "pixels that are floats": (_pixels(np.zeros((12, 64, 64))), "pixels: expected uint8 [N, H, W]"),
    "fewer pixels than rows": (
        _pixels(np.zeros((3, 64, 64), np.uint8)),
        "3 images but 12 manifest rows; they must be as many",
    ),
    "a manifest that is no table": (
        _manifest("a,b\n1,2,3\n4,5,6,7\n"),
        "manifest.csv: cannot be read as CSV",
    ),
    "an empty manifest": (_manifest(""), "manifest.csv: cannot be read as CSV"),
    "an image twice": (_manifest("\np1,", "\np0,"), "expected a column image_id without duplicates"),
    "a label in words": (
        _manifest("picture 0,0,", "picture 0,maybe,"),
        "manifest.csv: row 2, label_Edema: expected 1, 0, -1 or empty, got 'maybe'",
    ),
    "a label less": (_manifest("label_Normal", "Normal"), "unknown label 'Normal'"),
    "two classes of one image": (
        _manifest("picture 2,0,1", "picture 2,1,1"),
        "image 'p2' has not exactly one of the classes",
    ),
    "a report without a text": (_manifest("picture 0,", ","), "1 empty reports, first 'p0': remove the rows"),
    "no texts at all": (_manifest(",text,", ",words,"), "column 'text' is missing, so 'pics' cannot be a"),
    "no part of this name": (
        together(prepared, files({"s.yaml": _PICS_SUITE.replace("part: train", "part: trian")})),
        "dataset 'pics': unknown part 'trian'. Did you mean 'train'?",
    ),
    "no such protocol": (
        together(prepared, files({"s.yaml": _PICS_SUITE.replace("part: train", "part: train, protocol: x")})),
        "dataset 'pics': unknown protocol 'x'",
    ),
}
_WORDS = TRAIN + " --plugins pics.py"
_BY_VALIDATE = (
    "a report that is a list",
    "a report of files that are none",
    "a report whose transforms are a number",
)

CASES = [
    *spoilt("a prepared folder", _WORDS, _PREPARED),
    *spoilt(
        "validate", _WORDS.replace("run", "validate", 1), {name: _PREPARED[name] for name in _BY_VALIDATE}
    ),
]

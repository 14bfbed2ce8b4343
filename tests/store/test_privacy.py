"""What results tell of people and machines: no report, no name, no token; ids as keyed hashes where that is wanted."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from markdown_it import MarkdownIt

from benchmark.cli import main
from benchmark.config.load import load_config
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.errors import ConfigError, DataError, StoreError
from benchmark.plan import CellSpec, make_plan
from benchmark.report import collect
from benchmark.report.report import read_report
from benchmark.run.execute import execute_cell
from benchmark.run.shared_results import TowerResults
from benchmark.store.cells import CellFolder, Store
from benchmark.store.hashed_ids import KEY_FILE, Pseudonyms, id_key
from tasks.base import DatasetResult
from tests.report.test_html import Page

pytestmark = pytest.mark.figures

SENTENCE = "Zyxwv quaint meniscus beside the third rib."
SECRETS = {
    "USER": "plantedperson",
    "LOGNAME": "plantedperson",
    "HOSTNAME": "plantedhost",
    "HF_TOKEN": "hf_plantedtoken",
}
SUITE = """
name: own
backbone: tiny
templates: ["a film of {}."]
corpus: {dataset: csv, file: FOLDER/films.csv, part: train, label_columns: [Edema]}
validation: {task: zeroshot, dataset: csv, file: FOLDER/films.csv, part: val, kind: multilabel, metric: auroc,
             min_positives: 1, classes: [Edema]}
tasks:
  zeroshot:
    bootstrap: 10
    datasets:
      films: {dataset: csv, file: FOLDER/films.csv, part: test, kind: binary, classes: [normal, Edema], positive: Edema}
recipe: {epochs: 1, batch_size: 8}
"""


def write_films(folder: Path) -> None:
    """Write 24 images of 12 patients, whose reports hold one sentence."""
    generator = np.random.default_rng(0)
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "split", "patient_id", "Edema"])
        for i in range(24):
            PIL.Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(
                folder / f"film{i:03d}.png"
            )
            part = ("train", "val", "test")[i // 8]
            writer.writerow(
                [f"film{i:03d}.png", f"{SENTENCE} Case {i}.", part, f"patient{i // 2:03d}", i % 2]
            )


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file of a folder as text; arrays and compressed streams unpacked."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                yield path, " ".join(f"{name} {arrays[name].ravel().tolist()}" for name in arrays.files)
        elif path.suffix == ".pdf":
            streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, flags=re.S)
            yield path, content.decode("latin-1") + "".join(_inflated(one) for one in streams)
        else:
            yield path, content.decode("utf-8", errors="replace")


def _inflated(stream: bytes) -> str:
    try:
        return zlib.decompressobj().decompress(stream).decode("latin-1")
    except zlib.error:
        return ""


def found(folder: Path, *needles: str) -> list[str]:
    return [
        f"{path.name}: {needle}" for path, text in contents(folder) for needle in needles if needle in text
    ]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with films and a suite, and secrets in the environment."""
    home = tmp_path / "Planted Person"
    home.mkdir()
    for name, value in {**SECRETS, "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    write_films(home)
    (home / "own.yaml").write_text(SUITE.replace("FOLDER", str(home)))
    return home


def run(home: Path, out: str, *words: str) -> int:
    flags = [
        "--suite",
        str(home / "own.yaml"),
        "--methods",
        "taskres",
        "--jobs",
        "1",
        "--output-dir",
        str(home / out),
    ]
    return main([*flags, "--data-root", str(home / "data"), *words])


def predictions(home: Path, out: str) -> dict[str, np.ndarray]:
    return CellFolder(home / out / "runs/own/tiny/taskres/seed-0").read_npz("predictions/zeroshot-films.npz")


def test_results_hold_no_report_no_name_no_token_and_hashes_for_ids(site, capsys):
    assert run(site, "out", "hash_ids=true") == 0
    out = site / "out"
    assert {"config.yaml", "index.html", "provenance.json", "zeroshot-films.npz"} <= {
        path.name for path, _ in contents(out)
    }
    private = ("Zyxwv", "quaint", "meniscus", *SECRETS.values(), "Planted Person")
    assert found(out, *private, str(site.parent), str(Path.cwd())) == []

    key = (site / "data" / KEY_FILE).read_text()
    assert found(out, "film0", "patient0", key) == []
    stored, hashed = predictions(site, "out"), Pseudonyms(bytes.fromhex(key)).of
    assert stored["image_id"].tolist() == [hashed(f"film{i:03d}.png") for i in range(16, 24)]
    assert stored["patient_id"].tolist() == [hashed(f"patient{i // 2:03d}") for i in range(16, 24)]

    assert found(out, hashed("film016.png"), "a film of")  # the search looks into files of every kind

    capsys.readouterr()
    assert run(site, "out") == 2
    assert "hash_ids: True there, False now" in capsys.readouterr().err
    plain = CellFolder(site / "plain" / "runs/own/tiny/other/seed-0")
    plain.write_config({"method": "other"})
    assert run(site, "plain", "hash_ids=true") == 2  # plain and hashed ids never stand in one folder
    assert "was made without it. Choose another --output-dir" in capsys.readouterr().err


def test_without_the_setting_ids_are_stored(tmp_path):
    towers = TowerResults(tmp_path, spec(tmp_path), None, dict)  # type: ignore[arg-type]
    result = towers.evaluate(Finds(), "t", "d", {}, None)  # type: ignore[arg-type]
    assert result.predictions["image_id"].tolist() == ["film007"]


# --- hashes of identifiers ----------------------------------------------------------------------------------


def test_hashes_are_keyed_keep_empty_ids_and_touch_nothing_else():
    # HMAC-SHA256, test case 2 of RFC 4231
    known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert Pseudonyms(b"Jefe").of("what do ya want for nothing?") == known[:32]
    arrays = {
        "image_id": np.array(["a", "", "a"]),
        "panel_id": np.array([["b"]]),
        "target": np.array([1, 0, 1]),
    }
    hidden = Pseudonyms(b"one").hide(arrays)
    assert hidden["image_id"][0] == hidden["image_id"][2] != Pseudonyms(b"two").of("a")
    assert hidden["image_id"][1] == ""
    assert hidden["panel_id"].shape == (1, 1)
    assert hidden["target"] is arrays["target"]


def test_a_data_root_has_one_key_that_only_its_owner_reads(tmp_path):
    key = id_key(tmp_path)
    assert len(key) == 32
    assert id_key(tmp_path) == key != id_key(tmp_path / "other")
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    for damage in ("", "00", "no key"):
        (tmp_path / KEY_FILE).write_text(damage)
        with pytest.raises(DataError, match="damaged. Put back a copy, or delete it"):
            id_key(tmp_path)


def test_the_key_and_the_hashes_cannot_share_a_folder(tmp_path):
    words = {
        "output_dir": str(tmp_path),
        "data_root": str(tmp_path / "data"),
        "methods": ["zero_shot"],
        "hash_ids": True,
    }
    with pytest.raises(ConfigError, match="hash_ids: --data-root lies in --output-dir"):
        make_plan(load_config(words), Store(tmp_path))


def spec(root: Path, **changes: Any) -> CellSpec:
    values: dict[str, Any] = {
        "suite_name": "s", "suite": {}, "backbone": "b", "pretrained": None, "method": "m", "options": {}, "seed": 0,
        "recipe": Recipe(), "tasks": {}, "data_root": root,
    }  # fmt: skip
    return CellSpec(**values | changes)


@pytest.mark.parametrize("hash_ids", [True, False])
def test_failures_are_told_and_their_words_stored_only_where_ids_are(tmp_path, hash_ids):
    def fail(*_: Any) -> None:
        raise DataError("image 'patient007/film.png' has no pixels")

    outcome = execute_cell(spec(tmp_path, hash_ids=hash_ids), Store(tmp_path), NullReporter(), fail)
    assert "patient007" in outcome.error
    status = CellFolder(tmp_path / "runs/s/b/m/seed-0").read_json("status.json")
    assert ("patient007" in str(status)) is not hash_ids
    assert "DataError" in str(status)


class Finds:
    """A task with one sample."""

    image_only, options = False, Recipe()

    def evaluate(self, *_: Any) -> DatasetResult:
        return DatasetResult(1, "binary", {}, {"image_id": np.array(["film007"])})


@pytest.mark.parametrize("shared", [True, False])
def test_own_and_shared_results_hold_hashes(tmp_path, monkeypatch, shared):
    monkeypatch.setattr("benchmark.run.shared_results.is_shared", lambda *_: shared)
    monkeypatch.setattr("benchmark.run.shared_results.tower_digest", lambda _: "digest")
    hide = Pseudonyms(b"key").hide
    around: Any = SimpleNamespace(device=torch.device("cpu"))
    towers = TowerResults(tmp_path / "shared", spec(tmp_path, hash_ids=True), around, hide)
    method: Any = type("Stub", (), {"backbone": None})()
    result = towers.evaluate(Finds(), "t", "../d", {}, method)  # type: ignore[arg-type]
    assert result.predictions["image_id"].tolist() == [Pseudonyms(b"key").of("film007")]
    assert found(tmp_path, "film007") == []
    places = [path.parent.parent for path in tmp_path.rglob("*.npz")]
    assert places == [tmp_path / "shared"] * shared


# --- names in reports ---------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
EVIL_MD = "![x](http://example.org/x.png) [y](javascript:alert(1)) `a` **b** | c <b>d</b> \n# e"
EVIL_TEX = r"\input{secret} $\alpha$ 100% & # _ ^ ~ } {"
NAMES = (EVIL, EVIL_MD, EVIL_TEX)
_LEADS_OUT = "../../../escaped"


def hostile_store(folder: Path, name: str) -> None:
    """Write three runs in which every text that a report shows is hostile."""
    datasets = {"films": {"title": name, "kind": "multiclass"}, f"{_LEADS_OUT}-data": {"title": name}}
    suite = {"name": _LEADS_OUT, "title": name, "tasks": {"zeroshot": {"datasets": datasets}},
             "validation": {"metric": "auroc"}, "paper": {"comparable": False, "why": name}}  # fmt: skip
    for number, method in enumerate(("zero_shot", "planted", "planted_too")):
        cell = Store(folder).cell(f"runs/suite/backbone/{method}/seed-{number}")
        identity = {
            "suite_name": _LEADS_OUT,
            "backbone": name,
            "method": method,
            "seed": number,
            "variant": "",
        }
        cell.write_config({**identity, "suite": suite, "limit": None, "recipe": {"note": name}})
        failed = number == 2
        cell.write_json(
            "status.json",
            {
                "status": "failed" if failed else "success",
                "error": name * failed,
                "traceback": [name] * failed,
            },
        )
        cell.write_json(
            "provenance.json", {"git": {"commit": name, "dirty": True}, "hardware": {"cpu": name}}
        )
        cell.write_json(
            "efficiency.json", {"trainable_parameters": 7, "flops_convention": name, "device": name}
        )
        cell.write_history([{"step": step, "val_auroc": 0.5, name: name} for step in (0, 5)])
        score = {"value": 0.5 + number / 10, "ci_low": 0.4, "ci_high": 0.7, "n": 8}
        results = {
            key: {"n": 8, "kind": "multiclass", "metrics": {"acc": score, "auroc": score}} for key in datasets
        }
        if not failed:
            cell.write_json("zeroshot.json", {"task": "zeroshot", "status": "success", "datasets": results})


@pytest.fixture(params=NAMES, ids=["html", "markdown", "latex"])
def report(request, tmp_path, monkeypatch):
    """The report of a hostile store, and the name in it."""
    monkeypatch.setattr(collect, "method_titles", lambda name: (f"{request.param} {name}",) * 2)
    out = tmp_path / "deep" / "deeper" / "out"
    hostile_store(out, request.param)
    formats = ("md", "tex", "csv", "html") if request.param == EVIL_TEX else ("md", "tex", "csv")
    report = read_report(out)
    report.write(formats)
    if "html" not in formats:  # without the figures, which take their time
        from benchmark.report.html import page

        (out / "report" / "index.html").write_text(page(report.blocks, report.rendered, ()), encoding="utf-8")
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} <= {
        out / "report", *(out / "runs" / "suite" / "backbone").glob("*/seed-*")
    }  # fmt: skip
    return out / "report", request.param


def test_reports_escape_every_name(report):
    folder, name = report
    root = Page((folder / "index.html").read_text(encoding="utf-8")).root
    assert len(list(root.all("script"))) == 1
    assert all(image.attributes["src"].startswith("data:image/png;base64,") for image in root.all("img"))
    assert all(link.attributes["href"].startswith("#") for link in root.all("a"))
    assert not [key for element in root.all() for key in element.attributes if key.startswith("on")]
    assert " ".join(name.split())[:20] in root.text

    for path in folder.glob("*.md"):
        shown = (
            MarkdownIt("commonmark", {"html": True}).enable("table").render(path.read_text(encoding="utf-8"))
        )
        assert not re.search(r"<(script|img|a|b|code|h1)\b", shown), path.name
        assert " ".join(name.split())[:7].replace("<", "&lt;") in shown

    for path in folder.glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert r"\input" not in text
        assert not re.search(r"(?<!\\)%(?!\n)", text)
        assert not re.search(r"(?<!\\)\$(?!\\pm\$|=\$)(?<!\\pm\$)(?<!=\$)", text)
        plain = text.replace(r"\{", "").replace(r"\}", "")
        assert plain.count("{") == plain.count("}")

    for path in folder.glob("*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        assert {len(row) for row in rows} == {len(rows[0])}


def test_a_result_folder_is_not_left_by_a_name(tmp_path):
    with pytest.raises(StoreError, match="not a name inside"):
        CellFolder(tmp_path).write_npz(f"predictions/zeroshot-{_LEADS_OUT}.npz", {})

"""export-adapter and import-adapter: from a cell to a folder, from a file to a cell that `run` only evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import methods
from benchmark.backbones import load_backbone
from benchmark.cli import main
from benchmark.config.load import load_config
from benchmark.conformance.small_models import move
from benchmark.plan import make_plan
from benchmark.report.collect import collect_blocks
from benchmark.report.paper import load_paper
from benchmark.run.execute import execute_cell
from benchmark.store.cells import CellFolder, Store
from benchmark.store.provenance import provenance
from methods.base import Method

CELL = "runs/phantom/tiny"


def official(method: Method) -> dict[str, object]:
    """Return CLIP-LoRA or ACE-LoRA as the authors save them: text blocks first, the scale exponentiated."""
    weights: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    number = 0
    for tower in method.adapters.values():
        for block in tower.values():
            weights[f"layer_{number}"] = {
                f"{part}_proj": {"w_lora_A": lora.A.detach(), "w_lora_B": lora.B.detach()}
                for part, lora in block.items()
            }
            number += 1
    for kind, graph in getattr(method, "graphs", {}).items():
        for role in ("edge", "node"):
            parts: dict[str, dict[str, torch.Tensor]] = {}
            for name, value in getattr(graph, role).named_parameters():
                layer, _, last = name.partition(".")
                parts.setdefault(layer, {})[last] = value.detach()
            weights[f"{'img' if kind == 'image' else 'text'}_{role}_adapter"] = parts
    metadata = {
        "r": method.options.r,
        "topk": 3,
        "params": ["q", "k", "v"],
        "position": "all",
        "loss_type": "x",
    }
    return {"weights": {**weights, "logit_scale": torch.tensor(33.0)}, "metadata": metadata}


@pytest.fixture
def ace(tmp_path: Path) -> tuple[Method, Path]:
    """Return ACE-LoRA on the tiny backbone and its file in the authors' layout."""
    torch.manual_seed(3)
    method = methods.build("ace_lora", load_backbone("tiny"), r=2, topk=3, hidden_features=8)
    move(method)
    torch.save(official(method), tmp_path / "ACE_LoRA.pt")
    return method, tmp_path / "ACE_LoRA.pt"


def run_import(*words: object) -> int:
    return main(["import-adapter", *map(str, words)])


def cell_of(folder: Path, method: str) -> CellFolder:
    return CellFolder(folder / CELL / method / "seed-0")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_the_authors_file_becomes_a_cell(
    ace: tuple[Method, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, file = ace
    out = tmp_path / "out"
    assert run_import(file, "--method", "ACE-LoRA", "--to", out) == 0
    said = capsys.readouterr().out.splitlines()
    cell = cell_of(out, "ace_lora")
    stored = cell.read_tensors("adapter.safetensors")
    for name, value in method.trainable_state().items():
        if name != "logit_scale.value":
            assert torch.equal(stored[name], value), name
    assert float(stored["logit_scale.value"].exp()) == pytest.approx(33.0, rel=1e-5)
    origin = cell.read_json("adapt.json")["imported"]
    assert origin["file"] == "ACE_LoRA.pt"
    assert len(origin["sha256"]) == 64
    assert cell.read_json("provenance.json")["imported"] == origin
    options = cell.read_config()["options"]
    assert (options["r"], options["topk"], options["hidden_features"]) == (2, 3, 8)
    assert cell.exists("peft/adapter_model.safetensors")
    # the command that it prints plans exactly this cell, with its adapter in place
    words = said[-1].split()[2:]
    overrides = [word for word in words if "=" in word]
    config = load_config({"methods": ["ace_lora"], "output_dir": str(out), "device": "cpu"}, overrides)
    assert make_plan(config, Store(out)).cells[0].state == "partial"


def test_a_run_with_other_settings_does_not_replace_an_import(
    ace: tuple[Method, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_import(ace[1], "--method", "ace_lora", "--to", out) == 0
    capsys.readouterr()
    assert main(["run", "--methods", "ace_lora", "--output-dir", str(out), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "finished with other settings (options.r: 2 there, 4 now" in said.err
    assert "ace_lora+" in said.out
    assert run_import(ace[1], "--method", "ace_lora", "--to", out) == 2
    assert "there is a run already" in one_line(capsys)


def test_evaluating_an_import_keeps_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    made = methods.build("clip_lora", load_backbone("tiny"))
    torch.save(official(made), tmp_path / "clip.pt")
    out = tmp_path / "out"
    assert run_import(tmp_path / "clip.pt", "--method", "clip_lora", "--to", out) == 0
    store = Store(out)
    flags = {"methods": ["clip_lora"], "tasks": ["zeroshot"], "output_dir": str(out), "device": "cpu"}
    spec = make_plan(load_config(flags), store).cells[0].spec

    def evaluate(spec: object, folder: CellFolder, reporter: object) -> None:
        metrics = {"acc": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 10}}
        datasets = {"rsna": {"n": 10, "kind": "binary", "metrics": metrics}}
        result = {"task": "zeroshot", "status": "success", "datasets": datasets}
        folder.write_json("zeroshot.json", {**result, "task_hash": spec.task_hash("zeroshot")})

    assert execute_cell(spec, store, None, evaluate).status == "done"
    assert cell_of(out, "clip_lora").read_json("provenance.json")["imported"]["file"] == "clip.pt"
    row = collect_blocks(out, load_paper())[0].rows[0]
    assert row.title == "CLIP-LoRA (imported)"
    assert not row.ranked
    assert [note.text for note in row.notes] == [
        "imported from clip.pt, not trained by this recipe: not ranked"
    ]


def test_a_cell_is_exported_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config({"methods": ["peft:ia3"], "output_dir": str(tmp_path / "a"), "device": "cpu"})
    store = Store(tmp_path / "a")
    spec = make_plan(config, store).cells[0].spec
    from benchmark.run.adapters import write_adapter

    method = methods.build("peft:ia3", load_backbone("tiny"))
    move(method)
    cell = store.cell(spec.folder)
    cell.write_tensors("adapter.safetensors", method.trainable_state())
    cell.write_config({"adapt_hash": spec.adapt_hash, **spec.public()})
    cell.write_json("provenance.json", provenance(spec.public(), spec.adapt_hash))
    write_adapter(method, spec, cell.inside("peft"))
    assert main(["export-adapter", str(cell.path), "--to", str(tmp_path / "made")]) == 0
    about = json.loads((tmp_path / "made" / "medpeft_bench.json").read_text())
    assert about["source"] == "runs/phantom/tiny/peft-ia3/seed-0"
    assert run_import(tmp_path / "made", "--method", "peft:ia3", "--to", tmp_path / "b") == 0
    again = cell_of(tmp_path / "b", "peft-ia3").read_tensors("adapter.safetensors")
    for name, value in method.trainable_state().items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-6)
    plan = make_plan(
        load_config({"methods": ["peft:ia3"], "output_dir": str(tmp_path / "b")}), Store(tmp_path / "b")
    )
    assert plan.cells[0].state == "partial"  # nothing has to be said: the file's options are the defaults
    capsys.readouterr()
    assert main(["export-adapter", str(cell.path), "--to", str(tmp_path / "made")]) == 2
    assert "is not empty" in one_line(capsys)
    words = ("--method", "peft:ia3", "--backbone", "tiny_b", "--to", tmp_path / "c")
    assert run_import(tmp_path / "made", *words) == 2
    assert "was made on backbone 'tiny', not 'tiny_b'" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "ace_lora"], "import-adapter: say --to"),
        (["--method", "ace_lorra", "--to", "x"], "unknown method 'ace_lorra'. Did you mean 'ace_lora'"),
        (["--method", "taskres", "--to", "x"], "official checkpoint of TaskRes"),
        (["--method", "peft:lora", "--to", "x"], "LoRA (peft) reads no authors' checkpoint"),
        (["--method", "zero_shot", "--to", "x"], "reads no authors' checkpoint, only folders"),
        (
            ["--method", "clip_lora", "--to", "x"],
            "official checkpoint of CLIP-LoRA: 16 tensors have no place",
        ),
        (
            ["--method", "ace_lora", "--to", "x", "methods.ace_lora.r=4"],
            "methods.ace_lora.r: the file was made with 2, got 4. Leave the word out",
        ),
        (["--method", "ace_lora", "--to", "x", "methods.ace_lora.params=[q]"], "the file was made with"),
        (["--method", "ace_lora", "--to", "x", "--seeds", "0,1"], "one file is one cell"),
    ],
)
def test_wrong_requests_are_one_line(
    ace: tuple[Method, Path],
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_import(ace[1], *words) == 2
    assert says in one_line(capsys)
    assert not list(tmp_path.glob("x/runs/*/*/*/*/config.yaml"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: state["weights"]["layer_3"].pop("k_proj"),
            "tensor 'layer_3.k_proj.w_lora_A' is missing",
        ),
        (
            lambda state: state["weights"].pop("text_node_adapter"),
            "'text_node_adapter.down.weight' is missing",
        ),
        (
            lambda state: state["weights"].update(extra=torch.ones(2)),
            "1 tensors have no place, first 'extra'",
        ),
        (
            lambda state: state["weights"]["layer_0"]["q_proj"].update(w_lora_B=torch.ones(3, 2)),
            "w_lora_B' has shape (3, 2), expected",
        ),
        (lambda state: state["metadata"].update(position="top"), "position: expected one of all, bottom"),
    ],
)
def test_files_that_do_not_fit_are_one_line(
    ace: tuple[Method, Path], change: object, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(ace[1], weights_only=True)
    change(state)
    torch.save(state, ace[1])
    assert run_import(ace[1], "--method", "ace_lora", "--to", tmp_path / "out") == 2
    assert says in one_line(capsys)


def test_export_says_what_it_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export-adapter", "--to", str(tmp_path / "x")]) == 2
    assert "say which cell" in one_line(capsys)
    assert main(["export-adapter", str(tmp_path), "--to", str(tmp_path / "x")]) == 2
    assert "is not the folder of a cell" in one_line(capsys)

"""The verb compare: two methods of a folder, two folders, and requests that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli import main
from benchmark.metrics.classification import plain_value, zero_shot_metrics
from benchmark.store.cells import Store

N = 120
TARGET = np.arange(N) % 3
NOISE = np.random.default_rng(1).normal(0, 1, (N, 3))
SUITE = {"name": "toy", "title": "Toy", "tasks": {"zeroshot": {"datasets": {"set": {"title": "Toy set"}}}}}


def write(
    folder: Path,
    method: str,
    skill: float = 1.0,
    seed: int = 0,
    *,
    variant: str = "",
    suite: str = "toy",
    similarity: np.ndarray | None = None,
    target: np.ndarray = TARGET,
) -> None:
    """Store one cell whose accuracy grows with ``skill``, or one with these scores."""
    if similarity is None:
        similarity = skill * np.eye(3)[target] + NOISE + 0.01 * seed * NOISE[::-1]
    similarity, n = similarity.astype(np.float32), len(target)
    metrics = zero_shot_metrics("multiclass", similarity, 1.0, target)
    entries = {
        name: {"value": plain_value(one, n), "ci_low": None, "ci_high": None, "n": n}
        for name, one in metrics.items()
    }
    name = f"{method}+{variant}" if variant else method
    cell = Store(folder).cell(f"runs/{suite}/tiny/{name}/seed-{seed}")
    config = {"suite_name": suite, "backbone": "tiny", "method": method, "variant": variant, "seed": seed}
    cell.write_config({**config, "suite": SUITE, "limit": None})
    cell.write_json("status.json", {"status": "success"})
    cell.write_json("efficiency.json", {"trainable_parameters": 0 if method == "zero_shot" else 10})
    result = {"n": n, "kind": "multiclass", "metrics": entries, "info": {"logit_scale": 1.0}}
    cell.write_json("zeroshot.json", {"task": "zeroshot", "status": "success", "datasets": {"set": result}})
    ids = np.array([f"i{row}" for row in range(n)])
    arrays = {"image_id": ids, "patient_id": ids, "similarity": similarity, "target": target}
    cell.write_npz("predictions/zeroshot-set.npz", arrays)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write(folder, "zero_shot", 0.5)
    for seed in (0, 1):
        write(folder, "taskres", 2.0, seed)
    write(folder, "ace_lora", 1.0)
    write(folder, "ace_lora", 1.0, variant="r=8,topk=3")
    return folder


def line_of(output: str, metric: str) -> str:
    return next(line for line in output.splitlines() if metric in line)


def test_two_methods(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "TaskRes", "zero_shot", "--output-dir", str(results)]) == 0
    output = capsys.readouterr().out
    assert "A = taskres, B = zero_shot" in output
    assert "A is better" in line_of(output, "ACC")
    assert "+" in line_of(output, "AUROC")
    assert "taskres: seeds 0, 1" in output
    assert "zero_shot: seed 0" in output


def test_a_method_and_its_variant(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["compare", "ace_lora", "ace_lora+topk=3,r=8", "--output-dir", str(results), "--metric", "acc"])
        == 0
    )
    output = capsys.readouterr().out
    assert "B = ace_lora+r=8,topk=3" in output
    assert "+0.00" in line_of(output, "ACC")
    assert "not told apart" in line_of(output, "ACC")
    assert "AUROC" not in output


def test_one_seed_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(results, "clip_lora", 4.0)
    assert main(["compare", "clip_lora", "zero_shot", "--output-dir", str(results)]) == 0
    assert "A is better; seeds unknown" in line_of(capsys.readouterr().out, "ACC")


@pytest.mark.parametrize(("flag", "verdict"), [([], "no difference that matters"),
                                               (["--smallest-difference", "0.1"], "A is better")])  # fmt: skip
def test_a_certain_difference_of_a_fraction_of_a_point_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: list[str], verdict: str
) -> None:
    count = 4000
    target = np.arange(count) % 3
    for method, wrong in (("zero_shot", 40), ("taskres", 28)):  # 0.3 points apart, all in one direction
        scores = np.eye(3)[target]
        scores[:wrong] = np.roll(scores[:wrong], 1, axis=1)
        write(tmp_path, method, similarity=scores, target=target)
    assert (
        main(["compare", "taskres", "zero_shot", "--output-dir", str(tmp_path), "--metric", "acc", *flag])
        == 0
    )
    line = line_of(capsys.readouterr().out, "ACC")
    assert "+0.30" in line
    assert verdict in line


def test_two_folders(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    write(other, "taskres", 0.8)
    write(other, "coop", 0.8)
    assert main(["compare", str(results), str(other)]) == 0
    output = capsys.readouterr().out
    assert "TaskRes" in line_of(output, "ACC")
    assert "CoOp" not in output


def test_numbers_as_csv(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "table.csv"
    assert main(["compare", "taskres", "zero_shot", "--output-dir", str(results), "--csv", str(target)]) == 0
    frame = pd.read_csv(target)
    assert list(frame["metric"]) == ["acc", "auroc"]
    np.testing.assert_allclose(frame["difference"], frame["a_value"] - frame["b_value"])
    assert (frame["p_holm"] >= frame["p_value"]).all()
    assert list(frame["verdict"]) == ["better", "better"]
    assert (frame["smallest_difference"] == 0.005).all()
    assert str(target) in capsys.readouterr().out


def test_without_predictions_the_values_stand(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((results / "runs/toy/tiny/zero_shot").rglob("*.npz")).unlink()
    assert main(["compare", "taskres", "zero_shot", "--output-dir", str(results)]) == 0
    assert "not tested: Zero-shot: its predictions are missing" in line_of(capsys.readouterr().out, "ACC")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["taskrs", "zero_shot"], "unknown method 'taskrs'. Did you mean 'taskres'?"),
        (["maple", "zero_shot"], "unknown method 'maple'"),
        (["taskres", "TaskRes"], "are the same method"),
        (["taskres"], "required: B"),
        (["taskres", "zero_shot", "--metric", "akk"], "unknown metric 'akk'"),
        (["taskres", "zero_shot", "--suite", "toi"], "unknown suite 'toi'. Did you mean 'toy'?"),
        (
            ["taskres", "zero_shot", "--smallest-difference", "0"],
            "expected a value of at least 0.05, got '0'",
        ),
        (["taskres", "zero_shot", "lr=1"], "compare takes no 'lr=1'"),
        (["{folder}", "zero_shot"], "is a folder and 'zero_shot' is not"),
        (["{folder}", "{folder}/none"], "no results in"),
    ],
)
def test_wrong_requests_get_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    request = [word.format(folder=results) for word in words]
    assert main(["compare", *request, "--output-dir", str(results)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error:") == 1


def test_methods_that_never_met(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(results, "coop", 1.0, suite="other")
    assert main(["compare", "coop", "taskres", "--output-dir", str(results)]) == 2
    assert "never run on the same suite and backbone" in capsys.readouterr().err

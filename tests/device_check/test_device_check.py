"""The device check works: its short form passes on a CPU, and a part that fails, hangs or dies is told as such."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.device_check import __main__ as check
from tests.device_check import parts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_short_form_passes_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = check.main(["--device", "cpu", "--short", "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == [], capsys.readouterr().out
    assert status == 0
    assert list(found["parts"]) == list(parts.PARTS)
    skipped = {name for name, one in found["parts"].items() if "skipped" in one}
    assert skipped == {"waits", "verb", "compiled"}
    assert set(found["parts"]["methods"]["rows"]) == {f"{name} timm+bert" for name in parts.FEW}


def fails(_: parts.Check) -> dict[str, Any]:
    raise ValueError("wrong numbers")


def hangs(_: parts.Check) -> dict[str, Any]:
    time.sleep(60)
    return {"ok": True}


def dies(_: parts.Check) -> dict[str, Any]:
    os._exit(7)


def passes(_: parts.Check) -> dict[str, Any]:
    return {"ok": True}


def test_a_part_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BUSY", 1)
    monkeypatch.setattr(
        parts, "PARTS", {"a": (fails, 30), "b": (hangs, 5), "c": (dies, 30), "d": (passes, 30)}
    )
    assert check.main(["--device", "cpu", "--short", "--output", str(tmp_path / "f.json")]) == 1
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["failed"] == ["a", "b", "c"]
    assert [one.get("error") for one in found["parts"].values()] == [
        "ValueError: wrong numbers", "stopped after 5 s", "the process ended with exit code 7", None,
    ]  # fmt: skip
    assert "a: FAILED ValueError: wrong numbers" in capsys.readouterr().out


def test_all_parts_fit_into_five_minutes_where_the_usual_is_half_of_a_limit() -> None:
    assert sum(limit for _, limit in parts.PARTS.values()) / 2 < check.BUDGET


def test_a_method_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = parts._answers

    def wrong(method: Any, batch: Any, precision: str) -> Any:
        loss, gradients, similarity = answers(method, batch, precision)
        return loss, gradients * (1.5 if precision == "bf16" else 1), similarity

    monkeypatch.setattr(parts, "_answers", wrong)
    row = parts._compared("clip_lora", "timm+bert", parts.Check("cpu", short=True))
    assert (row["fp32"]["ok"], row["bf16"]["ok"]) == (True, False)

"""Head and summary of the page: what it is about, what was run, when and on what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.report.html.cells import commit, section
from benchmark.report.model import Block, Run

_PACKAGES = ("torch", "open_clip_torch", "transformers", "timm", "peft")


def subject(blocks: Sequence[Block]) -> str:
    """What the page is about: the suites with their backbones."""
    backbones: dict[str, list[str]] = {}
    for block in blocks:
        backbones.setdefault(block.title, []).append(block.backbone)
    listed = {title: ", ".join(dict.fromkeys(names)) for title, names in backbones.items()}
    return "; ".join(f"{title}, backbone {names}" for title, names in listed.items())


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was run, when, with what and on what: all that the runs' provenance tells, no names of hosts."""
    records = [run.provenance for run in runs]
    dates = sorted(run.created.replace("T", " ")[:16] for run in runs if run.created)
    found = {
        "Suites": [run.suite for run in runs],
        "Backbones": [run.backbone for run in runs],
        "Methods": [run.cell for run in runs],
        "Seeds": sorted({run.seed for run in runs}, key=lambda seed: (len(seed), seed)),
        "Tasks": [name for run in runs for name in run.tasks],
        "Program": [_program(run) for run in runs],
        "Software": [_software(record) for record in records],
        "Machine": [_machine(section(record, "hardware")) for record in records],
        "Device": [str(run.config.get("device") or "") for run in runs],
    }
    lines = {name: "; ".join(filter(None, dict.fromkeys(values))) for name, values in found.items()}
    lines["Time"] = " to ".join(dict.fromkeys(dates[:1] + dates[-1:])) + " UTC" if dates else ""
    return [(name, text) for name, text in lines.items() if text]


def summary(runs: Sequence[Run]) -> str:
    """How many runs there are and how they ended."""
    status = Counter(run.status for run in runs)
    return f"{len(runs)} runs: " + ", ".join(f"{count} {name}" for name, count in status.items()) + "."


def _program(run: Run) -> str:
    program = section(run.provenance, "program")
    named = " ".join(str(program[key]) for key in ("name", "version") if program.get(key))
    return ", commit ".join(part for part in (named, commit(run)) if part)


def _software(record: Mapping[str, Any]) -> str:
    packages = section(record, "packages")
    python = [f"Python {record['python']}"] if record.get("python") else []
    return ", ".join(python + [f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)])


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = [str(name) for name in hardware.get("gpus") or ()]
    units = {"cpu": "{}", "cores": "{} cores", "memory_gib": "{} GiB"}
    parts = [form.format(hardware[key]) for key, form in units.items() if hardware.get(key)]
    counts = [f"{count} x {name}" for name, count in Counter(gpus).items()]
    return ", ".join([*parts, *(counts or ["no GPU"])]) if parts or gpus else ""

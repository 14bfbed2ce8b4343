"""Search the learning rates of an embedded suite on validation, or collect the validation curves of a search.

    python results/reference/learning_rates.py search SEARCH     # what is missing; may be stopped and called again
    python results/reference/learning_rates.py collect SEARCH > results/reference/learning_rates.csv

A third word names the suite; without it, it is ``phantom``. Its curves go into
``learning_rates_<suite>.csv``.

The search goes in rounds, and a round is one run of all methods below SEARCH: generator seed 77 and training seed 100,
which no result uses, and no test set is opened. Every method gets the same number of candidates by the same rule: the
rate of :data:`PRIOR`, a third and three times of it, then a candidate beyond the edge while the best one lies there,
else the one halfway between the best and its better neighbour. Rounds end when there are :data:`ROUNDS` and no best
rate is an edge, or with :data:`MOST`. ``collect`` reads ``history.jsonl`` and ``config.yaml`` alone.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PHANTOM = {
    "ace_lora": 1e-3,
    "clip_adapter": 3e-3,
    "clip_lora": 3e-3,
    "cocoop": 3e-3,
    "coop": 3e-3,
    "full_ft": 5e-4,
    "maple": 1e-3,
    "mma": 3e-3,
    "mmrl": 1e-3,
    "taskres": 1e-2,
}
"""First guesses, from an earlier version of the towers."""
HISTOLOGY = {
    "ace_lora": 1.6e-2,
    "clip_adapter": 2.7e-2,
    "clip_lora": 1.6e-2,
    "cocoop": 1.1e-4,
    "coop": 3e-3,
    "full_ft": 5e-4,
    "maple": 1.6e-2,
    "mma": 2.7e-2,
    "mmrl": 1.9e-4,
    "taskres": 5.2e-2,
}
"""First guesses: what was chosen for ``phantom``."""
VOLUMES = {"clip_lora": 1e-2, "full_ft": 5e-4, "molre": 1e-2, "taskres": 1e-2}
"""First guesses."""
PRIOR = {"phantom": PHANTOM, "phantom_histology": HISTOLOGY, "phantom_ct": VOLUMES}
STEP, ROUNDS, MOST = 3.0, 4, 6
_DRAW = [f"{part}.seed=77" for part in ("corpus", "validation")]


def proposed(prior: float, tried: dict[float, float]) -> float:
    """Return a method's next rate from the validation scores of those tried, with two digits."""
    rates = sorted(tried)
    if len(rates) < 3:
        rate = prior * (1, 1 / STEP, STEP)[len(rates)]
    elif on_edge(tried):
        rate = rates[0] / STEP if best(tried) == rates[0] else rates[-1] * STEP
    else:
        at = rates.index(best(tried))
        rate = (rates[at] * max(rates[at - 1], rates[at + 1], key=tried.__getitem__)) ** 0.5
    return float(f"{rate:.2g}")


def best(tried: dict[float, float]) -> float:
    """Return the rate with the best score, the smallest of equal ones."""
    return max(sorted(tried), key=tried.__getitem__)


def on_edge(tried: dict[float, float]) -> bool:
    """Return whether the best rate is the smallest or the largest one that was tried."""
    return best(tried) in (min(tried), max(tried))


def search(folder: Path, suite: str) -> None:
    """Adapt all methods round by round; cells that are finished are not run again."""
    priors = PRIOR[suite]
    for number in range(1, MOST + 1):
        rows = [row for row in cells(folder) if row["round"] < number]
        tried = {name: {row["lr"]: row["best"] for row in rows if row["method"] == name} for name in priors}
        if number > ROUNDS and not any(on_edge(scores) for scores in tried.values()):
            return
        rates = [
            f"methods.{name}.recipe.lr={proposed(prior, tried[name]):g}" for name, prior in priors.items()
        ]
        words = ["--suite", suite, "--methods", ",".join(priors)]
        words += ["--tasks", "none", "--seeds", "100", "--jobs", "1"]
        out = ["--output-dir", str(folder / f"round_{number}")]
        subprocess.run([sys.executable, "run_benchmark.py", *words, *out, *_DRAW, *rates], check=True)


def cells(folder: Path) -> list[dict[str, Any]]:
    """Return one row per finished cell: its rate, its best validation AUROC after training began, and its curve."""
    rows: list[dict[str, Any]] = []
    for history in sorted(folder.glob("round_*/runs/*/*/*/seed-*/history.jsonl")):
        config = yaml.safe_load((history.parent / "config.yaml").read_text())
        lines = [json.loads(line) for line in history.read_text().splitlines()]
        scores = [line["val_auroc"] for line in lines]
        rows.append(
            {
                **{"suite": config["suite_name"], "backbone": config["backbone"], "method": config["method"]},
                "round": int(history.relative_to(folder).parts[0].removeprefix("round_")),
                "lr": float(config["recipe"]["lr"]),
                "steps": lines[-1]["step"],
                "best": max(scores[1:]),
                **{f"epoch_{number}": score for number, score in enumerate(scores)},
            }
        )
    return rows


def collect(folder: Path) -> None:
    """Print the rows of a search, with the method's choice marked."""
    rows = cells(folder)
    names = {row["method"] for row in rows}
    tried = {name: {row["lr"]: row["best"] for row in rows if row["method"] == name} for name in names}
    rows.sort(key=lambda row: (row["method"], row["lr"]))
    heads = ["suite", "backbone", "method", "round", "lr", "steps", "best", "chosen"]
    epochs = [name for name in rows[0] if name.startswith("epoch_")]
    writer = csv.DictWriter(sys.stdout, fieldnames=[*heads, *epochs], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        chosen = {"chosen": int(row["lr"] == best(tried[row["method"]]))}
        writer.writerow(row | chosen | {name: f"{row[name]:.4f}" for name in ("best", *epochs)})


if __name__ == "__main__":
    if sys.argv[1] == "search":
        search(Path(sys.argv[2]), *(sys.argv[3:] or ["phantom"]))
    else:
        collect(Path(sys.argv[2]))

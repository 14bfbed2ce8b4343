"""Collect the validation curves of a learning-rate search into one CSV, and name each method's choice.

    python results/reference/learning_rates.py SEARCH_DIR > results/reference/learning_rates.csv

SEARCH_DIR holds one output folder of ``run_benchmark.py --tasks none`` per candidate. Only ``history.jsonl`` and
``config.yaml`` are read: no test set was opened to make them.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import yaml


def main(search: Path) -> None:
    """Print one row per method and learning rate: validation AUROC after every epoch, best, and whether chosen."""
    rows = []
    for history in sorted(search.glob("*/runs/*/*/*/seed-*/history.jsonl")):
        config = yaml.safe_load((history.parent / "config.yaml").read_text())
        scores = [json.loads(line)["val_auroc"] for line in history.read_text().splitlines()]
        rows.append(
            {
                "backbone": config["backbone"],
                "method": config["method"],
                "seed": config["seed"],
                "lr": float(config["recipe"]["lr"]),
                "best": max(scores[1:]),
                **{f"epoch_{number}": score for number, score in enumerate(scores)},
            }
        )
    for row in rows:
        rivals = [
            r["best"] for r in rows if r["method"] == row["method"] and r["backbone"] == row["backbone"]
        ]
        row["chosen"] = int(row["best"] == max(rivals))
    rows.sort(key=lambda row: (row["backbone"], row["method"], row["lr"]))
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        scores = {key: f"{value:.4f}" for key, value in row.items() if key.startswith(("best", "epoch"))}
        writer.writerow(row | scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

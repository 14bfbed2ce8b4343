"""The few-shot experiment of the embedded suite: search its learning rates, take over its results, write its page.

    python results/reference/fewshot.py search SEARCH     # what is missing; may be stopped and called again
    python results/reference/fewshot.py collect SEARCH > results/reference/fewshot/rates.csv
    python run_benchmark.py --suite phantom --protocol fewshot --shots 1,4,16 --methods all,fewshot --output-dir OUT
    python results/reference/fewshot.py publish OUT       # and without OUT: the page alone, from what is here

The strict protocol has one setting of a method for all datasets and shots, and no validation labels. So rates are
chosen on other films than any that are drawn or tested: generator seeds 77 (tested) and 78 (drawn), training seed 100.
Every method that is trained has the candidates :data:`RATES`; taken is the best mean accuracy over :data:`SHOTS`.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from publish import percent, replaced, table

from benchmark.registry import METHODS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "fewshot"
PAGE = ROOT / "docs" / "fewshot.md"
FIGURE = PAGE.parent / "images" / "fewshot.png"
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHOTS = (4, 16)
TRAINED = (
    "ace_lora", "clip_adapter", "clip_lora", "clip_svd", "cocoop", "coop", "full_ft", "kgcoop", "maple", "mma",
    "mmrl", "prograd", "taskres",
)  # fmt: skip
SET = "chexpert_5x200"
_TESTED = f"tasks.zeroshot.datasets.{SET}"
_DRAW = [
    f"{_TESTED}.seed=77",
    f"{_TESTED}.n=500",
    f"fewshot.datasets.{SET}.seed=78",
    "tasks.zeroshot.bootstrap=1",
]
_RUN = [sys.executable, "run_benchmark.py", "run", "--suite", "phantom", "--protocol", "fewshot"]


# --- the search ---------------------------------------------------------------------------------------------


def search(folder: Path) -> None:
    """Adapt all methods with each rate; cells that are finished are not run again."""
    shots, names = ",".join(map(str, SHOTS)), ",".join(TRAINED)
    for rate in RATES:
        words = ["--shots", shots, "--methods", names, "--seeds", "100", "--lr", f"{rate:g}"]
        out = ["--output-dir", str(folder / f"lr={rate:g}")]
        subprocess.run([*_RUN, *words, *out, *_DRAW], check=True, cwd=ROOT)


def searched(folder: Path) -> list[dict[str, Any]]:
    """Return one row per method and rate: accuracy for each number of shots, their mean, whether it is chosen."""
    found: dict[tuple[str, float], dict[int, float]] = {}
    for path in sorted(folder.glob("lr=*/runs/*/*/*/seed-*/zeroshot.json")):
        config = yaml.safe_load(path.with_name("config.yaml").read_text(encoding="utf-8"))
        score = json.loads(path.read_text(encoding="utf-8"))["datasets"][SET]["metrics"]["acc"]["value"]
        key = config["method"], float(config["recipe"]["lr"])
        found.setdefault(key, {})[config["suite"]["support"]["shots"]] = score
    found = {key: own for key, own in found.items() if set(own) == set(SHOTS)}  # others are not finished
    means = {key: sum(own.values()) / len(own) for key, own in found.items()}
    chosen = {
        name: best({rate: means[name, rate] for one, rate in means if one == name}) for name, _ in means
    }
    return [
        {"method": name, "lr": rate, **{f"acc_{shots}": f"{own[shots]:.4f}" for shots in SHOTS},
         "mean": f"{means[name, rate]:.4f}", "chosen": int(chosen[name] == rate)}
        for (name, rate), own in sorted(found.items())
    ]  # fmt: skip


def best(tried: dict[float, float]) -> float:
    """Return the rate with the best score, the smallest of equal ones."""
    return max(sorted(tried), key=tried.__getitem__)


def collect(folder: Path) -> None:
    """Print the rows of a search."""
    rows = searched(folder)
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


# --- the page -----------------------------------------------------------------------------------------------


def take_over(out: Path) -> None:
    """Copy the results of a run, with its table; the figure goes to the page."""
    shutil.rmtree(RESULTS / "report", ignore_errors=True)
    (RESULTS / "report").mkdir(parents=True)
    for file in sorted((out / "report").glob("table_fewshot.*")):
        shutil.copy(file, RESULTS / "report")
    shutil.copy(out / "report" / f"figure_fewshot-{SET}.png", FIGURE)
    shutil.copy(out / "results.csv", RESULTS)
    shutil.copy(min(out.glob("runs/phantom/tiny/*/seed-*/provenance.json")), RESULTS)


def curves() -> str:
    """Return the mean accuracy of each method against shots, with the spread over seeds, and its rise."""
    frame = pd.read_csv(RESULTS / "report" / "table_fewshot.csv")
    start = float(frame[frame.shots == 0].acc.iloc[0])
    shots = sorted(set(frame.shots) - {0})
    rows = []
    for title, own in frame[frame.shots > 0].groupby("title", sort=False):
        scores = [own[own.shots == count].acc for count in shots]
        rise = 100 * (scores[-1].mean() - scores[0].mean())
        rows.append([str(title), str(own.seed.nunique()),
                     *(percent(one.mean(), one.std()) for one in scores), f"{rise:+.1f}"])  # fmt: skip
    rows.sort(key=lambda row: -float(row[-2].split()[0]))
    heads = ["method", "seeds", *(f"{count} shot{'s' * (count > 1)}" for count in shots), "rise"]
    commit = json.loads((RESULTS / "provenance.json").read_text(encoding="utf-8"))["git"]["commit"][:7]
    return "\n".join(
        [
            f"![Accuracy against shots](images/{FIGURE.name})",
            "",
            "Accuracy on the 1000 drawn films of CheXpert 5x200 in per cent, mean ± standard deviation over seeds, at",
            f"commit {commit}; the model without labels has {100 * start:.1f}.",
            "",
            table(heads, rows),
        ]
    )


def rates() -> str:
    """Return the learning rates that were tried and chosen."""
    frame = pd.read_csv(RESULTS / "rates.csv")
    rows = []
    for name, tried in frame.groupby("method"):
        told = ", ".join(f"{row.lr:g} ({100 * row.mean:.1f})" for row in tried.itertuples())
        rows.append([METHODS.get(str(name)).card.title, f"{tried.lr[tried.chosen == 1].iloc[0]:g}", told])
    return table(["method", "chosen", "tried (mean accuracy on the other films)"], rows, 3)


def blocks() -> Iterator[tuple[str, str]]:
    """Yield the blocks of the page that the files here can fill."""
    if (RESULTS / "rates.csv").is_file():
        yield "fewshot-rates", rates()
    if (RESULTS / "results.csv").is_file():
        yield "fewshot-curves", curves()


def publish(out: Path | None) -> None:
    """Take over a run, if one is named, and write the page."""
    if out:
        take_over(out)
    text = PAGE.read_text(encoding="utf-8")
    for name, content in blocks():
        text = replaced(text, name, content)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    verb, folders = sys.argv[1], [Path(word) for word in sys.argv[2:]]
    if verb == "publish":
        publish(folders[0] if folders else None)
    else:
        {"search": search, "collect": collect}[verb](folders[0])

"""Take over the results of a run, and write what README.md and docs/phantom.md tell of them.

    python -m benchmark.phantom.pretraining.probe --backbone tiny > results/reference/phantom/references_tiny.json
    python run_benchmark.py --methods all --tasks zeroshot --seeds 0,1,2 --output-dir OUT
    python results/reference/publish.py OUT               # and without OUT: the pages alone, from what is here

What is written stands between two comments, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, and is replaced whole.
No number on these pages is typed by hand: they come from ``results.csv``, the report, ``curves.csv`` (validation over
epochs), ``learning_rates.csv``, ``references_tiny.json`` and the cards beside the weights.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from learning_rates import PHANTOM
from PIL import Image
from scipy.stats import spearmanr

from benchmark.registry import METHODS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "phantom"
IMAGES = ROOT / "docs/images"
REFERENCES = RESULTS / "references_tiny.json"
WEIGHTS = ROOT / "benchmark/backbones/weights"
TESTS = {"chexpert_5x200": "5x200", "rsna": "RSNA", "siim": "SIIM"}
SETS = {**TESTS, "nih": "validation"}
KINDS = {
    "zero_shot": "zero-shot",
    "linear_probe": "linear probe, supervised",
    "end_to_end": "end to end, supervised",
}
ROOM = {"chexpert_5x200": 15, "rsna": 5, "siim": 5}  # points that references must leave (criterion e)
KEPT_FILES = ("*.csv", "*.md", "*.tex", "*.png", "index.html")


def take_over(out: Path) -> None:
    """Copy the results of a run, with its report built anew beside the supervised references."""
    found = json.loads(REFERENCES.read_text(encoding="utf-8"))["end_to_end"]
    ceiling = {"title": "End to end, supervised", "datasets": {part: found[part] for part in TESTS}}
    (out / "ceilings.json").write_text(
        json.dumps({"phantom/tiny": ceiling}, indent=1) + "\n", encoding="utf-8"
    )
    subprocess.run(
        [sys.executable, "run_benchmark.py", "report", "--output-dir", str(out)], check=True, cwd=ROOT
    )
    shutil.rmtree(RESULTS / "report", ignore_errors=True)
    (RESULTS / "report").mkdir(parents=True)
    for pattern in KEPT_FILES:
        for file in sorted((out / "report").glob(pattern)):
            shutil.copy(file, RESULTS / "report")
    for name in ("results.csv", "ceilings.json"):
        shutil.copy(out / name, RESULTS)
    shutil.copy(min(out.glob("runs/phantom/tiny/*/seed-*/provenance.json")), RESULTS)
    rows = [curve(history) for history in sorted(out.glob("runs/phantom/tiny/*/seed-*/history.jsonl"))]
    with (RESULTS / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def take_pictures() -> None:
    """Copy a figure of the report into docs, and photograph the top of its page where there is a browser."""
    shutil.copy(RESULTS / "report/figure_training.png", IMAGES / "phantom_training.png")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no browser: docs/images/page.png stays as it is", file=sys.stderr)
        return
    target = IMAGES / "page.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,862"]
    index = RESULTS / "report/index.html"
    subprocess.run([browser, *words, f"--screenshot={target}", index.as_uri()], check=True)
    Image.open(target).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(target, optimize=True)


def curve(history: Path) -> dict[str, object]:
    """Return validation AUROC after each epoch of a cell, and the step whose weights were kept."""
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    kept = json.loads(history.with_name("adapt.json").read_text(encoding="utf-8"))["best"]
    return {
        "backbone": history.parents[2].name,
        "method": history.parent.parent.name,
        "seed": history.parent.name.removeprefix("seed-"),
        "steps": lines[-1]["step"],
        "kept_step": kept["step"],
        "kept": f"{kept['val_auroc']:.4f}",
        **{f"epoch_{line['epoch']}": f"{line['val_auroc']:.4f}" for line in lines},
    }


def table(heads: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """Return a Markdown table; columns from ``numbers_from`` are aligned right."""
    rule = ["---" if at < numbers_from else "---:" for at in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def percent(value: float, sd: float = float("nan")) -> str:
    """Return a fraction in per cent with its standard deviation over seeds; a dash for none."""
    if pd.isna(value):
        return "-"
    return f"{100 * value:.1f}" + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}")


def result() -> str:
    """Return the README's table, with what the paired tests find in AUROC."""
    frame = pd.read_csv(RESULTS / "report/table_1.csv")
    curves = pd.read_csv(RESULTS / "curves.csv").groupby("method")
    columns = [f"{part}_{metric}" for part in TESTS for metric in ("acc", "auroc")]
    heads = ["method", "trained values", "kept step", "validation AUROC"]
    heads += [f"{title} {metric}" for title in TESTS.values() for metric in ("ACC", "AUROC")]
    rows = []
    for _, line in frame.iterrows():
        scores = [percent(line[name], line[f"{name}_sd"]) for name in columns]
        if line["kind"] != "method":
            if scores != ["-"] * len(scores):
                rows.append([f"*{line['title']}*", "", "", "", *scores])
            continue
        told = ["0", "", "-"]
        if line["method"] in curves.groups:
            found = curves.get_group(line["method"])
            steps = ", ".join(str(step) for step in sorted(set(found.kept_step)))
            told = [
                f"{int(line.trainable_parameters):,}",
                steps,
                percent(found.kept.mean(), found.kept.std()),
            ]
        rows.append([line["title"], *told, *scores])
    commit = json.loads((RESULTS / "provenance.json").read_text(encoding="utf-8"))["git"]["commit"][:7]
    seeds = ", ".join(str(seed) for seed in sorted(set(pd.read_csv(RESULTS / "curves.csv").seed)))
    said = re.findall(r"^- (.*? AUROC: .*)$", (RESULTS / "report/table_1.md").read_text("utf-8"), re.M)
    return "\n".join(
        [
            f"Backbone `tiny`, per cent, mean ± standard deviation over training seeds {seeds}, at commit {commit}.",
            "Kept step: whose weights validation chose, of 0, 200, 400, 600 and 800. Trained values: with the",
            "suite's options and the logit scale.",
            "",
            table(heads, rows),
            "",
            "What the paired tests find:",
            "",
            *(f"- {line}" for line in said),
        ]
    )


def start() -> str:
    """Return where the backbones start, on generator seed 77, by which they were chosen: from their cards."""
    rows = []
    for kind in ("zero_shot", "linear_probe"):
        for name in ("tiny", "tiny_b"):
            card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
            found = card["scores_seed_77_held_out"]
            read = percent(found["reading"]["mimic"]["mean"]) if kind == "zero_shot" else ""
            rows.append([KINDS[kind], name, *scored(found[kind]), read])
    heads = ["", "backbone", "5x200 ACC", *(f"{title} AUROC" for title in SETS.values()), "reading AUROC"]
    return table(heads, rows, numbers_from=2)


def scored(found: dict[str, dict[str, float]]) -> list[str]:
    """Return accuracy on the five classes and AUROC of every set."""
    return [percent(found["chexpert_5x200"]["acc"]), *(percent(found[part]["auroc"]) for part in SETS)]


def references() -> str:
    """Return what there is to gain on the suite's own films."""
    found = json.loads(REFERENCES.read_text(encoding="utf-8"))
    heads = ["", "5x200 ACC", *(f"{title} AUROC" for title in SETS.values())]
    return table(heads, [[title, *scored(found[kind])] for kind, title in KINDS.items()])


def rates() -> str:
    """Return the learning rates that were tried and chosen on validation."""
    frame = pd.read_csv(HERE / "learning_rates.csv")
    rows = []
    for name, tried in frame.groupby("method"):
        chosen = tried[tried.chosen == 1].iloc[0]
        told = ", ".join(f"{row.lr:g} ({100 * row.best:.1f})" for row in tried.itertuples())
        rows.append([METHODS.get(name).card.title, f"{chosen.lr:g}", told, percent(chosen.epoch_0)])
    return table(["method", "chosen", "tried (best validation AUROC after the start)", "start"], rows, 3)


def judged() -> str:
    """Return the criteria with their figures."""
    frame = pd.read_csv(RESULTS / "results.csv")
    frame = frame[
        (frame.task == "zeroshot") & (frame.metric == "auroc") & frame.method.isin(["zero_shot", *PHANTOM])
    ]
    means = 100 * frame.pivot_table(index="method", columns="seed", values="value", aggfunc="mean")
    gains = means.drop("zero_shot").sub(means.loc["zero_shot"].mean())
    middle, spread = gains.mean(axis=1), gains.std(axis=1)
    curves = pd.read_csv(RESULTS / "curves.csv")
    kept = curves.groupby("method").kept.mean()[middle.index]
    rank = spearmanr(kept, middle).statistic
    drift = (100 * (curves.epoch_4 - curves.epoch_3)).groupby(curves.method).mean().abs()
    found = json.loads(REFERENCES.read_text(encoding="utf-8"))
    room = {
        kind: {part: 100 * (found[kind][part]["auroc"] - found["zero_shot"][part]["auroc"]) for part in TESTS}
        for kind in ("linear_probe", "end_to_end")
    }
    searched = pd.read_csv(HERE / "learning_rates.csv").groupby("method")
    chosen = {name: float(group.lr[group.chosen == 1].iloc[0]) for name, group in searched}
    edges = [name for name, group in searched if chosen[name] in (group.lr.min(), group.lr.max())]
    least, most = searched.lr.nunique().min(), searched.lr.nunique().max()
    rooms = "; ".join(
        f"{KINDS[kind].partition(',')[0]} "
        + ", ".join(f"{TESTS[part]} {value:+.1f}" for part, value in each.items())
        for kind, each in room.items()
    )
    told = [
        ("a", f"median gain {middle.median():+.1f}", middle.median() > 0),
        (
            "b",
            f"median standard deviation {spread.median():.2f}; half the median absolute gain "
            f"{middle.abs().median() / 2:.2f}",
            spread.median() < middle.abs().median() / 2,
        ),
        ("c", f"Spearman {rank:.2f} over {len(middle)} methods", rank >= 0.7),
        (
            "d",
            f"largest mean movement {drift.max():.2f} ({drift.idxmax()}); "
            f"{int((drift >= 1).sum())} of {len(drift)} methods move by a point or more",
            drift.max() < 1,
        ),
        ("e", rooms, all(each[part] >= ROOM[part] for each in room.values() for part in TESTS)),
        (
            "f",
            f"{least if least == most else f'{least} to {most}'} candidates each; best at the edge: "
            f"{', '.join(edges) or 'none'}",
            least == most and not edges,
        ),
    ]
    return table(
        ["", "measured", "holds"], [[key, text, "yes" if holds else "**no**"] for key, text, holds in told], 3
    )


BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "result": ("README.md", result),
    "start": ("docs/phantom.md", start),
    "references": ("docs/phantom.md", references),
    "rates": ("docs/phantom.md", rates),
    "judged": ("docs/phantom.md", judged),
}
OF_RUNS = ("result", "judged")
"""Blocks that need the results of a run."""


def replaced(page: str, name: str, content: str) -> str:
    """Return a page with the text between the two comments of a name replaced.

    Raises:
        ValueError: the page has no such place.
    """
    before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not (begin and end):
        raise ValueError(f"no place for '{name}'")
    return f"{before}{begin}{content}\n{end}{after}"


def main() -> int:
    """Take over a run, if one is named, and write all blocks."""
    if sys.argv[1:]:
        take_over(Path(sys.argv[1]))
        take_pictures()
    measured = (RESULTS / "results.csv").is_file()
    for name, (page, make) in BLOCKS.items():
        if name in OF_RUNS and not measured:
            continue
        path = ROOT / page
        path.write_text(replaced(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

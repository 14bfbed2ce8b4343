"""The table of what each registered method can do: rows for JSON and the terminal, and the page docs/methods.md."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import methods
from benchmark.conformance.probes import capabilities
from benchmark.conformance.small_models import FAMILIES
from benchmark.registry import METHODS
from benchmark.registry.sources import Entry
from methods.base import Method, MethodCard

Row = dict[str, Any]
COLUMNS = (
    "method",
    "trained",
    "changes",
    "cached",
    "labels",
    "merges",
    "unseen",
    "identity",
    "families",
    "resnet",
)

LEGEND = """\
- *trained*: values that train on the embedded backbone `tiny` with default options, logit scale not counted; for
  classifiers in feature space, what they hold for five classes with one image each.
- *changes*: towers whose own features change; a method without any acts on the features behind them.
- *cached*: towers whose features are constant during training, so that they are computed once.
- *labels*: whether the loss needs labels (all use them where `loss=label_guided` has them); class labels are
  what few-shot runs have.
- *merges*: whether what is learnt can be folded into the frozen weights, so that it costs nothing when used.
- *unseen*: whether classes that were never seen in training are scored, each on its own; else they are refused.
- *identity*: whether features equal the frozen model's before the first step.
- *families*: tower families it works on: timm ViT + BERT, and open_clip's own ViT + text transformer.
- *resnet*: whether it works, with default options, where the image tower is a ResNet: ConVIRT, GLoRIA, MGCA with
  ResNet-50, BioViL, BioViL-T, PRIOR, KAD and PMC-CLIP (docs/backbones.md).
"""


def method_rows(names: Iterable[str], progress: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Probe methods, one after another.

    Args:
        names: registered names, members of families included (``peft:dora``).
        progress: called with each name before it is probed.

    Returns:
        One row each: name, aliases, summary, source, title and what ``Capabilities`` holds; for a method that cannot
        be probed, ``broken`` with the reason instead.
    """
    rows = []
    for name in names:
        progress(name)
        entry = METHODS.entry(name)
        row: Row = {
            "name": name,
            "aliases": list(entry.aliases),
            "summary": entry.summary,
            "source": entry.origin.rsplit(":", 1)[0],
        }
        try:
            row["title"] = _card(name).title
            row |= dataclasses.asdict(capabilities(functools.partial(methods.build, name)))
        except Exception as error:  # a plugin may raise anything; the others must be listed
            row["broken"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        rows.append(row)
    return rows


def members(entry: Entry) -> dict[str, str]:
    """Return the members of a family, ``name:member``, and why one cannot be used ("" where it can).

    The function ``tuners`` of its module lists them; a family without one, or a broken one, has no members.
    """
    try:
        loaded = entry.load()
        module = loaded if hasattr(loaded, "tuners") else sys.modules[loaded.__module__]
        return {f"{entry.name}:{member}": reason for member, reason in module.tuners().items()}
    except Exception:  # a plugin may raise anything; its own row tells the reason
        return {}


def cells(row: Row) -> list[str]:
    """Return the texts of one row under :data:`COLUMNS`."""
    if "broken" in row:
        return [row["name"], "broken", *["-"] * (len(COLUMNS) - 2)]
    works = "both" if len(row["families"]) == len(FAMILIES) else ", ".join(row["families"])
    merges = "-" if row["merges"] is None else _word(row["merges"])
    return [
        row["name"],
        f"{row['trained']:,}",
        _towers(row["changes"]),
        _towers(row["cached"]),
        "needs" if row["needs_labels"] else "no",
        merges,
        _word(row["unseen_classes"]),
        _word(row["identity"]),
        works,
        _word(not row["resnet"]),
    ]


def remarks(rows: Iterable[Row]) -> list[str]:
    """Return one line for each broken method and each declaration that was not confirmed."""
    lines = []
    for row in rows:
        lines += [f"{row['name']}: {row['broken']}"] if "broken" in row else []
        lines += [f"{row['name']}: {note}" for note in row.get("notes", ())]
    return lines


def refusals(rows: Iterable[Row]) -> list[str]:
    """Return one line for each reason not to work with a ResNet as image tower, with the methods that give it."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.get("resnet"):
            reasons.setdefault(row["resnet"], []).append(row["name"])
    return [f'With a ResNet, {", ".join(names)}: "{reason}".' for reason, names in reasons.items()]


def table(rows: list[Row]) -> str:
    """Return the rows as a markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(rows: list[Row]) -> str:
    """Return the page docs/methods.md: the table, what its columns mean, and a paragraph from each card."""
    parts = [
        "# Methods",
        "Made by `python run_benchmark.py list methods --markdown`. Every entry of the table is found by trying the "
        "method on two\nsmall models (`benchmark/conformance/probes.py`), not read from what the method "
        "says about itself.",
        table(rows),
        LEGEND.strip(),
        *refusals(rows),
        "Tuners of peft are methods too (`peft:<tuner>`); `python run_benchmark.py list methods --all` probes those of "
        "the\ninstalled version.",
    ]
    for row in rows:
        if "broken" not in row:
            parts += [f"## {row['title']} (`{row['name']}`)", paragraph(_card(row["name"]))]
    return "\n\n".join([*parts, *remarks(rows)]) + "\n"


def paragraph(card: MethodCard) -> str:
    """Return what a card says, as a few lines of markdown."""
    paper = (
        f"{card.paper} ([arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv}))"
        if card.arxiv
        else card.paper
    )
    code = f" Code: {card.repository}." if card.repository else ""
    lines = [f"{paper}.{code}", "", f"    {card.equation}", "", f"Trains {card.trains}. Count: {card.count}."]
    if card.deviations:
        lines += ["", "Differs from paper or code:", "", *(f"- {item}" for item in card.deviations)]
    return "\n".join(lines)


def _card(name: str) -> MethodCard:
    plugin: type[Method] = METHODS.get(name)
    return plugin.card


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _towers(kinds: Iterable[str]) -> str:
    chosen = list(kinds)
    return "both" if len(chosen) == 2 else (chosen[0] if chosen else "-")

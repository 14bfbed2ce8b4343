"""The model card of an exported adapter: what was adapted, on which data, how, and how well, with intervals.

``README.md`` in the form that Hugging Face tools read: YAML between two lines of dashes, then Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from benchmark.errors import BenchmarkError
from benchmark.registry import BACKBONES, METHODS
from benchmark.store.cells import CellFolder

FILE = "README.md"
_UNKNOWN = "not known: see the model's own page"


def model_card(cell: CellFolder) -> str:
    """Return the card of a cell's adapter.

    Raises:
        StoreError: the cell cannot be read.
    """
    config = cell.read_config()
    base = _base(str(config["backbone"]))
    head: dict[str, Any] = {"library_name": "peft", "tags": ["medpeft-bench", "clip", str(config["method"])]}
    head |= {"base_model": base["id"]} if base["id"] else {}
    front = yaml.safe_dump(head, sort_keys=False)
    return f"---\n{front}---\n\n" + "\n".join(_lines(cell, config, base)) + "\n"


def _base(name: str) -> dict[str, str]:
    """Return id on the hub, link and licence of a backbone, as far as they are known."""
    try:
        plugin = BACKBONES.get(name)
        about: Mapping[str, str] = plugin.about(name) if hasattr(plugin, "about") else {}
    except BenchmarkError:
        about = {}
    link = str(about.get("link") or "")
    hub = link.partition("huggingface.co/")[2].strip("/") or name.partition("hf-hub:")[2]
    return {"id": hub, "link": link, "licence": str(about.get("licence") or "")}


def _lines(cell: CellFolder, config: Mapping[str, Any], base: Mapping[str, str]) -> Iterator[str]:
    method, suite = str(config["method"]), config.get("suite") or {}
    title, adapted = str(suite.get("title") or config["suite_name"]), cell.find_json("adapt.json")
    card = getattr(METHODS.get(method), "card", None) if method in METHODS else None
    yield f"# {getattr(card, 'title', method)} on {config['backbone']}"
    yield ""
    yield f"An adapter made with medpeft-bench, seed {config['seed']}. Research only; not a medical device."
    yield from ("", "## Base model", "")
    yield f"- {config['backbone']}" + (f": <{base['link']}>" if base["link"] else "")
    yield f"- licence of the base: {base['licence'] or _UNKNOWN}. It holds for what is made with this adapter too."
    yield from ("", "## Method", "")
    if card is not None:
        yield from (f"- paper: {card.paper}", f"- {card.equation}", f"- trained: {card.trains}")
    yield f"- trained values: {cell.find_json('efficiency.json').get('trainable_parameters', 0):,}"
    yield f"- options: {_said(config.get('options') or {}) or 'none'}"
    yield from ("", "## Data", "", f"- suite: {title}")
    if origin := cell.imported():
        yield f"- imported from {origin.get('file')}: data and settings of the training are not known"
    else:
        for use in ("corpus", "validation"):
            entry = suite.get(use) or {}
            yield f"- {use}: {_said({key: entry[key] for key in ('dataset', 'part', 'n', 'fraction') if key in entry})}"
        yield f"- pairs: {adapted.get('pairs', 0):,}"
        if config.get("limit"):
            yield f"- **only {config['limit']} samples of each dataset were used: the scores below mean little**"
        yield from ("", "## Settings", "", f"- {_said(config.get('recipe') or {})}")
    yield from ("", "## Scores", "", *_scores(cell))
    yield from ("", "## Use", "", "```python", "import medpeft_bench as mb", "")
    yield 'model = mb.load_adapted("THIS_FOLDER")'
    yield 'model.predict(["image.png"], ["class one", "class two"])'
    yield "```"


def _scores(cell: CellFolder) -> Iterator[str]:
    rows = []
    for task in cell.results():
        result = cell.read_json(f"{task}.json")
        declared = result.get("metrics") or {}
        for dataset, found in (result.get("datasets") or {}).items():
            for name, metric in declared.items():
                score = (found.get("metrics") or {}).get(name) or {}
                if score.get("value") is not None:
                    low, high = score.get("ci_low"), score.get("ci_high")
                    between = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
                    head = metric.get("head") or name
                    rows.append(
                        f"| {task} | {dataset} | {head} | {score['value']:.3f} | {between} | {found.get('n')} |"
                    )
    if not rows:
        yield "None: the adapter has not been evaluated."
        return
    yield "Fractions, with 95 % bootstrap intervals over patients."
    yield ""
    yield "| task | dataset | metric | value | interval | n |"
    yield "|---|---|---|---:|---:|---:|"
    yield from rows


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)

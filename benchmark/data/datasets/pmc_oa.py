"""PMC-OA: figures of open-access articles with captions (arXiv 2303.07240); its histopathology figures are a corpus.

A figure belongs to the corpus when its caption holds one of the ACE-LoRA paper's keywords. Parts are by article, so
that panels of one article are never in two parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, refuse_foreign
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepare.reports import MIN_TOKENS, collapse, num_tokens
from benchmark.errors import DataError
from benchmark.registry import register_dataset
from benchmark.settings import setting

PAPER = ("h&e", "hematoxylin", "eosin", "histopathology", "biopsy", "microscopic")
KEYWORDS = {"paper": PAPER, "extended": (*PAPER, "h & e", "h&amp;e", "haematoxylin")}
FILES = {
    "sub": (("pmc_oa.jsonl",), ("train.jsonl", "valid.jsonl", "test.jsonl")),
    "whole": (("pmc_oa_beta.jsonl",),),
}
VAL_SHARE = 10  # one article in ten
# Organs that captions name, as whole words: what the held-out articles are asked for when models are selected. Our own
# choice; the paper does not say how its held-out tenth was used.
ORGANS = {
    "Lung": "lungs?|pulmonary|bronchial",
    "Colon": "colon|colonic|colorectal",
    "Breast": "breast|mammary",
    "Skin": "skin|cutaneous",
    "Kidney": "kidneys?|renal",
    "Liver": "liver|hepatic",
    "Stomach": "stomach|gastric",
    "Prostate": "prostate|prostatic",
    "Brain": "brain|cerebral|cerebellar",
    "Lymph node": "lymph nodes?",
    "Bone marrow": "bone marrow",
    "Thyroid": "thyroid",
}

ACCESS = Access(
    kind="open",
    url="https://huggingface.co/datasets/axiong/pmc_oa",
    how="pmc_oa.jsonl and images.zip, unpacked",
    licence="the licence of each article",
)
LAYOUT = """\
pmc_oa.jsonl       (or pmc_oa_beta.jsonl with captions=whole, or the older train.jsonl, valid.jsonl, test.jsonl)
images/<image>     (images.zip)"""


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    keywords: Literal["paper", "extended"] = setting("paper", "extended: further spellings of the same stain")
    captions: Literal["sub", "whole"] = setting(
        "sub", "sub-figures with their own captions; whole (beta files): with that of the whole figure"
    )


def read(raw: Path, options: Options) -> RawTable:
    """Read the figures whose captions hold a keyword.

    Raises:
        DataError: a file is missing or damaged, or no caption holds a keyword.
    """
    source, keywords, captions = RawFolder("PMC-OA", ACCESS, raw), options.keywords, options.captions
    rows: dict[str, tuple[str, str]] = {}
    hits: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for record in _records(source, captions):
        text = collapse(record["caption"])
        lowered = text.lower()
        held = [word for word in KEYWORDS[keywords] if word in lowered]
        hits.update(held)
        reason = _why_not(record, text, held, rows)
        counts[reason] += 1
        if not reason:
            rows[record["image"]] = (record["pmcid"], text)
    if not rows:
        raise source.error(
            f"none of {counts.total():,} captions holds a keyword ({', '.join(KEYWORDS[keywords])})"
        )
    steps = [("figures", counts.total())]
    steps += [(reason, -count) for reason, count in sorted(counts.items()) if reason]
    steps += [("kept", len(rows)), *((f"captions with '{word}'", hits[word]) for word in KEYWORDS[keywords])]
    table = _manifest(source, rows)
    lists = {part: table["image_id"][table["split"] == part].tolist() for part in ("train", "val")}
    suffix = "" if (keywords, captions) == ("paper", "sub") else f"_{keywords}_{captions}"
    return RawTable(table, tuple(steps), {f"{part}{suffix}": ids for part, ids in lists.items()})


def _why_not(record: dict[str, str], text: str, held: list[str], rows: dict[str, tuple[str, str]]) -> str:
    if not held:
        return "caption without a keyword"
    if record["image"] in rows:
        return "the same image again"
    return "" if num_tokens(text) >= MIN_TOKENS else f"caption with fewer than {MIN_TOKENS} words"


def _records(source: RawFolder, captions: str) -> Iterator[dict[str, str]]:
    groups = FILES[captions]
    found = next((paths for group in groups if (paths := [source.find(name) for name in group])[0]), [])
    for path in found or [source.need(groups[0][0])]:
        if path is None:
            continue
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    refuse_foreign(path, line[:512])
                if line.strip():
                    yield _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict[str, str]:
    try:
        record = json.loads(line)
        return {key: str(record[key] or "") for key in ("image", "caption", "pmcid")}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: line {number} is not a record with image, caption and pmcid (truncated copy?); download it again"
        ) from error


def _manifest(source: RawFolder, rows: dict[str, tuple[str, str]]) -> pd.DataFrame:
    first = next(iter(rows))
    folder = next((path for path in source.folders() if (path / first).is_file()), None)
    if folder is None:
        raise source.error(f"no image is there (expected images/{first})", "Unpack images.zip")
    texts = [text for _, text in rows.values()]
    return pd.DataFrame(
        {
            "image_id": list(rows),
            "file": [source.relative(folder / image) for image in rows],
            "text": texts,
            "split": [_part(article) for article, _ in rows.values()],
            "study_id": [article for article, _ in rows.values()],
            **{f"label_{organ}": _named(words, texts) for organ, words in ORGANS.items()},
        }
    )


def _named(words: str, texts: list[str]) -> list[str]:
    pattern = re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    return ["1" if pattern.search(text) else "0" for text in texts]


def _part(article: str) -> str:
    """Return the part of an article: by a hash of its id, so that no other choice of figures moves it."""
    digest = hashlib.sha256(article.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % VAL_SHARE == 0 else "train"


pmc_oa = register_dataset("pmc_oa")(
    RawDataset("pmc_oa", "PMC-OA", ACCESS, LAYOUT, read, Options, crop="squash")
)

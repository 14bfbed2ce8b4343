"""Open-i chest radiographs of Indiana University: 3,955 reports, 7,470 images; a corpus that needs no account.

Three forms are around: the National Library of Medicine's XML reports, a Kaggle re-pack as two CSV files, and the JSON
file that report-generation papers use. Only the Kaggle re-pack says which image is frontal; its
``indiana_projections.csv`` serves the XML form as well.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, label_values, read_json
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepare.reports import MIN_TOKENS, collapse, num_tokens, parse_report
from benchmark.errors import DataError
from benchmark.registry import register_dataset
from benchmark.settings import setting

_IMAGES = (".png", ".jpg", ".jpeg")
PROJECTIONS = "indiana_projections.csv"
_REPACKS = ("indiana_reports.csv", "annotation.json")

ACCESS = Access(
    kind="open",
    url="https://openi.nlm.nih.gov/faq#collection",
    how=f"NLMCXR_png.tgz and NLMCXR_reports.tgz; {PROJECTIONS} of the Kaggle re-pack says which images are frontal",
    licence="Open-i terms, non-commercial use",
)
LAYOUT = f"""\
one of: ecgen-radiology/1.xml ... and CXR1_1_IM-0001-3001.png ...   (+ {PROJECTIONS} for the views)
        indiana_reports.csv, {PROJECTIONS}, images/.../1_IM-0001-4001.dcm.png
        annotation.json, images/CXR1_IM-0001/0.png"""


@dataclass(frozen=True)
class _Image:
    """One image: its id, file name, report, text and part; the view is empty where nothing says it."""

    image_id: str
    name: str
    uid: str
    text: str
    split: str = ""
    view: str = ""


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    views: Literal["frontal", "all"] = setting(
        "frontal", "all: keep lateral images and those of unknown view"
    )
    labels: str = setting(
        "", "CSV with a column uid and one column per finding (1, 0, -1, empty), for the label-guided loss"
    )


def read(raw: Path, options: Options) -> RawTable:
    """Read images with their reports, from one of the three forms.

    Raises:
        DataError: a file is missing, or no view is known and ``views`` is not "all".
    """
    source, views = RawFolder("Open-i", ACCESS, raw), options.views
    # re-packs name the images in another way than the XML reports, whose list is known
    name = views if views == "frontal" or source.find(*_REPACKS) is None else "all_repacked"
    images = _images(source)
    steps = [("images with a report", len(images))]
    kept = _frontal(source, images, steps) if views == "frontal" else images
    texts = [item for item in kept if num_tokens(item.text) >= MIN_TOKENS]
    steps += [(f"report with fewer than {MIN_TOKENS} words", len(texts) - len(kept)), ("kept", len(texts))]
    table = pd.DataFrame(
        {
            "image_id": [item.image_id for item in texts],
            "file": _files(source, texts),
            "text": [item.text for item in texts],
            "study_id": [item.uid for item in texts],
            "view": [item.view for item in texts],
        }
    )
    if any(item.split for item in texts):
        table["split"] = [item.split for item in texts]
    if options.labels:
        _add_labels(Path(options.labels), source, table, steps)
    return RawTable(table, tuple(steps), {name: table["image_id"].tolist()})


def _images(source: RawFolder) -> list[_Image]:
    """Return the images of whichever form is there."""
    if (table := source.find(_REPACKS[0])) is not None:
        return list(_from_tables(source, table))
    if (path := source.find(_REPACKS[1])) is not None:
        return list(_from_json(path))
    reports = source.files((".xml",))
    if not reports:
        raise source.error(
            "no reports: neither XML files (NLMCXR_reports.tgz), nor indiana_reports.csv, nor annotation.json"
        )
    return [image for _, path in sorted(reports.items()) for image in _from_xml(source.folder / path)]


def _from_xml(path: Path) -> Iterable[_Image]:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: not an XML report ({error}); unpack NLMCXR_reports.tgz again") from error
    sections = {str(item.get("Label")): collapse(item.text or "") for item in root.iter("AbstractText")}
    text = _caption(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""))
    report = root.find("uId")
    uid = (report.get("id", "") if report is not None else path.stem).removeprefix("CXR")
    names = [item.get("id", "") for item in root.iter("parentImage")]
    return [_Image(name, f"{name}.png", uid, text) for name in dict.fromkeys(names) if name]


def _from_tables(source: RawFolder, path: Path) -> Iterable[_Image]:
    reports = source.table(path, ("uid", "findings", "impression")).set_index("uid")
    projections = source.table(source.need(PROJECTIONS), ("uid", "filename", "projection"))
    texts = {uid: _caption(findings, impression) for uid, findings, impression in reports.itertuples()}
    for uid, name, view in projections.itertuples(index=False):
        yield _Image(
            name.removesuffix(".png").removesuffix(".dcm"), name, uid, texts.get(uid, ""), view=view.lower()
        )


def _caption(findings: str, impression: str) -> str:
    """Return the text of a report; of a section that holds a whole report once more, that part is not repeated."""
    return parse_report(f"FINDINGS: {findings}\nIMPRESSION: {impression}").caption().text


def _from_json(path: Path) -> Iterable[_Image]:
    try:
        for split, items in read_json(path).items():
            for item in items:
                for name in item["image_path"]:
                    yield _Image(name.rpartition(".")[0], name, item["id"], collapse(item["report"]), split)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected lists train, val and test with id, report and image_path"
        ) from error


def _key(uid: str, name: str) -> tuple[str, str]:
    """Return what image names have in common: CXR1_1_IM-0001-4001 (XML) is 1_IM-0001-4001.dcm.png (Kaggle)."""
    return uid, re.sub(r"^.*?(?=IM-)", "", name).removesuffix(".png").removesuffix(".dcm")


def _frontal(source: RawFolder, images: list[_Image], steps: list[tuple[str, int]]) -> list[_Image]:
    if not any(item.view for item in images) and (path := source.find(PROJECTIONS)) is not None:
        table = source.table(path, ("uid", "filename", "projection"))
        views = {_key(uid, name): view.lower() for uid, name, view in table.itertuples(index=False)}
        images = [replace(item, view=views.get(_key(item.uid, item.name), "")) for item in images]
    unknown_views = sum(not item.view for item in images)
    if unknown_views == len(images):
        raise source.error(
            "these reports do not say which images are frontal",
            f"Put {PROJECTIONS} (Kaggle, chest-xrays-indiana-university) beside them, or keep all with views=all",
        )
    kept = [item for item in images if item.view == "frontal"]
    steps += [
        ("view is unknown", -unknown_views),
        ("view is not frontal", len(kept) + unknown_views - len(images)),
    ]
    return kept


def _files(source: RawFolder, images: list[_Image]) -> list[str]:
    """Return where each image lies; names with folders (annotation.json) count from the folder of the first."""
    names, first = [item.name for item in images], images[0].name if images else ""
    if "/" not in first:
        return source.located(names, source.files(_IMAGES), str)
    base = next((path for path in source.folders() if (path / first).is_file()), source.folder)
    there = {name: source.relative(base / name) for name in names if (base / name).is_file()}
    return source.located(names, there, lambda name: f"images/{name}")


def _add_labels(path: Path, source: RawFolder, table: pd.DataFrame, steps: list[tuple[str, int]]) -> None:
    """Add labels that the user supplies, by report."""
    rows = source.table(path, ("uid",), None)
    if rows["uid"].duplicated().any():
        raise DataError(f"{path}: uid '{rows['uid'][rows['uid'].duplicated()].iloc[0]}' stands in two rows")
    values = rows.set_index("uid").apply(lambda column: label_values(path, column))
    joined = values.reindex(table["study_id"])
    known = table["study_id"].isin(values.index)
    table["labelled"] = ["1" if item else "" for item in known]
    for name in values:
        table[f"label_{name}"] = joined[name].fillna("").to_numpy()
    steps.append(("of these without labels", int((~known).sum())))


openi = register_dataset("openi")(RawDataset("openi", "Open-i", ACCESS, LAYOUT, read, Options, crop="squash"))

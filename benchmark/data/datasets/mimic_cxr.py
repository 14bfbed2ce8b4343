"""MIMIC-CXR: frontal chest radiographs with their reports and 14 labels; the corpus of the radiology suite.

Images, tables and labels come from MIMIC-CXR-JPG (2.0.0 or 2.1.0), reports from MIMIC-CXR (arXiv 1901.07042). Tables
are joined by study and image id, never by row. Uncertain labels stay -1; training decides what they count as.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, label_values, refuse_foreign
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepare.reports import MIN_TOKENS, Sections, collapse, num_tokens, parse_report
from benchmark.errors import DataError
from benchmark.registry import register_dataset
from benchmark.settings import setting

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
FRONTAL = ("PA", "AP")
_PARTS = {"train": "train", "validate": "val", "test": "test"}
_PROBES = 200
_SECTIONED = ("study", "findings", "impression", "last_paragraph", "comparison")

ACCESS = Access(
    kind="credentialed",
    url="https://physionet.org/content/mimic-cxr-jpg/",
    how="MIMIC-CXR-JPG (files/, the metadata, split and chexpert tables) and mimic-cxr-reports.zip of MIMIC-CXR",
    licence="PhysioNet Credentialed Health Data License (training and data use agreement)",
)
LAYOUT = """\
files/p10/p10000032/s50414267/<dicom_id>.jpg      (MIMIC-CXR-JPG)
mimic-cxr-2.0.0-metadata.csv[.gz], -split.csv[.gz], -chexpert.csv[.gz]
reports, one of: files/p10/p10000032/s50414267.txt beside the study folders; a tree of its own
(mimic-cxr-reports/files/...); mimic-cxr-reports.zip; mimic_cxr_sectioned.csv"""

Reports = Callable[[str, str], Sections | None]


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    labels: Literal["chexpert", "negbio"] = setting("chexpert", "labeller of the label table")
    reports: str = setting("", "folder, zip or sectioned CSV of the reports, if it is not below --raw")


def read(raw: Path, options: Options) -> RawTable:
    """Read frontal images that have a report, from MIMIC-CXR-JPG with MIMIC-CXR inside or beside it.

    Raises:
        DataError: a file is missing, or tables contradict each other.
    """
    source = RawFolder("MIMIC-CXR", ACCESS, raw)
    images = source.table(
        _table_file(source, "metadata"), ("dicom_id", "subject_id", "study_id", "ViewPosition")
    )
    split = source.table(_table_file(source, "split"), ("dicom_id", "study_id", "split"))
    steps = [("images in the metadata table", len(images))]
    blank, frontal = images["ViewPosition"] == "", images["ViewPosition"].isin(FRONTAL)
    steps += [("view is blank", -int(blank.sum())), ("view is not PA or AP", -int((~blank & ~frontal).sum()))]
    images = _with_split(images[frontal], split)
    root = _image_root(source, images)
    images["file"] = [f"{root}{_study_path(*ids)}/{ids[2]}.jpg" for ids in _ids(images)]
    images = _with_captions(source, images, options.reports, steps)
    images = _with_labels(source, _table_file(source, options.labels), images, steps)
    ids = {part: split["dicom_id"][split["split"] == part].tolist() for part in _PARTS}
    names = {"dicom_id": "image_id", "subject_id": "patient_id", "ViewPosition": "view"}
    return RawTable(images.rename(columns=names).reset_index(drop=True), tuple(steps), ids)


def _table_file(source: RawFolder, name: str) -> Path:
    why = "The tables belong to MIMIC-CXR-JPG, not to MIMIC-CXR"
    return source.need(*(f"mimic-cxr-{version}-{name}.csv" for version in ("2.0.0", "2.1.0")), why=why)


def _ids(images: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    return zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True)


def _study_path(subject: str, study: str, _: str = "") -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def _with_split(images: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Add the split by image id; both tables must agree on the study of every image."""
    for name, table in (("metadata", images), ("split", split)):
        if table["dicom_id"].duplicated().any():
            twice = table["dicom_id"][table["dicom_id"].duplicated()].iloc[0]
            raise DataError(f"MIMIC-CXR: image '{twice}' occurs twice in the {name} table; download it again")
    joined = images.merge(split, on="dicom_id", how="left", suffixes=("", "_split"), validate="one_to_one")
    wrong = (joined["study_id"] != joined["study_id_split"]) | ~joined["split"].isin(list(_PARTS))
    if wrong.any():
        raise DataError(
            f"MIMIC-CXR: {int(wrong.sum()):,} images have no split or another study in the split table, first "
            f"'{joined['dicom_id'][wrong].iloc[0]}'; metadata and split must be of the same release"
        )
    return joined.assign(split=joined["split"].map(_PARTS)).drop(columns="study_id_split")


def _image_root(source: RawFolder, images: pd.DataFrame) -> str:
    """Return where ``files/`` lies below the raw folder, as a prefix of paths."""
    paths = [f"{_study_path(*ids)}/{ids[2]}" for ids in _spread(images)]
    for folder in source.folders():
        if any((folder / f"{path}.jpg").is_file() for path in paths):
            relative = source.relative(folder)
            return "" if relative == "." else f"{relative}/"
    dicom = any((folder / f"{path}.dcm").is_file() for folder in source.folders() for path in paths)
    hint = "files/ holds the DICOM files of MIMIC-CXR; this reader takes the JPG release" if dicom else ""
    raise source.error(f"no image of the metadata table is there (expected {paths[0]}.jpg)", hint)


def _spread(images: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the ids of some images from all over the table: enough to tell where files lie."""
    return list(_ids(images.iloc[:: max(1, len(images) // _PROBES)]))


def _with_captions(
    source: RawFolder, images: pd.DataFrame, where: str, steps: list[tuple[str, int]]
) -> pd.DataFrame:
    sections_of = _find_reports(source, images, where)
    texts: dict[str, tuple[str, str]] = {}
    for subject, study, _ in _ids(images):
        if study not in texts:
            sections = sections_of(subject, study)
            caption = sections.caption() if sections else None
            texts[study] = (caption.text, caption.source) if caption else ("", "no report")
    images = images.assign(
        text=[texts[study][0] for study in images["study_id"]],
        _source=[texts[study][1] for study in images["study_id"]],
    )
    images["n_tokens"] = [str(num_tokens(text)) for text in images["text"]]
    absent = images["_source"] == "no report"
    short = ~absent & (images["n_tokens"].astype(int) < MIN_TOKENS)
    steps += [
        ("no report file", -int(absent.sum())),
        (f"no section with {MIN_TOKENS} words", -int(short.sum())),
    ]
    images = images[~absent & ~short]
    steps.append(("kept", len(images)))
    steps += [(f"text is {name}", count) for name, count in Counter(images["_source"]).most_common()]
    return images.drop(columns="_source")


def _with_labels(
    source: RawFolder, path: Path, images: pd.DataFrame, steps: list[tuple[str, int]]
) -> pd.DataFrame:
    """Add the labels of each image's study, by name; images of a study without labels stay, unlabelled."""
    table = source.table(path, ("study_id", *LABELS)).drop_duplicates().set_index("study_id")
    if table.index.duplicated().any():
        twice = table.index[table.index.duplicated()][0]
        raise DataError(f"{path}: study {twice} has two rows with different labels; download it again")
    table = table.apply(lambda values: label_values(path, values))
    joined = table.reindex(images["study_id"])
    if joined.index.tolist() != images["study_id"].tolist():
        raise AssertionError("labels are joined by study, one row per image")
    known = images["study_id"].isin(table.index).to_numpy()
    steps.append(("of these without labels", int((~known).sum())))
    images = images.assign(labelled=["1" if item else "" for item in known])
    for name in LABELS:
        images[f"label_{name}"] = joined[name].fillna("").to_numpy()
    return images


def _find_reports(source: RawFolder, images: pd.DataFrame, where: str) -> Reports:
    """Return how the sections of a study are read, from whichever form of the reports is there."""
    if where and not Path(where).exists():
        raise DataError(f"mimic_cxr: reports: '{where}' does not exist")
    place = RawFolder(source.title, ACCESS, Path(where)) if where and Path(where).is_dir() else source
    named = Path(where) if where and Path(where).is_file() else None
    if (table := _of_type(named, ".csv", ".gz") or place.find("mimic_cxr_sectioned.csv")) is not None:
        return _from_table(source, table)
    paths = [_study_path(*ids) for ids in _spread(images)]
    for folder in place.folders():
        for start in ("", "files/"):  # the reports' own tree may begin at files/ or at p10/
            if any((folder / path.removeprefix(start)).with_suffix(".txt").is_file() for path in paths):
                return _from_tree(folder, start)
    if (archive := _of_type(named, ".zip") or place.find("mimic-cxr-reports.zip")) is not None:
        return _from_zip(archive)
    raise source.error(
        f"no report is there (expected {paths[0]}.txt)",
        "MIMIC-CXR-JPG has no reports: put mimic-cxr-reports.zip of MIMIC-CXR beside its files/, or give reports=PATH",
    )


def _of_type(path: Path | None, *suffixes: str) -> Path | None:
    return path if path is not None and path.suffix in suffixes else None


def _from_tree(folder: Path, start: str) -> Reports:
    def sections(subject: str, study: str) -> Sections | None:
        path = folder / f"{_study_path(subject, study).removeprefix(start)}.txt"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        refuse_foreign(path, content[:512])
        return parse_report(content.decode("utf-8", errors="replace"))

    return sections


def _from_zip(archive: Path) -> Reports:
    with _reading(archive):
        members = zipfile.ZipFile(io.BytesIO(archive.read_bytes()))
    at = {name.rpartition("/")[2]: name for name in members.namelist() if name.endswith(".txt")}

    def sections(_: str, study: str) -> Sections | None:
        if (name := at.get(f"s{study}.txt")) is None:
            return None
        with _reading(archive):
            return parse_report(members.read(name).decode("utf-8", errors="replace"))

    return sections


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged archives raise anything
        raise DataError(f"{archive}: damaged zip file ({error}); download it again") from error


def _from_table(source: RawFolder, path: Path) -> Reports:
    table = source.table(path, _SECTIONED).set_index("study")
    rows = {
        str(study).removeprefix("s"): Sections(*(collapse(value) for value in values))
        for study, *values in table[["findings", "impression", "comparison", "last_paragraph"]].itertuples()
    }
    return lambda _, study: rows.get(study)


mimic_cxr = register_dataset("mimic_cxr")(
    RawDataset("mimic_cxr", "MIMIC-CXR", ACCESS, LAYOUT, read, Options, crop="squash")
)

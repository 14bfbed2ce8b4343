"""RAD-ChestCT: 3,630 chest CT volumes with 84 abnormalities, read under the names of CT-RATE's findings.

Three maps from its abnormalities to those names are in use, and they disagree: a score without the name of its map is
no number. The maps are data (``label_maps/rad_chestct.json``); an entry names one, results say its name, and the report
of ``prepare`` its hash. Sources: zch0414/hlip (hlip16), lmb-freiburg/radfinder: configs/tasks/binary_zs (the others).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets._sources import RawFolder, read_json
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepare.volumes import AXES, SPACING
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.files import PROGRAM
from benchmark.preprocess import Crop
from benchmark.registry import register_dataset
from benchmark.settings import setting

MAPS = Path(__file__).resolve().parents[1] / "label_maps" / "rad_chestct.json"
PARTS = ("train", "valid", "test")
MapName = Literal["hlip16", "radfinder_standard", "radfinder_extended"]
_ID, _SUMMARY = "NoteAcc_DEID", "Summary_3630.csv"
_STEP = 0.8  # millimetres, along all axes

ACCESS = Access(
    kind="registration",
    url="https://zenodo.org/records/6406114",
    how="the .npz volumes and the tables of abnormalities of its three parts",
    licence="CC BY-NC-ND 4.0",
)
LAYOUT = """\
trn00001.npz, val..., tst... (array `ct`, Hounsfield units; slices, rows, columns)
imgtrain.csv, imgvalid.csv, imgtest.csv (or img..._Abnormality_and_Location_Labels.csv)
Summary_3630.csv (patients; without it, every volume stands for a patient)"""


@functools.cache
def label_maps() -> dict[str, dict[str, list[str]]]:
    """Return map -> finding -> abnormalities of which one at least is there."""
    maps: dict[str, dict[str, list[str]]] = read_json(MAPS)
    return maps


def map_sha256(name: str) -> str:
    """Return the SHA-256 of a map: the same for the same columns behind the same names."""
    return hashlib.sha256(json.dumps(label_maps()[name], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    label_map: MapName = setting(MISSING, "which abnormalities stand behind the names of the findings")


def read(raw: Path, options: Options) -> RawTable:
    """Read all parts that are there under one map.

    Raises:
        DataError: no table is there, or it lacks an abnormality of the map.
    """
    source = RawFolder("RAD-ChestCT", ACCESS, raw)
    found = {
        part: source.find(f"img{part}_Abnormality_and_Location_Labels.csv", f"img{part}.csv")
        for part in PARTS
    }
    tables = [
        _part(source, part, path, options.label_map) for part, path in found.items() if path is not None
    ]
    if not tables:
        raise source.error(f"none of img{', img'.join(PARTS)} (.csv) is there")
    table = pd.concat(tables, ignore_index=True)
    table["patient_id"] = _patients(source, table["image_id"])
    names = [f"{name}.npz" for name in table["image_id"]]
    table["file"] = source.located(names, source.files((".npz",)), str)
    table[SPACING], table[AXES] = json.dumps([_STEP] * 3), "SPL"
    note = f"label map {options.label_map}, sha256 {map_sha256(options.label_map)[:12]}"
    steps = (("volumes with labels", len(table)), (note, len(table)))
    return RawTable(table, steps, {"all": table["image_id"].tolist()})


def _part(source: RawFolder, part: str, path: Path, name: str) -> pd.DataFrame:
    rows = source.table(path, (_ID,), None)
    numbers = rows.drop(columns=_ID).apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any().any():
        column = next(str(column) for column in numbers if numbers[column].isna().any())
        raise DataError(f"{path}: column '{column}': expected 0 or 1")
    # one column for each place of an abnormality: there if it is anywhere
    numbers.columns = pd.Index([str(column).partition("*")[0] for column in numbers.columns])
    wanted = label_maps()[name]
    if lacking := sorted(
        {column for columns in wanted.values() for column in columns} - set(numbers.columns)
    ):
        raise DataError(
            f"{path}: abnormality {', '.join(lacking[:3])} is missing. Is it a file of RAD-ChestCT?"
        )
    shown = {finding: (numbers[columns].max(axis=1) > 0).astype(int) for finding, columns in wanted.items()}
    return pd.DataFrame(
        {
            "image_id": rows[_ID],
            "split": part,
            "labelled": "1",
            **{f"label_{finding}": values.map({1: "1", 0: "0"}) for finding, values in shown.items()},
        }
    )


def _patients(source: RawFolder, ids: pd.Series[str]) -> list[str]:
    """Return patient ids; empty where the table of patients is not there. The official parts share 19 patients."""
    path = source.find(_SUMMARY)
    if path is None:
        return [""] * len(ids)
    table = source.table(path, (_ID, "MRN_DEID")).drop_duplicates(_ID).set_index(_ID)["MRN_DEID"]
    return [str(patient) for patient in table.reindex(ids).fillna("")]


@dataclass(frozen=True)
class RadChestCT(RawDataset):
    """RAD-ChestCT under one map of labels, each with a folder of its own."""

    @dataclass(frozen=True)
    class Options:
        """The keys of a data entry."""

        label_map: MapName = setting(MISSING, "which abnormalities stand behind the names of the findings")
        part: Literal["train", "valid", "test"] | None = setting(None, "None takes all rows")
        crop: Crop | None = setting(None, "of pictures; volumes have none")

    def load(self, options: Any, request: LoadRequest) -> Prepared:
        """Open it under one map; see :meth:`RawDataset.load`."""
        one = self.select(vars(options))
        return RawDataset.load(one, RawDataset.Options(options.part, None, options.crop), request)

    def select(self, options: Mapping[str, Any]) -> RawDataset:
        """Return the dataset under the map that the option ``label_map`` says.

        Raises:
            ConfigError: no such map.
        """
        name = options.get("label_map")
        if name not in label_maps():
            raise ConfigError(unknown("RAD-ChestCT: label_map =", str(name), label_maps()))
        return replace(self, name=f"rad_chestct/{name}")

    def prepare_command(self, data_root: Path | str = "DIR") -> str:
        """Return the command that prepares it under this map."""
        head, _, name = self.name.partition("/")
        return f"{PROGRAM} prepare {head} --raw DIR --data-root {data_root} label_map={name or '...'}"


rad_chestct = register_dataset("rad_chestct")(
    RadChestCT("rad_chestct", "RAD-ChestCT", ACCESS, LAYOUT, read, Options, volumes=True)
)

"""LC25000: 15,000 lung and 10,000 colon tiles in five classes (arXiv 1912.12142).

The 25,000 files are augmented copies of 1,250 tiles. With the group file of LC25000-clean beside them, intervals are
drawn over source tiles; without it every copy counts as an independent tile, which makes intervals too narrow.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmark.data.datasets._sources import RawFolder
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError
from benchmark.registry import register_dataset

GROUPS = "lc25000_image_groups.csv"
_IMAGES = (".jpeg", ".jpg", ".png")
# folder -> (organ, class text of the ACE-LoRA paper)
CLASSES = {
    "lung_aca": ("lung", "Lung adenocarcinoma"),
    "lung_n": ("lung", "Benign lung"),
    "lung_scc": ("lung", "Lung squamous cell carcinoma"),
    "colon_aca": ("colon", "Colon adenocarcinoma"),
    "colon_n": ("colon", "Benign colonic tissue"),
}

ACCESS = Access(
    kind="open",
    url="https://github.com/tampapath/lung_colon_image_set",
    how=f"LC25000.zip; {GROUPS} from github.com/GeorgeBatch/LC25000-clean (folder kaggle) for honest intervals",
    licence="open, as stated in arXiv 1912.12142",
)
LAYOUT = f"""\
lung_colon_image_set/lung_image_sets/lung_aca/lungaca1.jpeg, .../lung_n/, .../lung_scc/
lung_colon_image_set/colon_image_sets/colon_aca/colonca1.jpeg, .../colon_n/
{GROUPS}    (optional: source tiles)"""


def read(raw: Path) -> RawTable:
    """Read all tiles; protocols ``lung`` and ``colon`` are its two evaluation sets.

    Raises:
        DataError: a class folder is missing or empty, or the group file lacks an image.
    """
    source = RawFolder("LC25000", ACCESS, raw)
    found: list[tuple[str, str, str, str]] = []
    for name, (organ, text) in CLASSES.items():
        folder = source.find(f"{organ}_image_sets/{name}", name)
        files = source.files(_IMAGES, folder) if folder else {}
        if not files:
            state = "is missing" if folder is None else "has no image"
            raise source.error(
                f"class folder {organ}_image_sets/{name} {state}", "Names must be those of the original"
            )
        found += [(file.rpartition(".")[0], path, organ, text) for file, path in sorted(files.items())]
    table = pd.DataFrame(found, columns=["image_id", "file", "organ", "class"])
    steps = [(f"images of {text}", int((table["class"] == text).sum())) for _, text in CLASSES.values()]
    for organ in ("lung", "colon"):
        table[f"split_{organ}"] = ["test" if item == organ else "" for item in table["organ"]]
    for _, text in CLASSES.values():
        table[f"label_{text}"] = ["1" if item == text else "0" for item in table["class"]]
    grouped = _add_groups(source, table)
    steps += [("kept", len(table)), ("source tiles known", grouped)]
    ids = {organ: table["image_id"][table["organ"] == organ].tolist() for organ in ("lung", "colon")}
    return RawTable(table.drop(columns=["organ", "class"]), tuple(steps), ids)


def _add_groups(source: RawFolder, table: pd.DataFrame) -> int:
    """Add the source tile of each image as its patient: the unit that intervals are drawn over; return how many."""
    path = source.find(GROUPS)
    if path is None:
        return 0
    rows = source.table(path, ("stem", "group_id"))
    groups = dict(zip(rows["stem"], rows["group_id"], strict=True))
    missing = [item for item in table["image_id"] if item not in groups]
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} images have no group, first '{missing[0]}'; images are renamed copies"
        )
    table["patient_id"] = [f"tile-{groups[item]}" for item in table["image_id"]]
    return len(set(table["patient_id"]))


lc25000 = register_dataset("lc25000")(RawDataset("lc25000", "LC25000", ACCESS, LAYOUT, read))

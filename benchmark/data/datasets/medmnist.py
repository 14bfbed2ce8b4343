"""MedMNIST+: small standardised classification sets, each one npz file of arrays that are 28 to 224 pixels wide.

Yang et al., "MedMNIST v2", Scientific Data 2023, arXiv 2110.14795. One prepared folder per set,
``<data-root>/medmnist/<set>``; parts ``train``, ``val``, ``test``. MedMNIST has no reports: the ``text`` of a row is a
sentence made from its label, a weak caption that says no more than the label does.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmark.data.dataset import LoadRequest
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.files import PROGRAM
from benchmark.preprocess import Crop
from benchmark.registry import register_dataset
from benchmark.settings import setting

_CHEST = (
    "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
    "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
)  # fmt: skip
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)  # fmt: skip


@dataclass(frozen=True)
class Subset:
    """One set of MedMNIST.

    Attributes:
        labels: label names in the order of the published label indices.
        caption: sentence around a label.
        several: whether an image may show several labels, or none.
        words: label -> what the sentence says, where that is not the label itself.
    """

    labels: tuple[str, ...]
    caption: str
    several: bool = False
    words: Mapping[str, str] = field(default_factory=dict)


SETS = {
    "pneumoniamnist": Subset(("normal", "pneumonia"), "a chest X-ray image showing {}."),
    "chestmnist": Subset(
        _CHEST, "a chest X-ray image showing {}.", several=True, words={"pleural": "pleural thickening"}
    ),
    "breastmnist": Subset(("malignant", "normal, benign"), "a breast ultrasound image showing a {} finding."),
    "pathmnist": Subset(
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
        "a histopathology image of {}.",
    ),
    "bloodmnist": Subset(
        (
            "basophil", "eosinophil", "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte",
            "neutrophil", "platelet",
        ),
        "a blood smear microscopy image of {}.",
    ),
    "dermamnist": Subset(
        (
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
            "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
        ),
        "a dermatoscopic image of {}.",
    ),
    "octmnist": Subset(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        "a retinal OCT image showing {}.",
    ),
    "tissuemnist": Subset(
        (
            "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
            "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        "a kidney cortex microscopy image of {}.",
    ),
    "organamnist": Subset(_ORGANS, "an axial abdominal CT image of the {}."),
    "organcmnist": Subset(_ORGANS, "a coronal abdominal CT image of the {}."),
    "organsmnist": Subset(_ORGANS, "a sagittal abdominal CT image of the {}."),
}  # fmt: skip
"""Label names as in MedMNIST 3.0.2; without the ordinal RetinaMNIST, whose labels have no names, and the volumes."""

WIDTHS = (224, 128, 64, 28)
PARTS = ("train", "val", "test")


class NpzImages:
    """The images of all parts, one after another, unpacked from the npz as they are read: large sets exceed memory.

    Args:
        path: the npz file. Slices must be read upwards; going back starts the unpacking again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        shapes = [_header(path, part) for part in PARTS]
        if len({shape[1:] for shape in shapes}) != 1:
            raise DataError(f"{path}: the parts have images of different shapes {shapes}")
        self._counts = [shape[0] for shape in shapes]
        self.shape = (sum(self._counts), *shapes[0][1:])
        self.ndim, self.dtype = len(self.shape), np.dtype(np.uint8)
        self._stream, self._next = self._images(), 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]:
        start, stop, _ = rows.indices(len(self))
        if start < self._next:
            self._stream, self._next = self._images(), 0
        images = [next(self._stream) for _ in range(self._next, stop)][start - self._next :]
        self._next = stop
        return np.stack(images) if images else np.zeros((0, *self.shape[1:]), dtype=np.uint8)

    def _images(self) -> Iterator[npt.NDArray[np.uint8]]:
        size = int(np.prod(self.shape[1:]))
        for part, count in zip(PARTS, self._counts, strict=True):
            with _member(self._path, f"{part}_images") as member:
                _read_header(member)
                for _ in range(count):
                    yield np.frombuffer(member.read(size), dtype=np.uint8).reshape(self.shape[1:])


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open an array of an npz file; whatever goes wrong with it is one line."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            yield member
    except Exception as error:  # damaged archives raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{path}: not a MedMNIST file ({name} cannot be read: {reason}); download it again"
        ) from error


def _header(path: Path, part: str) -> tuple[int, ...]:
    with _member(path, f"{part}_images") as member:
        shape, fortran, dtype = _read_header(member)
    if dtype != np.uint8 or fortran or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise DataError(
            f"{path}: {part}_images: expected uint8 [N, H, W] or [N, H, W, 3], got {dtype} {shape}"
        )
    return shape


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(member)
    return found


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    name: str = setting(MISSING, "of the set")


def read(raw: Path, options: Options) -> RawTable:
    """Read ``<name>_224.npz`` (or the widest of the 128, 64 and 28 pixel files that is there).

    Raises:
        DataError: no such file, or its labels do not fit the set.
    """
    name = options.name
    path = _file(raw, name)
    images = NpzImages(path)
    subset, parts = SETS[name], []
    for part in PARTS:
        with _member(path, f"{part}_labels") as member:
            labels = np.lib.format.read_array(member, allow_pickle=False)
        parts.append(_rows(path, name, part, _one_hot(path, part, labels, subset)))
    table = pd.concat(parts, ignore_index=True)
    if len(table) != len(images):
        raise DataError(f"{path}: {len(images)} images but {len(table)} labels; download it again")
    steps = (("images in the npz file", len(table)),)
    ids = {part: table.loc[table["split"] == part, "image_id"].tolist() for part in PARTS}
    named = {f"{name}_{part}": values for part, values in ids.items()}
    return RawTable(table, steps, named, pixels=images, sources=(path.name,))


def _file(raw: Path, name: str) -> Path:
    names = [f"{name}_{width}.npz" for width in WIDTHS if width != 28] + [f"{name}.npz"]
    for candidate in names:
        if (raw / candidate).is_file():
            return raw / candidate
    raise DataError(f"{raw}: none of {', '.join(names)} is there. Get it at {ACCESS.url}")


def _one_hot(path: Path, part: str, labels: npt.NDArray[Any], subset: Subset) -> npt.NDArray[np.int64]:
    """Return ``[N, C]`` of 0 and 1."""
    width, count = (len(subset.labels) if subset.several else 1), len(subset.labels)
    highest = 1 if subset.several else count - 1
    right = labels.ndim == 2 and labels.shape[1] == width and labels.dtype.kind in "ui"
    if not right or labels.min(initial=0) < 0 or labels.max(initial=0) > highest:
        raise DataError(f"{path}: {part}_labels: expected [N, {width}] of 0 to {highest}, got {labels.shape}")
    wide: npt.NDArray[np.int64] = labels.astype(np.int64)
    return wide if subset.several else np.eye(count, dtype=np.int64)[wide[:, 0]]


def _rows(path: Path, name: str, part: str, shown: npt.NDArray[np.int64]) -> pd.DataFrame:
    subset = SETS[name]
    said = np.array([subset.words.get(label, label) for label in subset.labels], dtype=object)
    texts = [subset.caption.format(" and ".join(said[row == 1]) or "no finding") for row in shown]
    columns: dict[str, Any] = {
        "image_id": [f"{part}-{i:06d}" for i in range(len(shown))],
        "split": part,
        "text": texts,
    }
    columns |= {f"label_{label}": shown[:, i] for i, label in enumerate(subset.labels)}
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class MedMnist(RawDataset):
    """MedMNIST as one dataset whose entries and commands say which set is meant."""

    @dataclass(frozen=True)
    class Options:
        """The keys of a data entry."""

        name: str = setting(MISSING, "of the set")
        part: Literal["train", "val", "test"] | None = setting(None, "None takes all rows")
        crop: Crop | None = setting(None, "how images are fitted, whatever the rule of the backbone is")

    def load(self, options: Any, request: LoadRequest) -> Prepared:
        """Open one set; see :meth:`RawDataset.load`."""
        one = self.select(vars(options))
        return RawDataset.load(one, RawDataset.Options(options.part, None, options.crop), request)

    def select(self, options: Mapping[str, Any]) -> RawDataset:
        """Return the set that the option ``name`` says.

        Raises:
            ConfigError: unknown set.
        """
        name = options.get("name")
        if name not in SETS:
            raise ConfigError(unknown("MedMNIST set: name =", str(name), SETS))
        return replace(self, name=f"medmnist/{name}")

    def prepare_command(self, data_root: Path | str = "DIR") -> str:
        """Return the command that prepares this set."""
        head, _, name = self.name.partition("/")
        return f"{PROGRAM} prepare {head} --raw DIR --data-root {data_root} name={name or '...'}"


ACCESS = Access(
    kind="open",
    url="https://medmnist.com (files: https://zenodo.org/records/10519652)",
    how="<name>_224.npz of the wanted sets, for example pneumoniamnist_224.npz",
    licence="CC BY 4.0; dermamnist CC BY-NC 4.0",
)
medmnist = register_dataset("medmnist")(
    MedMnist(
        name="medmnist",
        title="MedMNIST+",
        access=ACCESS,
        layout="DIR/pneumoniamnist_224.npz, DIR/chestmnist_224.npz, ... (also _128, _64 and the 28-pixel <name>.npz)",
        read=read,
        reader_options=Options,
    )
)

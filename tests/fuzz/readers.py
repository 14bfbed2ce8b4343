"""What is damaged, how, and which readers it is given to."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from benchmark.backbones.checkpoints import load_weights, read_content, read_foreign, read_state
from benchmark.cli import main
from benchmark.data.datasets import medmnist
from benchmark.data.prepare.images import ImageError, read_image
from benchmark.errors import BenchmarkError, DataError, StoreError
from benchmark.run import adapters
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.store.cells import CellFolder
from tests.fuzz import mutate, originals
from tests.fuzz.mutate import Mutate

MOST_PIXELS = 2_000_000
"""The bound that images are read with: a file that declares more is refused, so memory stays small."""

Read = Callable[[Path], object]


class Wrong(Exception):  # noqa: N818
    """A reader did with a damaged file what it must not do."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        count: how many a whole run damages. originals: gives the whole files.
        ways: how they are damaged. readers: (file, how it is read, the errors that may say why not).
        refused: whether every file must be refused.
    """

    count: int
    originals: Callable[[], originals.Files]
    ways: Callable[[str], tuple[Mutate, ...]]
    readers: tuple[tuple[Read, type[BenchmarkError]], ...]
    refused: bool = False


def _image(path: Path) -> None:
    image = read_image(path, MOST_PIXELS)
    if image.pixels.dtype != np.uint8 or image.pixels.shape[:2] != (image.height, image.width):
        raise Wrong(f"{image.pixels.dtype} {image.pixels.shape}")


def _checkpoint(path: Path) -> None:
    said: list[str] = []
    if Checkpoint(path, "k").load(said.append) is None:
        raise StoreError(f"{path}: {' '.join(said)}" if len(said) == 1 else f"{said}")


def _into_a_model(path: Path) -> None:
    model = nn.Module()
    model.a = nn.Linear(4, 3)
    model.logit_scale = nn.Parameter(model.a.bias.sum().detach())
    load_weights(model, path, "a small model")


def _adapter(path: Path) -> None:
    """Import an authors' checkpoint, or a folder of peft's, as the command does."""
    adapters.read_checkpoint(path)  # most are refused here, and the command takes long
    if path.is_file() and path.name != "authors.pt":
        return
    said, method = io.StringIO(), originals.METHOD if path.is_dir() else "ace_lora"
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        words = ["--method", method, "--to", str(path.parent / "out"), "--backbone", "tiny"]
        status = main(["import-adapter", str(path), *words])
    line = said.getvalue().strip()
    if status not in (0, 2):
        raise Wrong(f"exit code {status}: {line[-300:]}")
    if status:
        raise StoreError(line)


def _medmnist(path: Path) -> None:
    table = medmnist.read(path.parent, medmnist.Options(name="pneumoniamnist"))
    for start in range(0, min(len(table.table), 64), 16):
        table.pixels[start : start + 16]


KINDS = {
    "images": Kind(
        10_000, originals.images,
        lambda name: (mutate.damaged, mutate.png) if name.endswith(".png") else (mutate.damaged,),
        ((_image, ImageError),),
    ),
    "foreign": Kind(2_000, originals.foreign, lambda _: (mutate.damaged,), ((_image, ImageError),), refused=True),
    "dicom": Kind(
        3_000, originals.dicom, lambda _: (mutate.damaged, mutate.dicom_header, mutate.dicom_header),
        ((_image, ImageError),),
    ),
    "weights": Kind(
        3_000, originals.weights,
        lambda name: (mutate.damaged,)
        if name.endswith("tensors") or name == "older.pt"
        else (mutate.damaged, mutate.gently, mutate.archive, mutate.archive, mutate.pickled),
        (
            (read_content, DataError), (read_state, DataError), (read_foreign, DataError), (_into_a_model, DataError),
            (adapters.read_checkpoint, StoreError), (_adapter, BenchmarkError), (_checkpoint, StoreError),
            (lambda path: CellFolder(path.parent).read_tensors(path.name), StoreError),
        ),
    ),
    "npz": Kind(
        3_000, originals.arrays, lambda _: (mutate.damaged, mutate.gently, mutate.archive, mutate.array),
        ((lambda path: CellFolder(path.parent).read_npz(path.name), StoreError), (_medmnist, DataError)),
    ),
    "adapters": Kind(
        1_000, originals.adapter,
        lambda name: (mutate.damaged, mutate.gently, mutate.text) if name.endswith("json") else (mutate.damaged,),
        ((lambda path: _adapter(path.parent), BenchmarkError),),
    ),
}  # fmt: skip


def drawn(kind: str, number: int, seed: int) -> tuple[str, bytes]:
    """Return name and content of a damaged file; the same number and seed of a run give the same."""
    what = KINDS[kind]
    random = np.random.default_rng([seed, list(KINDS).index(kind), number])
    files = what.originals()
    name = list(files)[int(random.integers(len(files)))]
    if what.refused and random.random() < 0.1:
        return name, files[name]
    ways = what.ways(name)
    return name, ways[int(random.integers(len(ways)))](files[name], random)


def attempt(kind: str, name: str, content: bytes, folder: Path) -> Iterator[str]:
    """Give a file to the readers of its kind and yield "read" or "refused" for each.

    Args:
        kind: of `KINDS`.
        name: of the file. content: of the file.
        folder: where it is put, with the other files of an adapter.

    Raises:
        Wrong: a reader let another error through, or one that does not name the file in one line.
    """
    what = KINDS[kind]
    place = folder / "given"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for other, whole in what.originals().items() if kind == "adapters" else ():
        (place / other).write_bytes(whole)
    (place / name).write_bytes(content)
    for read, error in what.readers:
        yield _outcome(read, error, place / name, what.refused)


def _outcome(read: Read, error: type[BenchmarkError], path: Path, refused: bool) -> str:
    try:
        read(path)
    except error as told:
        line = str(told)
        if "\n" in line or str(path.parent) not in line:
            raise Wrong(f"{path.name}: not one line with its name: {line[:300]!r}") from told
        return "refused"
    except Wrong:
        raise
    except BaseException as other:  # also what ends a process
        raise Wrong(f"{path.name}: {type(other).__name__}: {str(other)[:300]}") from other
    if refused:
        raise Wrong(f"{path.name}: read, although its format is not allowed")
    return "read"

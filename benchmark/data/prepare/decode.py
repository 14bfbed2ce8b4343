"""Decodes images into one array file in worker processes, so that a killed run continues where it stopped.

The file has its full size from the start; beside it a journal has one line per finished block of images, with what was
learned about each. Whoever starts again reads the journal and decodes the rest. Workers write pixels themselves, only
facts travel back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.backbones.volumes import VolumeFitting
from benchmark.console import Reporter
from benchmark.data.prepare import volumes
from benchmark.data.prepare.images import MAX_PIXELS, DecodedImage, ImageError, read_image
from benchmark.errors import DataError
from benchmark.files import write_whole
from benchmark.preprocess import THUMBNAIL, Fitting
from benchmark.registry import load_plugins

BLOCK_SIZE = 32
"""Images per block: what a worker takes at a time, and the most that a kill loses per worker."""

_AT_ONCE = 2**28
"""Bytes of an array file that are copied at once: a volume may have a hundred million."""

Facts = dict[str, Any]
"""Of one image: sha256, width, height, notes; or ``bad``: why it cannot be read."""


@dataclass(frozen=True)
class Target:
    """Where decoded images go.

    Attributes:
        pixels, thumbnails, masks: array files; masks None for datasets without.
        fitting: what is done to the images.
        mask: the dataset's rule, ``mask(row, (h, w))``.
        max_pixels: that an image file may declare.
    """

    pixels: Path
    thumbnails: Path
    masks: Path | None
    fitting: Fitting
    mask: Callable[[Mapping[str, Any], tuple[int, int]], npt.NDArray[np.bool_]] | None
    max_pixels: int = MAX_PIXELS

    @property
    def journal(self) -> Path:
        """The file that says which blocks are finished."""
        return self.pixels.with_suffix(".journal")


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images: paths, or uint8 arrays, and their table rows where masks or volumes need them."""

    start: int
    items: Sequence[Path | npt.NDArray[np.uint8]]
    rows: Sequence[Mapping[str, Any]] = ()


def decode_block(block: ImageBlock, target: Target) -> list[Facts] | None:
    """Decode a block into the array files.

    Returns:
        Facts of each image; None, and nothing is written, when the file is grey and an image is not.
    """
    if isinstance(target.fitting, VolumeFitting):
        return _volumes(block, target, target.fitting)
    grey = len(np.load(target.pixels, mmap_mode="r").shape) == 3
    facts: list[Facts] = []
    fitting = target.fitting
    pixels = np.zeros((len(block.items), *fitting.size, *(() if grey else (3,))), dtype=np.uint8)
    thumbnails = np.zeros((len(block.items), *THUMBNAIL.size), dtype=np.uint8)
    masks = np.zeros((len(block.items), *fitting.size), dtype=np.bool_)
    for i, item in enumerate(block.items):
        try:
            image = read_image(item, target.max_pixels) if isinstance(item, Path) else _of_array(item)
        except ImageError as error:
            facts.append({"bad": str(error).removeprefix(f"{item}: ")})
            continue
        if grey and image.pixels.ndim == 3 and fitting.channels == "rgb":
            return None
        fitted = fitting.pixels(image.pixels)
        pixels[i] = fitted[..., None] if fitted.ndim < pixels.ndim - 1 else fitted
        thumbnails[i] = THUMBNAIL.pixels(image.pixels)
        if target.mask is not None:
            drawn = target.mask(block.rows[i], (image.height, image.width))
            masks[i] = fitting.mask(drawn)
        size = {"width": image.width, "height": image.height}
        facts.append({"sha256": image.sha256, **size, "notes": image.notes})
    write_rows(target.pixels, block.start, pixels)
    write_rows(target.thumbnails, block.start, thumbnails)
    if target.masks is not None:
        write_rows(target.masks, block.start, masks)
    return facts


def _volumes(block: ImageBlock, target: Target, fitting: VolumeFitting) -> list[Facts]:
    """Read and fit the volumes of a block, one after another."""
    facts: list[Facts] = []
    for i, item in enumerate(block.items):
        try:
            if not isinstance(item, Path):
                raise ImageError(f"{item}: volumes are read from files")
            pixels, small, known = volumes.fitted(item, fitting, block.rows[i])
        except ImageError as error:
            facts.append({"bad": str(error).removeprefix(f"{item}: ")})
            continue
        write_rows(target.pixels, block.start + i, pixels[None])
        write_rows(target.thumbnails, block.start + i, small[None])
        facts.append(known)
    return facts


def block_size(fitting: Fitting) -> int:
    """Return how many images a worker takes at a time."""
    return 1 if isinstance(fitting, VolumeFitting) else BLOCK_SIZE


def _of_array(values: npt.NDArray[np.uint8]) -> DecodedImage:
    height, width = values.shape[:2]
    return DecodedImage(values, width, height, array_sha256(values))


def array_sha256(values: npt.NDArray[np.uint8]) -> str:
    """Return what stands for the hash of a file where images come in an array."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


# ---------------------------------------------------------------------- array files
def create_array(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """Create an array file of zeros that takes disk space only as it is filled.

    Raises:
        DataError: the disk has not enough free space.
    """
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if needed > shutil.disk_usage(path.parent).free:
        raise DataError(
            f"{path}: needs {needed / 2**30:.1f} GiB, more than is free on that disk; "
            "choose another --data-root or a smaller --size"
        )
    beside = path.with_suffix(".tmp")
    np.lib.format.open_memmap(beside, mode="w+", dtype=dtype, shape=shape)
    os.replace(beside, path)


def write_rows(path: Path, start: int, block: npt.NDArray[Any]) -> None:
    """Write rows of an array file; a full disk is an OSError here, which it would not be through a memory map."""
    offset = np.load(path, mmap_mode="r").offset
    with path.open("r+b") as file:
        file.seek(offset + start * (block.nbytes // max(1, len(block))))
        file.write(np.ascontiguousarray(block).tobytes())


def copy_rows(path: Path, shape: tuple[int, ...], blocks: Iterator[npt.NDArray[Any]]) -> None:
    """Replace an array file by one of another shape whose rows come in blocks, whole or not at all."""
    beside, dtype, start = path.with_suffix(".copy"), np.load(path, mmap_mode="r").dtype, 0
    create_array(beside, shape, dtype)
    for block in blocks:
        write_rows(beside, start, block)
        start += len(block)
    os.replace(beside, path)


def widen(path: Path) -> None:
    """Turn a grey pixel file into one of three equal channels."""
    grey = np.load(path, mmap_mode="r")
    steps = range(0, len(grey), BLOCK_SIZE)
    copy_rows(
        path, (*grey.shape, 3), (np.repeat(grey[i : i + BLOCK_SIZE, ..., None], 3, axis=3) for i in steps)
    )


def keep_rows(path: Path, kept: npt.NDArray[np.intp]) -> None:
    """Leave only some rows in an array file; one that has just that many rows already is left alone."""
    array = np.load(path, mmap_mode="r")
    if len(array) != len(kept):
        size = max(1, min(BLOCK_SIZE, _AT_ONCE // max(1, array[:1].nbytes)))
        blocks = (array[kept[i : i + size]] for i in range(0, len(kept), size))
        copy_rows(path, (len(kept), *array.shape[1:]), blocks)


# ---------------------------------------------------------------------- journal
class Journal:
    """Which blocks of an array file are finished.

    Args:
        path: the journal file.
        key: what the array file depends on; a journal of another key is thrown away.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.facts: dict[int, list[Facts]] = {}
        lines = self._lines()
        self.continues = bool(lines) and lines[0] == {"key": key}
        if self.continues:
            self.facts = {line["start"]: line["facts"] for line in lines[1:]}
        text = "".join(json.dumps(line) + "\n" for line in (lines if self.continues else [{"key": key}]))
        write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))

    def add(self, start: int, facts: list[Facts]) -> None:
        """Keep the facts of a finished block."""
        self.facts[start] = facts
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"start": start, "facts": facts}) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        """Return the whole lines; the last one may have been cut off by a kill."""
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError):
            for text in self.path.read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(text))
        return lines


# ---------------------------------------------------------------------- workers
def decode_all(
    blocks: Callable[[set[int]], Iterator[ImageBlock]],
    target: Target,
    journal: Journal,
    *,
    workers: int,
    keep_bad: bool,
    reporter: Reporter,
    plugins: Sequence[str] = (),
) -> dict[int, list[Facts]]:
    """Decode every block that the journal lacks.

    Args:
        blocks: yields the blocks whose start is not in a set.
        target: where pixels go.
        journal: takes the finished blocks.
        workers: processes; 1 works in this one.
        keep_bad: journal blocks with unreadable images too; otherwise they are tried again next time.
        reporter: told about progress.
        plugins: files that workers must import to know the mask rule.

    Returns:
        Start of a block -> facts, of all blocks.

    Raises:
        DataError: a worker died, or the disk is full.
    """
    found = dict(journal.facts)
    with _executor(workers, plugins) as submit:
        for grey_is_enough in (True, False):
            colourful = False
            for start, facts in _results(blocks(set(found)), target, submit, 2 * workers):
                if facts is None:
                    colourful = True
                    continue
                found[start] = facts
                if keep_bad or not any("bad" in item for item in facts):
                    journal.add(start, facts)
                reporter.advance(len(facts))
            if not (colourful and grey_is_enough):
                break
            widen(target.pixels)
    return found


Submit = Callable[[ImageBlock, Target], "Future[list[Facts] | None]"]


def _results(
    blocks: Iterator[ImageBlock], target: Target, submit: Submit, window: int
) -> Iterator[tuple[int, list[Facts] | None]]:
    """Yield (start, facts) as blocks finish; after the first colour image in a grey file no further block is begun."""
    waiting: dict[Future[list[Facts] | None], int] = {}
    stop = False
    try:
        while True:
            while not stop and len(waiting) < window and (block := next(blocks, None)) is not None:
                waiting[submit(block, target)] = block.start
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                facts = future.result()
                stop |= facts is None
                yield waiting.pop(future), facts
    except BrokenProcessPool as error:
        raise DataError(
            f"{target.pixels}: a worker process died (too little memory, or an image that crashes its decoder); "
            "the same command goes on, try it with --num-workers 1"
        ) from error
    except OSError as error:
        raise DataError(
            f"{target.pixels}: cannot be written ({error}); free space, the same command then goes on"
        ) from error


@contextlib.contextmanager
def _executor(workers: int, plugins: Sequence[str]) -> Iterator[Submit]:
    if workers == 1:
        yield _here
        return
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(tuple(plugins),))
    try:
        yield lambda block, target: pool.submit(decode_block, block, target)
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _here(block: ImageBlock, target: Target) -> Future[list[Facts] | None]:
    done: Future[list[Facts] | None] = Future()
    done.set_result(decode_block(block, target))
    return done


def _begin_worker(plugins: Sequence[str]) -> None:
    """Leave Ctrl-C to the parent, and end when it ends: a killed parent cannot tell its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    load_plugins(plugins)


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)

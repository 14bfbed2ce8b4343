"""Turns a folder of downloads into a prepared folder: manifest, fitted pixels, and a report of what was kept and why.

Order of work: read the tables, check the id lists against the published splits, compare with the present folder, decode
what is missing (benchmark/data/prepare/decode.py), write the manifest, and finally the report. A folder without a
report is unfinished; the same command continues it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmark.backbones.volumes import DEFAULT, VolumeFitting
from benchmark.console import NullReporter, Reporter
from benchmark.data.prepare import splits
from benchmark.data.prepare.decode import (
    BLOCK_SIZE,
    Facts,
    ImageBlock,
    Journal,
    Target,
    array_sha256,
    block_size,
    create_array,
    decode_all,
    keep_rows,
)
from benchmark.data.prepare.images import MAX_PIXELS
from benchmark.data.prepare.raw import DEFAULT_SIZE, RawDataset, RawTable, checked_table
from benchmark.data.prepare.raw_files import RawFiles
from benchmark.data.prepare.volumes import folder_sha256
from benchmark.data.prepared import (
    LABEL_PREFIX,
    MANIFEST,
    MASKS,
    PIXELS,
    REPORT,
    THUMBNAILS,
    TRANSFORMS_VERSION,
    NotMadeError,
    folder_transforms,
    read_manifest,
    read_report,
    transform_files,
)
from benchmark.errors import DataError
from benchmark.files import file_lock, file_sha256, remember, user_path, write_whole
from benchmark.machine import usable_cores
from benchmark.preprocess import THUMBNAIL, Fitting

VERSION = 1
"""Of the arithmetic of decoding and fitting: another one makes other pixels of the same files."""

_NAMED = 3


class BadImagesError(DataError):
    """Images that cannot be read; ``bad`` holds file and reason of each."""

    def __init__(self, message: str, bad: list[dict[str, str]]) -> None:
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True)
class Preparation:
    """The result: the prepared folder, its report, and whether anything had to be made."""

    folder: Path
    report: dict[str, Any]
    made: bool


@dataclass(frozen=True)
class PrepareSettings:
    """How a dataset is prepared.

    Attributes:
        fitting: what is done to the images; the dataset's own crop where it names none.
        workers: decoding processes; None: one per core.
        on_bad_image: stop when an image cannot be read (after all have been tried), or leave it out and count it.
        accept_split: go on, and say so in every result, when an id list is not the published one.
        options: of the dataset's reader.
        wait: wait for another process that prepares the same folder, instead of refusing.
        plugins: files or modules that define the dataset, when it is not the project's own.
        allow_outside: take image files that tables or links name outside the raw folder.
        make: False: only say whether everything is there.
        max_pixels: an image file that declares more cannot be read.
    """

    fitting: Fitting = Fitting(DEFAULT_SIZE)
    workers: int | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    accept_split: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    wait: bool = False
    plugins: Sequence[str] = ()
    allow_outside: bool = False
    make: bool = True
    max_pixels: int = MAX_PIXELS


def prepare(
    dataset: RawDataset, raw: Path, data_root: Path, *, reporter: Reporter | None = None, **settings: Any
) -> Preparation:
    """Prepare a dataset, fitted in one way; what is there already is kept.

    Args:
        dataset: what to read, and how.
        raw: folder of the downloads.
        data_root: folder of all datasets; the result is ``<data_root>/<name>``.
        reporter: told about progress.
        settings: fields of :class:`PrepareSettings`.

    Raises:
        NotMadeError: something has to be made, and is not to be.
        ConfigError: unknown option.
        DataError: missing, foreign or damaged files, or an id list that is not the published one.
    """
    how = PrepareSettings(**settings)
    dataset, raw = dataset.select(how.options), user_path(raw)
    if not raw.is_dir():
        raise DataError(
            f"--raw: folder '{raw}' does not exist. Get it at {dataset.access.url}: {dataset.access.how}"
        )
    folder = user_path(data_root) / dataset.name
    if not how.make and not folder_transforms(folder):
        raise NotMadeError(f"{folder}: not prepared yet")
    try:
        with file_lock(folder / ".lock", wait=how.wait) as held:
            if not held:
                raise DataError(f"{folder}: another process is preparing it; wait for it to end")
            return _Work(dataset, raw, folder, how, reporter or NullReporter()).run()
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}; free space or choose another --data-root"
        ) from error


@dataclass
class _Work:
    """One call of :func:`prepare`, in the order of its methods."""

    dataset: RawDataset
    raw: Path
    folder: Path
    how: PrepareSettings
    reporter: Reporter
    options: dict[str, Any] = field(init=False)
    source: RawTable = field(init=False)
    table: pd.DataFrame = field(init=False)
    lists: splits.CheckedLists = field(init=False)
    raw_files: RawFiles = field(init=False)

    def run(self) -> Preparation:
        self.reporter.start("read tables", 1)
        self.source, self.options = self.dataset.read_table(self.raw, self.how.options)
        self.table = checked_table(self.dataset.name, self.source)
        name = self.dataset.name.partition("/")[0]
        self.lists = splits.check(name, self.source.ids, folder=self.folder, accept=self.how.accept_split)
        names = self.table["file"] if self.source.pixels is None else self.source.sources
        self.raw_files = RawFiles(self.raw, names, self.how.allow_outside)
        if not self.skip:
            self.raw_files.check_missing()
        before = self._what_is_there()
        there = before is not None and self.fitting.name in before["transforms"]
        if before and there and before["keys"] == self._keys:
            return Preparation(self.folder, before, made=False)
        if not self.how.make:
            raise NotMadeError(f"{self.folder}: not prepared as {self.fitting.name} yet")
        facts = self._known_facts(before) if before and there else self._decode(before)
        return Preparation(self.folder, self._finish(facts, before), made=True)

    @property
    def fitting(self) -> Fitting:
        if self.dataset.volumes and self.how.fitting == Fitting(DEFAULT_SIZE):  # nobody asked for pictures
            return DEFAULT
        return self.dataset.wanted(None, self.how.fitting)

    @property
    def skip(self) -> bool:
        return self.how.on_bad_image == "skip"

    @property
    def files(self) -> pd.Series[str]:
        """What a message calls each image: its file, or its id where images come in arrays."""
        names: pd.Series[str] = self.table["file" if "file" in self.table else "image_id"]
        return names

    # ------------------------------------------------------------------ what the result depends on
    @cached_property
    def _keys(self) -> dict[str, str]:
        """Return hashes of which images are shown (and masked) how, and of everything else in the manifest."""
        hidden = [column for column in self.table.columns if column.startswith("_")]
        pictures = ["image_id", *(["file"] if "file" in self.table else []), *hidden]
        bound = [self.how.max_pixels] if self.how.max_pixels != MAX_PIXELS else []
        return {
            "images": _hash([VERSION, self.table[pictures].to_csv(index=False), *bound]),
            "table": _hash([self._public_table().to_csv(index=False), self.source.steps, self.lists.facts]),
        }

    def _what_is_there(self) -> dict[str, Any] | None:
        """Return the report of the folder; None when there is none, or when raw images have changed since."""
        if not folder_transforms(self.folder):
            return None
        report = read_report(self.folder)
        changed = report["keys"]["images"] != self._keys["images"] or self.raw_files.changed(
            self.folder, self._same_content
        )
        if not changed:
            return report
        if not self.how.make:
            raise NotMadeError(f"{self.folder}: prepared from other files", changed=True)
        self.reporter.log(
            f"{self.dataset.name}: the raw files are not those of the last time; what was made of them is dropped"
        )
        (self.folder / REPORT).unlink()
        for path in self.folder.glob("*.npy"):
            path.unlink()
        return None

    def _same_content(self, touched: set[str]) -> bool:
        """Return whether raw files hold what was decoded; they are read."""
        manifest, images = read_manifest(self.folder / MANIFEST), self.source.pixels
        if images is None:
            hashes = dict(zip(manifest["image"], manifest["sha256"], strict=True))
            paths = {name: self.raw / name for name in sorted(touched)}
            return all(
                hashes.get(name) == (folder_sha256(path) if path.is_dir() else file_sha256(path))
                for name, path in paths.items()
            )
        blocks = (images[start : start + BLOCK_SIZE] for start in range(0, len(images), BLOCK_SIZE))
        return [array_sha256(image) for block in blocks for image in block] == list(manifest["sha256"])

    # ------------------------------------------------------------------ pixels
    def _target(self) -> Target:
        files = transform_files(self.fitting.name)
        masks = self.folder / files[MASKS] if self.dataset.mask else None
        pixels, thumbnails = self.folder / files[PIXELS], self.folder / files[THUMBNAILS]
        return Target(pixels, thumbnails, masks, self.fitting, self.dataset.mask, self.how.max_pixels)

    def _decode(self, before: Mapping[str, Any] | None) -> list[Facts]:
        """Return the facts of every image of the table, decoding those that no earlier run has."""
        target, count = self._target(), len(self.table)
        self.folder.mkdir(parents=True, exist_ok=True)
        key = _hash([self._keys["images"], self.raw_files.states, self.fitting.name])
        journal = Journal(target.journal, key)
        if not (journal.continues and all(path.exists() for path in _arrays(target))):
            target.journal.unlink()
            for path in _arrays(target):
                size = THUMBNAIL.size if path == target.thumbnails else self.fitting.size
                kinds = {target.masks: np.bool_, target.thumbnails: np.uint8}
                deep = np.int16 if isinstance(self.fitting, VolumeFitting) else np.uint8
                create_array(path, (count, *size), kinds.get(path, deep))
            journal = Journal(target.journal, key)
        self.reporter.start(f"decode to {self.fitting.name}", count)
        self.reporter.advance(sum(len(facts) for facts in journal.facts.values()))
        blocks = decode_all(
            self._blocks, target, journal,
            workers=max(1, min(self.how.workers or usable_cores(), -(-count // block_size(self.fitting)))),
            keep_bad=self.skip,
            reporter=self.reporter, plugins=self.how.plugins,
        )  # fmt: skip
        facts = [item for start in sorted(blocks) for item in blocks[start]]
        self._check_bad(facts)
        self._check_same(facts, before)
        kept = np.array([i for i, item in enumerate(facts) if "bad" not in item], dtype=np.intp)
        for path in _arrays(target):
            keep_rows(path, kept)
        return facts

    def _blocks(self, done: set[int]) -> Iterator[ImageBlock]:
        step = block_size(self.fitting)
        records = self.table.to_dict("records") if self.dataset.mask or self.dataset.volumes else []
        rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in records]
        for start in range(0, len(self.table), step):
            if start in done:
                continue
            stop = min(len(self.table), start + step)
            if self.source.pixels is None:
                items = [self.raw / name for name in self.table["file"].iloc[start:stop]]
                yield ImageBlock(start, items, rows[start:stop])
            else:
                yield ImageBlock(start, list(self.source.pixels[start:stop]), rows[start:stop])

    def _check_bad(self, facts: list[Facts]) -> None:
        bad = self._bad(facts)
        if bad and (not self.skip or len(bad) == len(facts)):
            more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
            named = "; ".join(f"{item['file']}: {item['reason']}" for item in bad[:_NAMED])
            cure = "" if self.skip else ", or leave them out with --on-bad-image skip"
            raise BadImagesError(
                f"{self.raw}: {len(bad):,} of {len(facts):,} images cannot be read: {named}{more}. "
                f"Replace them and run the same command again{cure}",
                bad,
            )

    def _check_same(self, facts: list[Facts], before: Mapping[str, Any] | None) -> None:
        """Refuse a second pixel file of other images than the manifest's (files that changed meanwhile)."""
        if before is None:
            return
        known = read_manifest(self.folder / MANIFEST)["sha256"].tolist()
        if known != [item["sha256"] for item in facts if "bad" not in item]:
            raise DataError(
                f"{self.raw}: the images are not those that {self.folder} was prepared from; "
                "delete that folder and prepare it again"
            )

    def _bad(self, facts: list[Facts]) -> list[dict[str, str]]:
        pairs = zip(self.files, facts, strict=True)
        return [{"file": str(name), "reason": item["bad"]} for name, item in pairs if "bad" in item]

    def _known_facts(self, before: Mapping[str, Any]) -> list[Facts]:
        """Return the facts of an earlier run: the images are the same, only their table has changed."""
        manifest = read_manifest(self.folder / MANIFEST)
        reasons = {item["file"]: item["reason"] for item in before["bad_images"]}
        read = manifest[["sha256", "original_width", "original_height"]].itertuples(index=False)
        known = ({"sha256": sha256, "width": int(w), "height": int(h)} for sha256, w, h in read)
        return [{"bad": reasons[name]} if name in reasons else next(known) for name in self.files]

    # ------------------------------------------------------------------ manifest and report
    def _public_table(self) -> pd.DataFrame:
        shown = self.table[[column for column in self.table.columns if not column.startswith("_")]]
        return shown.rename(columns={"file": "image"})

    def _finish(self, facts: list[Facts], before: Mapping[str, Any] | None) -> dict[str, Any]:
        target = self._target()
        kept = [item for item in facts if "bad" not in item]
        manifest = self._public_table()[["bad" not in item for item in facts]]
        manifest = manifest.assign(
            original_width=[item["width"] for item in kept],
            original_height=[item["height"] for item in kept],
            sha256=[item["sha256"] for item in kept],
        )
        write_whole(
            self.folder / MANIFEST, lambda path: manifest.to_csv(path, index=False, lineterminator="\n")
        )
        self.raw_files.write(self.folder)
        self.reporter.start("checksums", len(_arrays(target)) + 1)
        files = dict((before or {}).get("files", {}))
        for path in (*_arrays(target), self.folder / MANIFEST):
            if path.suffix == ".csv" or (path.name not in files and path.exists()):
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                remember(path, files[path.name]["sha256"])
            self.reporter.advance()
        report = self._report(manifest, facts, files, before or {})
        splits.remember(self.folder, self.lists)
        text = json.dumps(report, indent=1) + "\n"
        write_whole(self.folder / REPORT, lambda path: path.write_text(text, encoding="utf-8"))
        target.journal.unlink(missing_ok=True)
        return report

    def _report(
        self, manifest: pd.DataFrame, facts: list[Facts], files: dict[str, Any], before: Mapping[str, Any]
    ) -> dict[str, Any]:
        bad = self._bad(facts)
        steps = [[text, count] for text, count in self.source.steps]
        steps += [["images that cannot be read", -len(bad)]] if bad else []
        whole = f"of {len(manifest) + len(bad)} in all parts together"
        notes = [f"{len(bad)} images that cannot be read were left out ({whole})"] if bad else []
        read = Counter(f"{key} {value}" for item in facts for key, value in item.get("notes", {}).items())
        access = self.dataset.access
        files_here = {
            role: name for role, name in transform_files(self.fitting.name).items() if name in files
        }
        return {
            "format_version": TRANSFORMS_VERSION,
            "name": self.dataset.name,
            "source": {"title": self.dataset.title, "url": access.url, "licence": access.licence},
            "images": len(manifest),
            "steps": [*steps, ["images in the manifest", len(manifest)]],
            "bad_images": bad,
            "images_read": dict(read) or before.get("images_read", {}),
            "columns": _counts(manifest),
            "splits": self.lists.facts,
            "info": {"options": self.options, "notes": [*notes, *self.lists.notes]},
            "keys": self._keys,
            "transforms": {**before.get("transforms", {}), self.fitting.name: files_here},
            "files": files,
        }


def _arrays(target: Target) -> list[Path]:
    return [path for path in (target.pixels, target.thumbnails, target.masks) if path is not None]


def _counts(manifest: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return column -> value -> count, of parts, views and labels; "" counts blanks."""
    return {
        name: {str(value): int(count) for value, count in manifest[name].value_counts().items()}
        for name in map(str, manifest)
        if name in ("view", "labelled") or name.startswith(("split", LABEL_PREFIX))
    }


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

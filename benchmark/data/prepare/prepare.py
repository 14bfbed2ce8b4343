"""From a folder of downloads to a prepared folder: manifest, fitted pixels, and a report of what was kept and why.

Order of work: read the tables, check the id lists against the published splits, compare with what lies in the folder,
decode what is missing (benchmark/data/prepare/decode.py), write the manifest, and at last the report. A folder
without a report is unfinished; the same command goes on with it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmark.console import NullReporter, Reporter
from benchmark.data.prepare import splits
from benchmark.data.prepare.decode import (
    RUN,
    Facts,
    Journal,
    Run,
    Target,
    array_sha256,
    create_array,
    decode_all,
    keep_rows,
)
from benchmark.data.prepare.images import MAX_PIXELS, Inside
from benchmark.data.prepare.raw import DEFAULT_SIZE, RawDataset, RawTable, checked_table
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

SOURCES = ".sources.csv"
_NAMED = 3


class BadImagesError(DataError):
    """Images that cannot be read; ``bad`` holds file and reason of each."""

    def __init__(self, message: str, bad: list[dict[str, str]]) -> None:
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True)
class Preparation:
    """What came of it.

    Attributes:
        folder: the prepared folder.
        report: content of its prepare_report.json.
        made: False when everything was there already.
    """

    folder: Path
    report: dict[str, Any]
    made: bool


def prepare(
    dataset: RawDataset,
    raw: Path,
    data_root: Path,
    *,
    fitting: Fitting | None = None,
    workers: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    accept_split: bool = False,
    options: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    wait: bool = False,
    plugins: Sequence[str] = (),
    allow_outside: bool = False,
    make: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Preparation:
    """Prepare a dataset, fitted in one way; what is there already is kept.

    Args:
        dataset: what to read, and how.
        raw: folder of the downloads.
        data_root: folder of all datasets; the result is ``<data_root>/<name>``.
        fitting: what is done to the images; default is 224 x 224 by the dataset's own crop.
        workers: decoding processes; None: one per core.
        on_bad_image: stop when an image cannot be read (after all have been tried), or leave it out and count it.
        accept_split: go on, and say so in every result, when an id list is not the published one.
        options: of the dataset's reader.
        reporter: told about progress.
        wait: wait for another process that prepares the same folder, instead of refusing.
        plugins: files or modules that define the dataset, when it is not the project's own.
        allow_outside: take image files that tables or links name outside the raw folder.
        make: False: only say whether everything is there.
        max_pixels: an image file that declares more cannot be read.

    Raises:
        NotMadeError: something has to be made, and is not to be.
        ConfigError: unknown option.
        DataError: missing, foreign or damaged files, or an id list that is not the published one.
    """
    dataset = dataset.select(options or {})
    raw = user_path(raw)
    if not raw.is_dir():
        raise DataError(
            f"--raw: folder '{raw}' does not exist. Get it at {dataset.access.url}: {dataset.access.how}"
        )
    folder = user_path(data_root) / dataset.name
    if not make and not folder_transforms(folder):
        raise NotMadeError(f"{folder}: not prepared yet")
    try:
        with file_lock(folder / ".lock", wait=wait) as held:
            if not held:
                raise DataError(f"{folder}: another process is preparing it; wait for it to end")
            work = _Work(
                dataset, raw, folder, (fitting or Fitting(DEFAULT_SIZE)).on(dataset.crop), dict(options or {}),
                workers or usable_cores(), on_bad_image == "skip", accept_split, reporter or NullReporter(),
                tuple(plugins), allow_outside, make, max_pixels,
            )  # fmt: skip
            return work.run()
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
    fitting: Fitting
    options: dict[str, Any]
    workers: int
    skip: bool
    accept: bool
    reporter: Reporter
    plugins: tuple[str, ...]
    allow_outside: bool
    make: bool
    max_pixels: int
    source: RawTable = field(init=False)
    table: pd.DataFrame = field(init=False)
    verdict: splits.Verdict = field(init=False)
    sources: dict[str, tuple[int, ...]] = field(init=False)

    def run(self) -> Preparation:
        self.reporter.start("read tables", 1)
        self.source, self.options = self.dataset.read_table(self.raw, self.options)
        self.table = checked_table(self.dataset.name, self.source)
        self.verdict = splits.check(
            self.dataset.name.partition("/")[0], self.source.ids, folder=self.folder, accept=self.accept
        )
        self.sources = dict(self._stat())
        self._check_missing()
        before = self._what_is_there()
        there = before is not None and self.transform in before["transforms"]
        if before and there and before["keys"] == self._keys:
            return Preparation(self.folder, before, made=False)
        if not self.make:
            raise NotMadeError(f"{self.folder}: not prepared as {self.transform} yet")
        facts = self._known_facts(before) if before and there else self._decode(before)
        return Preparation(self.folder, self._finish(facts, before), made=True)

    @property
    def transform(self) -> str:
        return self.fitting.name

    # ------------------------------------------------------------------ what the result depends on
    def _stat(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the bytes and both times of change of every raw file that is decoded; zeros when it is missing.

        A copy may keep the time that a file carries (mtime), but not the time when it was put there (ctime).
        """
        names = self.table["file"] if self.source.pixels is None else self.source.sources
        inside = Inside(self.raw, allow_outside=self.allow_outside)
        for name in names:
            if problem := inside.problem(str(name)):
                raise DataError(
                    f"{self.raw}: '{name}' is not read: {problem}. If that is meant, add --allow-outside"
                )
            try:
                found = os.stat(self.raw / name)
                yield str(name), (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            except OSError:
                yield str(name), (0, 0, 0)

    def _check_missing(self) -> None:
        """Stop at once, before anything is made or replaced, when files are not there at all."""
        missing = [name for name, state in self.sources.items() if state[0] == 0]
        if missing and not self.skip:
            named = ", ".join(f"'{name}'" for name in missing[:_NAMED]) + (
                ", ..." if missing[_NAMED:] else ""
            )
            raise DataError(
                f"{self.raw}: {len(missing):,} of {len(self.sources):,} image files are missing or empty: {named}. "
                "Complete the download and run the same command again, or leave them out with --on-bad-image skip"
            )

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Return hashes of which images are shown (and masked) how, and of everything else in the manifest."""
        hidden = [column for column in self.table.columns if column.startswith("_")]
        pictures = ["image_id", *(["file"] if "file" in self.table else []), *hidden]
        bound = [self.max_pixels] if self.max_pixels != MAX_PIXELS else []
        return {
            "images": _hash([VERSION, self.table[pictures].to_csv(index=False), *bound]),
            "table": _hash([self._public_table().to_csv(index=False), self.source.steps, self.verdict.lists]),
        }

    def _what_is_there(self) -> dict[str, Any] | None:
        """Return the report of the folder; None when there is none, or when raw images have changed since."""
        if not folder_transforms(self.folder):
            return None
        report = read_report(self.folder)
        changed = report["keys"]["images"] != self._keys["images"] or self._changed_files()
        if not changed:
            return report
        if not self.make:
            raise NotMadeError(f"{self.folder}: prepared from other files", changed=True)
        self.reporter.log(
            f"{self.dataset.name}: the raw files are not those of the last time; what was made of them is dropped"
        )
        (self.folder / REPORT).unlink()
        for path in self.folder.glob("*.npy"):
            path.unlink()
        return None

    def _changed_files(self) -> bool:
        """Return whether a raw file holds something else than when it was decoded; times alone do not matter.

        Files that were touched are read, once.
        """
        try:
            with (self.folder / SOURCES).open(encoding="utf-8", newline="") as file:
                before = {name: tuple(map(int, state)) for name, *state in csv.reader(file)}
        except (OSError, ValueError):
            return True
        touched = {name for name, _ in before.items() ^ self.sources.items()}
        if not touched:
            return False
        if before.keys() != self.sources.keys() or any(before[n][0] != self.sources[n][0] for n in touched):
            return True
        manifest, images = read_manifest(self.folder / MANIFEST), self.source.pixels
        if images is None:
            hashes = dict(zip(manifest["image"], manifest["sha256"], strict=True))
            changed = any(hashes.get(name) != file_sha256(self.raw / name) for name in sorted(touched))
        else:
            blocks = (images[start : start + RUN] for start in range(0, len(images), RUN))
            changed = [array_sha256(image) for block in blocks for image in block] != list(manifest["sha256"])
        if not changed:
            write_whole(self.folder / SOURCES, self._write_sources)
        return changed

    # ------------------------------------------------------------------ pixels
    def _target(self) -> Target:
        files = transform_files(self.transform)
        masks = self.folder / files[MASKS] if self.dataset.mask else None
        pixels, thumbnails = self.folder / files[PIXELS], self.folder / files[THUMBNAILS]
        return Target(pixels, thumbnails, masks, self.fitting, self.dataset.mask, self.max_pixels)

    def _decode(self, before: Mapping[str, Any] | None) -> list[Facts]:
        """Return the facts of every image of the table, decoding those that no earlier run has."""
        target, count = self._target(), len(self.table)
        self.folder.mkdir(parents=True, exist_ok=True)
        key = _hash([self._keys["images"], self.sources, self.transform])
        journal = Journal(target.journal, key)
        if not (journal.continues and all(path.exists() for path in _arrays(target))):
            target.journal.unlink()
            for path in _arrays(target):
                size = THUMBNAIL.size if path == target.thumbnails else self.fitting.size
                create_array(path, (count, *size), np.bool_ if path == target.masks else np.uint8)
            journal = Journal(target.journal, key)
        self.reporter.start(f"decode to {self.transform}", count)
        self.reporter.advance(sum(len(facts) for facts in journal.facts.values()))
        runs = decode_all(
            self._runs, target, journal,
            workers=max(1, min(self.workers, -(-count // RUN))), keep_bad=self.skip, reporter=self.reporter,
            plugins=self.plugins,
        )  # fmt: skip
        facts = [item for start in sorted(runs) for item in runs[start]]
        self._check_bad(facts)
        self._check_same(facts, before)
        kept = np.array([i for i, item in enumerate(facts) if "bad" not in item], dtype=np.intp)
        for path in _arrays(target):
            keep_rows(path, kept)
        return facts

    def _runs(self, done: set[int]) -> Iterator[Run]:
        records = self.table.to_dict("records") if self.dataset.mask else []
        rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in records]
        for start in range(0, len(self.table), RUN):
            if start in done:
                continue
            stop = min(len(self.table), start + RUN)
            if self.source.pixels is None:
                items = [self.raw / name for name in self.table["file"].iloc[start:stop]]
                yield Run(start, items, rows[start:stop])
            else:
                yield Run(start, list(self.source.pixels[start:stop]), rows[start:stop])

    def _check_bad(self, facts: list[Facts]) -> None:
        bad = self._bad(facts)
        if bad and (not self.skip or len(bad) == len(facts)):
            more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
            cure = "" if self.skip else ", or leave them out with --on-bad-image skip"
            raise BadImagesError(
                f"{self.raw}: {len(bad):,} of {len(facts):,} images cannot be read: {_named(bad[:_NAMED])}{more}. "
                f"Replace them and run the same command again{cure}",
                bad,
            )

    def _check_same(self, facts: list[Facts], before: Mapping[str, Any] | None) -> None:
        """Refuse a second pixel file of other images than the manifest's (files that changed behind our back)."""
        if before is None:
            return
        known = read_manifest(self.folder / MANIFEST)["sha256"].tolist()
        if known != [item["sha256"] for item in facts if "bad" not in item]:
            raise DataError(
                f"{self.raw}: the images are not those that {self.folder} was prepared from; "
                "delete that folder and prepare it again"
            )

    def _bad(self, facts: list[Facts]) -> list[dict[str, str]]:
        names = self.table["file"] if "file" in self.table else self.table["image_id"]
        pairs = zip(names, facts, strict=True)
        return [{"file": str(name), "reason": item["bad"]} for name, item in pairs if "bad" in item]

    def _known_facts(self, before: Mapping[str, Any]) -> list[Facts]:
        """Return the facts of an earlier run: the images are the same, only their table has changed."""
        manifest = read_manifest(self.folder / MANIFEST)
        reasons = {item["file"]: item["reason"] for item in before["bad_images"]}
        names = self.table["file"] if "file" in self.table else self.table["image_id"]
        columns = ("sha256", "original_width", "original_height")
        read = iter(zip(*(manifest[column] for column in columns), strict=True))
        facts: list[Facts] = []
        for name in names:
            if name in reasons:
                facts.append({"bad": reasons[name]})
            else:
                sha256, width, height = next(read)
                facts.append({"sha256": sha256, "width": int(width), "height": int(height)})
        return facts

    # ------------------------------------------------------------------ manifest and report
    def _public_table(self) -> pd.DataFrame:
        shown = self.table[[column for column in self.table.columns if not column.startswith("_")]]
        return shown.rename(columns={"file": "image"})

    def _finish(self, facts: list[Facts], before: Mapping[str, Any] | None) -> dict[str, Any]:
        target, bad = self._target(), self._bad(facts)
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
        write_whole(self.folder / SOURCES, self._write_sources)
        self.reporter.start("checksums", len(_arrays(target)) + 1)
        files = dict((before or {}).get("files", {}))
        for path in (*_arrays(target), self.folder / MANIFEST):
            if path.suffix == ".csv" or (path.name not in files and path.exists()):
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                remember(path, files[path.name]["sha256"])
            self.reporter.advance()
        report = self._report(manifest, kept, bad, files, before or {})
        splits.remember(self.folder, self.verdict)
        text = json.dumps(report, indent=1) + "\n"
        write_whole(self.folder / REPORT, lambda path: path.write_text(text, encoding="utf-8"))
        target.journal.unlink(missing_ok=True)
        return report

    def _report(
        self,
        manifest: pd.DataFrame,
        kept: list[Facts],
        bad: list[dict[str, str]],
        files: dict[str, Any],
        before: Mapping[str, Any],
    ) -> dict[str, Any]:
        steps = [[text, count] for text, count in self.source.steps]
        steps += [["images that cannot be read", -len(bad)]] if bad else []
        notes = [f"{len(bad)} images that cannot be read were left out"] if bad else []
        read = Counter(f"{key} {value}" for item in kept for key, value in item.get("notes", {}).items())
        access = self.dataset.access
        files_here = {role: name for role, name in transform_files(self.transform).items() if name in files}
        return {
            "format_version": TRANSFORMS_VERSION,
            "name": self.dataset.name,
            "source": {"title": self.dataset.title, "url": access.url, "licence": access.licence},
            "images": len(manifest),
            "steps": [*steps, ["images in the manifest", len(manifest)]],
            "bad_images": bad,
            "images_read": dict(read) or before.get("images_read", {}),
            "columns": _counts(manifest),
            "splits": self.verdict.lists,
            "info": {"options": self.options, "notes": [*notes, *self.verdict.notes]},
            "keys": self._keys,
            "transforms": {**before.get("transforms", {}), self.transform: files_here},
            "files": files,
        }

    def _write_sources(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (name, *state) for name, state in self.sources.items()
            )


def _arrays(target: Target) -> list[Path]:
    return [path for path in (target.pixels, target.thumbnails, target.masks) if path is not None]


def _named(bad: Iterable[Mapping[str, str]]) -> str:
    return "; ".join(f"{item['file']}: {item['reason']}" for item in bad)


def _counts(manifest: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return column -> value -> count, of parts, views and labels; "" counts blanks."""
    shown = [
        name
        for name in map(str, manifest)
        if name in ("view", "labelled") or name.startswith(("split", LABEL_PREFIX))
    ]
    return {
        name: {str(value): int(count) for value, count in manifest[name].value_counts().items()}
        for name in shown
    }


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

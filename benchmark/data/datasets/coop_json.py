"""Few-shot splits in the format of CoOp and its successors: one JSON file names the images of all parts.

``{"train": [[path, label, class name], ...], "val": ..., "test": ...}`` (`KaiyangZhou/CoOp: datasets/oxford_pets.py`).
Copies of a dataset name their folders otherwise, so an image is looked for at its path, at its path with other folder
names, at the end of a longer path, and at last by its file name, if only one file has it. Images are decoded on first
use, as those of a CSV file are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets._sources import read_json
from benchmark.data.prepare import splits
from benchmark.data.prepare.images import MAX_PIXELS, FolderGuard
from benchmark.data.prepare.prepare import BadImagesError, prepare
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepared import LABEL_PREFIX, MANIFEST, PIXELS, Prepared
from benchmark.errors import ConfigError, DataError, quoted, unknown
from benchmark.files import file_sha256, user_path
from benchmark.preprocess import Crop, Fitting
from benchmark.registry import register_dataset
from benchmark.settings import setting

NAME = "coop_json"
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class CoopOptions:
    """The keys of a data entry.

    Raises:
        ConfigError: a value that means nothing.
    """

    file: str = setting(
        MISSING, "the split file; relative paths begin at the working folder, else at the data root"
    )
    part: Literal["train", "val", "test"] | None = setting(None, "None takes all rows")
    images: str | None = setting(
        None, "folder that holds the images, at any depth; default: that of the split file"
    )
    match: Literal["name", "path"] = setting(
        "name", "name: an image that is not at its path is known by its file name"
    )
    folders: Any = setting(None, "folder in the split file -> its name on disk, or several")
    group: str | None = setting(
        None, "regular expression; what its groups find in a path is the patient, slide or video of the image"
    )
    published: str | None = setting(None, "the published split that the file must be (splits/coop_json.json)")
    accept_split: bool = setting(
        False, "take another split than the published one; every result then says so"
    )
    crop: Crop | None = setting(None, "default: the rule of the backbone, else shortest_crop")
    on_bad_image: Literal["error", "skip"] = setting("error", "skip: leave out images that cannot be read")
    max_pixels: int = setting(MAX_PIXELS, "an image file that declares more is not read", low=1)
    allow_outside: bool = setting(False, "take images outside the folder")

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ConfigError(f"{NAME}: {problem}")

    def _problem(self) -> str:
        known = [name for name in splits.published(NAME) if "_file" in name]
        if self.published is not None and f"{self.published}_file" not in known:
            return unknown("published split", self.published, [name.removesuffix("_file") for name in known])
        if self.folders is not None and not isinstance(self.folders, Mapping):
            return f"folders: expected names in the split file and names on disk, got {quoted(self.folders)}"
        try:
            groups = 1 if self.group is None else re.compile(self.group).groups
        except re.error as error:
            return f"group: not a regular expression ({error}), got {quoted(self.group)}"
        return "" if groups else f"group: no (group) says what the patient is, got {quoted(self.group)}"


@register_dataset("coop_json")
class CoopJson:
    """Opens a split file, and prepares its images if they are not prepared."""

    Options = CoopOptions
    fits_images = True

    def load(self, options: CoopOptions, request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part; without a fitting their pixels are empty, and nothing is decoded.

        Raises:
            NotMadeError: images have to be decoded, and are not to be.
            DataError: a problem of the file, with the place in it, or of an image; another split.
        """
        split = _Split(options, request.data_root)
        return split.rows() if request.fitting is None else split.fitted(request, request.fitting)


@dataclass(frozen=True)
class _Split:
    options: CoopOptions
    data_root: Path

    @cached_property
    def path(self) -> Path:
        """The split file."""
        here, there = user_path(self.options.file), self.data_root / self.options.file
        found = next((path for path in (here, there) if path.is_file()), None)
        if found is None:
            raise DataError(
                f"'{self.options.file}' is neither in {Path.cwd()} nor in {self.data_root}.{self._get()}"
            )
        return found

    @cached_property
    def root(self) -> Path:
        """Where the images are."""
        if self.options.images is None:
            return self.path.parent
        here, there = user_path(self.options.images), self.data_root / self.options.images
        return here if here.is_dir() else there

    def _get(self) -> str:
        known = splits.published(NAME).get(f"{self.options.published}_file")
        return f" Get it at {known['source']}" if known else ""

    def rows(self) -> Prepared:
        """Return the part without pixels."""
        pixels, table = np.zeros((len(self.table), 0, 0), dtype=np.uint8), self.table
        labels = [name for name in map(str, table.columns) if name.startswith(LABEL_PREFIX)]
        manifest = table.drop(columns="file").astype(dict.fromkeys(labels, float))
        digests = {PIXELS: "none", MANIFEST: self._key}
        bare = Prepared(self.path.name, self.root, pixels, manifest, None, {}, digests)
        return self._told(self._dataset.rows_of(bare, self.options.part))

    def fitted(self, request: LoadRequest, fitting: Fitting) -> Prepared:
        """Return the part with the pixels of its images; those of all parts are decoded together."""
        options, dataset = self.options, self._dataset
        try:
            prepare(
                dataset, self.root, request.data_root, fitting=dataset.wanted(options.crop, fitting),
                reporter=request.reporter, wait=True, on_bad_image=options.on_bad_image, make=request.make,
                allow_outside=options.allow_outside, max_pixels=options.max_pixels,
            )  # fmt: skip
        except BadImagesError as error:
            raise DataError(
                f"{self.path}: {len(error.bad):,} images cannot be read, first '{error.bad[0]['file']}': "
                f"{error.bad[0]['reason']}. Replace them, or leave such images out: on_bad_image: skip"
            ) from error
        return self._told(dataset.load(RawDataset.Options(options.part, None, options.crop), request))

    def _told(self, data: Prepared) -> Prepared:
        """Return the data with what results say of the split."""
        about, notes = self.checked
        notes = [*data.info.get("notes", ()), *notes]
        return replace(data, info={**data.info, "source": str(self.path), "split": about, "notes": notes})

    @property
    def _dataset(self) -> RawDataset:
        return RawDataset(
            name=f"{NAME}/{self.path.stem}-{self._key}",
            title=self.path.name,
            access=Access("open", str(self.path), "the images of the split", "their own"),
            layout="",
            read=lambda _: RawTable(self.table, (("images of the split", len(self.table)),)),
        )

    @cached_property
    def _key(self) -> str:
        content = f"{self.root.resolve()}\n{self.table.to_csv(index=False)}"
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    # ------------------------------------------------------------------ the file
    @cached_property
    def listed(self) -> list[tuple[str, str, int, str]]:
        """Part, path, label and class name of every image."""
        content = read_json(self.path)
        if not isinstance(content, dict) or not set(content) & set(PARTS) or set(content) - set(PARTS):
            found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise DataError(
                f"{self.path}: expected the lists train, val and test, got {found[:80] or 'nothing'}"
            )
        rows = [row for part in PARTS for row in self._part(part, content.get(part, []))]
        if not rows:
            raise DataError(f"{self.path}: names no image")
        self._check_classes(rows)
        return rows

    def _part(self, part: str, items: Any) -> Iterator[tuple[str, str, int, str]]:
        if not isinstance(items, list):
            raise DataError(f"{self.path}: {part}: expected a list, got {quoted(items)}")
        seen: set[str] = set()
        for number, item in enumerate(items):
            right = isinstance(item, list) and list(map(type, item)) == [str, int, str]
            if not right or not item[0] or not item[2] or item[1] < 0:
                wanted = "[path, label, class name]"
                raise DataError(f"{self.path}: {part}[{number}]: expected {wanted}, got {quoted(item)}")
            if item[0] in seen:
                raise DataError(f"{self.path}: {part}[{number}]: '{item[0]}' stands further up already")
            seen.add(item[0])
            yield part, item[0], item[1], item[2]

    def _check_classes(self, found: list[tuple[str, str, int, str]]) -> None:
        pairs = sorted({(label, name) for _, _, label, name in found})
        for what, at in (("label", 0), ("class", 1)):
            values = [pair[at] for pair in pairs]
            if twice := [value for value in values if values.count(value) > 1]:
                others = ", ".join(f"{label} '{name}'" for label, name in pairs if twice[0] in (label, name))
                raise DataError(f"{self.path}: {what} '{twice[0]}' stands for several: {others}")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per image, as it is prepared."""
        rows, files = self.listed, self._found()
        frame = pd.DataFrame(rows, columns=["split", "image_id", "label", "class"])
        frame["file"] = [files[path] for path in frame["image_id"]]
        if self.options.group is not None:
            frame["patient_id"] = [self._group_of(path) for path in frame["image_id"]]
        again = frame["image_id"].duplicated()  # an image of two parts: a leak, which is told
        frame.loc[again, "image_id"] += " (" + frame.loc[again, "split"] + ")"
        for _, name in sorted({(label, name) for *_, label, name in rows}):
            frame[f"{LABEL_PREFIX}{name}"] = (frame["class"] == name).map({True: "1", False: "0"})
        return frame.drop(columns=["label", "class"])

    def _group_of(self, path: str) -> str:
        match = re.search(str(self.options.group), path)
        return "" if match is None else " ".join(text for text in match.groups() if text)

    @cached_property
    def checked(self) -> tuple[dict[str, Any], list[str]]:
        """What results say of the file and its lists, and one line for each that is not the published one."""
        lists: dict[str, list[str]] = {part: [] for part in PARTS}
        for part, path, *_ in self.listed:
            lists[part].append(path)
        digest, name = file_sha256(self.path), self.options.published
        about: dict[str, Any] = {"file": {"sha256": digest}} | {
            part: {"count": len(paths), "sha256": splits.fingerprint(paths)} for part, paths in lists.items()
        }
        if name is None:
            return about, []
        recorded = splits.published(NAME)
        named = {f"{name}_{part}": paths for part, paths in lists.items()}
        compared = splits.check(NAME, named, folder=self.root, accept=True, recorded=recorded)
        about = {"published": name, **about}
        for part in PARTS:
            about[part]["status"] = compared.facts[f"{name}_{part}"]["status"]
        notes, wanted = list(compared.notes), recorded[f"{name}_file"]["sha256"]
        if wanted and wanted != digest:
            notes.insert(0, f"{name}: {splits.NOT_PUBLISHED} (the file is another)")
        if notes and not self.options.accept_split:
            raise DataError(
                f"{self.path}: {notes[0]}; take the published file, or go on with accept_split: true"
            )
        return about, notes

    # ------------------------------------------------------------------ the images
    def _found(self) -> dict[str, str]:
        """Return path in the split -> path of the file below the root."""
        paths = list(dict.fromkeys(path for _, path, *_ in self.listed))
        found = {path: self._find(path) for path in paths}
        if missing := [path for path, file in found.items() if not file]:
            raise DataError(
                f"{self.path}: {len(missing):,} of {len(paths):,} images are not in '{self.root}', "
                f"first '{missing[0]}'.{self._get()}"
            )
        inside = FolderGuard(self.root, allow_outside=self.options.allow_outside)
        path_of: dict[str, str] = {}
        for path, file in found.items():
            if problem := inside.problem(file):
                raise DataError(
                    f"{self.path}: '{path}' is not read: {problem}. If that is meant: allow_outside: true"
                )
            if path_of.setdefault(file, path) != path:
                raise DataError(
                    f"{self.path}: '{path_of[file]}' and '{path}' both lead to the file '{file}': name the folders, "
                    f"folders: {{{PurePosixPath(path).parent}: ...}}"
                )
        return found

    def _find(self, path: str) -> str:
        """Return where an image lies, relative to the root; empty where it is not."""
        plain = PurePosixPath(path.replace("\\", "/"))
        others = (self.options.folders or {}).get(str(plain.parent), ())
        folders = [others] if isinstance(others, str) else list(others)
        spelled = [str(plain), *(f"{folder}/{plain.name}" for folder in folders)]
        for name in spelled:
            if (self.root / name).is_file():
                return name
        named = self._files.get(plain.name, [])
        ends = [file for file in named if any(file.endswith(f"/{name}") for name in spelled)]
        some = ends or (named if self.options.match == "name" else [])
        if len(some) > 1:
            raise DataError(
                f"{self.path}: '{path}' may be '{some[0]}' or '{some[1]}' in '{self.root}': name the folder that holds "
                "this split as 'images', or the folders as 'folders'"
            )
        return some[0] if some else ""

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """File name -> paths below the root, without hidden files and folders."""
        found: dict[str, list[str]] = {}
        for folder, inside, names in os.walk(self.root):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in names:
                found.setdefault(name, []).append(Path(folder, name).relative_to(self.root).as_posix())
        return found

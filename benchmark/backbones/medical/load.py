"""A medical model as a registered backbone: its files are found on this machine, converted once, loaded strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from benchmark.backbones.medical.records import BERT_FILES, ROBERTA_FILES, CheckpointFile, Record
from benchmark.backbones.published import FoundModel, Repository
from benchmark.errors import ConfigError, DataError
from benchmark.preprocess import Preprocess
from benchmark.registry import BACKBONES

if TYPE_CHECKING:
    from benchmark.backbones.backbone import Backbone

Files = dict[Path, CheckpointFile | None]
"""File -> which part of the checkpoint it is; None: it is converted already."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class MedicalModel(FoundModel):
    """A medical model whose files are all here.

    Attributes:
        record: of the model, with the options of its name.
        files: of its checkpoint.
    """

    record: Record
    files: Files

    @property
    def preprocess(self) -> Preprocess:
        """How images become its input."""
        return self.record.preprocess

    @property
    def rules(self) -> tuple[str, ...]:
        """Score rules that it offers, the headline first."""
        return self.record.rules

    def values(self) -> int:
        """Return about how many weights there are, from the sizes of the files."""
        return sum(path.stat().st_size for path in self.weights) // 4


class MedicalBackbone:
    """The backbone of one record, to be registered; what follows a colon in its name are the record's options.

    Args:
        record: of the model.
        module: ``__name__`` of a plugin, so that results are made anew when its file changes.
    """

    def __init__(self, record: Record, module: str = __name__) -> None:
        self.record, self.__module__ = record, module

    def find(self, name: str, *, pretrained: str | None = None) -> MedicalModel:
        """Return the files of the model.

        Args:
            name: of the backbone, with its options.
            pretrained: a weights file, a folder, or a hub id whose files are in the cache; None: the model's own
                repository in the cache, where it has one.

        Raises:
            ConfigError: the request is wrong. DataError: a file is missing.
        """
        record = self.record.with_options(name.partition(":")[2])
        problems: list[str] = []
        files: Files = {}
        home = words = None
        try:
            files, home = _files(record, pretrained)
        except DataError as error:
            problems.append(str(error))
        try:
            if record.image.trunk != "clip":
                words = _words(record, [path.parent for path in files], home)
        except DataError as error:
            problems.append(str(error))
        if problems:
            raise DataError("; ".join(problems))
        folder = words or Path("-")
        return MedicalModel(
            weights=tuple(files),
            words=words,
            word_files=tuple(path for name in (*BERT_FILES, *ROBERTA_FILES) for path in folder.glob(name)),
            settings=f"{record.name} {dict(record.chosen)} {record.digest()} {record.preprocess}",
            config={"embed_dim": record.embed_dim},
            image_size=record.preprocess.size,
            repo=None if home is None else home.repo,
            revision=None if home is None else home.revision,
            record=record,
            files=files,
        )

    def about(self, name: str) -> dict[str, str]:
        """Return what people must know before they fetch it: title, link, licence, pretrained_on, note."""
        return {
            key: getattr(self.record, key) for key in ("title", "link", "licence", "pretrained_on", "note")
        }

    def __call__(self, name: str, *, pretrained: str | None = None) -> Backbone:
        """Load the model; raises as :meth:`find`, and DataError when the files are not this model's."""
        from benchmark.backbones.medical import convert, model

        found = self.find(name, pretrained=pretrained)
        parts = {path: part for path, part in found.files.items() if part is not None}
        path = convert.convert(found.record, parts) if parts else found.weights[0]
        backbone = convert.filled(found.record, path)
        backbone.name = name
        backbone.tokenizer = model.tokenizer_of(found.record, found.words, backbone)
        backbone.settings = found.settings
        about = {key: text for key, text in self.about(name).items() if key != "title"}
        backbone.origin = found.origin() | {
            "options": dict(found.record.chosen), "preprocess": found.preprocess.as_json(), **about
        }  # fmt: skip
        return backbone


def convert_files(name: str, pretrained: str, folder: Path | None = None) -> Path:
    """Convert a checkpoint, for use later.

    Args:
        name: of the backbone, as people spell it; its options do not matter.
        pretrained: as in :meth:`MedicalBackbone.find`.
        folder: where the result goes; None: beside the file.

    Raises:
        ConfigError: the request is wrong. DataError: a file is missing, damaged or of another model.
        StoreError: the result cannot be written.
    """
    from benchmark.backbones.medical.convert import convert

    plugin = BACKBONES.get(name)
    if not isinstance(plugin, MedicalBackbone):
        raise ConfigError(
            f"'{name}' is read as it is published. docs/backbones.md says which models are converted"
        )
    files, _ = _files(plugin.record, pretrained)
    parts = {path: part for path, part in files.items() if part is not None}
    if not parts:
        raise ConfigError(f"{next(iter(files))}: is converted already")
    return convert(plugin.record, parts, folder)


# ---------------------------------------------------------------------------- finding the files
def _files(record: Record, pretrained: str | None) -> tuple[Files, Repository | None]:
    """Return the files of a checkpoint, and the repository that they lie in (None for the user's own).

    Raises:
        ConfigError: neither a file nor a folder nor a hub id. DataError: some of them are not here.
    """
    if pretrained is None:
        own = record.files[0][0]
        if own.home is None:
            raise DataError(
                f"{record.name}: its weights are not on the hub. Download {own.names[0]} yourself: {record.link} "
                f"(licence: {record.licence}), then --pretrained FILE"
            )
        return _in(record, own.home), own.home
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _of_file(record, path), None
    if path.is_dir():
        return _in(record, Repository(path)), None
    if not _HUB_ID.fullmatch(pretrained):
        raise ConfigError(
            f"--pretrained: '{pretrained}' does not exist: for {record.name} give a weights file, a folder or a hub id"
        )
    known = [part.home for group in record.files for part in group if part.home is not None]
    home = next((home for home in known if home.repo == pretrained), Repository(repo=pretrained))
    return _in(record, home), home


def _in(record: Record, home: Repository) -> Files:
    """Return the files of the first way of publishing that is complete in a repository, else its only weights file.

    Raises:
        DataError: there is no such thing; the message says how to get it.
    """
    found = [{part: home.find(*part.names) for part in group} for group in record.files]
    for group in found:
        if None not in group.values():
            return {path: part for part, path in group.items() if path is not None}
    only = home.weight_files()
    if len(only) == 1:
        return _of_file(record, only[0])
    partly = next((group for group in found if any(group.values())), found[0])
    missing = next(part for part, path in partly.items() if path is None)
    home.need(f"the weights file of {record.title}", *missing.names, fetch=missing.names[-1])
    raise AssertionError("a missing file was found")


def _of_file(record: Record, path: Path) -> Files:
    """Return a checkpoint that a file belongs to: alone, or with others beside it or in the cache."""
    if _is_converted(path, record):
        return {path: None}
    named = (group for group in record.files if any(path.name in part.names for part in group))
    group = next(named, record.files[0])
    own = next((part for part in group if path.name in part.names), group[0])
    found: Files = {}
    for part in group:
        beside = path if part is own else Repository(path.parent).find(*part.names)
        if beside is None and part.home is not None:
            beside = part.home.need(f"another file of {record.title}", *part.names, fetch=part.names[-1])
        if beside is None:
            raise DataError(
                f"{path.parent}: {' or '.join(part.names)} of {record.title} is missing. Copy it there"
            )
        found[beside] = part
    return found


def _words(record: Record, folders: list[Path], home: Repository | None) -> Path:
    """Return the folder of the word list: beside the weights, or in the cache.

    Raises:
        DataError: it is nowhere; the message says how to get it.
    """
    vocabulary = record.text.vocabulary
    for candidate in [*filter(None, [home]), *(Repository(folder) for folder in dict.fromkeys(folders))]:
        if found := candidate.find(*BERT_FILES):
            return found.parent
        roberta = [candidate.find(name) for name in ROBERTA_FILES]
        if vocabulary is None and roberta[0] and all(roberta):
            return roberta[0].parent
    if vocabulary is None:
        where = str(folders[0]) if folders else "the folder of the weights"
        raise DataError(
            f"{where}: the file of {record.title} does not say which words its text model knows. Put the list of the "
            "model that it was trained with beside it: vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa)"
        )
    return Repository(repo=vocabulary).need("the word list", *BERT_FILES, fetch=BERT_FILES[0]).parent


def _is_converted(path: Path, record: Record) -> bool:
    """Return whether a file is a converted one of this model.

    Raises:
        DataError: it is, but of another model or by another recipe.
    """
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
    except Exception:  # a reader further on says what is wrong with it
        return False
    if "medpeft_model" not in about:
        return False
    if about["medpeft_model"] != record.name or about.get("medpeft_recipe") != record.digest():
        raise DataError(
            f"{path}: converted as '{about['medpeft_model']}' by recipe {about.get('medpeft_recipe')}, not as "
            f"'{record.name}' by {record.digest()}. Convert the published file again"
        )
    return True

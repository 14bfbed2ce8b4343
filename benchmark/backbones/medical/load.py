"""Finding a medical model's files on this machine, converting them once, and loading them strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmark.backbones.backbone import Backbone, Tokenizer
from benchmark.backbones.checkpoints import SUFFIXES
from benchmark.backbones.medical.broad import PLIP, PMC_CLIP, QUILTNET
from benchmark.backbones.medical.convert import Renamed, convert, fit, is_converted
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.model import EXTRAS, build
from benchmark.backbones.medical.radiology import (
    BIOVIL,
    BIOVIL_TEMPORAL,
    CONVIRT,
    GLORIA,
    KAD,
    MGCA_R50,
    MGCA_VIT,
    PRIOR,
)
from benchmark.backbones.medical.records import WORD_TABLE, Record, Source
from benchmark.backbones.medical.text import SentenceTower
from benchmark.backbones.medical.words import BERT_FILES, ROBERTA_FILES, Words
from benchmark.backbones.published import Place
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.files import known_sha256
from benchmark.preprocess import Preprocess
from benchmark.registry import BACKBONES

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Found:
    """A medical model whose files are all here, not loaded yet.

    Attributes:
        record: of the model, with the options of its name.
        files: file -> which part of the checkpoint it is; one without a part is converted already.
        words: folder of the word list; None: the byte pairs that open_clip brings.
        repo, revision: where the weights come from, if that is a hub repository.
    """

    record: Record
    files: Mapping[Path, Source | None]
    words: Path | None
    repo: str | None = None
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        """How images become its input."""
        return self.record.preprocess

    @property
    def image_size(self) -> tuple[int, ...]:
        """Pixels (h, w) of an image."""
        return self.record.preprocess.size

    def values(self) -> int:
        """Return about how many weights there are, from the sizes of the files."""
        return sum(path.stat().st_size for path in self.files) // 4

    @property
    def settings(self) -> str:
        """What the record says of the model beside its weights."""
        return f"{self.record.name} {dict(self.record.chosen)} {self.record.digest()} {self.preprocess}"

    def made_of(self) -> list[str]:
        """Return what tells this model from others: its settings, and what its files hold."""
        words = (
            path for name in (*BERT_FILES, *ROBERTA_FILES) for path in (self.words or Path("-")).glob(name)
        )
        return [self.settings, *map(known_sha256, (*self.files, *words))]

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        sizes = ", ".join(f"{path} ({path.stat().st_size / 1e6:,.0f} MB)" for path in self.files)
        words = "with open_clip" if self.words is None else str(self.words)
        return [f"weights: {sizes}", f"tokenizer: {words}"]


class MedicalBackbone:
    """A registered way to the model of one record: finds its files, and loads them when it is called."""

    def find(self, name: str, *, pretrained: str | None = None) -> Found:
        """Return the files of a model.

        Args:
            name: of the backbone, with its options.
            pretrained: a weights file, a folder, or a hub id whose files are in the cache; None: the model's own
                repository in the cache, where it has one.

        Raises:
            ConfigError: the request is wrong. DataError: a file is missing.
        """
        record = record_of(name)
        problems: list[str] = []
        files: Mapping[Path, Source | None] = {}
        place = None
        try:
            files, place = _files(record, pretrained)
        except DataError as error:
            problems.append(str(error))
        words = None
        if record.image.trunk != "clip":
            try:
                words = _words(record, [path.parent for path in files], place)
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("; ".join(problems))
        repo, revision = (None, None) if place is None else (place.repo, place.revision)
        return Found(record, files, words, repo, revision, {"embed_dim": record.embed_dim})

    def about(self, name: str) -> dict[str, str]:
        """Return what people must know before they fetch it: title, link, licence, pretrained_on, note."""
        record = record_of(name, ask=False)
        return {key: getattr(record, key) for key in ("title", "link", "licence", "pretrained_on", "note")}

    def __call__(self, name: str, *, pretrained: str | None = None) -> Backbone:
        """Load a model; raises as :meth:`find`, and DataError when the files are not this model's."""
        found = self.find(name, pretrained=pretrained)
        path = _converted(found)
        backbone = _filled(found.record, path, name)
        backbone.tokenizer, backbone.settings = _tokenizer(found, backbone), found.settings
        backbone.origin = {
            "repo": found.repo,
            "revision": found.revision,
            "file": ", ".join(file.name for file in found.files),
            "sha256": ", ".join(known_sha256(file) for file in found.files),
            "options": dict(found.record.chosen),
            "preprocess": found.preprocess.as_json(),
            **{key: text for key, text in self.about(name).items() if key != "title"},
        }
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
    resolved = BACKBONES.resolve(name)
    if not isinstance(BACKBONES.get(resolved), MedicalBackbone):
        raise ConfigError(f"'{name}' is read as it is published. Models to convert: {', '.join(RECORDS)}")
    record = record_of(resolved, ask=False)
    files, _ = _files(record, pretrained)
    sources = {path: source for path, source in files.items() if source is not None}
    if not sources:
        raise ConfigError(f"{next(iter(files))}: is converted already")
    return convert(record, sources, folder)


# ---------------------------------------------------------------------------- finding
def _files(record: Record, pretrained: str | None) -> tuple[dict[Path, Source | None], Place | None]:
    """Return the files of a checkpoint, and the repository that they lie in (None for the user's own).

    Raises:
        ConfigError: neither a file nor a folder nor a hub id. DataError: some of them are not here.
    """
    if pretrained is None:
        return _published(record)
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _of_file(record, path), None
    if path.is_dir():
        return _in(record, Place(path)), None
    if not _HUB_ID.fullmatch(pretrained):
        raise ConfigError(
            f"--pretrained: '{pretrained}' does not exist: for {record.name} give a weights file, a folder or a hub id"
        )
    known = [source.place for group in record.files for source in group if source.place is not None]
    place = next((place for place in known if place.repo == pretrained), Place(repo=pretrained))
    return _in(record, place), place


def _published(record: Record) -> tuple[dict[Path, Source | None], Place | None]:
    """Return the files of the model's own repository."""
    place = record.files[0][0].place
    if place is None:
        names = " or ".join(record.files[0][0].names[:1])
        raise DataError(
            f"{record.name}: its weights are not on the hub. Download {names} yourself: {record.link} (licence: "
            f"{record.licence}), then --pretrained FILE"
        )
    return _in(record, place), place


def _in(record: Record, place: Place) -> dict[Path, Source | None]:
    """Return the files of the first way of publishing that is complete in a place, else its only weights file.

    Raises:
        DataError: there is no such thing; the message says how to get it.
    """
    for group in record.files:
        found = {place.find(*source.names): source for source in group}
        if None not in found:
            return {path: source for path, source in found.items() if path is not None}
    only = place.only(SUFFIXES)
    if only is not None:
        return _of_file(record, only)
    partly = [group for group in record.files if any(place.find(*source.names) for source in group)]
    group = (partly or record.files)[0]
    missing = next(source for source in group if place.find(*source.names) is None)
    place.need(f"the weights file of {record.title}", *missing.names, fetch=missing.names[-1])
    raise AssertionError("a missing file was found")


def _of_file(record: Record, path: Path) -> dict[Path, Source | None]:
    """Return a checkpoint that a file belongs to: alone, or with others beside it or in the cache."""
    if is_converted(path, record):
        return {path: None}
    named = (group for group in record.files if any(path.name in source.names for source in group))
    group = next(named, record.files[0])
    own = next((source for source in group if path.name in source.names), group[0])
    found: dict[Path, Source | None] = {}
    for source in group:
        beside = path if source is own else Place(path.parent).find(*source.names)
        if beside is None and source.place is not None:
            beside = source.place.need(
                f"another file of {record.title}", *source.names, fetch=source.names[-1]
            )
        if beside is None:
            raise DataError(
                f"{path.parent}: {' or '.join(source.names)} of {record.title} is missing. Copy it there"
            )
        found[beside] = source
    return found


def _words(record: Record, folders: list[Path], place: Place | None) -> Path:
    """Return the folder of the word list: beside the weights, or in the cache.

    Raises:
        DataError: it is nowhere; the message says how to get it.
    """
    places = [*([] if place is None else [place]), *(Place(folder) for folder in dict.fromkeys(folders))]
    for candidate in places:
        if candidate.find(*BERT_FILES):
            return candidate.need("the word list", *BERT_FILES).parent
        if all(candidate.find(name) for name in ROBERTA_FILES) and record.text.vocabulary is None:
            return candidate.need("the word list", *ROBERTA_FILES).parent
    if record.text.vocabulary is None:
        where = str(folders[0]) if folders else "the folder of the weights"
        raise DataError(
            f"{where}: the file of {record.title} does not say which words its text model knows. Put the list of the "
            "model that it was trained with beside it: vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa)"
        )
    return Place(repo=record.text.vocabulary).need("the word list", *BERT_FILES, fetch=BERT_FILES[0]).parent


# ---------------------------------------------------------------------------- loading
def _converted(found: Found) -> Path:
    """Return the safetensors file of a model, converted now if need be."""
    sources = {path: source for path, source in found.files.items() if source is not None}
    return convert(found.record, sources) if sources else next(iter(found.files))


def _filled(record: Record, path: Path, name: str) -> Backbone:
    """Build the backbone and fill it from a converted file.

    Raises:
        DataError: the file cannot be read or does not fit.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: cannot be read as weights ({reason}). Delete it; it is made again"
        ) from None
    fit(record, Renamed(state, {key: key for key in state}, ()), str(path))
    with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
        backbone = build(record, Shapes.of(state))
    backbone.name = name
    own = backbone.model.state_dict()
    if "logit_scale" not in state:
        state["logit_scale"] = own["logit_scale"]
    backbone.model.load_state_dict(
        {key: state[key].reshape(value.shape) for key, value in own.items()}, strict=True
    )
    extras = {key.removeprefix(EXTRAS): value for key, value in state.items() if key.startswith(EXTRAS)}
    backbone.extras.load_state_dict(extras, strict=True)
    return backbone


def _tokenizer(found: Found, backbone: Backbone) -> Tokenizer:
    """Return the tokenizer, and tell the parts that need to know its words.

    Raises:
        DataError: the word list is of another model.
    """
    text: Any = backbone.text
    if found.words is None:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=text.context_length)
    words = Words(found.words, text.context_length, found.record.text.clean)
    rows = len(backbone.model.get_parameter(WORD_TABLE))
    if words.size != rows or words.pad_id != text.pad_id:
        raise DataError(
            f"{found.words}: this word list is of another model: {words.size} words and padding {words.pad_id}, "
            f"{found.record.title} has {rows} and {text.pad_id}"
        )
    if isinstance(text, SentenceTower):
        text.full_stop = words.id_of(".")
    if "continues" in backbone.extras:
        table: Any = backbone.extras["continues"]
        table.table.copy_(words.continues())
    return words


RECORDS: dict[str, Record] = {
    record.name: record
    for record in (
        *(CONVIRT, GLORIA, MGCA_R50, MGCA_VIT, BIOVIL, BIOVIL_TEMPORAL, PRIOR, KAD),
        *(PMC_CLIP, PLIP, QUILTNET),
    )
}


def record_of(name: str, *, ask: bool = True) -> Record:
    """Return the record of a backbone's name, its options applied; ``ask`` as in :meth:`Record.with_options`.

    Raises:
        ConfigError: an unknown name, option or value, or an option that has to be chosen is missing.
    """
    from benchmark.backbones.medical.load import RECORDS

    head, _, options = name.partition(":")
    if head not in RECORDS:
        raise ConfigError(unknown("medical backbone", head, RECORDS))
    return RECORDS[head].with_options(options, ask=ask)

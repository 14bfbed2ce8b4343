"""Backbones in open_clip's formats, read from this machine: BiomedCLIP, BMC-CLIP, hub ids, folders, names.

A model is its description (open_clip_config.json, or one of open_clip's own), its weights and its tokenizer files. All
are located before anything is loaded; a missing one is an error with the command that fetches it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmark.backbones.backbone import (
    OPENAI_MEAN,
    OPENAI_STD,
    Backbone,
    InputSpec,
    Tokenizer,
    from_open_clip,
)
from benchmark.backbones.checkpoints import load_weights
from benchmark.backbones.published import BIOMEDCLIP, CONTEXT_LENGTH, Place, build, hub_cache, known_bert
from benchmark.errors import BenchmarkError, ConfigError, DataError, unknown
from benchmark.files import known_sha256, user_path
from benchmark.registry import register_backbone

BIOMEDCLIP_REPO = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BMC_CLIP_REPO, BMC_CLIP_FILE = "BIOMEDICA/BMC_CLIP_CF", "BMC_CLIP_CF.pt"

CONFIG = "open_clip_config.json"
WEIGHTS = (  # in the order in which open_clip looks for them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_WORD_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "s*piece*")
_TOKENIZER_FETCH = "--include 'tokenizer*' --include 'vocab*' --include 'special_tokens*'"


@dataclass(frozen=True)
class Found:
    """A model whose files are all here, not loaded yet.

    Attributes:
        name: as it was asked for.
        config: what open_clip builds it from. bert: configuration of its text tower, where that is a BERT.
        weights: the file. tokenizer: folder of its tokenizer files; None: the byte pairs that open_clip brings.
        preprocess: ``mean`` and ``std`` (and more) of its training.
        repo, revision: where it comes from, if that is a hub repository.
    """

    name: str
    config: Mapping[str, Any]
    weights: Path
    bert: Mapping[str, Any] | None = None
    tokenizer: Path | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None

    @property
    def context_length(self) -> int:
        """Longest text, start and end tokens included."""
        return int(self.config["text_cfg"].get("context_length", CONTEXT_LENGTH))

    @property
    def image_size(self) -> tuple[int, ...]:
        """Pixels (h, w) of an image."""
        size = self.config["vision_cfg"].get("image_size", 224)
        return (size, size) if isinstance(size, int) else tuple(size)

    def values(self) -> int:
        """Return the number of weights."""
        with torch.device("meta"):  # shapes only
            return sum(weight.numel() for weight in build(self.config, self.bert).parameters())

    @property
    def settings(self) -> str:
        """What the description says of the model beside its weights, as JSON."""
        return json.dumps([self.config, self.bert, self.preprocess], sort_keys=True, default=str)

    def made_of(self) -> list[str]:
        """Return what tells this model from others: its settings, and what its files hold."""
        words = [path for name in _WORD_FILES for path in sorted((self.tokenizer or Path("-")).glob(name))]
        return [self.settings, *map(known_sha256, (self.weights, *words))]

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        size = self.weights.stat().st_size / 1e6
        words = "with open_clip" if self.tokenizer is None else str(self.tokenizer)
        return [f"weights: {self.weights} ({size:,.0f} MB)", f"tokenizer: {words}"]


Finder = Callable[[str, str | None], Found]


class OpenClipBackbone:
    """A registered way to a model: finds its files, and loads them when it is called."""

    def __init__(self, finder: Finder, **about: str) -> None:
        self._finder, self._about = finder, about

    def about(self, name: str) -> dict[str, str]:
        """Return link and licence, for people; empty for models that are named by their address."""
        return self._about

    def find(self, name: str, *, pretrained: str | None = None) -> Found:
        """Return the files of a model.

        Raises:
            ConfigError: the request is wrong. DataError: a file is missing or damaged.
            BenchmarkError: the architecture is not supported.
        """
        found = self._finder(name, pretrained)
        _check_supported(name, found.config, found.bert)
        return found

    def __call__(self, name: str, *, pretrained: str | None = None) -> Backbone:
        """Load a model; raises as :meth:`find`, and DataError when the files do not fit together."""
        found = self._finder(name, pretrained)
        with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
            backbone = _built(name, found)
        load_weights(backbone.model, found.weights, f"'{name}'")
        backbone.tokenizer, backbone.settings = _tokenizer(found), found.settings
        backbone.origin = {
            "repo": found.repo,
            "revision": found.revision,
            "file": found.weights.name,
            "sha256": known_sha256(found.weights),
            "preprocess": dict(found.preprocess),
        }
        return backbone


def _built(name: str, found: Found) -> Backbone:
    """Return the backbone with random weights and without a tokenizer."""
    try:
        model = build(found.config, found.bert)
        backbone = from_open_clip(model, context_length=found.context_length, name=name)
    except BenchmarkError as error:
        raise _unsupported(name, error) from error
    mean, std = (
        found.preprocess.get(key) or usual for key, usual in (("mean", OPENAI_MEAN), ("std", OPENAI_STD))
    )
    backbone.input_spec = InputSpec(backbone.input_spec.size, tuple(mean), tuple(std))
    return backbone


def _check_supported(name: str, config: Mapping[str, Any], bert: Mapping[str, Any] | None) -> None:
    """Refuse an architecture that the towers do not cover, before anyone downloads its weights."""
    try:
        with torch.device("meta"):  # shapes only
            from_open_clip(build(config, bert), name=name)
    except BenchmarkError as error:
        raise _unsupported(name, error) from error


def _unsupported(name: str, error: BenchmarkError) -> BenchmarkError:
    head = f"backbone '{name}': "
    return BenchmarkError(head + str(error).removeprefix(head))


# ---------------------------------------------------------------------------- ways to a model
def _biomedclip(name: str, pretrained: str | None) -> Found:
    """BiomedCLIP: from the cache, a copy of its repository, or a weights file of its architecture."""
    home = Place(repo=BIOMEDCLIP_REPO)
    if pretrained is None:
        return _at(name, home)
    path = _local(name, pretrained)
    if path.is_dir():
        return _at(name, Place(path), like=BIOMEDCLIP)
    beside = Place(path.parent)
    return _at(name, beside, weights=path, like=BIOMEDCLIP, words=(beside, home))


def _bmc_clip(name: str, pretrained: str | None) -> Found:
    """BMC-CLIP: a ViT-L-14 whose repository holds one file of a training run."""
    place = Place(repo=BMC_CLIP_REPO)
    if pretrained is not None:
        path = _local(name, pretrained)
        if path.is_file():
            return _described(name, _architecture("ViT-L-14"), {}, place, weights=lambda: path)
        place = Place(path)
    return _described(
        name,
        _architecture("ViT-L-14"),
        {},
        place,
        weights=lambda: place.need("the weights file", BMC_CLIP_FILE, fetch=BMC_CLIP_FILE),
    )


def _hub(name: str, pretrained: str | None) -> Found:
    """Any open_clip model of the hub, ``hf-hub:<organisation>/<name>``, or your own weights for it."""
    place = Place(repo=name.partition(":")[2])
    return _at(name, place, weights=None if pretrained is None else _local_file(name, pretrained))


def _folder(name: str, pretrained: str | None) -> Found:
    """A copy of such a repository, ``local-dir:<folder>``, or your own weights for it."""
    folder = user_path(name.partition(":")[2])
    if not name.partition(":")[2] or not folder.is_dir():
        raise ConfigError(f"--backbone {name}: no such folder; expected local-dir:<folder>")
    return _at(name, Place(folder), weights=None if pretrained is None else _local_file(name, pretrained))


def _builtin(name: str, pretrained: str | None) -> Found:
    """One of open_clip's architectures by its own name, with the tag of published weights or a file."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if name == "open_clip":
        raise ConfigError(
            "--backbone open_clip: name one of open_clip's architectures itself, for example ViT-B-16"
        )
    config = _architecture(name)
    tags = list_pretrained_tags_by_model(name)
    if pretrained is None:
        some = f"a tag ({', '.join(tags[:4])}{', ...' if len(tags) > 4 else ''}) or " if tags else ""
        raise ConfigError(
            f"--backbone {name} is an architecture without weights: add --pretrained with {some}a weights file, "
            f"or take random:{name}"
        )
    if "hf_model_name" in config["text_cfg"]:
        _check_supported(name, config, None)
    tag = get_pretrained_cfg(name, pretrained)
    if tag:
        # the activation belongs to the weights; open_clip itself only warns when it is another one
        config["quick_gelu"] = bool(tag.get("quick_gelu") or config.get("quick_gelu"))
        repo, _, file = str(tag["hf_hub"]).rpartition("/")
        return _described(
            name, config, tag, Place(repo=repo), weights=lambda: _of_tag(Place(repo=repo), file)
        )
    path = user_path(pretrained)
    if not path.is_file():
        listed = unknown(f"weights of {name}", pretrained, tags)
        raise ConfigError(f"--pretrained: {listed}, or the path of a weights file")
    return _described(name, config, {}, Place(path.parent), weights=lambda: path)


def _of_tag(place: Place, file: str) -> Path:
    """Return the weights of one of open_clip's tags, whose repository keeps them in ``file`` or under a usual name."""
    names = (Path(file).with_suffix(".safetensors").name, file) if file else WEIGHTS
    return place.need("the weights file", *names, fetch=file)


# ---------------------------------------------------------------------------- finding the files
def _at(
    name: str,
    place: Place,
    *,
    weights: Path | None = None,
    like: Mapping[str, Any] | None = None,
    words: Sequence[Place] = (),
) -> Found:
    """Find a model that is described by the open_clip_config.json of its place.

    Args:
        name: of the backbone.
        place: where to look.
        weights: a file that stands in for the place's own.
        like: description to use when the place has none.
        words: where to look for tokenizer files; default is the place.
    """
    path = place.find(CONFIG)
    if path is None and like is None:
        path = place.need("the model's description", CONFIG)
    content: dict[str, Any] = {"model_cfg": like} if path is None else _description(path)
    config = copy.deepcopy(dict(content["model_cfg"]))
    if like is not None or place.repo == BIOMEDCLIP_REPO:
        config["text_cfg"].setdefault("context_length", BIOMEDCLIP["text_cfg"]["context_length"])
    preprocess = content.get("preprocess_cfg") or {}
    return _described(
        name, config, preprocess, place, weights=lambda: weights or _weights(place), words=words
    )


def _described(
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    place: Place,
    *,
    weights: Callable[[], Path],
    words: Sequence[Place] = (),
) -> Found:
    """Find weights, tokenizer and text configuration of a described model; report all that is missing at once."""
    text = config["text_cfg"]
    problems: list[str] = []

    def attempt(find: Callable[[], Any]) -> Any:
        try:
            return find()
        except DataError as error:
            problems.append(str(error))

    bert = attempt(lambda: _bert(text, place)) if "hf_model_name" in text else None
    described = not problems
    file = attempt(weights)
    tokenizer = attempt(lambda: _words(text, words or (place,))) if text.get("hf_tokenizer_name") else None
    if problems:
        if described:
            _check_supported(name, config, bert)
        raise DataError("; ".join(dict.fromkeys(problems)))
    kept = {
        key: preprocess[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in preprocess
    }
    own = hub_cache() in file.parents  # else the weights are a file of the user's, whatever describes them
    return Found(
        name,
        config,
        file,
        bert,
        tokenizer,
        kept,
        place.repo if own else None,
        place.revision if own else None,
    )


def _weights(place: Place) -> Path:
    found = place.find(*WEIGHTS)
    if found is None and place.folder is not None:
        others = [
            path
            for path in sorted(place.folder.iterdir())
            if path.suffix in (".safetensors", ".bin", ".pt", ".pth")
        ]
        if len(others) == 1:
            return others[0]
        if others:
            names = ", ".join(path.name for path in others)
            raise DataError(f"{place}: several weights files ({names}). Name one with --pretrained FILE")
    return found or place.need("the weights file", *WEIGHTS)


def _bert(text: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """Return the configuration of a Hugging Face text tower: known, in a folder, or in the cache."""
    name = str(text["hf_model_name"])
    known = known_bert(name)
    if known is not None:
        return known
    folder = (place.folder or Path()) / user_path(name)
    source = Place(folder) if folder.is_dir() else Place(repo=name)
    return _json(source.need("the text tower's configuration", "config.json", fetch="config.json"))


def _words(text: Mapping[str, Any], places: Sequence[Place]) -> Path:
    """Return the folder of tokenizer files: beside the weights, or in the repository that the description names."""
    name = str(text["hf_tokenizer_name"])
    folder = user_path(name)
    named = Place(folder) if folder.is_dir() else Place(repo=name)
    for place in (*places, named):
        found = place.find(*_TOKENIZER)
        if found is not None:
            return found.parent
    last = places[-1] if places[-1].repo else named
    return last.need("its tokenizer", *_TOKENIZER, fetch=_TOKENIZER_FETCH)


def _architecture(name: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def _description(path: Path) -> dict[str, Any]:
    content = _json(path)
    config = content.get("model_cfg")
    whole = isinstance(config, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    if not whole or not all(
        isinstance(content["model_cfg"][key], dict) for key in ("vision_cfg", "text_cfg")
    ):
        raise DataError(f"{path}: no description of an open_clip model (model_cfg). Fetch it again")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Fetch it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys and values. Fetch it again")
    return content


def _local(name: str, pretrained: str) -> Path:
    path = user_path(pretrained)
    if not path.exists():
        raise ConfigError(
            f"--pretrained: '{pretrained}' does not exist: for {name} give a weights file or a folder"
        )
    return path


def _local_file(name: str, pretrained: str) -> Path:
    path = _local(name, pretrained)
    if not path.is_file():
        raise ConfigError(f"--pretrained: '{pretrained}' is not a file: for {name} give a weights file")
    return path


# ---------------------------------------------------------------------------- tokenizer
def _tokenizer(found: Found) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = found.config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    if found.tokenizer is None:
        return SimpleTokenizer(context_length=found.context_length, **options)
    try:
        # one folder, no network, and never code that the folder names
        tokenizer = HFTokenizer(
            str(found.tokenizer), context_length=found.context_length, local_files_only=True,
            trust_remote_code=False, tokenizer_mode=text.get("tokenizer_mode"), **options,
        )  # fmt: skip
    except Exception as error:  # transformers raises many kinds on malformed files
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{found.tokenizer}: tokenizer files cannot be read ({reason}). Fetch them again"
        ) from None
    pieces, rows = len(tokenizer.tokenizer), (found.bert or {}).get("vocab_size", len(tokenizer.tokenizer))
    pad = (found.bert or {}).get("pad_token_id", 0)
    if pieces > rows or tokenizer.tokenizer.pad_token_id != pad:
        raise DataError(
            f"{found.tokenizer}: these tokenizer files are of another model: {pieces} pieces and pad id "
            f"{tokenizer.tokenizer.pad_token_id}, the text tower has {rows} and {pad}"
        )
    return tokenizer


biomedclip = register_backbone(
    "biomedclip", summary="BiomedCLIP (ViT-B/16, PubMedBERT); --pretrained FOLDER|FILE for a copy"
)(OpenClipBackbone(_biomedclip, link=f"https://huggingface.co/{BIOMEDCLIP_REPO}", licence="MIT"))
bmc_clip = register_backbone("bmc-clip", summary="BMC-CLIP (ViT-L/14); --pretrained FILE for a copy")(
    OpenClipBackbone(_bmc_clip, link=f"https://huggingface.co/{BMC_CLIP_REPO}", licence="none stated")
)
hub = register_backbone(
    "hf-hub", summary="hf-hub:<organisation>/<name>, an open_clip model from the hub cache"
)(OpenClipBackbone(_hub))
local_dir = register_backbone("local-dir", summary="local-dir:<folder>, a copy of such a repository")(
    OpenClipBackbone(_folder)
)
open_clip_names = register_backbone(
    "open_clip",
    summary="open_clip's architectures by their own names (ViT-B-16, ...) with --pretrained TAG|FILE",
    names_from="open_clip/model_configs/*.json",
)(OpenClipBackbone(_builtin))

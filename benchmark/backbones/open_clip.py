"""Published backbones in open_clip's formats, read from this machine: BiomedCLIP, BMC-CLIP, hub ids, folders, names.

A model is its description (open_clip_config.json, or one of open_clip's own), its weights and its tokenizer files. All
are located before anything is loaded; a missing one is an error with the command that fetches it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.backbones.published import (
    BIOMEDCLIP,
    CONTEXT_LENGTH,
    OPENAI_MEAN,
    OPENAI_STD,
    FoundModel,
    Repository,
    build,
    hub_cache,
    known_bert,
)
from benchmark.errors import BenchmarkError, ConfigError, DataError, unknown
from benchmark.files import user_path
from benchmark.registry import register_backbone

if TYPE_CHECKING:
    from benchmark.backbones.backbone import Backbone, Tokenizer

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
class OpenClipModel(FoundModel):
    """A model of open_clip whose files are all here; ``config`` is what open_clip builds it from.

    Attributes:
        bert: configuration of its text tower, where that is a BERT.
        preprocess: ``mean`` and ``std`` (and more) of its training.
    """

    bert: Mapping[str, Any] | None
    preprocess: Mapping[str, Any]

    @property
    def context_length(self) -> int:
        """Longest text, start and end tokens included."""
        return int(self.config["text_cfg"].get("context_length", CONTEXT_LENGTH))

    def values(self) -> int:
        """Return the number of weights."""
        import torch

        with torch.device("meta"):  # shapes only
            return sum(weight.numel() for weight in build(self.config, self.bert).parameters())


Finder = Callable[[str, str | None], OpenClipModel]


class OpenClipBackbone:
    """A registered way to a model: finds its files, and loads them when it is called."""

    def __init__(self, finder: Finder, **about: str) -> None:
        self._finder, self._about = finder, about

    def about(self, name: str) -> dict[str, str]:
        """Return link and licence, for people; empty for models that are named by their address."""
        return self._about

    def find(self, name: str, *, pretrained: str | None = None) -> OpenClipModel:
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
        import torch

        from benchmark.backbones.backbone import InputSpec
        from benchmark.backbones.checkpoints import load_weights

        found = self._finder(name, pretrained)
        with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
            backbone = _built(name, found.config, found.bert, context_length=found.context_length)
        mean, std = (
            tuple(found.preprocess.get(key) or usual)
            for key, usual in (("mean", OPENAI_MEAN), ("std", OPENAI_STD))
        )
        backbone.input_spec = InputSpec(backbone.input_spec.size, mean, std)
        load_weights(backbone.model, found.weights[0], f"'{name}'")
        backbone.tokenizer, backbone.settings = _tokenizer(found), found.settings
        backbone.origin = found.origin() | {"preprocess": dict(found.preprocess)}
        return backbone


def _built(
    name: str, config: Mapping[str, Any], bert: Mapping[str, Any] | None, context_length: int | None = None
) -> Backbone:
    """Return the backbone with random weights and without a tokenizer."""
    from benchmark.backbones.backbone import from_open_clip

    try:
        return from_open_clip(build(config, bert), context_length=context_length, name=name)
    except BenchmarkError as error:
        head = f"backbone '{name}': "
        raise BenchmarkError(head + str(error).removeprefix(head)) from error


def _check_supported(name: str, config: Mapping[str, Any], bert: Mapping[str, Any] | None) -> None:
    """Refuse an architecture that the towers do not cover, before anyone downloads its weights."""
    import torch

    with torch.device("meta"):  # shapes only
        _built(name, config, bert)


# ---------------------------------------------------------------------------- ways to a model
def _biomedclip(name: str, pretrained: str | None) -> OpenClipModel:
    """BiomedCLIP: from the cache, a copy of its repository, or a weights file of its architecture."""
    home, path = Repository(repo=BIOMEDCLIP_REPO), _given(name, pretrained, or_folder=True)
    if path is None:
        return _described_in(name, home)
    if path.is_dir():
        return _described_in(name, Repository(path), like=BIOMEDCLIP)
    beside = Repository(path.parent)
    return _described_in(name, beside, weights=path, like=BIOMEDCLIP, words=(beside, home))


def _bmc_clip(name: str, pretrained: str | None) -> OpenClipModel:
    """BMC-CLIP: a ViT-L-14 whose repository holds one file of a training run."""
    from open_clip import get_model_config

    home, path = Repository(repo=BMC_CLIP_REPO), _given(name, pretrained, or_folder=True)
    if path is not None and path.is_dir():
        home, path = Repository(path), None

    def weights() -> Path:
        return path or home.need("the weights file", BMC_CLIP_FILE, fetch=BMC_CLIP_FILE)

    return _with_files(name, get_model_config("ViT-L-14"), {}, home, weights=weights)


def _hub(name: str, pretrained: str | None) -> OpenClipModel:
    """Any open_clip model of the hub, ``hf-hub:<organisation>/<name>``, or your own weights for it."""
    home = Repository(repo=name.partition(":")[2])
    return _described_in(name, home, weights=_given(name, pretrained))


def _folder(name: str, pretrained: str | None) -> OpenClipModel:
    """A copy of such a repository, ``local-dir:<folder>``, or your own weights for it."""
    folder = user_path(name.partition(":")[2])
    if not name.partition(":")[2] or not folder.is_dir():
        raise ConfigError(f"--backbone {name}: no such folder; expected local-dir:<folder>")
    return _described_in(name, Repository(folder), weights=_given(name, pretrained))


def _builtin(name: str, pretrained: str | None) -> OpenClipModel:
    """One of open_clip's architectures by its own name, with the tag of published weights or a file."""
    from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

    if name == "open_clip":
        raise ConfigError(
            "--backbone open_clip: name one of open_clip's architectures itself, for example ViT-B-16"
        )
    config: dict[str, Any] = get_model_config(name)
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
    if not tag:
        path = user_path(pretrained)
        if not path.is_file():
            listed = unknown(f"weights of {name}", pretrained, tags)
            raise ConfigError(f"--pretrained: {listed}, or the path of a weights file")
        return _with_files(name, config, {}, Repository(path.parent), weights=lambda: path)
    # the activation belongs to the weights; open_clip itself only warns when it is another one
    config["quick_gelu"] = bool(tag.get("quick_gelu") or config.get("quick_gelu"))
    repo, _, file = str(tag["hf_hub"]).rpartition("/")
    home = Repository(repo=repo)
    names = (Path(file).with_suffix(".safetensors").name, file) if file else WEIGHTS
    return _with_files(
        name, config, tag, home, weights=lambda: home.need("the weights file", *names, fetch=file)
    )


# ---------------------------------------------------------------------------- finding the files
def _described_in(
    name: str,
    home: Repository,
    *,
    weights: Path | None = None,
    like: Mapping[str, Any] | None = None,
    words: Sequence[Repository] = (),
) -> OpenClipModel:
    """Find a model that is described by the open_clip_config.json of its repository.

    Args:
        name: of the backbone.
        home: of the description.
        weights: a file that stands in for the repository's own.
        like: description to use when the repository has none.
        words: where to look for tokenizer files; default is the repository.
    """
    path = home.find(CONFIG)
    if path is None and like is None:
        path = home.need("the model's description", CONFIG)
    content: dict[str, Any] = {"model_cfg": like} if path is None else _description(path)
    config = copy.deepcopy(dict(content["model_cfg"]))
    if like is not None or home.repo == BIOMEDCLIP_REPO:
        config["text_cfg"].setdefault("context_length", BIOMEDCLIP["text_cfg"]["context_length"])
    preprocess = content.get("preprocess_cfg") or {}
    return _with_files(name, config, preprocess, home, weights=lambda: weights or _weights(home), words=words)


def _with_files(
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    home: Repository,
    *,
    weights: Callable[[], Path],
    words: Sequence[Repository] = (),
) -> OpenClipModel:
    """Find weights, tokenizer and text configuration of a described model; report all that is missing at once."""
    text = config["text_cfg"]
    problems: list[str] = []

    def attempt(find: Callable[[], Any]) -> Any:
        try:
            return find()
        except DataError as error:
            problems.append(str(error))

    bert = attempt(lambda: _bert(text, home)) if "hf_model_name" in text else None
    described = not problems
    file = attempt(weights)
    tokenizer = attempt(lambda: _words(text, words or (home,))) if text.get("hf_tokenizer_name") else None
    if problems:
        if described:
            _check_supported(name, config, bert)
        raise DataError("; ".join(dict.fromkeys(problems)))
    kept = {
        key: preprocess[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in preprocess
    }
    own = hub_cache() in file.parents  # else the weights are a file of the user's, whatever describes them
    size = config["vision_cfg"].get("image_size", 224)
    folder = tokenizer or Path("-")
    return OpenClipModel(
        weights=(file,),
        words=tokenizer,
        word_files=tuple(path for glob in _WORD_FILES for path in sorted(folder.glob(glob))),
        settings=json.dumps([config, bert, kept], sort_keys=True, default=str),
        config=config,
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        repo=home.repo if own else None,
        revision=home.revision if own else None,
        bert=bert,
        preprocess=kept,
    )


def _weights(home: Repository) -> Path:
    others = [] if home.find(*WEIGHTS) or home.folder is None else home.weight_files()
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"{home}: several weights files ({names}). Name one with --pretrained FILE")
    return others[0] if others else home.need("the weights file", *WEIGHTS)


def _bert(text: Mapping[str, Any], home: Repository) -> Mapping[str, Any]:
    """Return the configuration of a Hugging Face text tower: known, in a folder, or in the cache."""
    name = str(text["hf_model_name"])
    if known := known_bert(name):
        return known
    folder = (home.folder or Path()) / user_path(name)
    source = Repository(folder) if folder.is_dir() else Repository(repo=name)
    return _json(source.need("the text tower's configuration", "config.json", fetch="config.json"))


def _words(text: Mapping[str, Any], homes: Sequence[Repository]) -> Path:
    """Return the folder of tokenizer files: beside the weights, or in the repository that the description names."""
    name = str(text["hf_tokenizer_name"])
    folder = user_path(name)
    named = Repository(folder) if folder.is_dir() else Repository(repo=name)
    for home in (*homes, named):
        if found := home.find(*_TOKENIZER):
            return found.parent
    last = homes[-1] if homes[-1].repo else named
    return last.need("its tokenizer", *_TOKENIZER, fetch=_TOKENIZER_FETCH)


def _description(path: Path) -> dict[str, Any]:
    content = _json(path)
    config = content.get("model_cfg")
    towers = [config.get(key) for key in ("vision_cfg", "text_cfg")] if isinstance(config, dict) else [None]
    if not all(isinstance(tower, dict) for tower in towers) or "embed_dim" not in content["model_cfg"]:
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


def _given(name: str, pretrained: str | None, *, or_folder: bool = False) -> Path | None:
    """Return the path that the user names as weights, if any."""
    if pretrained is None:
        return None
    path = user_path(pretrained)
    if not path.exists():
        raise ConfigError(
            f"--pretrained: '{pretrained}' does not exist: for {name} give a weights file or a folder"
        )
    if not or_folder and not path.is_file():
        raise ConfigError(f"--pretrained: '{pretrained}' is not a file: for {name} give a weights file")
    return path


# ---------------------------------------------------------------------------- tokenizer
def _tokenizer(found: OpenClipModel) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text, bert = found.config["text_cfg"], found.bert or {}
    options = dict(text.get("tokenizer_kwargs") or {})
    if found.words is None:
        return SimpleTokenizer(context_length=found.context_length, **options)
    try:
        # one folder, no network, and never code that the folder names
        tokenizer = HFTokenizer(
            str(found.words), context_length=found.context_length, local_files_only=True,
            trust_remote_code=False, tokenizer_mode=text.get("tokenizer_mode"), **options,
        )  # fmt: skip
    except Exception as error:  # transformers raises many kinds on malformed files
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{found.words}: tokenizer files cannot be read ({reason}). Fetch them again"
        ) from None
    pieces, pad_id = len(tokenizer.tokenizer), tokenizer.tokenizer.pad_token_id
    rows, pad = bert.get("vocab_size", pieces), bert.get("pad_token_id", 0)
    if pieces > rows or pad_id != pad:
        raise DataError(
            f"{found.words}: these tokenizer files are of another model: {pieces} pieces and pad id {pad_id}, "
            f"the text tower has {rows} and {pad}"
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

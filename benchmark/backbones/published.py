"""Published architectures, as open_clip describes them, and published files in folders and hub repositories.

An architecture is built from its description alone, without weights and without the network. Importing this module
imports no torch.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark.errors import BenchmarkError, ConfigError, DataError
from benchmark.files import known_sha256

if TYPE_CHECKING:
    from torch import nn

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Of weight files."""

CONTEXT_LENGTH = 77
"""Longest text of a model whose description does not say it (open_clip's default)."""

# BiomedBERT-base-uncased-abstract, once called PubMedBERT: its published configuration
PUBMED_BERT: Mapping[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_PUBMED_NAMES = ("BiomedNLP-PubMedBERT-base-uncased", "BiomedNLP-BiomedBERT-base-uncased")

BIOMEDCLIP: Mapping[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}


def known_bert(name: str) -> Mapping[str, Any] | None:
    """Return the configuration of a BERT that needs no download, by its hub id or the name of a copy."""
    return PUBMED_BERT if name.rstrip("/").rpartition("/")[2].startswith(_PUBMED_NAMES) else None


def build(config: Mapping[str, Any], bert: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an open_clip model with random weights.

    Args:
        config: ``model_cfg`` of an open_clip_config.json, or the content of one of open_clip's model_configs.
        bert: configuration of the text tower, when ``config`` names a Hugging Face model.

    Raises:
        BenchmarkError: the description asks for something that is not supported, or is not one.
    """
    own: dict[str, Any] = copy.deepcopy(dict(config))
    try:
        vision, text = own["vision_cfg"], own["text_cfg"]
        if "multimodal_cfg" in own:
            raise BenchmarkError("models with a caption decoder (CoCa) are not supported")
        if ":" in str(vision.get("timm_model_name", "")):
            raise BenchmarkError(f"timm model '{vision['timm_model_name']}' would be a download")
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        custom = bool(own.pop("custom_text", False))
        return with_bert(own, bert) if "hf_model_name" in text else _made(own, custom)
    except BenchmarkError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BenchmarkError(f"not a model description that open_clip can build ({reason})") from error


def with_bert(config: dict[str, Any], bert: Mapping[str, Any] | None) -> nn.Module:
    """Build an open_clip model whose text tower is a BERT of this configuration; ``config`` is changed."""
    if bert is None or bert.get("model_type") != "bert":
        name = config["text_cfg"]["hf_model_name"]
        raise BenchmarkError(f"text tower '{name}' is not supported: expected a BERT or open_clip's own")
    with tempfile.TemporaryDirectory() as folder:
        # transformers reads a BERT's sizes from a folder. One with nothing else in it keeps out the network, and
        # code that a downloaded configuration may name.
        sizes = {key: value for key, value in bert.items() if key != "auto_map"}
        Path(folder, "config.json").write_text(json.dumps(sizes), encoding="utf-8")
        config["text_cfg"] |= {
            "hf_model_name": folder, "hf_tokenizer_name": folder, "hf_model_pretrained": False,
        }  # fmt: skip
        return _made(config, custom=True)


def _made(config: Mapping[str, Any], custom: bool) -> nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    return CustomTextCLIP(**config) if custom else CLIP(**config)


def hub_cache() -> Path:
    """Return the folder of downloaded repositories, by the rules of huggingface_hub but read at every call."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or base).expanduser() / "hub"


@dataclass(frozen=True)
class Repository:
    """Files that belong together: a folder on disk, or a repository of the Hugging Face hub in its cache.

    Attributes:
        folder: on disk.
        repo: ``organisation/name`` on the hub; one of the two is given.
        branch: of the repository, or a tag.
        kind: of the repository.
    """

    folder: Path | None = None
    repo: str | None = None
    branch: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that is here; ConfigError where the repository's name is invalid."""
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        for name in names:
            try:
                found = try_to_load_from_cache(
                    str(self.repo), name, cache_dir=hub_cache(), revision=self.branch, repo_type=self.kind
                )
            except HFValidationError:
                raise ConfigError(f"'{self.repo}' is not a hub id: expected organisation/name") from None
            if isinstance(found, str):
                return Path(found)
        return None

    def need(self, what: str, *names: str, fetch: str = "") -> Path:
        """Return the first of these files.

        Args:
            what: how a message calls it.
            names: accepted file names, the preferred one first.
            fetch: file to download when none is here; default downloads the whole repository.

        Raises:
            DataError: none of them is here; the message says how to get it.
        """
        found = self.find(*names)
        if found is not None:
            return found
        wanted = " or ".join(names)
        if self.repo is None:
            raise DataError(f"{self.folder}: {what} is missing ({wanted}). Copy it there")
        raise DataError(
            f"{self.repo}: {what} is not in the cache ({hub_cache()}). Fetch it: " + self.command(fetch)
        )

    def command(self, fetch: str = "") -> str:
        """Return the command that downloads a file of the repository, or all of it."""
        words = [f"hf download {self.repo}", f"'{fetch}'" if "(" in fetch else fetch]
        words += [f"--revision {self.branch}"] if self.branch != "main" else []
        words += [f"--repo-type {self.kind}"] if self.kind != "model" else []
        return " ".join(filter(None, words))

    def weight_files(self) -> list[Path]:
        """Return all weight files that are here, by name."""
        folder = self.folder or self._cached / "snapshots" / (self.revision or "-")
        return [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]

    def __str__(self) -> str:
        return str(self.repo or self.folder)

    @property
    def revision(self) -> str | None:
        """Commit of the repository that the cache holds; None for a folder."""
        if self.repo is None:
            return None
        try:
            return (self._cached / "refs" / self.branch).read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    @property
    def _cached(self) -> Path:
        return hub_cache() / f"{self.kind}s--{str(self.repo).replace('/', '--')}"


@dataclass(frozen=True)
class FoundModel:
    """A model whose files are all here, not loaded yet.

    Attributes:
        weights: its weight files.
        words: folder of its tokenizer files; None: the byte pairs that open_clip brings.
        word_files: those of them that the tokenizer is made of.
        settings: what is known of the model beside its weights.
        config: sizes by name, ``embed_dim`` among them.
        image_size: pixels (h, w) of an image.
        repo, revision: where the weights come from, if that is a hub repository.
    """

    weights: tuple[Path, ...]
    words: Path | None
    word_files: tuple[Path, ...]
    settings: str
    config: Mapping[str, Any]
    image_size: tuple[int, ...]
    repo: str | None
    revision: str | None

    def made_of(self) -> list[str]:
        """Return what tells this model from others: its settings, and the checksums of its files."""
        return [self.settings, *map(known_sha256, (*self.weights, *self.word_files))]

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        sizes = ", ".join(f"{path} ({path.stat().st_size / 1e6:,.0f} MB)" for path in self.weights)
        return [f"weights: {sizes}", f"tokenizer: {self.words or 'with open_clip'}"]

    def origin(self) -> dict[str, Any]:
        """Return where the weights come from, as JSON types."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "file": ", ".join(path.name for path in self.weights),
            "sha256": ", ".join(map(known_sha256, self.weights)),
        }

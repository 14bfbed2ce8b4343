"""Architectures as open_clip describes them, built from the description alone: no weights, no network."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from benchmark.errors import BenchmarkError, ConfigError, DataError

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
    """Return the configuration of a BERT that is known without a download, by its hub id or the name of a copy."""
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
        return _with_bert(own, bert) if "hf_model_name" in text else _made(own, custom)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        if isinstance(error, BenchmarkError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BenchmarkError(f"not a model description that open_clip can build ({reason})") from error


def _with_bert(config: dict[str, Any], bert: Mapping[str, Any] | None) -> nn.Module:
    if bert is None or bert.get("model_type") != "bert":
        name = config["text_cfg"]["hf_model_name"]
        raise BenchmarkError(f"text tower '{name}' is not supported: expected a BERT or open_clip's own")
    with tempfile.TemporaryDirectory() as folder:
        # transformers reads a BERT's shape from a folder; one with nothing but the shape keeps the network out,
        # and code that a downloaded config may name
        shape = {key: value for key, value in bert.items() if key != "auto_map"}
        Path(folder, "config.json").write_text(json.dumps(shape), encoding="utf-8")
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
class Place:
    """Files that belong together; a folder or a repository is given.

    Attributes:
        folder: a folder on disk. repo: ``organisation/name`` on the Hugging Face hub.
        branch: of the repository, or a tag. kind: of the repository.
    """

    folder: Path | None = None
    repo: str | None = None
    branch: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that is here.

        Raises:
            ConfigError: the repository's name is not one.
        """
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

    def only(self, suffixes: Iterable[str]) -> Path | None:
        """Return the file with one of these suffixes, if there is just one."""
        folder = self.folder or self._snapshot()
        if folder is None or not folder.is_dir():
            return None
        found = [path for path in sorted(folder.iterdir()) if path.suffix in tuple(suffixes)]
        return found[0] if len(found) == 1 else None

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

    def _snapshot(self) -> Path | None:
        revision = self.revision
        return None if revision is None else self._cached / "snapshots" / revision

"""Token ids of a corpus, computed once per corpus and tokenizer and cached on disk, memory mapped.

The key contains the texts and all that the ids depend on: the tokenizer's rules as its library writes them, its
settings, its class, and versions (of the libraries; of this file, which covers the project's own tokenizers; or the
attribute ``version`` of a plugin's tokenizer). Ids of a tokenizer that does not show all of that are not cached.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from benchmark.backbones import Backbone
from benchmark.console import Reporter
from benchmark.data.cache import cached

TokenIds = npt.NDArray[np.int16] | npt.NDArray[np.int32]
_VERSION = 1
_CHUNK = 4096
_LIBRARIES = ("tokenizers", "transformers", "open_clip_torch")
_VERSIONED = ("benchmark", "tokenizers", "transformers", "open_clip")
"""Packages whose tokenizers' code is known by a version."""


class _UnknownError(Exception):
    """Something that a tokenizer's ids may depend on cannot be written down."""


def token_ids(backbone: Backbone, texts: Sequence[str], folder: Path | None, reporter: Reporter) -> TokenIds:
    """Return ids ``[N, context_length]`` in the narrowest type, memory mapped where they are kept.

    Args:
        backbone: whose tokenizer is asked.
        texts: N.
        folder: where ids are kept; None keeps nothing.
        reporter: told about the work.
    """
    who = None if folder is None else identity(backbone.tokenizer)
    name = None if who is None else hashlib.sha256(f"{_VERSION}|{who}|{_digest(texts)}".encode()).hexdigest()
    return cached(
        None if folder is None or name is None else folder / f"tokens-{name[:32]}.npy",
        make=lambda: _made(backbone, texts, reporter),
        read=lambda path: np.load(path, mmap_mode="r", allow_pickle=False),
        write=lambda path, ids: _save(path, ids),
        what="token ids",
        reporter=reporter,
    )


def identity(tokenizer: Any) -> str | None:
    """Return the SHA-256 of all that a tokenizer's ids depend on; None when that cannot be told."""
    cls = type(tokenizer)
    version = getattr(tokenizer, "version", None)
    if version is None and cls.__module__.partition(".")[0] not in _VERSIONED:
        return None
    if getattr(tokenizer, "reduction_fn", None) is not None:  # open_clip's ways to shorten texts at random
        return None
    try:
        state = vars(tokenizer).items()
        told = [f"{name}={_told(value)}" for name, value in sorted(state) if name != "cache"]
    except (_UnknownError, TypeError):
        return None
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    content = [f"{cls.__module__}.{cls.__qualname__}", str(version), *versions, *told]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


def _told(value: Any) -> str:
    """Return a value as text that is the same in every process."""
    rules = getattr(value, "backend_tokenizer", value)
    if isinstance(rules, tokenizers.Tokenizer):
        content = json.loads(rules.to_str())
        if rules is not value:  # transformers sets these two anew with every call
            content.update(truncation=None, padding=None)
        return ("" if rules is value else repr(value)) + json.dumps(content, sort_keys=True)
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Mapping):
        return str(sorted(f"{_told(key)}:{_told(item)}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return str([_told(item) for item in value])
    if inspect.isroutine(value) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "pattern"):
        return f"{value.pattern}{value.flags}"
    raise _UnknownError


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _made(backbone: Backbone, texts: Sequence[str], reporter: Reporter) -> TokenIds:
    reporter.start("tokenise", len(texts))
    parts = []
    for start in range(0, len(texts), _CHUNK):
        ids = backbone.tokenize(texts[start : start + _CHUNK]).numpy()
        parts.append(ids.astype(np.int32))
        reporter.advance(len(ids))
    whole = np.concatenate(parts)
    return whole.astype(np.int16) if whole.max(initial=0) <= np.iinfo(np.int16).max else whole


def _save(path: Path, ids: TokenIds) -> None:
    with path.open("wb") as file:
        np.save(file, ids, allow_pickle=False)

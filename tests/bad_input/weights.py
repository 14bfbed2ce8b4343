"""Wrong models: none here, or descriptions, weights and tokenizers that are damaged or of another model."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.case import RUN, Says, Setup, files, requests, small, spoilt, together

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "chest", "image", "of", "no", "heart", "."]
_BERT = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {
        "hf_model_name": "text", "hf_tokenizer_name": "someone/small", "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24,
    },
}  # fmt: skip
WEIGHTS, CONFIG = "model/open_clip_model.safetensors", "model/open_clip_config.json"


@functools.cache
def _state() -> dict[str, Any]:
    from benchmark.backbones.published import build

    return dict(build(_MODEL, _BERT).state_dict())


@functools.cache
def _saved(prefix: str = "", less: str = "") -> bytes:
    from safetensors.torch import save

    return save({prefix + name: value.contiguous() for name, value in _state().items() if name != less})


def model(folder: Path) -> None:
    """Write a folder as of a repository on the hub: description, weights, text tower, tokenizer."""
    (folder / "model" / "text").mkdir(parents=True)
    (folder / CONFIG).write_text(
        json.dumps({"model_cfg": _MODEL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    (folder / WEIGHTS).write_bytes(_saved())
    (folder / "model" / "text" / "config.json").write_text(json.dumps(_BERT))
    (folder / "model" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def _file(name: str, content: Callable[[], bytes] | bytes) -> Setup:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())

    return together(model, write)


def _weights(content: Callable[[], bytes] | bytes) -> Setup:
    return _file(WEIGHTS, content)


def _described(**changes: Any) -> Setup:
    return _file(CONFIG, json.dumps({"model_cfg": _MODEL | changes}).encode())


def _trunk(name: str) -> Setup:
    return _described(vision_cfg=_MODEL["vision_cfg"] | {"timm_model_name": name})


def _gone(*names: str) -> Setup:
    return together(model, *((lambda folder, name=name: (folder / name).unlink()) for name in names))


def _changed_weights(change: Callable[[dict[str, Any]], object]) -> Setup:
    def content() -> bytes:
        from safetensors.torch import save

        state = {name: value.clone() for name, value in _state().items()}
        change(state)
        return save(state)

    return _file(WEIGHTS, content)


def _pickle(content: Callable[[], Any]) -> Setup:
    def saved() -> bytes:
        import torch

        file = io.BytesIO()
        torch.save(content(), file)
        return file.getvalue()

    return together(
        _gone(WEIGHTS), lambda folder: (folder / "model/open_clip_pytorch_model.bin").write_bytes(saved())
    )


class _Shell:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit(3)",))


_DESCRIPTION, _SAFE, _BIN = (
    "open_clip_config.json: ",
    "open_clip_model.safetensors: ",
    "open_clip_pytorch_model.bin: ",
)
_NONE = f"{_DESCRIPTION}no description of an open_clip model"
_UNREADABLE, _WORDS_UNREADABLE = f"{_SAFE}cannot be read as weights", "tokenizer files cannot be read"
_BIAS = "visual.trunk.norm.bias"
_MODELS: dict[str, tuple[Setup, Says]] = {
    "no description": (
        _gone(CONFIG),
        "model: the model's description is missing (open_clip_config.json). Copy it there",
    ),
    "a description that is no JSON": (_file(CONFIG, b"{"), f"{_DESCRIPTION}cannot be read"),
    "a description that is a list": (
        _file(CONFIG, b"[]"),
        f"{_DESCRIPTION}expected keys and values. Fetch it again",
    ),
    "a description of nothing": (_file(CONFIG, b"{}"), _NONE),
    "a description that is a page of the web": (_file(CONFIG, b"<html>"), f"{_DESCRIPTION}cannot be read"),
    "a text for its image tower": (_described(vision_cfg="vit"), _NONE),
    "a list for its text tower": (_described(text_cfg=[1]), _NONE),
    "an image tower of a type that is not there": (
        _trunk("no_such_vit"),
        "not a model description that open_clip can build (RuntimeError: Unknown model (no_such_vit))",
    ),
    "an image tower that would be fetched": (_trunk("hf-hub:someone/vit"), "would be a download"),
    "a width in words": (
        _described(embed_dim="wide"),
        "not a model description that open_clip can build (TypeError: ",
    ),
    "a text tower that is no BERT": (
        _file("model/text/config.json", b'{"model_type": "t5"}'),
        "text tower 'text' is not supported",
    ),
    "a text tower's settings cut off": (
        _file("model/text/config.json", b'{"model'),
        "config.json: cannot be read",
    ),
    "no weights": (_gone(WEIGHTS), "model: the weights file is missing (open_clip_model.safetensors"),
    "weights of no bytes": (_weights(b""), _UNREADABLE),
    "weights cut off": (_weights(lambda: _saved()[:1000]), _UNREADABLE),
    "weights that are a page of the web": (_weights(b"<!DOCTYPE html>" * 40), _UNREADABLE),
    "weights that are a pointer": (_weights(b"version https://git-lfs.github.com/spec/v1\n"), _UNREADABLE),
    "weights without a tensor": (_weights(lambda: _saved(less="logit_scale")), "1 missing ('logit_scale')"),
    "weights of other names": (
        _weights(lambda: _saved("other.")),
        "not the weights of 'local-dir:model' (expected",
    ),
    "weights of another size": (
        _changed_weights(lambda state: state.update({_BIAS: state[_BIAS][:3].clone()})),
        f"1 of another size ('{_BIAS}' is [3]",
    ),
    "weights that are not finite": (
        _changed_weights(lambda state: state[_BIAS].fill_(float("nan"))),
        "with values that are not finite",
    ),
    "weights that are code": (_pickle(_Shell), f"{_BIN}refused, it holds Python objects that could run code"),
    "weights that are a list": (_pickle(lambda: [1, 2]), "expected a mapping of names to tensors, got list"),
    "weights that are numbers": (_pickle(lambda: {"a": 1}), "expected a mapping of names to tensors"),
    "weights that are nothing": (_pickle(dict), f"{_BIN}holds no tensors. Fetch it again"),
    "weights with numbers for names": (
        _pickle(lambda: {1: _state()["logit_scale"]}),
        f"{_BIN}expected tensors by name",
    ),
    "several weights files": (
        together(_gone(WEIGHTS), files({"model/a.pt": b"x", "model/b.pt": b"x"})),
        "several weights files (a.pt, b.pt). Name one with --pretrained FILE",
    ),
    "no tokenizer": (
        _gone("model/vocab.txt", "model/tokenizer_config.json"),
        "its tokenizer is not in the cache",
    ),
    "a tokenizer of another model": (
        _file("model/vocab.txt", "\n".join([*WORDS, *map(str, range(50))]).encode()),
        "these tokenizer files are of another model",
    ),
    "a tokenizer of bytes": (_file("model/vocab.txt", bytes(range(128, 256))), "model: "),
    "a tokenizer whose settings are cut off": (_file("model/tokenizer_config.json", b"{"), _WORDS_UNREADABLE),
    "a tokenizer whose settings are a list": (_file("model/tokenizer_config.json", b"[]"), _WORDS_UNREADABLE),
    "a tokenizer that is no JSON": (_file("model/tokenizer.json", b"<html>"), _WORDS_UNREADABLE),
}
_LOAD = "efficiency --methods zero_shot --rounds 1 --batch-size 2 --output-dir out --backbone "
_NOT_HERE = "someone/model: the model's description is not in the cache"

CASES = [
    *spoilt("a model", f"{_LOAD}local-dir:model", _MODELS),
    *requests(
        {
            f"{_LOAD}local-dir:gone": "no such folder; expected local-dir:<folder>",
            f"{_LOAD}local-dir:": "no such folder; expected local-dir:<folder>",
            f"{RUN} --backbone hf-hub:someone/model": _NOT_HERE,
            f"{RUN.replace('run', 'validate', 1)} --backbone hf-hub:someone/model": _NOT_HERE,
            f"{RUN} --backbone hf-hub:a/b/c": "'a/b/c' is not a hub id: expected organisation/name",
            f"{RUN} --backbone biomedclip": "Fetch it: hf download",
            f"{RUN} --backbone biomedclip --pretrained gone.pt": "--pretrained: 'gone.pt' does not exist",
            f"{RUN} --backbone ViT-B-16": "is an architecture without weights: add --pretrained",
            f"{RUN} --backbone ViT-B-16 --pretrained opanai": (
                "--pretrained: unknown weights of ViT-B-16 'opanai'. Did you mean 'openai'?"
            ),
        },
        small,
    ),
]

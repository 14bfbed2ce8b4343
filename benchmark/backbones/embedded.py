"""Backbones that need no download: the tiny pretrained ones, and architectures with random weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer

from benchmark.backbones.backbone import Backbone, InputSpec, from_open_clip
from benchmark.backbones.published import BIOMEDCLIP, CONTEXT_LENGTH, PUBMED_BERT, build
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.registry import register_backbone


def _refuse_weights(name: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise ConfigError(f"--pretrained: backbone '{name}' brings its own weights, got '{pretrained}'")


def _tiny(name: str, pretrained: str | None) -> Backbone:
    pass

    _refuse_weights(name, pretrained)
    model, tokenizer = load_tiny(name)
    spec = InputSpec((IMAGE_SIZE, IMAGE_SIZE), (MEAN,) * 3, (STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


@register_backbone("tiny", summary="1.3 M parameters, 64 px, pretrained on phantoms as a weak generalist")
def tiny(name: str, *, pretrained: str | None = None) -> Backbone:
    """1.3 M parameters, 64 px, pretrained on phantoms as a weak generalist (docs/phantom.md)."""
    return _tiny("tiny", pretrained)


@register_backbone("tiny_b", summary="the same from another pretraining seed")
def tiny_b(name: str, *, pretrained: str | None = None) -> Backbone:
    """The same as ``tiny`` from another pretraining seed: how much of a ranking is the backbone's draw?"""
    return _tiny("tiny_b", pretrained)


@register_backbone(
    "random", summary="random:biomedclip, random:tiny or random:<open_clip name>: untrained weights"
)
def random(name: str, *, pretrained: str | None = None) -> Backbone:
    """``random:biomedclip``, ``random:tiny`` or ``random:<open_clip name>``: the architecture, untrained.

    For efficiency figures and tests; no tokenizer for ``biomedclip`` (its vocabulary is a download).
    """
    _refuse_weights(name, pretrained)
    _, _, architecture = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture == "biomedclip":
            return from_open_clip(build(BIOMEDCLIP, PUBMED_BERT), context_length=256, name=name)
        if architecture == "tiny":
            return _random_tiny(name)
        return _random_open_clip(architecture, name)


def _random_tiny(name: str) -> Backbone:
    pass

    _, tokenizer = load_tiny("tiny")
    model = build_tiny(tokenizer.vocab_size)
    spec = InputSpec((IMAGE_SIZE, IMAGE_SIZE), (MEAN,) * 3, (STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


def _random_open_clip(architecture: str, name: str) -> Backbone:
    import open_clip

    known = open_clip.list_models()
    if architecture not in known:
        raise ConfigError(f"--backbone {name}: " + unknown("open_clip model", architecture, known))
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    own_words = not config["text_cfg"].get("hf_tokenizer_name")  # other vocabularies are downloads
    tokenizer = open_clip.get_tokenizer(architecture) if own_words else None
    length = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
    return from_open_clip(build(config), tokenizer, context_length=length, name=name)


WEIGHTS = Path(__file__).parent / "weights"


IMAGE_SIZE, PATCH_SIZE = 64, 8


IMAGE_WIDTH, IMAGE_DEPTH, IMAGE_HEADS = 96, 6, 3


TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 96, 4, 3


TINY_CONTEXT_LENGTH = 64


EMBED_DIM = 96


MEAN, STD = 0.45, 0.25  # grey level normalisation, the same in every channel


_TIMM_NAME = "vit_phantom_patch8_64"


def vit_phantom_patch8_64(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Return the image trunk, registered because open_clip builds image towers by timm name."""
    del pretrained  # the weights come with the whole model
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    options = {
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": IMAGE_WIDTH,
        "depth": IMAGE_DEPTH,
        "num_heads": IMAGE_HEADS,
        **options,
    }
    trunk = VisionTransformer(**options)
    # open_clip reads pool_size to tell a token sequence (None) from a feature map.
    trunk.default_cfg = {"pool_size": None, "input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}  # type: ignore[assignment]
    return trunk


if not timm.is_model(_TIMM_NAME):  # a second import of this module must not register again
    timm.models.register_model(vit_phantom_patch8_64)


class WordPieceTokenizer:
    """Lower-case WordPiece with an open_clip tokenizer's call.

    Attributes:
        context_length: longest sequence, [CLS] and [SEP] included.
        pad_id: id of [PAD], 0.
        vocab_size: number of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int = TINY_CONTEXT_LENGTH) -> None:
        self.context_length = context_length
        self.pad_id = int(tokenizer.token_to_id("[PAD]") or 0)
        self.vocab_size = int(tokenizer.get_vocab_size())
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path) -> WordPieceTokenizer:
        """Read a tokenizer written by the ``tokenizers`` library.

        Raises:
            DataError: the file is missing or not a tokenizer.
        """
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"{path}: tokenizer cannot be read ({error}); restore the file") from error
        except Exception as error:  # the library raises bare Exception on malformed files
            raise DataError(f"{path}: not a tokenizer file ({error}); restore the file") from error

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Encode texts.

        Args:
            texts: one text or several.
            context_length: length L of every row; the tokenizer's own when None.

        Returns:
            [N, L] int64, padded with ``pad_id``; what is too long is cut, and [SEP] stays last.

        Raises:
            ValueError: the length cannot hold [CLS] and [SEP].
        """
        length = self.context_length if context_length is None else context_length
        if length < 2:
            raise ValueError(f"context_length: expected at least 2, got {length}")
        rows = [texts] if isinstance(texts, str) else list(texts)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        for row, encoding in enumerate(self._tokenizer.encode_batch(rows)):
            kept = (
                encoding.ids
                if len(encoding.ids) <= length
                else [*encoding.ids[: length - 1], encoding.ids[-1]]
            )
            ids[row, : len(kept)] = torch.tensor(kept)
        return ids

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text, [CLS] and [SEP] included, uncut."""
        pieces: list[str] = self._tokenizer.encode(text).tokens
        return pieces


def _bert_config(vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": vocab_size,
        "hidden_size": TEXT_WIDTH,
        "num_hidden_layers": TEXT_DEPTH,
        "num_attention_heads": TEXT_HEADS,
        "intermediate_size": 4 * TEXT_WIDTH,
        "max_position_embeddings": TINY_CONTEXT_LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "type_vocab_size": 2,
    }


def build_tiny(vocab_size: int, seed: int = 0) -> CustomTextCLIP:
    """Build the tiny model with random weights; the global random state is left as it was.

    Args:
        vocab_size: tokens of the text tower.
        seed: of the initial weights.

    Returns:
        An open_clip model as ``open_clip.create_model`` would return it, in training mode.
    """
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        # transformers reads a BERT's shape from a folder; a folder with nothing but the shape keeps the
        # network out.
        Path(folder, "config.json").write_text(json.dumps(_bert_config(vocab_size)), encoding="utf-8")
        return CustomTextCLIP(
            embed_dim=EMBED_DIM,
            vision_cfg={
                "timm_model_name": _TIMM_NAME,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": IMAGE_SIZE,
            },
            text_cfg={
                "hf_model_name": folder,
                "hf_tokenizer_name": folder,
                "hf_model_pretrained": False,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": TINY_CONTEXT_LENGTH,
            },
        )


def tiny_names() -> list[str]:
    """Return the names of the weights that are in the package."""
    return sorted(path.name.removesuffix(".safetensors") for path in WEIGHTS.glob("[!.]*.safetensors"))


def load_tiny(name: str) -> tuple[CustomTextCLIP, WordPieceTokenizer]:
    """Load one of the pretrained tiny models.

    Args:
        name: ``tiny`` or ``tiny_b``: the same recipe from two seeds.

    Returns:
        (model in evaluation mode, float32; its tokenizer).

    Raises:
        DataError: no such weights, or a file that does not fit the model.
    """
    if name not in tiny_names():
        raise DataError(unknown("tiny weights", name, tiny_names()))
    path = WEIGHTS / f"{name}.safetensors"
    tokenizer = WordPieceTokenizer.from_file(WEIGHTS / "tiny.tokenizer.json")
    model = build_tiny(tokenizer.vocab_size)
    try:
        state = {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(path).items()
        }
        model.load_state_dict(state, strict=True)
    except Exception as error:  # safetensors raises its own type, torch RuntimeError
        raise DataError(f"{path}: does not fit the tiny model ({error}); restore the file") from error
    return model.eval(), tokenizer


def to_input(pixels: Any) -> torch.Tensor:
    """Turn uint8 pixels [N, H, W] or [N, H, W, 3] into normalised float32 images [N, 3, H, W]."""
    images = torch.as_tensor(pixels).float().div_(255).sub_(MEAN).div_(STD)
    return images[:, None].expand(-1, 3, -1, -1) if images.ndim == 3 else images.permute(0, 3, 1, 2)

"""The tiny two-tower model: 0.36 M parameters, 64 pixels, pretrained on phantoms; its weights are in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer

from benchmark.backbones.checkpoints import load_weights
from benchmark.backbones.embedded import EMBED_DIM, IMAGE_SIZE, WEIGHTS, tiny_names
from benchmark.backbones.published import with_bert
from benchmark.errors import DataError, unknown

PATCH_SIZE = 8
IMAGE_WIDTH, IMAGE_DEPTH, IMAGE_HEADS = 64, 4, 2
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 64, 2, 2
CONTEXT_LENGTH = 64
MEAN, STD = 0.45, 0.25  # grey level normalisation, the same in every channel


def vit_phantom_patch8_64(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Return the image trunk."""
    del pretrained  # the weights come with the whole model
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    sizes: dict[str, Any] = {
        "img_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "embed_dim": IMAGE_WIDTH, "depth": IMAGE_DEPTH,
        "num_heads": IMAGE_HEADS,
    }  # fmt: skip
    trunk = VisionTransformer(**(sizes | options))
    # open_clip reads pool_size to tell a token sequence (None) from a feature map.
    trunk.default_cfg = {"pool_size": None, "input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}  # type: ignore[assignment]
    return trunk


class WordPieceTokenizer:
    """Lower-case WordPiece with an open_clip tokenizer's call.

    Attributes:
        context_length: longest sequence, [CLS] and [SEP] included.
        pad_id: id of [PAD], 0.
        vocab_size: number of tokens.
    """

    version = 1  # raise it when the same texts give other ids

    def __init__(self, tokenizer: Tokenizer, context_length: int = CONTEXT_LENGTH) -> None:
        self.context_length = context_length
        self.pad_id = int(tokenizer.token_to_id("[PAD]") or 0)
        self.vocab_size = int(tokenizer.get_vocab_size())
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path, context_length: int = CONTEXT_LENGTH) -> WordPieceTokenizer:
        """Read a tokenizer written by the ``tokenizers`` library.

        Raises:
            DataError: the file is missing or not a tokenizer.
        """
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), context_length)
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
            kept = encoding.ids
            if len(kept) > length:
                kept = [*kept[: length - 1], kept[-1]]
            ids[row, : len(kept)] = torch.tensor(kept)
        return ids

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text, [CLS] and [SEP] included, uncut."""
        pieces: list[str] = self._tokenizer.encode(text).tokens
        return pieces


def build_tiny(vocab_size: int, seed: int = 0, text_depth: int = TEXT_DEPTH) -> Any:
    """Build the tiny model with random weights; the global random state is left as it was.

    Args:
        vocab_size: tokens of the text tower.
        seed: of the initial weights.
        text_depth: blocks of the text tower.

    Returns:
        An open_clip model as ``open_clip.create_model`` would return it, in training mode.
    """
    if not timm.is_model(vit_phantom_patch8_64.__name__):  # open_clip builds image towers by timm's names
        timm.models.register_model(vit_phantom_patch8_64)
    config: dict[str, Any] = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "timm_model_name": vit_phantom_patch8_64.__name__, "timm_model_pretrained": False, "timm_pool": "",
            "timm_proj": "linear", "image_size": IMAGE_SIZE,
        },
        "text_cfg": {
            "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": CONTEXT_LENGTH,
        },
    }  # fmt: skip
    bert = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": vocab_size, "hidden_size": TEXT_WIDTH,
        "num_hidden_layers": text_depth, "num_attention_heads": TEXT_HEADS, "intermediate_size": 4 * TEXT_WIDTH,
        "max_position_embeddings": CONTEXT_LENGTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0, "type_vocab_size": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return with_bert(config, bert)


def load_tiny(name: str) -> tuple[Any, WordPieceTokenizer]:
    """Load one of the pretrained tiny models.

    Args:
        name: ``tiny`` or ``tiny_b``: the same recipe from two seeds.

    Returns:
        (open_clip model in evaluation mode, float32; its tokenizer).

    Raises:
        DataError: no such weights, or a file that does not fit the model.
    """
    if name not in tiny_names():
        raise DataError(unknown("tiny weights", name, tiny_names()))
    tokenizer = WordPieceTokenizer.from_file(WEIGHTS / "tiny.tokenizer.json")
    model = build_tiny(tokenizer.vocab_size)
    load_weights(model, WEIGHTS / f"{name}.safetensors", f"'{name}'")
    return model.eval(), tokenizer


def to_input(pixels: Any) -> torch.Tensor:
    """Turn uint8 pixels [N, H, W] or [N, H, W, 3] into normalised float32 images [N, 3, H, W]."""
    images = torch.as_tensor(pixels).float().div_(255).sub_(MEAN).div_(STD)
    return images[:, None].expand(-1, 3, -1, -1) if images.ndim == 3 else images.permute(0, 3, 1, 2)

"""One interface to a two-tower vision-language model."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmark.backbones.published import OPENAI_MEAN, OPENAI_STD
from benchmark.backbones.towers.base import ImageTower, TextTower
from benchmark.backbones.towers.clip_native import ClipTextTower, ClipVitTower
from benchmark.backbones.towers.deltas import FUSED
from benchmark.backbones.towers.hf_bert import HFBertTower
from benchmark.backbones.towers.resnet import ResNetTower, is_resnet
from benchmark.backbones.towers.split import PARTS
from benchmark.backbones.towers.timm_vit import TimmVitTower
from benchmark.errors import BenchmarkError
from benchmark.preprocess import Preprocess

Tokenizer = Callable[[list[str]], Tensor]
"""Maps N texts to ids ``[N, context_length]``, padded on the right with the tower's pad id."""


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Return values on the device; a GPU copies them, from pinned memory, while this process goes on."""
    pinned = values.pin_memory() if torch.device(device).type == "cuda" and not values.is_cuda else values
    return pinned.to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    """Return numbers as a float32 tensor, which travels to a device once; do not change it."""
    with torch.inference_mode(False):  # it also serves passes with gradients
        return to_device(torch.tensor(values, dtype=torch.float32), device)


@dataclass(frozen=True)
class InputSpec:
    """What the image tower expects.

    Attributes:
        size: spatial size, e.g. (224, 224); three numbers for volumes.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_input(self, pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Turn uint8 pixels into normalised input on ``device``.

        Args:
            pixels: uint8 ``[B, *size]`` (grey) or ``[B, *size, C]``. An array is copied first, as it may be
                read-only; a tensor is not, and may lie in pinned memory.
            device: where the arithmetic happens; only bytes travel there.

        Returns:
            float32 ``[B, C, *size]``; grey pixels are repeated over the channels, and for a model of one channel
            colours become grey as Pillow makes them (ITU-R 601).
        """
        raw = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
        raw = to_device(raw, device)
        channels = len(self.mean)
        raw = raw.unsqueeze(1) if raw.ndim == len(self.size) + 1 else raw.movedim(-1, 1)
        if channels == 1 and raw.shape[1] == 3:
            red, green, blue = raw.int().unbind(dim=1)
            raw = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[:, None]
        shape = (1, channels, *[1] * len(self.size))
        mean, std = (constant(values, device).view(shape) for values in (self.mean, self.std))
        return raw.float().div_(255).sub(mean).div_(std)


@dataclass(frozen=True)
class VolumeSpec(InputSpec):
    """What a tower of CT volumes expects; ``size`` is (slices, rows, columns) in the order of its axes.

    Attributes:
        mean, std: of values scaled to [0, 1] over the window.
        window: lowest and highest Hounsfield unit (HU); what lies beyond is cut off.
    """

    window: tuple[float, float]

    def to_input(self, pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Turn Hounsfield units, whole numbers ``[B, *size]``, into normalised input, float32 ``[B, 1, *size]``."""
        raw = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
        low, high = self.window
        scaled = raw.to(device, non_blocking=True).float().clamp_(low, high).sub_(low).div_(high - low)
        return scaled.sub_(self.mean[0]).div_(self.std[0]).unsqueeze(1)


class Backbone(nn.Module):
    """An adapted or frozen CLIP: two towers, a shared space, a scale.

    Attributes:
        model: the library's module, as it was handed in; its ``state_dict`` names stay the library's own.
        image, text: towers over ``model``'s encoders.
        embed_dim: width E of the shared space.
        input_spec: what the image tower expects.
        settings: what its description says beside its weights (activation, heads, ...), in short; empty where the code
            alone says it.
        origin: where the weights come from (repository, file, sha256), as JSON types; empty when they were handed in.
        preprocess: how images become its input; None: open_clip's way, at the input's size.
        rules: names of the zero-shot score rules that it offers, the headline first.
        extras: frozen parts that a rule of its own needs, by name; they move with the backbone and are not its model.
    """

    def __init__(
        self,
        model: nn.Module,
        image: ImageTower,
        text: TextTower,
        *,
        tokenizer: Tokenizer | None = None,
        input_spec: InputSpec,
        name: str = "custom",
    ) -> None:
        super().__init__()
        if image.embed_dim != text.embed_dim:
            raise BenchmarkError(
                f"towers of '{name}' end in {image.embed_dim} and {text.embed_dim} dimensions"
            )
        self.model = model
        self.image, self.text = image, text
        self.embed_dim = image.embed_dim
        self.tokenizer, self.input_spec, self.name = tokenizer, input_spec, name
        self.settings = ""
        self.origin: dict[str, Any] = {}
        self.preprocess: Preprocess | None = None
        self.rules: tuple[str, ...] = ("global",)
        self.extras = nn.ModuleDict()

    @property
    def logit_scale(self) -> Tensor:
        """The scale that multiplies cosines (a scalar; the checkpoint stores its logarithm)."""
        log_scale: Any = self.model.logit_scale
        return log_scale.exp()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return ids ``[N, context_length]`` of the texts; BenchmarkError where there is no tokenizer."""
        if self.tokenizer is None:
            raise BenchmarkError(
                f"backbone '{self.name}' has no tokenizer: give one to from_open_clip(model, tokenizer)"
            )
        return self.tokenizer(list(texts))

    def trim(self, token_ids: Tensor) -> Tensor:
        """Drop the columns that are padding in every row of ``[..., N]``, unless the tower attends to padding."""
        if self.text.attends_padding:
            return token_ids
        longest = int(self.text.lengths(token_ids.reshape(-1, token_ids.shape[-1])).max())
        return token_ids[..., :longest]

    def tower_of(self, parameter_name: str) -> str:
        """Return "image", "text" or "scale" for a name of ``model.named_parameters()``."""
        if parameter_name in ("logit_scale", "logit_bias"):
            return "scale"
        return "image" if parameter_name.startswith("visual.") else "text"

    def split_qkv(self) -> None:
        """Give q, k and v of every block of both towers a Linear each; outputs stay the same.

        Where the library keeps them in one fused map, names in ``model`` change: ``attn.qkv`` becomes ``attn.qkv.q``
        and so on. A second call does nothing. Raises BenchmarkError where a form of attention cannot be split.
        """
        try:
            self.image.split_qkv()
            self.text.split_qkv()
        except ValueError as error:
            raise BenchmarkError(f"backbone '{self.name}': {error}") from error

    def linear_name(self, kind: str, index: int, site: str) -> str:
        """Return the name that the Linear of one site has in ``model`` once q, k and v are split.

        Args:
            kind: "image" or "text".
            index: 0-based block.
            site: one of ``towers.SITES``, or "kv" where one map makes keys and values.

        Raises:
            BenchmarkError: half of such a map, which has no name of its own.
        """
        tower = self.image if kind == "image" else self.text
        linear = tower.linear_at(index, site)
        name = next(name for name, module in self.model.named_modules() if module is linear)
        fused = site in PARTS and linear is tower.linear_at(index, "v" if site == "q" else "q")
        if site in FUSED["kv"] and "kv" in tower.linears(index):
            raise BenchmarkError(
                f"backbone '{self.name}': one map makes keys and values in its {kind} tower: adapt both k and v, "
                "or neither"
            )
        return f"{name}.{site}" if fused else name

    def fingerprint(self, tower: str = "") -> str:
        """Return the SHA-256 of the weights (names, shapes, values) and settings: the key of all computed from them.

        Args:
            tower: "image" or "text"; empty: the whole model.
        """
        digest = hashlib.sha256(self.settings.encode())
        for name, value in sorted(self.model.state_dict().items()):
            if tower and self.tower_of(name) != tower:
                continue
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def from_open_clip(
    model: nn.Module,
    tokenizer: Tokenizer | None = None,
    *,
    context_length: int | None = None,
    input_spec: InputSpec | None = None,
    name: str = "custom",
) -> Backbone:
    """Wrap an open_clip model object as it is.

    Args:
        model: ``open_clip.model.CLIP`` or ``CustomTextCLIP`` with a ViT and a BERT or causal text transformer.
        tokenizer: maps texts to ids; may be None when only ids are used.
        context_length: longest text; default is the tokenizer's, else the tower's own.
        input_spec: default takes open_clip's image size and the CLIP mean and standard deviation.
        name: shown in results.

    Raises:
        BenchmarkError: if a tower is of a kind that is not supported.
    """
    clip: Any = model
    length = context_length or getattr(tokenizer, "context_length", None)
    try:
        image, text = _image_tower(clip.visual), _text_tower(clip, length)
    except (ValueError, AttributeError) as error:
        raise BenchmarkError(f"backbone '{name}': {error}") from error
    spec = input_spec or InputSpec(tuple(image.image_size), OPENAI_MEAN, OPENAI_STD)
    model.eval()
    return Backbone(model, image, text, tokenizer=tokenizer, input_spec=spec, name=name)


def _image_tower(visual: Any) -> ImageTower:
    if is_resnet(visual):
        return ResNetTower(visual)
    if hasattr(visual, "trunk"):
        return TimmVitTower(visual)
    if hasattr(visual, "transformer"):
        return ClipVitTower(visual)
    raise ValueError(f"image tower {type(visual).__name__} is neither a ViT nor a ResNet")


def _text_tower(clip: Any, context_length: int | None) -> TextTower:
    owner = getattr(clip, "text", clip)
    return HFBertTower(owner, context_length) if hasattr(owner, "pooler") else ClipTextTower(owner)


def tower_digest(backbone: Backbone) -> str:
    """Return what tells one image tower from another: its weights, and how its input is scaled."""
    return f"{backbone.fingerprint('image')} {backbone.input_spec}"


_CHUNK = 4096


def cut_texts(backbone: Backbone, token_ids: Tensor | npt.NDArray[np.integer]) -> int:
    """Return how many texts fill the model's context, so that what may stand beyond it is cut off.

    Args:
        backbone: whose text tower reads them.
        token_ids: ``[..., L]``, padded to the context.
    """
    if backbone.text.attends_padding:  # every text fills it there
        return 0
    rows = np.asarray(token_ids)
    rows = rows.reshape(-1, rows.shape[-1])
    parts = (rows[start : start + _CHUNK].astype(np.int64) for start in range(0, len(rows), _CHUNK))
    lengths = (backbone.text.lengths(torch.from_numpy(part)) for part in parts)
    return sum(int((one >= rows.shape[1]).sum()) for one in lengths)

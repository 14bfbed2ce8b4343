"""What training and evaluation see of data: pairs, batches and labelled images, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmark.data.prepared import MANIFEST, PIXELS, Prepared
from benchmark.errors import DataError, unknown

Kind = Literal["multiclass", "binary", "multilabel"]


@dataclass
class Batch:
    """One step's samples. A tower whose features are constant during training brings features instead of inputs.

    Attributes:
        images: ``[B, C, H, W]`` or None. token_ids: ``[B, L]`` or None. labels: ``[B, K]`` or None.
        image_features, text_features: pooled, projected, un-normalised features ``[B, E]`` of the frozen towers.
        frozen_image, frozen_text: the same, beside the inputs, for losses that compare with the frozen model.
    """

    images: Tensor | None = None
    token_ids: Tensor | None = None
    labels: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    frozen_image: Tensor | None = None
    frozen_text: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._tensors()[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._tensors()[0].device

    def split(self, size: int) -> list[Batch]:
        """Return parts of at most ``size`` samples, in order."""
        count = self.size
        return [
            Batch(
                **{name: None if value is None else value[i : i + size] for name, value in vars(self).items()}
            )
            for i in range(0, count, size)
        ]

    def _tensors(self) -> list[Tensor]:
        return [value for name, value in vars(self).items() if value is not None and name != "labels"]


@dataclass(frozen=True)
class PairData:
    """Image-report pairs to adapt on.

    Attributes:
        pixels: uint8 ``[N, H, W]`` or ``[N, H, W, C]``, memory-mapped.
        texts: N reports. labels: float32 ``[N, K]`` of 1, 0, -1, nan, or None. label_names: K names.
        ids: N image ids.
    """

    name: str
    pixels: np.ndarray
    texts: list[str]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    ids: list[str]
    digest: str

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pixels)


@dataclass(frozen=True)
class LabelledImages:
    """Images with the classes that a zero-shot evaluation asks for.

    Attributes:
        pixels: uint8 ``[N, H, W]`` or ``[N, H, W, C]``.
        targets: int ``[N]`` (class index; binary: 1 = positive) or ``[N, C]`` of 0/1 for multilabel.
        classes: C class texts as they enter the templates.
        clusters: N patient ids for clustered intervals, or None.
    """

    name: str
    title: str
    kind: Kind
    pixels: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    ids: list[str]
    clusters: list[str] | None
    digest: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)


def pairs(name: str, data: Prepared, *, limit: int | None = None) -> PairData:
    """Read image-report pairs off a prepared dataset.

    Raises:
        DataError: if it has no report texts, or an empty one.
    """
    frame = data.manifest if limit is None else data.manifest.iloc[:limit]
    if "text" not in frame:
        raise DataError(
            f"{data.folder}/manifest.csv: column 'text' is missing, so '{name}' cannot be a corpus"
        )
    texts = frame["text"].fillna("").astype(str).tolist()
    empty = [str(row) for row, text in zip(frame["image_id"], texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(
            f"{data.folder}/manifest.csv: {len(empty)} empty reports, first '{empty[0]}': remove the rows"
        )
    columns = [column for column in frame.columns if column.startswith("label_")]
    labels = frame[columns].to_numpy(dtype=np.float32) if columns else None
    names = tuple(column.removeprefix("label_") for column in columns)
    ids = frame["image_id"].astype(str).tolist()
    return PairData(name, data.pixels[: len(frame)], texts, labels, names, ids, _digest(data, len(frame)))


def labelled_images(
    name: str, data: Prepared, spec: dict[str, Any], *, limit: int | None = None
) -> LabelledImages:
    """Read an evaluation set off a prepared dataset.

    Args:
        name: its name in results.
        data: the prepared dataset.
        spec: of the suite: ``kind``, ``classes`` (label names), ``positive`` for binary sets, optional ``prompts``
            (label name -> text in the template), optional ``title``; ``exclusive`` keeps only the images of a
            multiclass set that show one of its classes and nothing else ("No Finding": nothing at all).
        limit: keep only the first rows.

    Raises:
        DataError: if a label column is missing or the labels contradict ``kind``.
    """
    frame = data.manifest if limit is None else data.manifest.iloc[:limit]
    kind, names = spec["kind"], list(spec["classes"])
    if spec.get("exclusive"):
        frame = frame[_exclusive(data, frame, names)]
    if kind == "binary":
        targets = (_column(data, frame, spec["positive"]) == 1).astype(np.int64)
        if names.index(spec["positive"]) == 0:
            names.reverse()
    else:
        targets = np.stack([_column(data, frame, label) == 1 for label in names], axis=1).astype(np.int64)
        if kind == "multiclass":
            targets = _single_class(targets, data, frame, names)
    prompts = spec.get("prompts") or {}
    clusters = frame["patient_id"].astype(str).tolist() if "patient_id" in frame else None
    return LabelledImages(
        name=name,
        title=str(spec.get("title", name)),
        kind=kind,
        pixels=data.pixels[frame.index.to_numpy()] if spec.get("exclusive") else data.pixels[: len(frame)],
        targets=targets,
        classes=tuple(str(prompts.get(label, label)) for label in names),
        ids=frame["image_id"].astype(str).tolist(),
        clusters=clusters,
        digest=_digest(data, len(frame)) + (f":exclusive:{names}" if spec.get("exclusive") else ""),
    )


NO_FINDING = "No Finding"


def _exclusive(data: Prepared, frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return which rows show exactly one of ``names`` and nothing else; "No Finding" is a row without any."""
    findings = [label for label in data.labels() if label != NO_FINDING]
    shown = np.stack([_column(data, frame, label) == 1 for label in findings], axis=1)
    wanted = np.array([label in names for label in findings])
    one = (shown.sum(axis=1) == 1) & shown[:, wanted].any(axis=1)
    return one | ((NO_FINDING in names) & ~shown.any(axis=1))


def _column(data: Prepared, frame: pd.DataFrame, label: str) -> np.ndarray:
    column = f"label_{label}"
    if column not in frame and label == NO_FINDING:  # label sets that leave it out mean: none of the others
        return (~(frame.filter(like="label_") == 1).any(axis=1)).to_numpy(dtype=np.float32)
    if column not in frame:
        known = [name.removeprefix("label_") for name in frame.columns if name.startswith("label_")]
        raise DataError(f"{data.folder}/manifest.csv: " + unknown("label", label, known))
    return frame[column].to_numpy(dtype=np.float32)


def _single_class(targets: np.ndarray, data: Prepared, frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    counts = targets.sum(axis=1)
    if (counts != 1).any():
        row = frame["image_id"].iloc[int(np.flatnonzero(counts != 1)[0])]
        raise DataError(
            f"{data.folder}/manifest.csv: image '{row}' has not exactly one of the classes {', '.join(names)}"
        )
    return targets.argmax(axis=1)


def _digest(data: Prepared, rows: int) -> str:
    return f"{data.digests[PIXELS]}:{data.digests[MANIFEST]}:{rows}"

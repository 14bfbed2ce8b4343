"""Stored image features: a file of arrays, and a CSV file with the texts and labels of the same images.

``.npy``: ``[N, E]`` (tokens: ``[N, T, D]``), a row for each row of the CSV file. ``.safetensors``: a tensor
``features`` and, in its metadata, ``ids``, a JSON list; without it rows as in ``.npy``. ``.parquet``: a column
``features`` of lists beside a column of ids. What a run keeps of its frozen image tower is such a file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets.own_csv import CsvOptions, _Csv
from benchmark.data.prepared import PIXELS, Prepared
from benchmark.errors import ConfigError, DataError
from benchmark.files import file_sha256, user_path
from benchmark.preprocess import THUMBNAIL, Fitting
from benchmark.registry import register_dataset
from benchmark.settings import setting


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(CsvOptions):
    """The keys of a data entry: those of ``csv``, whose path column holds ids here, and the file of features."""

    features: str = setting(MISSING, "the file of features: .npy, .safetensors or .parquet")
    path_column: str = setting("image_id", "ids of the images, each once")


@register_dataset("features")
class StoredFeatures:
    """Opens features that were computed before; for the backbones ``features:...`` and ``token_features:...``."""

    Options = FeatureOptions

    def load(self, options: FeatureOptions, request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part, with features ``[N, E]`` or ``[N, T, D]`` as their pixels.

        Raises:
            DataError: a problem of one of the files; features that do not fit the backbone.
        """
        own = _Rows(options)
        frame = own.rows()
        data = own.undecoded() if request.fitting is None else own.pixels(request, request.fitting)
        return own.joined(data, frame)


class _Rows(_Csv):
    options: FeatureOptions

    def _check_images(self) -> None:
        """There are no image files."""

    def pixels(self, request: LoadRequest, fitting: Fitting) -> Prepared:
        """Return the features of all rows of the table."""
        path = user_path(self.options.features)
        values, ids = read_features(path, self.options.path_column)
        if values.ndim not in (2, 3) or values.dtype.kind != "f":
            raise DataError(
                f"{path}: expected float numbers [N, E] or [N, T, D], got {values.dtype} {list(values.shape)}"
            )
        if values.shape[1:] != fitting.size:
            raise DataError(
                f"{path}: features of {list(values.shape[1:])}, the backbone takes {list(fitting.size)}: take "
                "--backbone features:... or token_features:... with the backbone that made them"
            )
        wanted = list(self.row_of)
        if ids is None:
            if len(values) != len(wanted):
                raise DataError(
                    f"{path}: {len(values):,} rows without ids, and {len(wanted):,} in {self.options.path}"
                )
            ids = wanted
        place = {name: row for row, name in enumerate(ids)}
        if len(place) != len(ids) or len(ids) != len(values):
            raise DataError(
                f"{path}: {len(values):,} rows, {len(ids):,} ids, {len(place):,} of them different"
            )
        if lacking := [name for name in wanted if name not in place]:
            row = self.row_of[lacking[0]]
            text = f"'{lacking[0]}' is not among the ids of '{path}'"
            raise self._problem(row, self.options.path_column, text)
        rows = np.array([place[name] for name in wanted], dtype=np.intp)
        if not np.isfinite(values).all():
            raise DataError(f"{path}: values that are not finite")
        order = hashlib.sha256("\n".join([file_sha256(path), *wanted]).encode()).hexdigest()
        none = np.zeros((len(wanted), *THUMBNAIL.size), dtype=np.uint8)
        manifest = pd.DataFrame({"image_id": wanted})
        info: dict[str, Any] = {"transform": f"features of {path.name}"}
        return Prepared("", path.parent, values[rows], manifest, None, info, {PIXELS: order}, thumbnails=none)


def read_features(path: Path, id_column: str) -> tuple[np.ndarray, list[str] | None]:
    """Return features and the ids of their rows, None where the file has none.

    Raises:
        ConfigError: a file of another kind. DataError: it cannot be read.
    """
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy") as file:
                ids = (file.metadata() or {}).get("ids")
                return file.get_tensor("features"), None if ids is None else list(map(str, json.loads(ids)))
        if path.suffix == ".parquet":
            if importlib.util.find_spec("pyarrow") is None:
                raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow")
            frame = pd.read_parquet(path, columns=[id_column, "features"])
            values = np.array([np.stack(list(row)) for row in frame["features"]])
            return values, frame[id_column].astype(str).tolist()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    raise ConfigError(f"features: expected .npy, .safetensors or .parquet, got '{path.name}'")

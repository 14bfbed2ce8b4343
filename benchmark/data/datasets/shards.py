"""Shards of the webdataset library: tar files in which the files of a sample share a name, ``0001.png``, ``0001.txt``.

``.txt`` holds the report, ``.json`` any other columns, ``.cls`` a class. Images are taken out once into
``<data-root>/shards/``, and then read as files of one's own (own_csv.py), with the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets._unpacked import Unpacked, Unpacker, unpacked_options
from benchmark.data.prepared import Prepared
from benchmark.errors import ConfigError, DataError
from benchmark.files import user_path
from benchmark.registry import register_dataset
from benchmark.settings import setting

_IMAGES = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp", "dcm")


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Unpacked):
    """The keys of a data entry: those of ``csv``, and where the shards lie."""

    shards: str = setting(MISSING, "a tar file, or a pattern such as shards/{000..009}.tar")


@register_dataset("shards")
class Shards:
    """Opens shards."""

    Options = ShardOptions
    fits_images = True

    def load(self, options: ShardOptions, request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part; see :class:`benchmark.data.datasets.own_csv.OwnCsv`."""
        source = user_path(options.shards)
        return Unpacker("shards", source, lambda: _rows(str(source))).load(unpacked_options(options), request)


def _rows(source: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        import webdataset
    except ModuleNotFoundError as error:
        if error.name != "webdataset":
            raise
        raise ConfigError("dataset 'shards': pip install \"medpeft-bench[hub]\" brings webdataset") from None
    files = webdataset.shardlists.expand_urls(source)
    if missing := [file for file in files if not Path(file).is_file()]:
        raise DataError(f"{missing[0]}: no such shard")
    for sample in webdataset.WebDataset(files, shardshuffle=False, empty_check=False):
        image = next((sample[key] for key in _IMAGES if key in sample), None)
        if image is None:
            raise DataError(
                f"{sample['__url__']}: sample '{sample['__key__']}' has no image ({', '.join(_IMAGES)})"
            )
        row: dict[str, Any] = {"key": sample["__key__"]}
        row |= {
            name: sample[key].decode() for key, name in (("txt", "text"), ("cls", "class")) if key in sample
        }
        row |= json.loads(sample["json"]) if "json" in sample else {}
        yield image, row

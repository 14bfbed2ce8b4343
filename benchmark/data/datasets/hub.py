"""A dataset of Hugging Face ``datasets``: a folder that ``save_to_disk`` wrote, or a Parquet file; nothing is fetched.

Images are taken out once into ``<data-root>/hub/``, and then read as files of one's own (own_csv.py): the same keys say
which columns hold texts, labels, classes, parts and patients.
"""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class HubOptions(Unpacked):
    """The keys of a data entry: those of ``csv``, and where the dataset lies."""

    source: str = setting(MISSING, "folder of save_to_disk, or one Parquet file")
    image_column: str = setting("image", "column of images")


@register_dataset("hub")
class HubDataset:
    """Opens a dataset of Hugging Face."""

    Options = HubOptions
    fits_images = True

    def load(self, options: HubOptions, request: LoadRequest) -> Prepared:
        """Return the rows of the wanted part; see :class:`benchmark.data.datasets.own_csv.OwnCsv`."""
        source = user_path(options.source)
        return Unpacker("hub", source, lambda: _rows(source, options.image_column)).load(
            unpacked_options(options), request
        )


def _rows(source: Path, column: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ConfigError(
            "dataset 'hub': pip install \"medpeft-bench[hub]\" brings Hugging Face datasets"
        ) from None
    try:
        saved = source.is_dir()
        found = datasets.load_from_disk(str(source)) if saved else datasets.Dataset.from_parquet(str(source))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: no dataset of save_to_disk and no Parquet file ({' '.join(str(error).split())})"
        ) from None
    splits = found.items() if isinstance(found, dict) else [("", found)]
    for split, rows in splits:
        if column not in rows.column_names:
            raise DataError(
                f"{source}: no column '{column}' (image_column). Columns: {', '.join(rows.column_names)}"
            )
        names = {key: one.names for key, one in rows.features.items() if isinstance(one, datasets.ClassLabel)}
        for row in rows.cast_column(column, datasets.Image(decode=False)):
            image = row.pop(column)
            content = image["bytes"] or Path(image["path"]).read_bytes()
            row = {
                key: names[key][value] if key in names and value is not None else value
                for key, value in row.items()
            }
            yield content, ({"split": split} if split else {}) | row

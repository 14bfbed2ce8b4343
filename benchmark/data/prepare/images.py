"""Reading image files as uint8 pixels.

Pixels deeper than 8 bits are scaled before they become bytes, MONOCHROME1 is inverted, and alpha is dropped. A file
that is damaged, too large or not an image is an error that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from benchmark.errors import DataError
from benchmark.preprocess import Pixels

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may open. Other formats are refused unread: one that holds PostScript would start Ghostscript."""
MAX_PIXELS = 100_000_000
"""Pixels that a file may declare, unless asked otherwise: a small file may declare more than fits into memory."""
MAX_RATIO = 1000
"""Longest side over shortest side: fitting enlarges the shortest one."""
_ORIENTATION = 0x0112
_DEFLATED = b"1.2.840.10008.1.2.1.99"

_FOREIGN = (
    (b"<!doctype html", "a web page, not the file: the download was refused or went through a login page"),
    (b"<html", "a web page, not the file: the download was refused or went through a login page"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
)
_NOT_IMAGES = (
    *_FOREIGN,
    (b"<", "a page of HTML or XML, not an image: often the error message of a download server"),
    (b"pk\x03\x04", "a ZIP archive, not an image: unpack it"),
    (b"\x1f\x8b", "a gzip archive, not an image: unpack it"),
    (b"{", "a JSON text, not an image: often the error message of a download server"),
)


def foreign(start: bytes, table: tuple[tuple[bytes, str], ...] = _FOREIGN) -> str:
    """Return what a file is instead of data, by its first bytes; empty when it may be data."""
    head = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((meaning for magic, meaning in table if head.startswith(magic)), "")


class ImageError(DataError):
    """An image file that cannot be read as an image; the message names the file and says why."""


@dataclass(frozen=True)
class DecodedImage:
    """One image as it was read.

    Attributes:
        pixels: uint8 ``[H, W]`` when its channels are equal, else ``[H, W, 3]``.
        width, height: of the original, as it is displayed.
        sha256: of the file's bytes.
        notes: what was done beside plain decoding, for example ``{"bits": 16, "inverted": True}``.
    """

    pixels: Pixels
    width: int
    height: int
    sha256: str
    notes: dict[str, Any] = field(default_factory=dict)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read a DICOM file, or one of `FORMATS`.

    Pixels deeper than 8 bits are scaled from their smallest and largest value to 0..255; 8-bit pixels keep their
    values. MONOCHROME1 is inverted after that, alpha is dropped and not composited, the EXIF orientation is applied.

    Args:
        path: of the file.
        max_pixels: a file that declares more is refused before anything is decoded.

    Raises:
        ImageError: missing, empty, truncated, corrupt, too large, or no image at all.
        DataError: a DICOM file, and pydicom is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if meaning := "empty file" if not content else foreign(content, _NOT_IMAGES):
        raise ImageError(f"{path}: {meaning}")
    dicom = content[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")
    with _bounded(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage is an error here; what libraries find merely odd is not
        pixels, notes = (_dicom if dicom else _picture)(path, content, max_pixels)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = np.ascontiguousarray(pixels[:, :, 0])
    height, width = pixels.shape[:2]
    return DecodedImage(pixels, width, height, hashlib.sha256(content).hexdigest(), notes)


@contextlib.contextmanager
def _bounded(max_pixels: int) -> Iterator[None]:
    """Make Pillow's own bound ours: frames and streams inside of files may declare other sizes."""
    before, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    size = f"{path}: {width:,} x {height:,}"
    if width * height > max_pixels:
        raise ImageError(f"{size}, more than {max_pixels:,} pixels; if the file is right, raise max_pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"{size} pixels: one side is more than {MAX_RATIO:,} times as long as the other")


def _picture(path: Path, content: bytes, max_pixels: int) -> tuple[Pixels, dict[str, Any]]:
    try:
        image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
        _check_size(path, *image.size, max_pixels)
        if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            raise ImageError(f"{path}: {frames} frames in one file, expected one")
        orientation = image.getexif().get(_ORIENTATION, 1)
        values = _deep_png(image, content)
        if values is None:
            image.load()
            _check_size(path, *image.size, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{path}: {_reason(error, content, max_pixels)}") from error
    notes: dict[str, Any] = {}
    if values is None:
        values, notes = _values(path, image)
    elif values.shape[2] in (2, 4):
        values, notes = values[:, :, :-1], {"alpha": "dropped"}
    if values.dtype != np.uint8:
        values, notes = _to_bytes(path, values), {**notes, "bits": 8 * values.dtype.itemsize}
    if orientation in range(2, 9):
        values, notes = _upright(values, orientation), {**notes, "orientation": orientation}
    return values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values, notes


def _reason(error: Exception, content: bytes, max_pixels: int) -> str:
    """Return why Pillow could not open or decode a file."""
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"more than {max_pixels:,} pixels; if the file is right, raise max_pixels"
    if isinstance(error, PIL.UnidentifiedImageError):
        known = f"{', '.join(FORMATS)}; begins with {content[:8]!r}"
        return f"not an image in any known format ({known})"
    return f"damaged or truncated image ({_short(error)})"


def _deep_png(image: PIL.Image.Image, content: bytes) -> npt.NDArray[Any] | None:
    """Return ``[H, W, C]`` uint16 of a 16-bit PNG with colour or alpha, of which Pillow keeps the high byte only."""
    if image.format != "PNG" or content[24] != 16 or content[25] == 0:
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_png

    image.load()  # torchvision's process dies of most damage, so it gets what Pillow could read, packed anew
    raw = torch.frombuffer(bytearray(_packed_anew(content, *image.size)), dtype=torch.uint8)
    return decode_png(raw, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps between columns and rows, of the passes of an interlaced PNG."""


def _packed_anew(content: bytes, width: int, height: int) -> bytes:
    """Return a PNG with header and pixels of a 16-bit one alone; raise ValueError where they are damaged."""
    packed, at, colour, interlaced = b"", 8, content[25], content[28]
    while at + 12 <= len(content):
        end = at + 8 + struct.unpack_from(">I", content, at)[0]
        if content[at + 4 : at + 8] == b"IDAT":
            if content[end : end + 4] != struct.pack(">I", zlib.crc32(content[at + 4 : end])):
                raise ValueError("wrong checksum")
            packed += content[at + 8 : end]
        at = end + 4
    expected = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        expected += rows * (1 + 2 * {2: 3, 4: 2, 6: 4}[colour] * columns) if columns > 0 else 0
    pixels = zlib.decompressobj().decompress(packed, expected)
    if len(pixels) < expected:
        raise ValueError("not enough pixels")
    parts = ((b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts
    )
    return content[:33] + b"".join(chunks)


def _values(path: Path, image: PIL.Image.Image) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Return the values of a loaded picture: uint8 grey or RGB, or deeper grey as it is."""
    mode = image.mode
    if mode in ("L", "RGB") or mode.startswith(("I", "F")):
        return np.asarray(image), {}
    if mode == "1":
        return np.asarray(image.convert("L")), {"bits": 1}
    if mode in ("LA", "La"):
        return np.asarray(image.getchannel(0)), {"alpha": "dropped"}
    if mode in ("RGBA", "RGBa", "RGBX"):
        return np.asarray(image)[:, :, :3], {"alpha": "dropped"}
    if mode in ("P", "PA"):
        clear = {"alpha": "dropped"} if mode == "PA" or "transparency" in image.info else {}
        return np.asarray(image.convert("RGBA"))[:, :, :3], {"palette": True, **clear}
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return np.asarray(image.convert("RGB")), {"colours": mode}
    raise ImageError(f"{path}: pixels of kind '{mode}' are not supported; save it as 8-bit grey or RGB")


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply an EXIF orientation (2..8)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _dicom(path: Path, content: bytes, max_pixels: int) -> tuple[Pixels, dict[str, Any]]:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise DataError(
            f'{path}: reading DICOM needs pydicom: pip install "medpeft-bench[data]" (or pip install pydicom)'
        ) from error
    try:
        _check_deflated(path, content, 4 * max_pixels)
        file = pydicom.dcmread(io.BytesIO(content), force=True)
        if "PixelData" not in file:
            raise ImageError(f"{path}: not a DICOM image (no pixel data)")
        if int(file.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"{path}: {file.NumberOfFrames} frames in one file, expected one")
        _check_size(path, int(file.Columns), int(file.Rows), max_pixels)
        values = pixel_array(file)
        kind = str(file.get("PhotometricInterpretation", "MONOCHROME2"))
        deep = int(file.BitsStored) > 8
        if kind == "PALETTE COLOR":
            values, deep = apply_color_lut(values, file), True
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{path}: DICOM that cannot be decoded ({_short(error)})") from error
    notes: dict[str, Any] = {"dicom": kind}
    if deep or values.min() < 0 or values.max() > 255:
        values, notes = _to_bytes(path, values), {**notes, "bits": int(file.BitsStored)}
    values = values.astype(np.uint8)
    if kind == "MONOCHROME1":
        values, notes = 255 - values, {**notes, "inverted": True}
    return values, notes


def _check_deflated(path: Path, content: bytes, most: int) -> None:
    """Refuse a deflated DICOM file that unpacks to more than ``most`` bytes; pydicom would unpack it whole."""
    if content[128:132] != b"DICM" or _DEFLATED not in content[132:4096]:
        return
    data, unpacked, inflate = (
        content[144 + struct.unpack_from("<I", content, 140)[0] :],
        0,
        zlib.decompressobj(-15),
    )
    while data and unpacked <= most:
        unpacked += len(inflate.decompress(data, 1 << 20))
        data = inflate.unconsumed_tail
    if unpacked > most:
        raise ImageError(
            f"{path}: unpacks to more than {most:,} bytes; if the file is right, raise max_pixels"
        )


def _to_bytes(path: Path, values: npt.NDArray[Any]) -> Pixels:
    """Scale values from their smallest and largest to 0..255; a constant image becomes black."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ImageError(f"{path}: pixels that are not finite numbers")
    low, high = wide.min(), wide.max()
    wide -= low  # in place: large images have no memory to spare
    wide *= 255.0 / max(high - low, 1e-300)
    return np.rint(wide, out=wide).astype(np.uint8)


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


class FolderGuard:
    """Says which file names stay inside a folder, and which lead out of it.

    Args:
        folder: where the names begin; it may be a link itself.
        allow_outside: whether they may lead out of it, as the user says.
    """

    def __init__(self, folder: Path, *, allow_outside: bool = False) -> None:
        self._root, self._allow = os.path.realpath(folder), allow_outside
        self._stay: dict[str, bool] = {}

    def problem(self, name: str) -> str:
        """Return why a file of this name is not read; empty when it may be."""
        if "\0" in name:
            return "its name holds a NUL character"
        if self._allow:
            return ""
        if os.path.isabs(name):
            return "it is named by an absolute path"
        if ".." in Path(name).parts:
            return "its name leads out of the folder"
        return "" if self._stays(name) else "a link leads out of the folder"

    def _stays(self, name: str) -> bool:
        """Return whether links leave a name inside; each folder is looked up once, as there may be many files."""
        parent, path = os.path.dirname(name), os.path.join(self._root, name)
        if parent not in self._stay:
            self._stay[parent] = self._holds(os.path.dirname(path))
        return self._stay[parent] and (not os.path.islink(path) or self._holds(path))

    def _holds(self, path: str) -> bool:
        return os.path.commonpath((self._root, os.path.realpath(path))) == self._root

"""Ways to damage a file: blindly, and where a checksum would give a blind change away."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from tests.fuzz.originals import png_chunk

Mutate = Callable[[bytes, np.random.Generator], bytes]
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What counters and sizes are set to."""


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return a file with one to four changes, most of them near its beginning, where headers are."""
    for _ in range(random.integers(1, 5)):
        content = BLIND[random.integers(len(BLIND))](content, random)
    return content


def gently(content: bytes, random: np.random.Generator) -> bytes:
    """Return a file with one byte changed, anywhere."""
    at = int(random.integers(len(content)))
    return content[:at] + random.bytes(1) + content[at + 1 :]


def _place(content: bytes, random: np.random.Generator) -> int:
    reach = min(len(content), int(random.choice([32, 128, 600, 10**9])))
    start = len(content) - reach if random.random() < 0.15 else 0  # archives have their index at the end
    return start + int(random.integers(max(1, reach)))


def _flipped(content: bytes, random: np.random.Generator) -> bytes:
    changed, at = bytearray(content), _place(content, random)
    if changed:
        changed[at] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _replaced(content: bytes, random: np.random.Generator) -> bytes:
    at, width = _place(content, random), int(random.integers(1, 5))
    return content[:at] + random.bytes(width) + content[at + width :]


def _numbered(content: bytes, random: np.random.Generator) -> bytes:
    at, kind = _place(content, random), str(random.choice(["<H", ">H", "<I", ">I", "<Q"]))
    width = struct.calcsize(kind)
    number = int(random.choice(NUMBERS)) & (2 ** (8 * width) - 1)
    return content[:at] + struct.pack(kind, number) + content[at + width :]


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(len(content) + 1))] if random.random() < 0.5 else content[:-1]


def _taken_out(content: bytes, random: np.random.Generator) -> bytes:
    at = _place(content, random)
    return content[:at] + content[at + int(random.integers(1, 64)) :]


def _doubled(content: bytes, random: np.random.Generator) -> bytes:
    at, other = _place(content, random), _place(content, random)
    return content[:at] + content[other : other + int(random.integers(1, 256))] + content[at:]


BLIND: tuple[Mutate, ...] = (
    _flipped,
    _flipped,
    _replaced,
    _replaced,
    _numbered,
    _numbered,
    _cut,
    _taken_out,
    _doubled,
)


def png(content: bytes, random: np.random.Generator) -> bytes:
    """Damage the parts of a PNG file and write their checksums anew; pixels are changed before they are packed."""
    parts, at = [], 8
    while at + 12 <= len(content):
        size = struct.unpack_from(">I", content, at)[0]
        parts.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = int(random.integers(len(parts)))
    kind, data = parts[chosen]
    if kind == b"IDAT" and random.random() < 0.7:
        data = zlib.compress(damaged(zlib.decompress(data), random))
    else:
        data = damaged(data, random)
    parts[chosen] = (kind, data)
    if random.random() < 0.2:
        parts.insert(int(random.integers(len(parts))), parts[int(random.integers(len(parts)))])
    return content[:8] + b"".join(png_chunk(*part) for part in parts)


def unzipped(content: bytes) -> dict[str, bytes]:
    """Return name -> content of the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        return {name: source.read(name) for name in source.namelist()}


def zipped(members: dict[str, bytes], compression: int) -> bytes:
    """Return an archive of these members, with right checksums and sizes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as written:
        for name, data in members.items():
            written.writestr(name, data)
    return target.getvalue()


def archive(content: bytes, random: np.random.Generator) -> bytes:
    """Damage one member of a zip archive and write the archive anew, with right checksums and sizes."""
    members = unzipped(content)
    inside = [name for name in members if name.endswith((".pkl", ".npy"))] or list(members)
    chosen = inside[int(random.integers(len(inside)))]
    members[chosen] = (gently if random.random() < 0.6 else damaged)(members[chosen], random)
    if random.random() < 0.1:
        members.pop(list(members)[int(random.integers(len(members)))])
    return zipped(members, zipfile.ZIP_STORED)


SHAPES = (
    "(1099511627776,)",
    "(4294967296, 28, 28)",
    "(-1, 3)",
    "(0,)",
    "(1, 1, 1, 1, 1, 1)",
    "()",
    "(6.5,)",
    "(True,)",
)
TYPES = ("<f8", "|O", "<U4294967295", "|V1073741824", "<M8[s]", "|b1", "<c16", "|S0", "no type")


def array(content: bytes, random: np.random.Generator) -> bytes:
    """Give one array of an npz file another shape or type in its header than its data have."""
    members = unzipped(content)
    chosen = list(members)[int(random.integers(len(members)))]
    described = (
        f"{{'descr': '{random.choice(TYPES)}', 'fortran_order': False, 'shape': {random.choice(SHAPES)}, }}"
    )
    padded = described.encode().ljust(117) + b"\n"
    data = members[chosen][128:] if random.random() < 0.5 else bytes(int(random.integers(64)))
    members[chosen] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data
    return zipped(members, zipfile.ZIP_DEFLATED)


HEADERS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "NumberOfFrames",
    "PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation", "PixelData",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData", "PixelAspectRatio",
)  # fmt: skip
COUNTS = (0, 1, 2, 3, 7, 8, 9, 12, 16, 17, 32, 64, 255, 4096, 65535)
WORDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "PALETTE COLOR",
    "ARGB",
    "",
    "x" * 16,
)


def dicom_header(content: bytes, random: np.random.Generator) -> bytes:
    """Give one to three elements of a DICOM file other values, or take them out; the file itself is well formed."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(io.BytesIO(content))
        for name in random.choice(HEADERS, random.integers(1, 4), replace=False):
            if random.random() < 0.2 and name in file:
                delattr(file, str(name))
            else:
                setattr(file, str(name), _value(str(name), random))
        if random.random() < 0.1:
            file.file_meta.TransferSyntaxUID = pydicom.uid.UID(
                f"1.2.840.10008.1.2.4.{random.integers(50, 110)}"
            )
        target = io.BytesIO()
        try:
            file.save_as(target)
        except Exception:  # some values cannot be written at all
            return damaged(content, random)
    return target.getvalue()


def _value(name: str, random: np.random.Generator) -> object:
    count = int(random.choice(COUNTS))
    if name == "PixelData" or name.endswith("Data"):
        return random.bytes(2 * int(random.integers(200)))
    if name == "PhotometricInterpretation":
        return str(random.choice(WORDS))
    if name.endswith("Descriptor"):
        return [count, int(random.choice(COUNTS)), int(random.choice([8, 16, 32]))]
    if name in ("NumberOfFrames", "PixelAspectRatio"):
        return str(count)
    return [count, count] if random.random() < 0.05 else count


PICKLED = (  # codes of a pickle, with numbers that no file of this size can mean
    b"r\xff\xff\xff\x7f", b"r\xff\xff\xff\x07", b"j\xff\xff\xff\x7f", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"(" * 5000,
    b"]" * 5000 + b"a" * 4999, b"}" * 300 + b"s", b"R", b"b", b"\x93", b"0", b"2" * 40, b"t", b"\x81", b"Q", b"P1\n",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"e", b"u", b".",
)  # fmt: skip


def pickled(content: bytes, random: np.random.Generator) -> bytes:
    """Put a code that means too much, or stands where it may not, into the pickle of a file of ``torch.save``."""
    members = unzipped(content)
    for name, data in members.items():
        if name.endswith("data.pkl"):
            at = int(random.integers(2, len(data)))
            members[name] = data[:at] + PICKLED[random.integers(len(PICKLED))] + data[at:]
    return zipped(members, zipfile.ZIP_STORED)


def text(content: bytes, random: np.random.Generator) -> bytes:
    """Put brackets, numbers and words that JSON readers stumble over into a JSON text."""
    at = int(random.integers(len(content)))
    odd = (
        b"[" * 200_000,
        b'{"a":' * 5_000,
        b"NaN",
        b"1e999",
        b"9" * 5_000,
        b'"\\ud800"',
        b"\0",
        b"\xff",
        b"null",
        b"[]",
    )
    return content[:at] + odd[random.integers(len(odd))] + content[at + int(random.integers(8)) :]

"""Whole files, as bytes, from which damaged ones are made; each is a few kilobytes."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save

import methods
from benchmark.backbones import load_backbone
from benchmark.run.adapters import ABOUT, CONFIG, REST, TENSORS

Files = dict[str, bytes]
"""Name -> content."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "ace_lora_tiny_a_official.pt"
METHOD = "clip_lora"


@functools.cache
def images() -> Files:
    """Return images in every format that is read, in the forms that its decoder has code of its own for."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    colour, grey = PIL.Image.fromarray(noise), PIL.Image.fromarray(noise[:, :, 0])
    deep = PIL.Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    wide = PIL.Image.fromarray(noise[:, :, 0].astype(np.float32))
    clear, painted = colour.convert("RGBA"), colour.convert("P")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    found = {
        "grey.png": _saved(grey), "colour.png": _saved(colour), "clear.png": _saved(clear),
        "deep.png": _saved(deep), "palette.png": _saved(painted), "bits.png": _saved(grey.convert("1")),
        "deep-colour.png": _deep_png(noise), "grey.jpg": _saved(grey, "JPEG"),
        "colour.jpg": _saved(colour, "JPEG", progressive=True, exif=exif),
        "ink.jpg": _saved(colour.convert("CMYK"), "JPEG"), "two.jpg": _two(colour),
        "deep.tiff": _saved(deep, "TIFF"), "wide.tiff": _saved(wide, "TIFF"), "grey.bmp": _saved(grey, "BMP"),
        "colour.bmp": _saved(colour, "BMP"), "palette.gif": _saved(painted, "GIF"),
        "lossy.webp": _saved(colour, "WEBP"), "clear.webp": _saved(clear, "WEBP", lossless=True, exif=exif),
        "grey.pgm": _saved(grey, "PPM"), "deep.pgm": _saved(deep, "PPM"), "colour.jp2": _saved(colour, "JPEG2000"),
        "grey.j2k": _saved(grey, "JPEG2000", no_jp2=True),
    }  # fmt: skip
    for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found[f"{kind}.tiff"] = _saved(colour, "TIFF", compression=None if kind == "raw" else kind)
    found["fax.tiff"] = _saved(grey.convert("1"), "TIFF", compression="group4")
    return found


@functools.cache
def foreign() -> Files:
    """Return images in formats that must be refused, under names of formats that are read."""
    colour = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    found = {
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "grib.png": b"GRIB" + bytes(60), "hdf.png": b"\x89HDF\r\n\x1a\n" + bytes(60), "psd.png": b"8BPS" + bytes(60),
        "wmf.png": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60), "fits.png": b"SIMPLE  =                    T" + bytes(60),
    }  # fmt: skip
    for kind in (
        "BLP",
        "DDS",
        "EPS",
        "ICO",
        "ICNS",
        "MSP",
        "PCX",
        "PDF",
        "QOI",
        "SGI",
        "TGA",
        "XBM",
        "AVIF",
    ):
        picture = colour.convert({"BLP": "P", "MSP": "1", "XBM": "1"}.get(kind, "RGB"))
        if kind in PIL.Image.SAVE or kind != "AVIF":
            found[f"{kind.lower()}.jpg"] = _saved(picture, kind)
    return found


@functools.cache
def dicom() -> Files:
    """Return DICOM files: grey and colour, deep, inverted, with a palette, compressed, unpacked."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEGBaseline8Bit,
        RLELossless,
        SecondaryCaptureImageStorage,
    )

    values = np.random.default_rng(2).integers(0, 4000, (12, 10), dtype=np.uint16)

    def written(pixels: np.ndarray[Any, Any], kind: str, syntax: Any, **more: Any) -> bytes:
        file = pydicom.Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = syntax
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
        file.PatientName, file.PatientID = "Doe^Jane", "p1"
        file.Rows, file.Columns = pixels.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), kind
        if pixels.ndim == 3:
            file.PlanarConfiguration = 0
        file.BitsAllocated = file.BitsStored = 8 * pixels.itemsize
        file.HighBit, file.PixelRepresentation = file.BitsStored - 1, 0
        file.PixelData = pixels.tobytes()
        for name, value in more.items():
            setattr(file, name, value)
        if syntax == JPEGBaseline8Bit:
            file["PixelData"].VR = "OB"
        if syntax == RLELossless:
            file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            file.compress(RLELossless)
        target = io.BytesIO()
        file.save_as(target, enforce_file_format=True)
        return target.getvalue()

    grey = (values // 16).astype(np.uint8)
    table = np.arange(256, dtype=np.uint16).tobytes()
    colours = ("Red", "Green", "Blue")
    lookup = {f"{x}PaletteColorLookupTableDescriptor": [256, 0, 16] for x in colours}
    lookup |= {f"{x}PaletteColorLookupTableData": table for x in colours}
    jpeg = encapsulate([_saved(PIL.Image.fromarray(grey), "JPEG")])
    return {
        "grey.dcm": written(grey, "MONOCHROME2", ExplicitVRLittleEndian),
        "inverted.dcm": written(values, "MONOCHROME1", ImplicitVRLittleEndian, BitsStored=12, HighBit=11),
        "colour.dcm": written(np.stack([grey] * 3, 2), "RGB", ExplicitVRLittleEndian),
        "palette.dcm": written(grey, "PALETTE COLOR", ExplicitVRLittleEndian, **lookup),
        "deflated.dcm": written(values, "MONOCHROME2", DeflatedExplicitVRLittleEndian),
        "rle.dcm": written(grey, "MONOCHROME2", RLELossless),
        "jpeg.dcm": written(grey, "MONOCHROME2", JPEGBaseline8Bit, PixelData=jpeg),
    }


@functools.cache
def weights() -> Files:
    """Return files of weights: of ``torch.save`` in both of its formats, nested and with objects, and safetensors."""
    plain = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "logit_scale": torch.tensor(2.0)}
    kinds = {"half": torch.ones(3, dtype=torch.float16), "whole": torch.arange(4), "yes": torch.ones(2) > 0}
    nested = {"state_dict": {f"module.{key}": value for key, value in plain.items()}, "epoch": 3}
    program = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), program)
    return {
        "plain.pt": _of_torch(plain), "kinds.pt": _of_torch(kinds | {"views": plain["a.weight"].t()}),
        "nested.pt": _of_torch(nested), "parameter.pt": _of_torch({"a": torch.nn.Parameter(torch.ones(2))}),
        "older.pt": _of_torch(plain, _use_new_zipfile_serialization=False),
        "objects.pt": _of_torch({"model": plain, "args": torch.nn.Identity(), "when": Path("x")}),
        "checkpoint.pt": _of_torch({"key": "3|k", "step": 4, "random": (torch.get_rng_state(), None), **plain}),
        "program.pt": program.getvalue(), "authors.pt": GOLDEN.read_bytes(), "plain.safetensors": save(plain),
    }  # fmt: skip


@functools.cache
def arrays() -> Files:
    """Return npz files: predictions of a cell, uncompressed ones, and one in the layout of MedMNIST."""
    generator = np.random.default_rng(3)
    scores = {"similarity": generator.random((6, 3), np.float32), "image_id": np.array(list("abcdef"))}
    parts = {
        f"{part}_images": generator.integers(0, 256, (4, 28, 28), np.uint8)
        for part in ("train", "val", "test")
    }
    parts |= {f"{part}_labels": np.array([[0], [1], [0], [1]], np.uint8) for part in ("train", "val", "test")}
    return {
        "predictions.npz": _of_numpy(np.savez_compressed, scores), "plain.npz": _of_numpy(np.savez, scores),
        "pneumoniamnist.npz": _of_numpy(np.savez_compressed, parts),
    }  # fmt: skip


@functools.cache
def adapter() -> Files:
    """Return the files of an adapter in peft's layout."""
    form = methods.build(METHOD, load_backbone("tiny")).as_peft()
    assert form is not None
    return {
        CONFIG: json.dumps(form.config, indent=2).encode(),
        TENSORS: save({name: value.detach().contiguous() for name, value in form.tensors.items()}),
        REST: save({"logit_scale": torch.tensor(14.0)}),
        ABOUT: json.dumps(
            {"schema_version": 1, "method": METHOD, "backbone": "tiny", "options": {"r": 2}}
        ).encode(),
    }


def _saved(image: PIL.Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{key: value for key, value in how.items() if value is not None})
    return file.getvalue()


def _two(image: PIL.Image.Image) -> bytes:
    """Return a JPEG file of two pictures, as stereo cameras write them."""
    return _saved(image, "MPO", save_all=True, append_images=[image])


def _deep_png(values: np.ndarray[Any, Any]) -> bytes:
    """Return a PNG of 16 bits and three colours, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in [*parts, (b"IEND", b"")])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one part of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _of_torch(content: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def _of_numpy(write: Callable[..., Any], content: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x.npz", **content)
        return (Path(folder) / "x.npz").read_bytes()

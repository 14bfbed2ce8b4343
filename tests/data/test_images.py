"""Reading images: what the file shows comes out, and damage is named; fitting: torchvision's arithmetic."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmark.data.prepare.images import ImageError, read_image
from benchmark.errors import DataError
from tests.fuzz.mutate import png_chunk

GREY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


def saved(
    folder: Path, pixels: np.ndarray, name: str = "a.png", mode: str | None = None, **options: object
) -> Path:
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / name, **options)
    return folder / name


def png16(path: Path, values: np.ndarray) -> Path:
    """Write [H, W, C] uint16 as PNG of grey (1), grey and alpha (2), RGB (3) or RGBA (4), big-endian, unfiltered."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_grey_stays_grey_and_equal_channels_become_grey(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path, GREY))
    np.testing.assert_array_equal(image.pixels, GREY)
    assert (image.width, image.height, image.notes) == (3, 2, {})
    assert image.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    np.testing.assert_array_equal(read_image(saved(tmp_path, np.stack([GREY] * 3, axis=2))).pixels, GREY)
    np.testing.assert_array_equal(read_image(saved(tmp_path, COLOUR)).pixels, COLOUR)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    image = read_image(saved(tmp_path, ramp))
    np.testing.assert_array_equal(image.pixels, np.rint(ramp * (255 / 4095)).astype(np.uint8))
    assert len(np.unique(image.pixels)) == 256  # Pillow's own conversion leaves 94 % of it white
    assert image.notes == {"bits": 16}
    low = read_image(saved(tmp_path, (ramp[:2] + 1000).astype(np.uint16))).pixels
    assert (low.min(), low.max()) == (0, 255)
    assert (read_image(saved(tmp_path, np.full((2, 2), 777, np.uint16))).pixels == 0).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_with_colour_or_alpha_keep_their_low_byte(tmp_path: Path, channels: int) -> None:
    values = (
        np.random.default_rng(0).integers(0, 256, (4, 5, channels)).astype(np.uint16)
    )  # the high byte is empty
    values[..., -1] = 65535 if channels != 3 else values[..., -1]
    image = read_image(png16(tmp_path / "a.png", values))
    shown = values[..., : 1 if channels == 2 else 3].astype(float)
    expected = np.rint((shown - shown.min()) * 255 / (shown.max() - shown.min())).astype(np.uint8)
    np.testing.assert_array_equal(image.pixels, expected[..., 0] if channels == 2 else expected)
    assert image.notes.get("alpha") == ("dropped" if channels != 3 else None)


@pytest.mark.parametrize("at", [35, 37, 45, 60, -25, -20, -13])
def test_damaged_sixteen_bits_are_errors_and_not_the_end_of_the_process(tmp_path: Path, at: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    content = bytearray(png16(tmp_path / "a.png", values).read_bytes())
    content[at] ^= 0x55
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: (damaged or truncated|not an) image"):
        read_image(tmp_path / "a.png")


def test_interlaced_sixteen_bits_have_the_pixels_of_plain_ones(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (11, 6, 3)).astype(np.uint16)
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [values[top::down, left::across] for left, top, across, down in steps]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    plain = png16(tmp_path / "a.png", values)
    header = struct.pack(">IIBBBBB", 6, 11, 16, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "b.png").write_bytes(plain.read_bytes()[:8] + b"".join(png_chunk(*part) for part in parts))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, read_image(plain).pixels)


def test_floats_are_scaled_and_must_be_finite(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(read_image(saved(tmp_path, values, "a.tiff")).pixels, [[0, 64], [128, 255]])
    with pytest.raises(ImageError, match=r"a\.tiff: pixels that are not finite"):
        read_image(saved(tmp_path, np.where(values == 1, np.nan, values).astype(np.float32), "a.tiff"))


def test_alpha_is_dropped_and_not_composited(tmp_path: Path) -> None:
    clear = np.zeros_like(GREY)
    rgba = read_image(saved(tmp_path, np.dstack([COLOUR, clear])))
    np.testing.assert_array_equal(rgba.pixels, COLOUR)
    assert rgba.notes == {"alpha": "dropped"}
    grey = read_image(saved(tmp_path, np.dstack([GREY, GREY, GREY, clear])))
    np.testing.assert_array_equal(grey.pixels, GREY)
    np.testing.assert_array_equal(read_image(saved(tmp_path, np.dstack([GREY, clear]))).pixels, GREY)


def test_palette_one_bit_and_cmyk(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "p.png", transparency=1)
    image = read_image(tmp_path / "p.png")
    np.testing.assert_array_equal(image.pixels[0], [[10, 20, 30], [40, 50, 60]])
    assert image.notes == {"palette": True, "alpha": "dropped"}
    one = read_image(saved(tmp_path, np.array([[0, 255]], np.uint8), mode="1"))
    np.testing.assert_array_equal(one.pixels, [[0, 255]])
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    cmyk = read_image(saved(tmp_path, flat, "a.jpg", mode="CMYK", quality=100))
    assert np.abs(cmyk.pixels.astype(int) - flat).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, COLOUR, "a.png", exif=exif)
    with PIL.Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.height, image.width) == expected.shape[:2]
    assert image.notes == ({} if orientation == 1 else {"orientation": orientation})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<HTML>", "a web page"),
        (b'<?xml version="1.0"?>', "a page of HTML or XML"),
        (b'{"error": 404}', "a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"some text", "not an image in any known format"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.jpg: .*{reason}"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_truncated_files_are_errors(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = saved(tmp_path, noise, name)
    content = path.read_bytes()
    for keep in (len(content) // 2, len(content) - 300):
        path.write_bytes(content[:keep])
        with pytest.raises(ImageError, match=name):
            read_image(path)


def test_a_corrupt_png_a_missing_file_and_a_film_are_errors(tmp_path: Path) -> None:
    path = saved(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(path)
    with pytest.raises(ImageError, match=r"none\.png: cannot be read \(No such file"):
        read_image(tmp_path / "none.png")
    frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        read_image(tmp_path / "film.gif")


def test_other_formats_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is started"))
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    )
    saved(tmp_path, GREY, "a.tga")
    for name in ("a.png", "a.tga"):
        with pytest.raises(ImageError, match=rf"{name}: not an image in any known format \(PNG, JPEG, TIFF"):
            read_image(tmp_path / name)


def test_a_file_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path, np.zeros((20, 21), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"huge\.png: 13,000 x 13,000, more than 100,000,000 pixels; if the"):
        read_image(tmp_path / "huge.png")
    with pytest.raises(ImageError, match=r"a\.png: 21 x 20, more than 419 pixels"):
        read_image(path, 419)
    with pytest.raises(
        ImageError, match=r"a\.png: more than 100 pixels; if the file is right, raise max_pixels"
    ):
        read_image(path, 100)
    assert read_image(path, 420).pixels.shape == (20, 21)
    with pytest.raises(ImageError, match="one side is more than 1,000 times as long as the other"):
        read_image(saved(tmp_path, np.zeros((1, 1001), np.uint8)))


# ---------------------------------------------------------------------- DICOM
def dicom(
    path: Path, values: np.ndarray, *, kind: str = "MONOCHROME2", stored: int, **elements: object
) -> Path:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.SOPClassUID = SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = kind
    file.BitsAllocated = 8 * values.dtype.itemsize
    file.BitsStored, file.HighBit = stored, stored - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(file, name, value)
    file.PixelData = values.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


def test_dicom_bytes_keep_their_values_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    plain = read_image(dicom(path, GREY, stored=8))
    np.testing.assert_array_equal(plain.pixels, GREY)
    assert plain.notes == {"dicom": "MONOCHROME2"}
    dim = (GREY // 2).astype(np.uint8)  # 8-bit data are not stretched
    np.testing.assert_array_equal(read_image(dicom(path, dim, stored=8)).pixels, dim)
    inverted = read_image(dicom(path, dim, kind="MONOCHROME1", stored=8))
    np.testing.assert_array_equal(inverted.pixels, 255 - dim)
    assert inverted.notes["inverted"] is True


def test_deep_dicom_is_scaled_before_it_is_inverted(tmp_path: Path) -> None:
    values = np.array(
        [[1000, 1500], [2000, 3000]], dtype=np.uint16
    )  # (v - 1000) / 2000 * 255: 0, 63.75, 127.5, 255
    path = tmp_path / "a.dcm"
    np.testing.assert_array_equal(read_image(dicom(path, values, stored=12)).pixels, [[0, 64], [128, 255]])
    inverted = read_image(dicom(path, values, kind="MONOCHROME1", stored=12))
    np.testing.assert_array_equal(inverted.pixels, [[255, 191], [127, 0]])
    assert inverted.notes == {"dicom": "MONOCHROME1", "bits": 12, "inverted": True}
    signed = np.array([[-1000, 0], [1000, 3000]], dtype=np.int16)
    np.testing.assert_array_equal(read_image(dicom(path, signed, stored=16)).pixels, [[0, 64], [128, 255]])


def test_a_dicom_file_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    path = dicom(tmp_path / "a.dcm", GREY, stored=8)
    file = __import__("pydicom").dcmread(path)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.save_as(path)
    np.testing.assert_array_equal(read_image(path).pixels, GREY)
    file.PixelData = bytes(10**6)
    file.save_as(path)
    assert path.stat().st_size < 5000
    with pytest.raises(ImageError, match=r"a\.dcm: unpacks to more than 400,000 bytes"):
        read_image(path, 10**5)
    dicom(path, GREY, stored=8, Rows=60_000, Columns=60_000)
    with pytest.raises(ImageError, match=r"a\.dcm: 60,000 x 60,000, more than 100,000,000 pixels"):
        read_image(path)


def test_a_dicom_file_that_holds_a_jpeg(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8)
    jpeg = saved(tmp_path, smooth, "a.jpg", quality=95)
    path = dicom(tmp_path / "a.dcm", smooth, stored=8)
    file = pydicom.dcmread(path)
    file.PixelData = encapsulate([jpeg.read_bytes()])
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file.save_as(path)
    np.testing.assert_array_equal(read_image(path).pixels, read_image(jpeg).pixels)


def test_dicom_colour_windows_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    np.testing.assert_array_equal(read_image(dicom(path, COLOUR, kind="RGB", stored=8)).pixels, COLOUR)
    # a window is a wish of the viewer: it is not applied
    window = {"WindowCenter": 10, "WindowWidth": 5}
    np.testing.assert_array_equal(read_image(dicom(path, GREY, stored=8, **window)).pixels, GREY)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ImageError, match=r"a\.dcm: DICOM that cannot be decoded"):
        read_image(path)
    with pytest.raises(ImageError, match="2 frames"):
        read_image(dicom(path, np.stack([GREY[0], GREY[1]]), stored=8, NumberOfFrames=2))
    path.write_bytes(b"no dicom at all" * 20)
    with pytest.raises(ImageError, match=r"a\.dcm: (not a DICOM image|DICOM that cannot)"):
        read_image(path)


def test_a_missing_pydicom_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(DataError, match=r'pip install "medpeft-bench\[data\]"'):
        read_image(tmp_path / "a.dcm")


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(GREY).save(buffer, "PNG")
    (tmp_path / "wrong_suffix.jpg").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "wrong_suffix.jpg").pixels, GREY)

"""Every defect of an image file is found before training, with a message that names the file."""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.data.vision import decoding, image_files
from sft_lightning.data.vision.decoding import _flatten, _flatten_in_strips, open_image
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.data.vision.images import Geometry, decode
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, break_middle, damage, make_png, make_png_chunk as chunk, write_image


def png(color: int = 0, before: bytes = b"", after: bytes = b"") -> bytes:
    rows = zlib.compress(b"".join(b"\0" + bytes(range(8)) for _ in range(8)))
    return make_png(struct.pack(">IIBBBBB", 8, 8, 8, color, 0, 0, 0), rows, before, after)


def dds(code: bytes, more: bytes = b"") -> bytes:
    head = b"DDS " + struct.pack("<IIIIIII", 124, 0x1007, 8, 8, 0, 0, 0) + bytes(44)
    return head + struct.pack("<II4sIIIII", 32, 4, code, 0, 0, 0, 0, 0) + bytes(20) + more


def jpeg() -> bytes:
    into = BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(into, "JPEG")
    return into.getvalue()


def without_pixels() -> bytes:
    return jpeg()[: jpeg().index(b"\xff\xda")] + b"\xff\xd9"


ANIMATED = chunk(b"acTL", struct.pack(">II", 2, 0))
REFUSED = {
    "texture": (dds(b"ABCD"), "NotImplementedError: Unimplemented pixel format"),
    "newer texture": (dds(b"DX10", struct.pack("<IIIII", 250, 3, 0, 1, 0)), "NotImplementedError: Unimplemented DXGI"),
    "no palette": (png(color=3), "it has no palette"),
    "text bomb": (png(before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**7)))), "too large"),
    "damaged EXIF": (png(before=chunk(b"eXIf", b"garbage garbage")), "not a TIFF file"),
    "animation": (
        png(before=ANIMATED + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 0, 0, 1, 1, 0, 0))),
        "it is not an image of a known format",
    ),
    "lossless JPEG": (jpeg().replace(b"\xff\xc0", b"\xff\xc3", 1), "broken data stream"),
    "JPEG without pixels": (without_pixels(), "cannot load this image"),
    "JPEG with a table too few": (jpeg().replace(b"\xff\xdb\x00C\x01", b"\xff\xdb\x00C\x03", 1), "broken data stream"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "cannot find loader"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_undecodable_files_are_found_before_training_with_a_reason(name: str, tmp_path: Path) -> None:
    content, why = REFUSED[name]
    (tmp_path / "x.png").write_bytes(content)
    assert why in str(find_damage(tmp_path / "x.png"))
    for source in (tmp_path / "x.png", BytesIO(content)):
        with pytest.raises(OSError, match=r"."):
            open_image(source)


@pytest.mark.parametrize("error", [KeyError("x"), struct.error("x"), MemoryError(), RecursionError(), EOFError()])
def test_any_exception_of_a_decoder_is_a_reason(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    write_image(tmp_path / "x.png", 0)
    monkeypatch.setattr(Image, "open", refuse)
    assert find_damage(tmp_path / "x.png")
    with pytest.raises(OSError, match="enough memory" if isinstance(error, MemoryError) else type(error).__name__):
        open_image(tmp_path / "x.png")


def test_damaged_png_stops_fit_before_the_first_step(folder: MakeFolder) -> None:
    source = folder("train/a", "train/b", count=6)
    damage(source / "train" / "b" / "3.png")
    with pytest.raises(InputError, match=r"3\.png' cannot be read: .*on_bad_image: skip"):
        ImageDataModule(str(source), image_size=8, val_size=2, test_size=2).setup("fit")


def test_png_with_a_wrong_checksum_is_refused_only_if_undecodable(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(after=chunk(b"tEXt", b"a\0b")[:-4] + b"????"))
    assert not image_files.is_sound_png(tmp_path / "x.png")
    assert find_damage(tmp_path / "x.png") is None
    assert image_files.is_sound_png(write_image(tmp_path / "good.png", 1))
    assert image_files.is_sound_png(break_middle(write_image(tmp_path / "hidden.png", 1)))


def test_rotated_tiff_is_the_same_from_path_and_bytes(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, :2] = 255
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "x.tif", exif=exif)
    for source in (tmp_path / "x.tif", BytesIO((tmp_path / "x.tif").read_bytes())):
        assert np.array_equal(np.array(open_image(source, 1)), np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore:.*bands is left out")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_all_8_bit_modes_are_converted_to_gray_and_rgb(mode: str, tmp_path: Path) -> None:
    Image.new("RGB" if mode == "LAB" else mode, (8, 8)).save(tmp_path / "x.tif")
    if mode == "LAB":
        Image.new("LAB", (8, 8), (128, 128, 128)).save(tmp_path / "x.tif")
        assert np.abs(np.asarray(open_image(tmp_path / "x.tif")).astype(int) - 119).max() < 4  # L* of 50 is this gray
    for channels, expected in ((1, "L"), (3, "RGB")):
        assert open_image(tmp_path / "x.tif", channels).mode == expected


def test_each_kind_of_warning_is_shown_once_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "_shown", set())
    short = b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(before=chunk(b"eXIf", short)))
    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("a.png", "b.png", "a.png"):
            assert find_damage(tmp_path / name) is None
            open_image(tmp_path / name)
    assert [str(one.message).partition(": Corrupt EXIF data")[0] for one in caught] == [f"image '{tmp_path / 'a.png'}'"]
    assert warnings.showwarning is before


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_large_image_is_the_same_in_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_STRIP", 1000)
    noise = np.random.default_rng(0).integers(0, 256, (101, 77, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode) if mode != "CMYK" else Image.fromarray(noise, "CMYK")
    for channels in (1, 3):
        flat = _flatten(image, channels, (10, 200, 30))
        for factor in (1, 2, 7):
            # 77 x 101
            box = {1: (0, 0, 77, 101), 2: (0, 0, 76, 100), 7: (0, 1, 77, 99)}[factor]
            expected = flat.crop(box).reduce(factor) if factor > 1 else flat
            assert _flatten_in_strips(image, channels, (10, 200, 30), factor).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_reduced_large_image_is_close_to_full_decode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.add.outer(np.linspace(0, 120, 703), np.linspace(0, 120, 1001))
    Image.fromarray(ramp.astype(np.uint8)).convert("RGB").save(tmp_path / name)
    usual = decode(tmp_path / name, Geometry(32), None)
    monkeypatch.setattr(decoding, "LARGE", 1000)
    monkeypatch.setattr(image_files, "LARGE", 1000)
    assert (decode(tmp_path / name, Geometry(32), None).int() - usual.int()).abs().max() <= 2


def test_damaged_large_png_is_found_before_the_first_epoch(tmp_path: Path) -> None:
    """Small images are decoded; of large ones, the checksums of the chunks are verified."""
    header = struct.pack(">IIBBBBB", 300, 300, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + np.random.default_rng(i).bytes(300) for i in range(300)))
    (tmp_path / "good.png").write_bytes(make_png(header, rows))
    assert find_damage(tmp_path / "good.png") is None
    (tmp_path / "damaged.png").write_bytes(make_png(header, rows))
    assert find_damage(damage(tmp_path / "damaged.png"))

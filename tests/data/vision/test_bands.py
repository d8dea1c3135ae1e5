"""Bands of a TIFF that are neither color nor transparency are ignored with a warning."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_lightning.__main__ import main
from sft_lightning.data.vision import image_files
from sft_lightning.data.vision.decoding import open_image
from tests.conftest import CONFIGS

VALUES = (200, 100, 50, 30, 20, 10)


def write_tiff(path: Path, bands: int, photometric: int, kinds: tuple[int, ...]) -> Path:
    """Write an uncompressed TIFF of 8 x 8 pixels, which all have `VALUES`."""
    tags = [(256, [8]), (257, [8]), (258, [8] * bands), (259, [1]), (262, [photometric]), (273, [0]), (277, [bands])]
    tags += [(278, [8]), (279, [64 * bands]), *([(338, list(kinds))] if kinds else [])]
    start = 8 + 2 + 12 * len(tags) + 4
    entries, behind = b"", b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}H", *values)
        if tag == 273:
            packed = struct.pack("<H", start + 64)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", start + len(behind)), behind + packed
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    pixels = bytes(VALUES[:bands]) * 64
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + behind.ljust(64, b"\0") + pixels
    )
    return path


def over_white(alpha: int) -> list[int]:
    return [round(255 - (255 - value) * alpha / 255) for value in VALUES[:3]]


@pytest.mark.parametrize(
    ("bands", "photometric", "kinds", "color", "said"),
    [
        (3, 2, (), [200, 100, 50], None),
        (4, 2, (0,), [200, 100, 50], "1 of its 4 bands is left out"),
        (4, 2, (2,), over_white(30), None),
        (4, 2, (1,), [255, 255, 255], None),
        (4, 2, (), over_white(30), "the last of its 4 bands is read as transparency, although the file does not"),
        (5, 2, (0, 0), [200, 100, 50], "2 of its 5 bands are left out"),
        (5, 2, (2, 0), over_white(30), "1 of its 5 bands is left out"),
        (6, 2, (0, 0, 0), [200, 100, 50], "3 of its 6 bands are left out"),
        (1, 1, (), [200, 200, 200], None),
        (2, 1, (0,), [200, 200, 200], "1 of its 2 bands is left out"),
        (2, 1, (2,), [233, 233, 233], None),
        (4, 5, (), [48, 137, 181], None),
        (5, 5, (0,), [48, 137, 181], "1 of its 5 bands is left out"),
    ],
)
def test_ignored_bands_of_a_tiff_are_reported(
    bands: int,
    photometric: int,
    kinds: tuple[int, ...],
    color: list[int],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_files, "_shown", set())
    path = write_tiff(tmp_path / "x.tif", bands, photometric, kinds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = np.asarray(open_image(path))
    assert np.abs(pixels[4, 4].astype(int) - color).max() <= 1
    assert [str(one.message)[: len(f"image '{path}': {said}")] for one in caught] == (
        [f"image '{path}': {said}"] if said else []
    )


def test_separate_planes_of_gray_and_alpha_are_refused(tmp_path: Path) -> None:
    Image.new("LA", (8, 8), (200, 100)).save(tmp_path / "x.tif", tiffinfo={284: 2})
    with pytest.raises(OSError, match="lie in separate planes"):
        open_image(tmp_path / "x.tif")


def test_fit_reports_ignored_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_files, "_shown", set())
    for k in range(8):
        path = write_tiff(Path("set") / "ab"[k % 2] / f"{k}.tif", 4, 2, (0,))
        path.write_bytes(path.read_bytes()[:-4] + bytes([k, 0, 0, 0]))
    words = ["source=set", "image_size=8", "val_size=2", "test_size=2", "num_labels=null", "num_workers=0"]
    words = ["--run_name=run", "--trainer.max_epochs=1", *(f"--data.init_args.{word}" for word in words)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", *words]) == 0
    said = [str(one.message) for one in caught] + capsys.readouterr().err.splitlines()
    assert len([line for line in said if "1 of its 4 bands is left out" in line]) == 1

"""Files are images by their extension or, without a known one, by their content; the others are counted."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import IgnoredFiles
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.data.vision.file_kinds import EXTENSIONS, IMAGES
from sft_lightning.data.vision.folders import find_images
from sft_lightning.data.vision.images import open_image
from sft_lightning.data.vision.prediction_files import open_prediction_source
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.data.conftest import write_image

# Extension to the format that Pillow writes; each is read under its own name, and most under no name at all.
WRITTEN = {
    "jfif": "JPEG", "jpe": "JPEG", "pjpeg": "JPEG", "ppm": "PPM", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM",
    "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000", "tga": "TGA", "dib": "DIB", "ico": "ICO", "apng": "PNG",
    "mpo": "MPO", "qoi": "QOI", "pcx": "PCX", "sgi": "SGI",
}  # fmt: skip
MODES = {"pgm": "L", "pbm": "1"}
BY_CONTENT = {
    "PNG": "",
    "JPEG": "",
    "GIF": "",
    "BMP": ".dat",
    "TIFF": ".2024",
    "WEBP": ".v2",
    "PPM": ".jpg_1",
    "AVIF": "",
}
BY_CONTENT |= {"JPEG2000": ".png.bak", "ICO": ".xyz", "QOI": ".unknown"}


def encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(into, kind)
    return into.getvalue()


def names(folder: Path) -> tuple[list[str], list[str]]:
    passed = IgnoredFiles(IMAGES)
    return [name for name, _ in find_images(str(folder), ignored=passed)], [*map(str, passed.describe("here"))]


@pytest.mark.parametrize("extension", WRITTEN)
def test_formats_of_pillow_are_read(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{extension.upper()}"
    path.write_bytes(encoded(WRITTEN[extension], MODES.get(extension, "RGB")))
    assert names(tmp_path) == ([path.name], [])
    assert find_damage(path) is None
    assert open_image(path).mode == "RGB"
    assert set(EXTENSIONS) >= {f".{name}" for name in WRITTEN}


@pytest.mark.parametrize("kind", BY_CONTENT)
def test_files_without_a_known_extension_are_read_by_content(kind: str, tmp_path: Path) -> None:
    name = f"photo 1{BY_CONTENT[kind]}"
    (tmp_path / name).write_bytes(encoded(kind))
    assert names(tmp_path) == ([name], [])
    (tmp_path / name).write_bytes(encoded(kind)[:20])  # a cut one is refused, not passed over, where its kind is sure
    assert len(names(tmp_path)[0]) == (kind not in ("BMP", "ICO"))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("notes", b"BMW drives", "without an extension"),
        ("notes", b"P1 is pressure", "without an extension"),
        ("LICENSE", b"", "without an extension"),
        ("labels.txt", encoded("PNG"), ".txt"),  # not opened: annotations may be many
        ("a.dng", encoded("TIFF"), ".dng"),  # Pillow would read the thumbnail of a raw file
        ("a.thm", encoded("JPEG"), ".thm"),
        ("movie.mp4", b"\0\0\0\x18ftypmp42", ".mp4"),
        ("sound.wav2", b"RIFF\0\0\0\0WAVEfmt ", ".wav2"),
        ("IMG_1", b"\0\0\0\x18ftypheic\0\0\0\0", "without an extension"),
    ],
)
def test_files_that_are_not_images_are_counted(name: str, content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    found, (said,) = names(tmp_path)
    assert found == []
    assert f": 1 {kind}" in said


def test_pipes_links_and_locked_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to(write_image(tmp_path / "a.png", 1))
    assert names(tmp_path) == (
        ["a.png", "link"],
        ["ignored 3 files in 'here' that are not images: 3 without an extension"],
    )


def test_only_unknown_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.jfif", "c.txt", "d.heic", "e", "f.odd", ".g"):
        (tmp_path / name).write_bytes(b"words")
    opened: list[str] = []

    def spied(path: str, mode: str) -> Any:
        opened.append(Path(path).name)
        return Path(path).open(mode)

    monkeypatch.setattr("sft_lightning.data.vision.file_kinds.open", spied, raising=False)
    found, said = names(tmp_path)
    assert found == ["a.png", "b.jfif"]
    assert sorted(opened) == ["e", "f.odd"]
    assert said == [
        "ignored 1 file in 'here' of a format that cannot be read: 1 .heic; convert them to JPEG or PNG",
        "ignored 3 files in 'here' that are not images: 1 without an extension, 1 .odd, 1 .txt",
    ]


def test_long_lists_of_ignored_files_are_shortened(tmp_path: Path) -> None:
    for k in range(8):
        (tmp_path / f"a.k{k}").touch()
    (tmp_path / "b.k5").touch()
    for k in range(7):
        write_image(tmp_path / f".{k}.png", k)
    (tmp_path / "._a.png").touch()
    (tmp_path / ".DS_Store").touch()
    assert names(tmp_path)[1] == [
        "ignored 9 files in 'here' that are not images: 2 .k5, 1 .k0, 1 .k1, 1 .k2, 1 .k3, 3 others",
        "ignored 7 hidden images in 'here': .0.png, .1.png, .2.png, .3.png, .4.png, ...; rename them to use them",
    ]


def test_prediction_without_images_reports_ignored_files(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(InputError, match=r"holds no image: give .*; ignored 1 file in .*: 1 .heic; convert"):
        open_prediction_source(str(tmp_path))


def test_fit_and_predict_report_ignored_files(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k, name in enumerate("ab"):
        for i in range(6):
            write_image(Path("set", name, f"{i}.png"), 100 * k + i)
    for i in range(6):
        write_image(Path("set/a", f"{i}.jpg"), 50 + i).rename(Path("set/a", f"x{i}.jfif" if i else "unnamed"))
    Path("set/a/notes.txt").touch()
    data = ImageDataModule("set", image_size=16, num_workers=0)
    data.setup("fit")
    assert sum(map(len, data.splits.values())) == 18
    assert data.request.findings[0] == Finding(
        "ignored", "ignored 1 file in 'set' that is not an image: 1 .txt", [".txt"]
    )
    words = [
        f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", "--data.init_args.source=set",
        "--data.init_args.num_labels=null", "--data.init_args.image_size=16", "--trainer.max_epochs=1", "--run_name=a",
        "--data.init_args.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert main(["fit", *words]) == 0
        assert main(["predict", "lightning_logs/a/version_0", "set/a"]) == 0
    assert "Data: ignored 1 file in 'set' that is not an image: 1 .txt." in caplog.text
    assert "Data: ignored 1 file in 'set/a' that is not an image: 1 .txt." in caplog.text
    assert len(Path("lightning_logs/a/version_0/predictions.csv").read_text().splitlines()) == 13

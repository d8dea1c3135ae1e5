"""Small files that all have one size are read as they are."""

from pathlib import Path

import pytest
from PIL import Image

from sft_lightning.solver.labels import read_source


def write_files(folder: Path, mode: str, sizes: list[tuple[int, int]]) -> Path:
    for k, size in enumerate(sizes):
        for part, name in (("train/a", "x"), ("train/b", "y"), ("train/unlabeled", "z")):
            path = folder / part / f"{name}{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, size, 20 * k + ord(name)).save(path)
    return folder


@pytest.mark.parametrize(
    ("mode", "sizes", "shape"),
    [
        ("L", [(28, 28)] * 4, (1, 28, 28)),
        ("RGB", [(28, 28)] * 4, (3, 28, 28)),
        ("L", [(28, 28)] * 3 + [(30, 30)], (3, 64, 64)),
        ("L", [(28, 20)] * 4, (3, 64, 64)),
        ("L", [(80, 80)] * 4, (3, 64, 64)),
    ],
)
def test_files_of_one_small_size_are_read_as_they_are(
    tmp_path: Path, mode: str, sizes: list[tuple[int, int]], shape: tuple[int, int, int]
) -> None:
    source = read_source(str(write_files(tmp_path / "images", mode, sizes)), tmp_path, None, None, 0, "data")
    assert tuple(source.data.input_spec.shape) == shape
    assert (source.settings.get("channels"), source.settings["image_size"]) == (
        (str(shape[0]), str(shape[1])) if shape[1] == 28 else (None, "64")
    )


def test_one_file_in_color_keeps_the_color_of_all(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "images", "L", [(28, 28)] * 4)
    Image.new("RGB", (28, 28), (200, 0, 0)).save(folder / "train/unlabeled/red.png")
    source = read_source(str(folder), tmp_path, None, None, 0, "data")
    assert tuple(source.data.input_spec.shape) == (3, 28, 28)

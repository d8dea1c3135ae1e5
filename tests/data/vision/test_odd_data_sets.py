"""Real-world inputs that could be misread are refused or reported."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.vision import image_files
from sft_lightning.data.vision.image_files import inspect_images
from sft_lightning.data.vision.image_frames import count_pages
from sft_lightning.data.vision.images import open_image
from sft_lightning.data.vision.pixel_scale import describe_values
from sft_lightning.data.vision.prediction import read_files
from sft_lightning.data.vision.sources import open_source
from sft_lightning.data.vision.value_ranges import choose_ranges
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, make_png, write_image
from tests.data.vision.test_folder_layouts import layout

PRINTED = "are objects as a program prints them"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["cat/train", "cat/test", "dog/train", "dog/test"], "class folder 'cat' in '.*' holds test, train, which are"),
        (["cat", "cat/val", "dog", "dog/val"], "as in val/cat"),
        (
            ["train/cat/Training", "train/cat/valid", "train/dog"],
            "class folder 'cat' in '.*train' holds Training, valid",
        ),
        (["fold1/a", "fold1/b", "fold2/a", "fold2/b"], "the folders fold1, fold2 .* named like pieces of a data set"),
    ],
)
def test_splits_inside_classes_are_refused(folders: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        open_source(str(layout(tmp_path, *folders)))


@pytest.mark.parametrize(
    ("folders", "meant", "said"),
    [
        (["color/a", "color/b", "gray/a", "gray/b"], [], ["the folders color, gray .* and each one holds a, b, which"]),
        (["fold1/a", "fold1/b", "fold2/a", "fold2/b"], ["fold1", "fold2"], []),
        (["fold1", "fold2"], [], []),
        (["a/x", "a/y", "b/x", "b/z"], [], []),
        (["a/x", "a/y", "b/x", "b/y", "b"], [], []),
        (["a/x", "b/x"], [], []),
        (["a/test", "b"], [], []),
        (["a/test_tube", "a/training_shoe", "b/test_tube", "b/training_shoe", "b"], [], []),
    ],
)
def test_folders_inside_classes_are_reported(
    folders: list[str], meant: list[str], said: list[str], tmp_path: Path
) -> None:
    messages = open_source(str(layout(tmp_path, *folders)), listed_classes=meant).messages
    assert len(messages) == len(said)
    assert all(re.search(words, str(message)) for words, message in zip(said, messages, strict=True))


def test_link_to_a_class_folder_is_a_copy_with_another_label(folder: MakeFolder) -> None:
    source = folder("cat", "dog", count=8)
    (source / "feline").symlink_to("cat")
    data = ImageDataModule(str(source), image_size=8)
    data.setup("fit")
    assert [one for one in data.request.findings if re.match(r"8 examples have copies with another .*'cat/", str(one))]


@pytest.mark.parametrize(
    ("header", "cells", "words"),
    [
        (
            "path,label,Usage",
            ["Training", "PublicTest"],
            r"column 'Usage' is not known, but its values \(PublicTest, Tra",
        ),
        ("path,label", ["['cat']", "['dog']"], PRINTED),
        ("path,label", ["b'cat'", "b'dog'"], PRINTED),
        ("path,label", ["tensor(0)", "tensor(1)"], PRINTED),
        ("path,label", ["{'name': 'cat'}", "{'name': 'dog'}"], PRINTED),
        ("path,label", ["#REF!", "dog"], "labels are '#REF!'"),
        ("Path,label", ["cat", "dog", "header"], "line 4: it repeats the header: remove the line"),
        ("id,label", ["cat", "dog"], "rename 'id' to 'path'"),
    ],
)
def test_tables_with_another_meaning_are_refused(header: str, cells: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        open_source(str(fill(tmp_path, header, cells)))


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("path,label,lesion_id", ["a", "b"], ["the column 'lesion_id' is ignored; if it holds the group"]),
        ("path,label,fishID", ["a", "b"], ["the column 'fishID' is ignored; if it holds the group"]),
        ("path,label,grid", ["a", "b"], ["the column is ignored: 'grid'"]),
        ("path,label,fish_id", list("abcdefghijklmn"), ["the column is ignored: 'fish_id'"]),
        ("path,label", ["0.5", "0.25", "1"], ["the labels are decimal numbers; each of the 3 is read as a class"]),
        ("path,label", ["1.0", "2.0"], ["whole numbers written as decimals"]),
        ("path,label", ["polar_bear", "polar bear"], ["the classes 'polar_bear' and 'polar bear' differ only between"]),
        ("path,label", ["(cat)", "[dog]", "b'x"], []),
        ("path,label", ["+", "-"], ["labels are '-' (first: line 3), which is read as a class"]),
        ("path,label", ["re-do", "redo", "C", "C++", "1-2", "12"], []),
    ],
)  # fmt: skip
def test_suspicious_tables_are_reported(header: str, cells: list[str], said: list[str], tmp_path: Path) -> None:
    messages = open_source(str(fill(tmp_path, header, cells))).messages
    assert len(messages) == len(said)
    assert all(words in str(message) for words, message in zip(said, messages, strict=True))


def fill(folder: Path, header: str, cells: list[str]) -> Path:
    """Write a table of 14 images of cats and dogs whose last column repeats the given cells."""
    rows = [header]
    for i in range(14):
        write_image(folder / f"{i}.png", i)
        cell = cells[i % len(cells)]
        middle = ["cat", "dog"][i // 2 % 2 :][:1] if header.count(",") > 1 else []
        rows.append(header if cell == "header" else ",".join([f"{i}.png", *middle, f'"{cell}"']))
    (folder / "m.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "m.csv"


@pytest.mark.parametrize(
    ("there", "named"),
    [("a/0.png", "a/0"), ("a/0.PNG", "a/0.png"), ("a/0.png", "a/0.jpg"), ("a/caf\u00e9.png", "a/cafe\u0301.png")],
)
def test_file_with_a_similar_name_is_suggested(there: str, named: str, tmp_path: Path) -> None:
    write_image(tmp_path / there, 0)
    (tmp_path / "m.csv").write_text(f"path,label\n{named},cat\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"does not exist below .*, but {there!r} does: write it like this"):
        open_source(str(tmp_path / "m.csv"))
    (tmp_path / "m.csv").write_text("path,label\na/9.png,cat\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"does not exist below '[^']*'$"):
        open_source(str(tmp_path / "m.csv"))


def test_small_png_with_damaged_pixels_is_found_before_the_first_epoch(tmp_path: Path) -> None:
    rows = zlib.compress(b"".join(bytes([0, *np.random.default_rng(i).bytes(192)]) for i in range(64)))
    header = (64).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    for name, pixels in (("cut", rows[:2000]), ("sum", rows[:-1] + b"?"), ("good", rows)):
        (tmp_path / f"{name}.png").write_bytes(make_png(header, pixels))
    _, unreadable = inspect_images([tmp_path / "cut.png", tmp_path / "sum.png", tmp_path / "good.png"])
    assert sorted(unreadable) == [0, 1]


def test_files_of_several_images_are_named_wherever_they_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pages = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    stacks = [tmp_path / f"stack.{kind}" for kind in ("gif", "png", "tif", "webp")]
    for path in stacks:
        pages[0].save(path, save_all=True, append_images=pages[1:])
        pages[0].save(path.with_stem("one"))
        with Image.open(path) as image:
            assert count_pages(image) == 3
    pages[0].save(tmp_path / "camera.mpo", save_all=True, append_images=pages[1:])
    facts, unreadable = inspect_images(sorted(tmp_path.iterdir()))
    assert not unreadable
    (said,) = describe_values([facts], choose_ranges([]))
    assert (said.kind, said.examples) == ("extra_frames", tuple(map(str, stacks)))
    assert said.message.startswith("4 files hold several images (pages of a TIFF, frames of an animation), of which ")
    assert said.message.endswith(f"{stacks[3]}; write the others as files of their own if they matter")
    read_files(str(tmp_path), "data", BadFiles())  # to predict masks, boxes and defects
    assert caplog.text.count(said.message) == 1
    data = ImageDataModule("sample", image_size=8, channels=1, num_workers=0, predict_source=str(tmp_path))
    assert sum(len(batch.indices) for batch in data.predict_dataloader()) == 9
    data.teardown("predict")
    assert caplog.text.count(said.message) == 2


@pytest.mark.parametrize(
    ("values", "odd", "said"),
    [
        (
            np.uint16(4000),
            65535,
            "the images of integers are dark: 99.9% of their values go from 0",
        ),
        (np.uint16(60000), 65535, None),
        (np.int32(3000), -32768, "the lowest value, -32768, often stands for missing data"),
        (np.float32(3000), -9999, "the lowest value, -9999, often stands for missing data"),
        (np.float32(3000), -3.4e38, "the lowest value, -3.4e+38, often stands for missing data"),
        (np.float32(1), 0, None),
    ],
)
def test_scale_set_by_few_values_is_reported(values: np.generic, odd: float, said: str | None, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for i, path in enumerate(paths):
        pixels = np.linspace(0, 0.9 + i / 20, 64 * 64).reshape(64, 64) * float(values)
        pixels[0, 0] = odd
        Image.fromarray(pixels.astype(values.dtype)).save(path)
    facts, _ = inspect_images(paths)
    findings = describe_values([facts], choose_ranges(facts.values))
    assert [str(finding)[: len(said or "")] for finding in findings[1:]] == ([] if said is None else [said])


def test_signed_8_bit_integers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.tif", tiffinfo={339: 2})
    with pytest.raises(OSError, match="signed integers of 8 bits"):
        open_image(tmp_path / "x.tif")


def test_16_bit_image_without_a_scale_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "_shown", set())
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "x.tif")
    with pytest.warns(RuntimeWarning, match=r"image '.*x\.tif': no scale is known for its values of more than 8 bits"):
        open_image(tmp_path / "x.tif")

"""Listings of files to predict."""

import os
import tracemalloc
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sft_lightning.data import table_rows
from sft_lightning.data.source import Examples
from sft_lightning.data.vision import prediction_files
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.data.vision.prediction_files import FolderListing, Listing, open_prediction_source
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, write_image, write_table


def names(source: Path) -> list[str]:
    found = open_prediction_source(str(source))
    assert isinstance(found, Listing)
    listed = list(found)
    assert len(listed) == found.count
    assert all(Path(path).is_file() for _, path in listed)
    return [name for name, _ in listed]


def test_open_prediction_source_accepts_every_kind_of_source(folder: MakeFolder) -> None:
    path = folder("deep/er", "")
    assert names(path) == ["0.png", "1.png", "2.png"] + [f"deep/er/{i}.png" for i in range(3)]
    assert names(path / "1.png") == ["1.png"]
    listed = write_table(path / "m.csv", [("path",), ("2.png",), ("deep/er/0.png",)])
    assert names(listed) == ["2.png", "deep/er/0.png"]
    found = open_prediction_source("sample")
    assert isinstance(found, Examples)
    assert len(found) == 2_000
    (path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        open_prediction_source(str(path / "empty"))
    write_table(path / "m.csv", [("path",), ("2.png",), ("gone.png",)])
    with pytest.raises(InputError, match=r"line 3: file 'gone.png' does not exist .* on_bad_image: skip"):
        open_prediction_source(str(listed))
    unchecked = open_prediction_source(str(listed), check=False)
    assert isinstance(unchecked, Listing)
    assert [name for name, _ in unchecked] == ["2.png", "gone.png"]


def test_folder_listing_skips_hidden_files_and_loops(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "sub.png/c.webp", ".git/d.png", "e/f/g.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "e" / "back").symlink_to(tmp_path, target_is_directory=True)
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    (outside / "h.png").touch()
    (tmp_path / "link").symlink_to(outside, target_is_directory=True)
    assert names(tmp_path) == ["a.png", "b.JPG", "e/f/g.tiff", "link/h.png", "sub.png/c.webp"]


def test_large_folder_is_never_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3000):
        (tmp_path / f"{i:05}_{'x' * 100}.png").touch()
    found = FolderListing(tmp_path)
    assert [name[:5] for name, _ in found] == [f"{i:05}" for i in range(3000)]  # in order where that costs little
    monkeypatch.setattr(prediction_files, "_MAX_SORTED", 50)
    tracemalloc.start()
    count = sum(1 for _ in FolderListing(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak < 200_000  # 3,000 names are a megabyte
    first = [name for name, _ in islice(found, 50)]
    assert first == sorted(first)
    assert len({name for name, _ in found}) == 3000


def test_files_added_later_are_listed(folder: MakeFolder) -> None:
    path = folder("", count=2)
    found = open_prediction_source(str(path))
    assert isinstance(found, Listing)
    write_image(path / "later.png", 9)
    assert found.count == 2
    assert [name for name, _ in found] == ["0.png", "1.png", "later.png"]


def test_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def refuses(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(InputError, match=r"locked' cannot be listed \(Permission denied\): fix its permissions"):
        open_prediction_source(str(tmp_path / "locked"))
    write_image(tmp_path / "a.png", 1)
    inside = list(FolderListing(tmp_path))  # read as an image, which it is not
    assert inside == [("a.png", str(tmp_path / "a.png")), ("locked", str(tmp_path / "locked"))]
    assert find_damage(tmp_path / "locked") == "permission denied"


def test_files_with_the_extension_of_an_image_are_always_listed(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg" / "empty").mkdir(parents=True)
    (tmp_path / "full.jpg").mkdir()
    write_image(tmp_path / "full.jpg" / "1.png", 1)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    given = dict(FolderListing(tmp_path))
    assert {name: find_damage(Path(path)) for name, path in given.items()} == {
        "circle.png": "it is a link to itself",
        "folder.jpg": "it is a folder",
        "full.jpg/1.png": None,
        "gone.png": "it is a broken link",
        "pipe.png": "it is a pipe, socket or device",
    }


def test_parquet_needs_only_a_path_and_is_read_in_batches(folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("", count=7)
    expected = [f"{i}.png" for i in (3, 1, 0, 6, 2, 5)]
    parquet.write_table(pa.table({"path": expected, "other": list(range(6))}), path / "m.parquet", row_group_size=4)
    monkeypatch.setattr(table_rows, "_ROWS", 3)
    sizes = []
    real = parquet.ParquetFile.iter_batches

    def spied(self: object, size: int, **settings: object) -> object:
        for batch in real(self, size, **settings):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spied)
    assert names(path / "m.parquet") == expected
    assert max(sizes) == 3
    assert [line for line, _ in table_rows.TableRows(path / "m.parquet", ("path",))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "file\n1.png\n", "lacks the column 'path'"),
        ("a.csv", "path\n", "holds no image"),
        ("a.csv", "path,label\n,x\n", "line 2: the path is blank"),
        ("a.parquet", "nothing", "is not a readable Parquet file"),
        ("a.txt", "words", r"predict_source '.*a.txt' cannot be read as an image \(it is not an image"),
        ("a.png", "", r"cannot be read as an image \(it has zero bytes\): give an image, a folder"),
    ],
)
def test_invalid_prediction_source_is_refused(name: str, content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=expected):
        open_prediction_source(str(tmp_path / name))


def test_missing_prediction_source_is_refused() -> None:
    with pytest.raises(InputError, match="predict_source 'nowhere' is neither a folder or manifest that exists"):
        open_prediction_source("nowhere")

"""Batches of files that are listed while they are read."""

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.prediction import FileLoader
from sft_lightning.data.vision.prediction_files import FolderListing
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, write_plain_image

GEOMETRY = Geometry(6, 1)


def loader(
    path: Path, bad: BadFiles | None = None, workers: int = 0, size: int = 3, rank: tuple[int, int] = (0, 1)
) -> FileLoader:
    return FileLoader(FolderListing(path), GEOMETRY, size, workers, bad or BadFiles(), *rank)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_images_and_their_names(workers: int, folder: MakeFolder) -> None:
    path = folder("a", "b", count=4)
    batches = list(loader(path, workers=workers))
    assert [len(batch.inputs) for batch in batches] == [3, 3, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(8))
    names = [name for batch in batches for name in batch.names or []]
    assert names == [f"{c}/{i}.png" for c in "ab" for i in range(4)]
    for name, image in zip(names, torch.cat([batch.inputs for batch in batches]), strict=True):
        with Image.open(path / name) as file:
            side = min(file.size)
            left, top = (file.width - side) / 2, (file.height - side) / 2
            box = (left, top, left + side, top + side)
            expected = file.convert("L").resize((6, 6), Image.Resampling.BILINEAR, box=box)
        assert (image[0].numpy() == np.array(expected)).all()
    assert all((batch.labels == -1).all() and batch.seed is None for batch in batches if batch.labels is not None)


def test_processes_share_the_files(folder: MakeFolder) -> None:
    path = folder("a", count=7)
    each = [loader(path, rank=(rank, 3), size=2) for rank in range(3)]
    assert each[0].listed == (0, 0)
    names = [[name for batch in own for name in batch.names or []] for own in each]
    assert [len(own) for own in names] == [3, 2, 2]
    assert [name for turn in zip_longest(*names) for name in turn if name] == [f"a/{i}.png" for i in range(7)]
    assert len({own.listed for own in each}) == 1
    assert each[0].listed[0] == 7
    (path / "a" / "0.png").rename(path / "a" / "00.png")
    again = loader(path)
    list(again)
    assert again.listed[0] == 7
    assert again.listed != each[0].listed


def test_unreadable_files_are_left_out_or_refused(folder: MakeFolder) -> None:
    path = folder("a", count=7)
    for i in (1, 3, 4, 5):
        (path / "a" / f"{i}.png").write_bytes(b"not an image")
    (path / "a" / "7.png").symlink_to("gone")
    bad = BadFiles("skip")
    batches = list(loader(path, bad, workers=2))
    assert [batch.names for batch in batches] == [["a/0.png", "a/2.png"], ["a/6.png"]]  # a batch of none is none
    assert sorted(bad.reasons) == [str(path / "a" / f"{i}.png") for i in (1, 3, 4, 5, 7)]
    assert bad.reasons[str(path / "a" / "7.png")] == "it is a broken link"
    with pytest.raises(InputError, match=r"a/1.png' cannot be read: .* set on_bad: skip"):
        list(loader(path))


def test_single_batch_starts_no_worker(folder: MakeFolder) -> None:
    path = folder("a", count=7)
    assert loader(path, workers=2, size=7)._loader.num_workers == 0
    assert loader(path, workers=2, size=6)._loader.num_workers == 2


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    write_plain_image(Path(path), (9, 9, 9))
    (batch,) = loader(tmp_path)
    assert batch.names == [r"caf\xe9.png"]
    Path(path).write_bytes(b"")
    bad = BadFiles("skip")
    assert not list(loader(tmp_path, bad))
    bad.write(tmp_path, 0)
    assert "caf\\xe9.png" in (tmp_path / "skipped_images.txt").read_text()


class Counted(FolderListing):
    """Listing that counts the requested files."""

    asked = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for item in super().__iter__():
            self.asked += 1
            yield item


@pytest.mark.parametrize(("workers", "most"), [(0, 2), (1, 8)])
def test_files_are_listed_as_they_are_read(workers: int, most: int, folder: MakeFolder) -> None:
    found = Counted(folder("a", count=40))
    found.asked = 0
    own = iter(FileLoader(found, GEOMETRY, 2, workers, BadFiles()))
    next(own)
    assert 2 <= found.asked <= most
    assert len(list(own)) == 19

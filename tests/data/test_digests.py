"""Keys follow the content of files, whatever their sizes, times and names say; unchanged files are read once."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.data import digests, split_files
from sft_lightning.data.digests import digest_file, digest_files, digest_folder
from sft_lightning.utils.errors import InputError


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)  # all of one size, since they are bmp
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digests, "_TICK", 0)  # else files of a test are too young to be kept
    monkeypatch.setattr(digests, "_QUERY", 3)
    for k, name in enumerate(("cat", "dog")):
        for i in range(10):
            draw(tmp_path / "images" / name / f"{i}.bmp", 100 * k + i)
    time.sleep(0.02)
    return tmp_path / "images"


def opened(source: Path) -> ImageDataModule:
    data = ImageDataModule(str(source), image_size=8, num_workers=0, batch_size=4)
    data.setup("fit")
    return data


def swap(a: Path, b: Path) -> None:
    """Exchange two files by renaming, which leaves sizes, times and even inodes as they were, but for their names."""
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def overwrite(a: Path, b: Path) -> None:
    """Put other bytes of the same number into a file and set its time back."""
    before = a.stat()
    a.write_bytes(b.read_bytes())
    os.utime(a, ns=(before.st_atime_ns, before.st_mtime_ns))


def restore(a: Path, b: Path) -> None:
    """Replace a file with another one of its size and time, as a backup does."""
    copy = Path(shutil.copy2(b, a.with_name("copy")))
    os.utime(copy, ns=(a.stat().st_atime_ns, a.stat().st_mtime_ns))
    copy.replace(a)


@pytest.mark.parametrize("change", [swap, overwrite, restore])
def test_a_changed_file_has_another_digest_whatever_its_times_say(
    source: Path, change: Callable[[Path, Path], None]
) -> None:
    a, b = source / "cat" / "0.bmp", source / "dog" / "0.bmp"
    first, second = digest_files([a, b])
    folder, data = digest_folder(source), opened(source)
    pictures = split_files.digest_examples(data._parts)
    before = {name: data.fingerprint(name) for name in data.splits}
    change(a, b)
    assert digest_files([a])[0] == second != first
    assert digest_folder(source) != folder
    assert split_files.digest_examples(opened(source)._parts) != pictures
    after = {name: data.fingerprint(name) for name in data.splits}  # of the same examples
    holding = {name for name, split in data.splits.items() if {"cat/0.bmp", "dog/0.bmp"} & set(split.ids)}
    assert {"cat/0.bmp", "dog/0.bmp"} & {i for name in holding for i in data.splits[name].ids}
    changed = {name for name in data.splits if before[name] != after[name]}
    assert changed <= holding
    assert changed


def test_moved_and_touched_folders_keep_their_digests(source: Path) -> None:
    data = opened(source)
    keys = {name: data.fingerprint(name) for name in data.splits}
    pictures, folder = split_files.digest_examples(data._parts), digest_folder(source)
    moved = source.rename(source.with_name("moved"))
    for path in moved.rglob("*.bmp"):
        path.touch()
    again = opened(moved)
    assert {name: again.fingerprint(name) for name in again.splits} == keys
    assert split_files.digest_examples(again._parts) == pictures
    assert digest_folder(moved) == folder


def test_unchanged_files_are_read_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(source.rglob("*.bmp"))
    digest_files(paths[:5])
    read: list[bytes] = []
    compute = digests._digest

    def record(path: bytes) -> bytes | None:
        read.append(path)
        return compute(path)

    monkeypatch.setattr(digests, "_digest", record)
    first = digest_files(paths)
    assert sorted(read) == [os.fsencode(path) for path in paths[5:]]
    read.clear()
    assert digest_files(paths) == first
    assert read == []
    monkeypatch.setattr(digests, "_TICK", 10**18)
    late = draw(source / "cat" / "late.bmp", 1)
    digest_files([late])
    digest_files([late])
    assert len(read) == 2  # of a file that may have changed again within the tick of a clock nothing is kept


@pytest.mark.parametrize("damage", ["text", "a folder", "cut off"])
def test_a_damaged_store_costs_time_only(source: Path, damage: str) -> None:
    paths = sorted(source.rglob("*.bmp"))
    right = digest_files(paths)
    assert digests.STORE.is_file()
    if damage == "cut off":
        os.truncate(digests.STORE, digests.STORE.stat().st_size // 2)
    else:
        digests.STORE.unlink()
        digests.STORE.write_text("nothing") if damage == "text" else digests.STORE.mkdir()
    assert digest_files(paths) == right
    assert digest_files(paths) == right


def test_a_file_that_is_gone_has_no_digest(source: Path) -> None:
    gone = source / "cat" / "gone.bmp"
    assert digest_files([gone]) == [None]
    with pytest.raises(OSError, match=r"gone\.bmp' cannot be read"):
        digest_file(gone)


def test_splits_of_earlier_versions_are_read_by_their_kind_of_digest(source: Path, tmp_path: Path) -> None:
    data = opened(source)
    path = tmp_path / "split.csv"
    data.write_splits(path, data.splits)
    line, _, rows = path.read_text().partition("\n")
    new = split_files.digest_examples(data._parts)
    assert f'"sha256": "{new}", "digest": "content"' in line
    assert data.fingerprint("test") == reread(source, path).fingerprint("test")
    old = split_files._digest_sizes(data._parts)
    assert old != new
    legacy = tmp_path / "legacy.csv"
    legacy.write_text(line.replace(new, old).replace(', "digest": "content"', "") + "\n" + rows)
    assert reread(source, legacy).splits["test"].ids == data.splits["test"].ids
    overwrite(source / "cat" / "0.bmp", source / "dog" / "0.bmp")
    with pytest.raises(InputError, match=r"was made from other images"):
        reread(source, path)
    draw(source / "cat" / "0.bmp", 0).write_bytes(b"BM" + bytes(20))
    with pytest.raises(InputError):
        reread(source, legacy)


def reread(source: Path, split: Path) -> ImageDataModule:
    data = ImageDataModule(str(source), image_size=8, num_workers=0, split_file=str(split))
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_each_of_size_times_and_inode_makes_a_file_another_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"st_size": 1, "st_mtime_ns": 1, "st_ctime_ns": 1, "st_ino": 1}
    states = []
    for value in (1, 2):
        monkeypatch.setattr(os, "stat", lambda _, value=value: SimpleNamespace(**{**fields, name: value}))
        states.append(digests._read_state(b"x"))
    monkeypatch.undo()
    assert states[0] != states[1]


def test_a_file_that_has_just_changed_is_not_kept_whatever_time_it_states(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_TICK", 10**12)
    file = source / "cat" / "0.bmp"
    os.utime(file, (0, 0))
    digest_files([file])
    assert not digests.STORE.exists()


def test_the_digest_of_a_folder_has_the_names_of_its_folders_and_no_hidden_file(source: Path) -> None:
    before = digest_folder(source)
    (source / "cat" / ".DS_Store").touch()
    assert digest_folder(source) == before
    (source / "cat").rename(source / "cats")
    renamed = digest_folder(source)
    assert renamed != before
    draw(source.parent / "more" / "0.bmp", 7)
    (source / "linked").symlink_to(source.parent / "more")
    assert digest_folder(source) != renamed

"""Digests depend on the content of files, not on sizes, times and names; unchanged files are read once."""

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


def write_image(path: Path, seed: int) -> Path:
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
            write_image(tmp_path / "images" / name / f"{i}.bmp", 100 * k + i)
    time.sleep(0.02)
    return tmp_path / "images"


def open_data(source: Path) -> ImageDataModule:
    data = ImageDataModule(str(source), image_size=8, num_workers=0, batch_size=4)
    data.setup("fit")
    return data


def swap(a: Path, b: Path) -> None:
    """Swap the names of two files, which keeps sizes, times and inodes."""
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def overwrite(a: Path, b: Path) -> None:
    """Overwrite a file with other bytes of the same number, and restore its time."""
    before = a.stat()
    a.write_bytes(b.read_bytes())
    os.utime(a, ns=(before.st_atime_ns, before.st_mtime_ns))


def restore(a: Path, b: Path) -> None:
    """Replace a file with another one of its size and time, as a backup does."""
    copy = Path(shutil.copy2(b, a.with_name("copy")))
    os.utime(copy, ns=(a.stat().st_atime_ns, a.stat().st_mtime_ns))
    copy.replace(a)


@pytest.mark.parametrize("change", [swap, overwrite, restore])
def test_digest_changes_with_the_content_despite_restored_timestamps(
    source: Path, change: Callable[[Path, Path], None]
) -> None:
    a, b = source / "cat" / "0.bmp", source / "dog" / "0.bmp"
    first, second = digest_files([a, b])
    folder, data = digest_folder(source), open_data(source)
    digest_before = split_files.digest_examples(data._parts)
    before = {name: data.fingerprint(name) for name in data.splits}
    change(a, b)
    assert digest_files([a])[0] == second != first
    assert digest_folder(source) != folder
    assert split_files.digest_examples(open_data(source)._parts) != digest_before
    after = {name: data.fingerprint(name) for name in data.splits}  # of the same examples
    holding = {name for name, split in data.splits.items() if {"cat/0.bmp", "dog/0.bmp"} & set(split.ids)}
    assert {"cat/0.bmp", "dog/0.bmp"} & {i for name in holding for i in data.splits[name].ids}
    changed = {name for name in data.splits if before[name] != after[name]}
    assert changed <= holding
    assert changed


def test_digest_survives_moving_and_touching_a_folder(source: Path) -> None:
    data = open_data(source)
    keys = {name: data.fingerprint(name) for name in data.splits}
    digest_before, folder = split_files.digest_examples(data._parts), digest_folder(source)
    moved = source.rename(source.with_name("moved"))
    for path in moved.rglob("*.bmp"):
        path.touch()
    again = open_data(moved)
    assert {name: again.fingerprint(name) for name in again.splits} == keys
    assert split_files.digest_examples(again._parts) == digest_before
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
    late = write_image(source / "cat" / "late.bmp", 1)
    digest_files([late])
    digest_files([late])
    assert len(read) == 2  # of a file that may have changed again within the tick of a clock nothing is kept


@pytest.mark.parametrize("damage", ["text", "a folder", "cut off"])
def test_damaged_store_only_costs_time(source: Path, damage: str) -> None:
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


def test_missing_file_has_no_digest(source: Path) -> None:
    gone = source / "cat" / "gone.bmp"
    assert digest_files([gone]) == [None]
    with pytest.raises(OSError, match=r"gone\.bmp' cannot be read"):
        digest_file(gone)


def test_split_files_of_earlier_versions_are_checked_by_their_own_digest(source: Path, tmp_path: Path) -> None:
    data = open_data(source)
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
    with pytest.raises(InputError, match=r"was made from other examples"):
        reread(source, path)
    write_image(source / "cat" / "0.bmp", 0).write_bytes(b"BM" + bytes(20))
    with pytest.raises(InputError):
        reread(source, legacy)


def reread(source: Path, split: Path) -> ImageDataModule:
    data = ImageDataModule(str(source), image_size=8, num_workers=0, split_file=str(split))
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_change_of_size_times_or_inode_invalidates_the_digest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"st_size": 1, "st_mtime_ns": 1, "st_ctime_ns": 1, "st_ino": 1}
    states = []
    for value in (1, 2):
        monkeypatch.setattr(os, "stat", lambda _, value=value: SimpleNamespace(**{**fields, name: value}))
        states.append(digests._read_state(b"x"))
    monkeypatch.undo()
    assert states[0] != states[1]


def test_digest_of_a_recently_changed_file_is_not_stored(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_TICK", 10**12)
    file = source / "cat" / "0.bmp"
    os.utime(file, (0, 0))
    digest_files([file])
    assert not digests.STORE.exists()


def test_digest_of_a_folder_covers_subfolders_and_skips_hidden_files(source: Path) -> None:
    before = digest_folder(source)
    (source / "cat" / ".DS_Store").touch()
    assert digest_folder(source) == before
    (source / "cat").rename(source / "cats")
    renamed = digest_folder(source)
    assert renamed != before
    write_image(source.parent / "more" / "0.bmp", 7)
    (source / "linked").symlink_to(source.parent / "more")
    assert digest_folder(source) != renamed

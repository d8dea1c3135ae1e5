"""Test that cached images give the same batches, whatever happens to the cache, the files and the processes."""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.data.batches import Labeled
from sft_lightning.data.vision import decoding, image_cache, image_files, images, prediction
from sft_lightning.data.vision.cached_images import CachedImages
from sft_lightning.data.vision.image_cache import ImageCache
from sft_lightning.data.vision.images import FileImages, decode
from sft_lightning.data.vision.views import WeakView
from sft_lightning.utils.errors import InputError
from tests.conftest import ROOT
from tests.data.conftest import break_middle
from tests.paradigms.helpers import Recorder, state, trainer

FORK = get_context("fork")
SIZE = 24
ROW = 3 * SIZE * SIZE


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG and PNG images of two classes in various shapes, detailed at every scale, and some without labels."""
    home = tmp_path_factory.mktemp("photos")
    for k, folder in enumerate(("train/a", "train/b", "test/a", "test/b", "unlabeled")):
        (home / folder).mkdir(parents=True)
        for i in range(12):
            draw = np.random.default_rng(100 * k + i)
            coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
            size = (128, 96) if i == 7 else (60 + 5 * i, 70 - 3 * i)  # large enough to be decoded to a half
            smooth = coarse.resize(size, Image.Resampling.BICUBIC)
            if i == 5:
                smooth = smooth.convert("L")
            smooth.save(home / folder / (f"{i:02}.png" if i % 3 == 0 else f"{i:02}.jpg"))
    return home


def open_data(source: Path, cache: Path | None, **settings: Any) -> ImageDataModule:
    options = {"image_size": SIZE, "batch_size": 5, "num_workers": 0, "val_size": 4, "steps_per_epoch": 9, **settings}
    data = ImageDataModule(str(source), cache=None if cache is None else str(cache), **options)
    data.setup("fit")
    return data


def iterate_batches(data: ImageDataModule, epochs: int = 2) -> Iterator[Labeled]:
    """Yield training, validation and test batches as a network receives them."""
    train = data.train_dataloader()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        for parts in train:
            yield data.on_after_batch_transfer(parts, 0)["labeled"]
        for loader in (data.val_dataloader(), data.test_dataloader()):
            for batch in loader:
                yield data.on_after_batch_transfer(batch, 0)


def is_same(one: Labeled, two: Labeled) -> bool:
    return (
        torch.equal(one.x, two.x)
        and one.x.stride() == two.x.stride()
        and torch.equal(one.y, two.y)
        and torch.equal(one.indices, two.indices)
    )


def have_same_batches(one: ImageDataModule, two: ImageDataModule) -> bool:
    pairs = list(zip(iterate_batches(one), iterate_batches(two), strict=True))
    assert len(pairs) == 2 * (9 + 1 + 5)
    return all(is_same(a, b) for a, b in pairs)


class Decoded(NamedTuple):
    """The files that a run decoded."""

    paths: list[Path]

    def taken(self) -> list[Path]:
        paths = sorted(self.paths)
        self.paths.clear()
        return paths


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Record each file that this process decodes."""
    seen = Decoded([])
    real = image_files.open_image_file

    def noted(path: Path) -> Any:
        seen.paths.append(Path(path))
        return real(path)

    for module in (decoding, images, prediction):
        monkeypatch.setattr(module, "open_image_file", noted)
    return seen


VIEWS = WeakView(flip=True, crop_padding=2)


@pytest.mark.parametrize("settings", [{"weak_view": VIEWS}, {"channels": 1, "center_crop": 0.8, "num_labels": 10}])
def test_cached_batches_are_identical_and_files_are_decoded_once(
    settings: dict[str, Any], photos: Path, tmp_path: Path, decoded: Decoded
) -> None:
    for _ in range(2):  # filled by the first run, and used by the second
        assert have_same_batches(open_data(photos, None, **settings), open_data(photos, tmp_path, **settings))
    decoded.taken()
    list(iterate_batches(open_data(photos, tmp_path, **settings)))
    assert decoded.taken() == []


def test_only_images_that_a_run_needs_and_the_cache_lacks_are_decoded(
    photos: Path, tmp_path: Path, decoded: Decoded
) -> None:
    few = open_data(photos, tmp_path, labels_per_class=2)
    list(few.train_dataloader())
    first = decoded.taken()
    assert first == sorted(path_of(few, "labeled"))
    more = open_data(photos, tmp_path, labels_per_class=5, seed=1)
    list(more.train_dataloader())
    assert decoded.taken() == sorted(set(path_of(more, "labeled")) - set(first))
    stream = more._stream("unlabeled", more.splits["unlabeled"], True)  # of two parts: what is left, and the folder
    for batch in stream.batches(0, 3):
        for image, i in zip(batch.inputs, batch.indices.tolist(), strict=True):
            path = path_of(more, "unlabeled")[i]
            assert torch.equal(image, decode(path, more.geometry, None))


def path_of(data: ImageDataModule, name: str) -> list[Path]:
    split = data.splits[name]
    assert isinstance(split.part.storage, FileImages)
    return [split.part.storage.paths[i] for i in split.indices]


def test_random_crops_from_the_cache_are_the_same_rectangles(photos: Path, tmp_path: Path, decoded: Decoded) -> None:
    view = WeakView(flip=True, crop_scale=[0.2, 1.0])
    with_, without = (open_data(photos, cache, weak_view=view) for cache in (tmp_path, None))
    pairs = list(zip(iterate_batches(with_), iterate_batches(without), strict=True))
    train = [(a, b) for k, (a, b) in enumerate(pairs) if k % 15 < 9]
    assert all(is_same(a, b) for k, (a, b) in enumerate(pairs) if k % 15 >= 9)  # evaluation crops nothing at random
    assert all(torch.equal(a.indices, b.indices) and torch.equal(a.y, b.y) for a, b in train)
    off = torch.cat([(a.x - b.x).abs().mean((1, 2, 3)) for a, b in train])
    other = torch.cat([(a.x - b.x.roll(1, 0)).abs().mean((1, 2, 3)) for a, b in train])
    assert off.max() < 0.06 < other.mean()
    assert off.mean() < 0.02
    decoded.taken()
    list(iterate_batches(with_))
    assert decoded.taken() == []


CHANGES = ("content", "renamed", "added", "image_size", "background", "channels", "center_crop", "version")


@pytest.mark.parametrize("change", CHANGES)
def test_cache_key_contains_everything_that_images_depend_on(
    change: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "copy"))  # with their times
    one, settings = source / "train" / "b" / "03.png", {}
    monkeypatch.setattr(ImageCache, "fill", lambda *_: None)
    old = get_key(open_data(photos, tmp_path))
    assert get_key(open_data(source, tmp_path, weak_view=VIEWS, seed=3, num_labels=9)) == old  # none of these
    one.touch()
    assert get_key(open_data(source, tmp_path)) == old  # nor its time
    if change == "content":  # as `cp -p` of another file leaves it, with the size and time that it had
        content = one.read_bytes()
        one.write_bytes(content + b"a")  # behind the end of the image, where any byte may stand
        before, old = one.stat(), get_key(open_data(source, tmp_path))
        one.write_bytes(content + b"b")
        os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "renamed":
        one.rename(one.with_name("03b.png"))
    elif change == "added":
        shutil.copy2(one, one.with_name("03b.png"))
    elif change == "version":
        monkeypatch.setattr(image_cache, "DECODING", 0)
    else:
        settings = {change: {"image_size": 25, "background": (0, 0, 0), "channels": 1, "center_crop": 0.9}[change]}
    new = open_data(source, tmp_path, **settings)
    assert get_key(new) != old
    cropped = open_data(source, tmp_path, weak_view=WeakView(crop_scale=[0.5, 1.0]), **settings)
    assert get_key(cropped) not in (old, get_key(new))


def get_key(data: ImageDataModule) -> str:
    images = data._stream("labeled", data.splits["labeled"], True)._split.part.storage
    assert isinstance(images, CachedImages)
    return images._cache.key


def damage(folder: Path, how: str) -> None:
    (pixels,), (rows,) = folder.glob("*.u8"), folder.glob("*.rows")
    if how == "a byte":
        content = bytearray(pixels.read_bytes())
        for number in range(len(content) // ROW):
            content[number * ROW + 7] ^= 1
        pixels.write_bytes(content)
    elif how == "zeros":
        pixels.write_bytes(bytes(pixels.stat().st_size))
    elif how == "cut off":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif how == "gone":
        pixels.unlink()
    elif how == "rows cut off":
        os.truncate(rows, rows.stat().st_size - 12)
    else:  # rows that say that all is stored, and are of another
        rows.write_bytes(np.full(rows.stat().st_size // 4, 9, "<u4").tobytes())


@pytest.mark.parametrize("how", ["a byte", "zeros", "cut off", "gone", "rows cut off", "rows that lie"])
def test_damaged_cache_is_detected_and_rebuilt(how: str, photos: Path, tmp_path: Path, decoded: Decoded) -> None:
    list(iterate_batches(open_data(photos, tmp_path)))
    held = next(tmp_path.glob("*.u8")).open("rb")  # by a run that has it mapped
    damage(tmp_path, how)
    with pytest.warns(match="is damaged") if how in ("a byte", "zeros", "rows that lie") else nullcontext():
        assert have_same_batches(open_data(photos, None), open_data(photos, tmp_path))
    assert have_same_batches(open_data(photos, None), open_data(photos, tmp_path))  # what was damaged is stored again
    with held:  # what is cut off under a map ends its process
        made_anew = next(tmp_path.glob("*.u8")).stat().st_ino != os.fstat(held.fileno()).st_ino
        assert made_anew == (how in ("cut off", "gone", "rows cut off"))
    decoded.taken()
    list(iterate_batches(open_data(photos, tmp_path)))
    assert decoded.taken() == []


def test_unreadable_image_is_skipped_or_refused_as_without_a_cache(
    photos: Path, tmp_path: Path, decoded: Decoded
) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "copy"))
    bad = break_middle(source / "train" / "a" / "03.png")
    kept = bad.stat()
    with_, without = (open_data(source, cache, on_bad_image="skip") for cache in (tmp_path / "cache", None))
    assert have_same_batches(with_, without)
    assert with_.bad.reasons == without.bad.reasons == {str(bad): next(iter(without.bad.reasons.values()))}
    decoded.taken()
    again = open_data(source, tmp_path / "cache", on_bad_image="skip")
    assert have_same_batches(again, without)
    assert again.bad.reasons == without.bad.reasons
    for data in (open_data(source, tmp_path / "cache"), open_data(source, tmp_path / "new")):
        with pytest.raises(InputError, match="on_bad_image: skip") as caught:
            data.train_dataloader()
        assert repr(str(bad)) in str(caught.value)
    decoded.taken()
    open_data(source, tmp_path / "new", on_bad_image="skip").train_dataloader()
    assert len(decoded.taken()) < 20  # what came before the bad one is kept
    # A file that becomes readable without a new modification time, as after a disk error, is used again.
    shutil.copyfile(photos / "train" / "a" / "03.png", bad)
    os.utime(bad, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert have_same_batches(open_data(source, tmp_path / "cache"), open_data(source, None))


def test_cache_that_cannot_be_written_is_reported_in_one_sentence(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"cache '.*file' cannot be written \(.+\): free space or change its permissions"
    ):
        open_data(photos, tmp_path / "file").train_dataloader()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * ROW - 1))
    error = r"needs 0.000 GB for 20 images of 3 x 24 x 24 bytes, and 0.000 GB are free there: free space, name another"
    with pytest.raises(InputError, match=error):
        open_data(photos, tmp_path / "cache").train_dataloader()
    assert [path.suffix for path in tmp_path.glob("cache/*")].count(".u8") == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * ROW))
    with caplog.at_level("INFO"):
        open_data(photos, tmp_path / "cache").train_dataloader()
    assert f"20 files are decoded once and kept in '{tmp_path / 'cache'}': 0.000 GB (0.000 GB are free" in caplog.text


# --- multiple processes


def fill(photos: Path, cache: Path, queue: Any, workers: int = 0) -> None:
    """Fill the caches of three splits and put "done" or the error into the queue."""
    try:
        data = open_data(photos, cache, num_workers=workers)
        data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        queue.put("done")
    except InputError as error:
        queue.put(str(error))


def test_worker_processes_fill_the_cache(photos: Path, tmp_path: Path, decoded: Decoded) -> None:
    assert have_same_batches(open_data(photos, tmp_path, num_workers=2), open_data(photos, None))
    decoded.taken()
    list(iterate_batches(open_data(photos, tmp_path)))
    assert decoded.taken() == []
    crops = {"weak_view": WeakView(crop_scale=[0.2, 1.0])}
    assert have_same_batches(open_data(photos, tmp_path, num_workers=2, **crops), open_data(photos, tmp_path, **crops))


def test_one_of_two_processes_decodes_while_the_other_waits(
    photos: Path, tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, waiting, go, queue = FORK.Event(), FORK.Event(), FORK.Event(), FORK.Queue()
    real = images.open_image
    counted = FORK.Value("i", 0)

    def slow(path: Path, *rest: Any) -> Image.Image:
        with counted.get_lock():
            counted.value += 1
        inside.set()
        assert go.wait(60)
        return real(path, *rest)

    monkeypatch.setattr(image_cache, "open_image", slow)
    monkeypatch.setattr(image_cache, "report_wait", waiting.set)
    first, second = (FORK.Process(target=fill, args=(photos, tmp_path, queue)) for _ in range(2))
    first.start()
    assert inside.wait(60)
    second.start()
    assert waiting.wait(60)
    assert counted.value == 1
    go.set()
    assert [queue.get(timeout=60) for _ in range(2)] == ["done"] * 2
    first.join()
    second.join()
    assert counted.value == 48  # 20 to train on, 4 to validate with and 24 to test on
    assert have_same_batches(open_data(photos, None), open_data(photos, tmp_path))


def test_killed_builder_leaves_no_cache_that_looks_complete(
    photos: Path, tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = images.open_image, list[Path]()

    def killed(path: Path, *rest: Any) -> Image.Image:
        seen.append(path)
        if len(seen) == 19:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "open_image", killed)
        patch.setattr(image_cache, "_SYNC", 0)
        process = FORK.Process(target=fill, args=(photos, tmp_path, FORK.Queue()))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    data = open_data(photos, tmp_path)
    decoded.taken()
    data.train_dataloader()
    assert len(decoded.taken()) == 4  # of 20: the 16 before are stored, two were written and not yet marked
    assert have_same_batches(open_data(photos, None), open_data(photos, tmp_path))
    assert {path.suffix for path in tmp_path.iterdir()} == {".u8", ".rows", ".json"}


def fill_with_limit(photos: Path, cache: Path, queue: Any, most: int, workers: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    fill(photos, cache, queue, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_full_disk_is_reported_in_one_sentence(photos: Path, tmp_path: Path, workers: int) -> None:
    queue = FORK.Queue()
    open_data(photos, tmp_path, labels_per_class=1).train_dataloader()  # makes the files
    process = FORK.Process(target=fill_with_limit, args=(photos, tmp_path, queue, 6 * ROW, workers))
    process.start()
    assert re.fullmatch(r"cache '.*' cannot be written \(File too large\): free space .*", queue.get(timeout=60))
    process.join()
    assert have_same_batches(open_data(photos, None), open_data(photos, tmp_path))


def test_pickled_cache_contains_no_images(photos: Path, tmp_path: Path) -> None:
    data = open_data(photos, tmp_path)
    stream = data._stream("labeled", data.splits["labeled"], True)
    expected = list(stream.batches(0, 2))
    images = stream._split.part.storage
    assert isinstance(images, CachedImages)
    assert len(pickle.dumps(images)) < 16_000 < 20 * ROW
    first = stream._split.indices[int(expected[0].indices[0])]
    assert torch.equal(deepcopy(images).read(first, data.geometry, None), expected[0].inputs[0])


# --- in training


def test_training_is_identical_and_prediction_does_not_use_the_cache(
    photos: Path, workdir: Path, decoded: Decoded
) -> None:
    losses, weights = [], []
    for cache in (None, "cache"):
        data = ImageDataModule(
            str(photos), cache=cache, image_size=SIZE, num_workers=0, val_size=4, batch_size=5, weak_view=VIEWS
        )
        torch.manual_seed(0)
        seen = Recorder()
        model = FineTuneClassifier("conv", 2, data.image_shape, optimizer=lambda p: torch.optim.SGD(p, 0.05))
        run = trainer([seen], max_epochs=3)
        run.fit(model, data)
        losses.append([*seen.losses, float(run.callback_metrics["val/loss"])])
        weights.append(state(model))
        if cache is not None:
            decoded.taken()
            for _ in range(2):
                run.predict(model, data)
                assert decoded.taken() == sorted(path_of(data, "test"))
    assert len(losses[0]) == 3 * 4 + 1
    assert losses[0] == losses[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("threads", [2, 8])
def test_reading_a_batch_equals_reading_its_images_one_by_one(
    threads: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "count_cores", lambda: threads)
    data = open_data(photos, tmp_path / "cache")
    split = data.splits["labeled"]
    fresh, *_ = data.prepare_reading("labeled", split, train=False)
    kept = fresh.part.storage
    assert isinstance(kept, CachedImages)
    wanted = list(split.indices[:7])
    expected = torch.stack([kept.read(i, data.geometry, None) for i in wanted])
    assert kept.read_batch(wanted) is not None
    for some in (kept, deepcopy(kept)):  # which has looked at them, and which has not
        for _ in range(2):
            images = some.read_batch(wanted)
            assert images is not None
            assert torch.equal(images, expected)
    assert kept.read_batch([i for i in range(len(kept)) if i not in split.indices][:1]) is None  # not stored
    other = deepcopy(kept)
    with other._cache._pixels_path.open("r+b") as file:
        file.seek(int(other._rows[wanted[3]]) * ROW + 5)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 255]))
    with pytest.warns(UserWarning, match="is damaged: its files are decoded again"):
        assert other.read_batch(wanted) is None
    assert torch.equal(other.read(wanted[3], data.geometry, None), expected[3])


def test_source_without_files_reports_that_the_cache_is_unused(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ImageDataModule("sample", num_labels=20, cache="decoded").setup("fit")
    assert "cache 'decoded' is not used: none of the images is a separate file" in caplog.text
    assert not Path("decoded").exists()


@pytest.mark.slow
def test_image_folder_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ["--images=24", "--rounds=1", "--times=2", f"--out={out}"]
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "image_folder.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    result = json.loads(out.read_text())
    assert set(result["images_per_second"]) == {"image_folder", "without_cache", "first_epoch", "later_epoch", "again"}
    assert list(result["memory_mib"]) == ["24 images", "48 images"]

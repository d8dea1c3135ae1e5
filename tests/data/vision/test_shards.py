"""Shards keep everything about a source, give the same batches as files, and report damage."""

import csv
import json
import os
import pickle
import runpy
import signal
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.loaders import Stream, TrainLoader
from sft_lightning.data.sample_orders import Windowed
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import SplitConfig, make_splits
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision import write_shards as module
from sft_lightning.data.vision.images import EncodedImages, Geometry
from sft_lightning.data.vision.prediction_files import open_prediction_source
from sft_lightning.data.vision.shards import ShardImages, ShardSource
from sft_lightning.data.vision.sources import open_source, open_unlabeled
from sft_lightning.data.vision.write_shards import write_shards
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS, ROOT
from tests.data.conftest import break_middle, write_image, write_table
from tests.forks import FORKS
from tests.promises.killed import trained
from tests.promises.test_exact_resume import KILLED, RUNS, SHORT, check, seen

PER_CLASS = {"train": 14, "val": 3, "test": 4, "unlabeled": 10}
SIZE = 8  # images of a shard
JOINT = [*RUNS["joint"], "--data.init_args.image_size=28", "--data.init_args.channels=1"]
QUICK = ["--data.init_args.num_workers=0", "--model.init_args.backbone=mlp"]


def shard(*words: object) -> int:
    """Run `scripts/shard` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["shard", *map(str, words)])
        code: int = runpy.run_path(str(ROOT / "scripts" / "shard"))["main"]()
        return code


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Path:
    return write_folder(tmp_path_factory.mktemp("files") / "set", PER_CLASS)


@pytest.fixture(scope="module")
def shards(files: Path) -> Path:
    out = files.parent / "shards"
    assert shard(files, out, "--shard_size", SIZE) == 0
    return out


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    for file in shards.rglob("*.*"):
        (tmp_path / "shards" / file.relative_to(shards)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / file.relative_to(shards)).write_bytes(file.read_bytes())
    return tmp_path / "shards"


def content(part: Examples) -> dict[str, tuple[bytes, int, str | None]]:
    """Return bytes, label and group of each example, by name."""
    assert isinstance(part.storage, EncodedImages)
    found = {}
    for i, name in enumerate(part.ids):
        file = part.storage.file(i)
        data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        found[name] = data, int(part.labels[i]), None if part.groups is None else part.groups[i]
    assert len(found) == len(part)
    return found


def ids(parts: dict[str, Examples], **request: Any) -> dict[str, set[str]]:
    """Return the names in each split of a source."""
    return {name: set(s.ids) for name, s in make_splits(parts, None, SplitConfig(**request), ("a", "b", "c")).items()}


# --- what is written


def test_shards_keep_the_bytes_of_a_folder(files: Path, shards: Path) -> None:
    source = open_source(str(shards))
    assert isinstance(source, ShardSource)
    assert source.class_names == open_source(str(files)).class_names
    expected, found = open_source(str(files)).load(), source.load()
    assert list(found) == list(expected) == ["train", "val", "test", "unlabeled"]
    for name, part in expected.items():
        assert content(found[name]) == content(part)
        assert list(found[name].ids) != part.ids  # mixed: files of a class lie together
    sizes = [chunk["chunk_size"] for chunk in json.loads((shards / "train" / "index.json").read_text())["chunks"]]
    assert sizes == [8, 8, 8, 8, 8, 2]


def test_shards_keep_groups_splits_and_blank_labels_of_a_manifest(tmp_path: Path) -> None:
    rows = [["path", "label", "split", "group"]]
    for i in range(24):
        write_image(tmp_path / f"{i}.png", i)
        label = "" if i % 3 == 2 else f"class {i % 3}"
        rows.append([f"{i}.png", label, "test" if i < 4 and label else "", f"patient é{i // 2}" if i != 9 else ""])
    manifest = write_table(tmp_path / "set.csv", [rows[0], *(row for row in rows[1:] if row[3] != "patient é1")])
    assert shard(manifest, tmp_path / "out", "--shard_size", 5) == 0
    expected, found = open_source(str(manifest)).load(), open_source(str(tmp_path / "out")).load()
    assert list(found) == list(expected) == ["train", "test", "unlabeled"]
    for name, part in expected.items():
        assert content(found[name]) == content(part)
    assert ids(found, val_size=4) == ids(expected, val_size=4)


def test_shards_keep_the_shape_of_pixels_in_memory(tmp_path: Path) -> None:
    source = open_source("sample")
    train = source.load()["test"]
    source.load = lambda: {"train": Examples(train.images, train.ids[:50], train.labels[:50])}  # type: ignore[method-assign]
    assert write_shards(source, tmp_path / "out", 20) == {"train": 50}
    found = open_source(str(tmp_path / "out"))
    part = found.load()["train"]
    assert found.image_shape == (1, 28, 28)
    assert isinstance(part.storage, ShardImages)
    assert isinstance(train.images, TensorStorage)
    for i, name in enumerate(part.ids):
        assert torch.equal(part.storage.read(i, Geometry(28, 1), None), train.images.data[train.ids.index(name)])


def test_shards_take_the_splits_of_a_run(files: Path, tmp_path: Path) -> None:
    data = ImageDataModule(str(files), num_labels=9, seed=3)
    data.setup("fit")
    data.write_splits(tmp_path / "split.csv", data.splits)
    assert shard(files, tmp_path / "out", "--split_file", tmp_path / "split.csv") == 0
    parts = open_source(str(tmp_path / "out")).load()
    assert {name: set(part.ids) for name, part in parts.items()} == {
        "train" if name == "labeled" else name: set(split.ids) for name, split in data.splits.items()
    }
    assert len(parts["train"]) == 9


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.bmp", "PNG")])
def test_larger_images_are_reduced_in_their_format(name: str, kind: str, tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "x" / name, 0, (60, 40))
    write_image(tmp_path / "set" / "x" / "small.png", 1, (30, 20))
    assert shard(tmp_path / "set", tmp_path / "out", "--image_size", 20) == 0
    part = open_source(str(tmp_path / "out")).load()["train"]
    stored = {name: data for name, (data, _, _) in content(part).items()}
    assert stored["x/small.png"] == (tmp_path / "set" / "x" / "small.png").read_bytes()
    with Image.open(BytesIO(stored[f"x/{name}"])) as image:
        assert (image.format, image.size) == (kind, (30, 20))
        with Image.open(tmp_path / "set" / "x" / name) as original:
            expected = original.convert("RGB").resize((30, 20), Image.Resampling.BICUBIC)
        difference = np.asarray(image.convert("RGB"), dtype=int) - np.asarray(expected, dtype=int)
        assert abs(difference).mean() < (20 if kind == "JPEG" else 1e-9)  # noise suffers most from JPEG


# --- what is refused


def test_existing_folder_is_not_overwritten(
    files: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (shards / "shards.json").read_bytes()
    assert shard(files, shards) == 2
    told = capsys.readouterr().err
    assert told == f"shard: {str(shards)!r} already exists: give the path of a new folder, or remove it\n"
    assert (shards / "shards.json").read_bytes() == before
    assert not list(shards.parent.glob("*.part"))
    assert shard(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "is neither a folder or manifest that exists" in capsys.readouterr().err


def test_unreadable_images_stop_sharding_or_are_skipped(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        write_image(tmp_path / "set" / "x" / f"{i}.png", i, (40, 40))
    break_middle(tmp_path / "set" / "x" / "1.png")  # found where it is decoded
    (tmp_path / "set" / "x" / "2.png").write_bytes(b"nothing")  # found by its header
    words = (tmp_path / "set", tmp_path / "out", "--image_size", 20)
    assert shard(*words) == 2
    assert "2.png' cannot be read: it is not an image of a known format; replace" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()
    assert shard(*words, "--on_bad_image", "skip") == 0
    assert "2 unreadable files are skipped" in capsys.readouterr().err
    part = open_source(str(tmp_path / "out")).load()["train"]
    assert set(part.ids) == {"x/0.png", "x/3.png"}
    assert set(content(part)) == {"x/0.png", "x/3.png"}


def _killed(source: str, out: Path, after: int) -> None:
    own, left = module.encode_for_shard, after

    def stored(*args: Any) -> bytes:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*args)

    module.encode_for_shard = stored  # type: ignore[assignment]
    write_shards(open_source(source), out, SIZE)


def test_interrupted_sharding_leaves_no_shards(files: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = FORKS.Process(target=_killed, args=(str(files), out, 60))  # train is written, val begun
    process.start()
    process.join(60)
    assert process.exitcode == KILLED
    assert not out.exists()
    assert (tmp_path / "out.part" / "train" / "index.json").is_file()
    for left in (out, tmp_path / "out.part"):
        with pytest.raises(InputError, match=r"neither a folder|no image"):
            open_source(str(left))
    assert shard(files, out, "--shard_size", SIZE) == 0
    assert not (tmp_path / "out.part").exists()
    assert [content(part) for part in open_source(str(out)).load().values()] == [
        content(part) for part in open_source(str(shards)).load().values()
    ]


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "train" / "index.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return spoil


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 8)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda f: (f / "shards.json").write_text("{"), "shards.json' cannot be read"),
    "another version": (lambda f: (f / "shards.json").write_text('{"format": "2"}'), "does not have the format"),
    "a list": (lambda f: (f / "shards.json").write_text("[]"), "does not have the format"),
    "no index": (lambda f: (f / "train" / "index.json").unlink(), "index.json' cannot be read"),
    "a pickle": (index(lambda i: i["config"].update(data_format=["pickle"])), "data_format ['pickle'], which"),
    "a class": (index(lambda i: i["config"].update(data_spec='[1, {"type": "x"}]')), "data_spec"),
    "compressed": (index(lambda i: i["config"].update(compression="zstd")), "compression 'zstd', which"),
    "outside": (index(lambda i: i["chunks"][0].update(filename="../test/chunk-0-0.bin")), "lists a shard '../test"),
    "fewer": (index(lambda i: i["chunks"].pop()), "has 40 images, not 42"),
    "a shard is gone": (lambda f: (f / "train" / "chunk-0-1.bin").unlink(), "chunk-0-1.bin' is missing or not"),
    "a shard is cut": (cut("train/chunk-0-2.bin"), "chunk-0-2.bin' is missing or not"),
    "labels are cut": (cut("train/labels.bin"), "labels.bin' does not hold 42 entries"),
    "names are cut": (cut("train/ids.ends.bin"), "ids.ends.bin' does not hold 42 entries"),
    "labels of no class": (
        lambda f: (f / "train" / "labels.bin").write_bytes(np.full(42, 3, "<i8").tobytes()),
        "has labels beyond the classes",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_shards_are_refused_before_reading_images(kind: str, copied: Path) -> None:
    spoil, sentence = DAMAGE[kind]
    open_source(str(copied)).load()
    spoil(copied)
    with pytest.raises(InputError, match=r"again") as told:
        open_source(str(copied)).load()
    assert sentence in str(told.value)


def test_damaged_image_in_a_shard_is_an_unreadable_image(copied: Path) -> None:
    path = copied / "train" / "chunk-0-0.bin"
    raw = bytearray(path.read_bytes())
    first = int.from_bytes(raw[4:8], "little")  # where the first image begins
    raw[first : first + 40] = bytes(40)
    path.write_bytes(raw)
    data = ImageDataModule(str(copied), image_size=28, on_bad_image="skip", num_workers=0)
    data.setup("fit")
    broken = next(iter(open_source(str(copied)).load()["train"].ids))
    assert sum(len(batch.indices) for batch in data.batches_of("labeled", torch.device("cpu"))) == 41
    assert list(data.bad.reasons) == [str(copied / "train" / broken)]
    data.bad = BadFiles()
    with pytest.raises(InputError, match="cannot be read: it is not an image of a known format"):
        list(data.batches_of("labeled", torch.device("cpu")))


def test_missing_extra_is_named(
    files: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sft_lightning.data.vision.shards.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"made of shards, needs the extra 'stream': pip install 'sft-lightning\[str"):
        open_source(str(shards))
    assert shard(files, tmp_path / "out") == 2
    assert "making shards needs the extra 'stream'" in capsys.readouterr().err


# --- a source like the others


@pytest.mark.parametrize("request_", [{}, {"num_labels": 9, "seed": 5}, {"labels_per_class": 4}])
@pytest.mark.parametrize("given", [("train", "val", "test", "unlabeled"), ("train", "unlabeled"), ("train",)])
def test_shards_get_the_same_splits_as_files(
    given: tuple[str, ...], request_: dict[str, Any], files: Path, shards: Path
) -> None:
    one, two = (
        {name: part for name, part in open_source(str(path)).load().items() if name in given}
        for path in (files, shards)
    )
    assert ids(one, **request_) == ids(two, **request_)


def test_equal_images_are_found_across_shards_and_files(files: Path, shards: Path) -> None:
    data = ImageDataModule(str(shards), unlabeled_source=str(files), num_labels=6)
    data.setup("fit")
    # All of the files' training images are the shards', which hold nothing out of them.
    assert len(data.splits["unlabeled"]) == 42 + 30
    held = ImageDataModule(str(files), unlabeled_source=str(shards), num_labels=6)
    held.setup("fit")
    assert all(name.startswith(f"{shards}:") for name in held.splits["unlabeled"].ids)
    only_test = open_source(str(files)).load()["test"]
    request = SplitConfig()
    splits = make_splits({"train": open_source(str(shards)).load()["test"], "test": only_test}, None, request, "abc")
    assert not len(splits["labeled"])
    assert "12 examples were dropped" in str(request.findings[0])


def test_images_of_shards_are_not_kept_in_memory(shards: Path) -> None:
    parts = open_source(str(shards)).load()
    splits = make_splits(parts, None, SplitConfig(), "abc")
    for split in splits.values():
        assert not isinstance(split.part.ids, list)
        assert isinstance(split.indices, range)
    joined = make_splits(parts, None, SplitConfig(num_labels=6), "abc")["unlabeled"]
    assert not isinstance(joined.part.ids, list)
    assert len(pickle.dumps(joined.part.storage)) < 6000  # what a worker that is not forked gets
    again = pickle.loads(pickle.dumps(joined.part.storage))  # noqa: S301
    assert again.fingerprints([0, 35, 65]) == joined.part.storage.fingerprints([0, 35, 65])
    assert again.file(65).getvalue() == content(joined.part)[joined.part.ids[65]][0]


def test_shards_serve_as_unlabeled_source_and_for_prediction(files: Path, shards: Path) -> None:
    assert set(open_unlabeled(str(shards)).ids) == {
        f"{shards}:{name}" for part in ("train", "unlabeled") for name in open_source(str(files)).load()[part].ids
    }
    part = open_prediction_source(str(shards))
    assert isinstance(part, Examples)
    assert len(part) == 42 + 9 + 12 + 30
    assert isinstance(part.storage, ShardImages)
    assert part.storage.path_of(len(part) - 1) == shards / "unlabeled" / part.ids[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_same_batches_as_files(workers: int, files: Path, shards: Path) -> None:
    """Batches have the same order and pixels with and without workers, and each row keeps its name and label."""
    one, two = (ImageDataModule(str(path), image_size=20, num_workers=workers) for path in (files, shards))
    expected: dict[str, torch.Tensor] = {}
    for data in (one, two):
        data.setup("fit")
    for batch in one.batches_of("labeled", torch.device("cpu")):
        expected |= {one.splits["labeled"].ids[i]: x for i, x in zip(batch.indices.tolist(), batch.x, strict=True)}
    names = two.splits["labeled"].ids
    for batch in two.batches_of("labeled", torch.device("cpu")):
        for i, x, y in zip(batch.indices.tolist(), batch.x, batch.y.tolist(), strict=True):
            assert torch.equal(x, expected.pop(names[i]))
            assert names[i].startswith(f"train/class_{y}/")
    assert not expected


# --- the order


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**40), st.data())
def test_a_pass_holds_each_example_once_and_few_shards_at_a_time(
    lengths: list[int], window: int, seed: int, data: st.DataObject
) -> None:
    order = Windowed(torch.tensor(lengths), window, seed)
    whole = order[:]
    assert sorted(whole.tolist()) == list(range(sum(lengths)))
    assert torch.equal(whole, Windowed(torch.tensor(lengths), window, seed)[0 : len(order)])
    first = data.draw(st.integers(0, len(order)))
    last = data.draw(st.integers(first, len(order)))
    assert torch.equal(order[first:last], whole[first:last])
    shard_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[whole]
    firsts, lasts = ({}, {})  # type: dict[int, int], dict[int, int]
    for place, number in enumerate(shard_of.tolist()):
        firsts.setdefault(number, place)
        lasts[number] = place
    for place in range(len(whole)):  # shards that are under way
        assert sum(firsts[s] <= place <= lasts[s] for s in firsts) <= window


def test_orders_differ_by_pass_and_by_seed() -> None:
    lengths = torch.full((6,), 10)
    orders = [tuple(Windowed(lengths, 2, seed)[:].tolist()) for seed in range(20)]
    assert len(set(orders)) == 20
    first_shards = {frozenset(i // 10 for i in order[:20]) for order in orders}
    assert len(first_shards) > 5
    assert any(order[:20] != tuple(sorted(order[:20])) for order in orders)


def test_window_applies_only_to_more_shards_than_it_holds(shards: Path) -> None:
    split = make_splits(open_source(str(shards)).load(), None, SplitConfig(), "abc")["labeled"]
    order = split.part.storage.pass_order(split.indices, 2)
    assert order is not None
    assert [sorted({i // SIZE for i in order(0)[k * 16 : k * 16 + 16].tolist()}) for k in range(2)] != [[0, 1], [2, 3]]
    assert split.part.storage.pass_order(split.indices, 6) is None  # an ordinary shuffle
    assert sorted(order(3)[:].tolist()) == list(range(42))
    data = ImageDataModule(str(shards), shard_window=2, batch_size=16)
    data.setup("fit")
    plan = data._plan("labeled", data.splits["labeled"], train=True)
    assert torch.equal(plan[0][0], order(0)[:16])


def plan(count: int, batch_size: int, rank: int, ranks: int, endless: bool, windowed: bool) -> BatchPlan:
    def order(seed: int) -> Windowed:
        return Windowed(torch.tensor([5] * (count // 5) + [count % 5] * (count % 5 > 0)), 3, seed)

    return BatchPlan(count, batch_size, 1, True, rank, ranks, endless, None, order if windowed else None)


@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30), st.booleans(), st.booleans())
def test_ranks_partition_the_examples_of_one_process(
    count: int, batch_size: int, ranks: int, g: int, endless: bool, windowed: bool
) -> None:
    if count < ranks:
        return
    each = [plan(count, batch_size, rank, ranks, endless, windowed)[g][0] for rank in range(ranks)]
    one = plan(count, batch_size * ranks, 0, 1, endless, windowed)
    if endless or one.per_pass == plan(count, batch_size, 0, ranks, endless, windowed).per_pass:
        assert torch.equal(torch.cat(each), one[g][0])
    if not endless:
        assert len(torch.cat(each).unique()) == sum(map(len, each))


class _Bare(Stream):
    """Stream that yields only positions."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        yield from (self.plan[g][0].tolist() for g in range(start, stop))


@given(
    st.integers(8, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3),
    st.integers(0, 25), st.booleans(), st.booleans(),
)  # fmt: skip
def test_resuming_on_another_number_of_processes_continues_the_pass(
    count: int, size: int, ranks: int, new_size: int, new_ranks: int, stop: int, endless: bool, windowed: bool
) -> None:
    """No example repeats in a pass, and fewer are left out than the examples of one global batch."""

    def loaders(size: int, ranks: int) -> list[TrainLoader]:
        plans = [plan(count, size, rank, ranks, endless, windowed) for rank in range(ranks)]
        return [TrainLoader({"labeled": _Bare(plan)}, 26) for plan in plans]

    def steps(loaders: list[TrainLoader], most: int) -> list[list[int]]:
        each: list[Iterator[Any]] = [iter(loader) for loader in loaders]
        return [[i for own in each for i in next(own)["labeled"]] for _ in range(most)]

    old = loaders(size, ranks)
    before = steps(old, stop)
    saved = json.loads(json.dumps(old[0].state_dict()))  # as a checkpoint has it
    new = loaders(new_size, new_ranks)
    for loader in new:
        loader.load_state_dict(saved)
    after = steps(new, 26 - stop)
    seen, rest = [i for step in before for i in step], [i for step in after for i in step]
    number, begun = divmod(len(seen), count)
    one, width = new[0].streams["labeled"].plan, new_size * new_ranks
    if size * ranks == width and old[0].streams["labeled"].plan.per_pass == one.per_pass:
        assert before + after == steps(loaders(new_size, new_ranks), 26)
        return
    if endless:
        skipped = -len(seen) % width
        go_on = rest[: max(0, count - begun - skipped)]
    else:
        first = new[0]._before("labeled", stop)
        go_on = [i for step in after[: max(0, (number + 1) * one.per_pass - first)] for i in step]
        whole = stop < 26 and first + len(after) >= (number + 1) * one.per_pass
        skipped = count - begun - len(go_on) if whole else 0
    assert skipped < width + (0 if endless else 2 * new_ranks)  # the last batch of a pass may be larger
    assert len(set(go_on)) == len(go_on)
    assert not set(seen[len(seen) - begun :]) & set(go_on)
    if stop < 26:
        again = loaders(new_size, new_ranks)  # and saved again, it goes on from there
        for loader in again:
            loader.load_state_dict(json.loads(json.dumps(new[0].state_dict())))
        assert [own._before("labeled", 26) for own in again] == [own._before("labeled", 26) for own in new]


def test_resuming_after_an_epoch_on_other_processes_starts_the_next_pass() -> None:
    def loader(ranks: int) -> TrainLoader:
        one = plan(40, 4, 0, ranks, False, True)
        return TrainLoader({"labeled": _Bare(one)}, one.per_pass)  # an epoch is a pass

    old, new, fresh = loader(2), loader(1), loader(1)
    assert len(list(old)) == 5
    new.load_state_dict(old.state_dict())
    for own in (new, fresh):
        own.set_epoch(1)
    assert len(new) == 10
    assert list(new) == list(fresh)


# --- whole runs


def words(shards: Path, *more: str) -> list[str]:
    return [*JOINT, f"--data.init_args.source={shards}", "--data.init_args.shard_window=2", *more]


def test_run_killed_on_two_processes_continues_its_pass_on_one(shards: Path, tmp_path: Path) -> None:
    """Each of the 60 unlabeled examples is used once in a pass, although the number of ranks changes."""
    own = words(shards, *QUICK, "--data.init_args.num_labels=6", "--data.init_args.unlabeled_ratio=2")
    own = ["fit", *own[:2], *SHORT, *own[2:], "--data.init_args.batch_size=2", "--data.init_args.steps_per_epoch=12"]
    own += ["--trainer.max_epochs=1", "--model.init_args.warmup_steps=0"]  # unlabeled examples from the first step on
    assert KILLED in trained(own, tmp_path, "step", 6, 2)
    before = [seen(tmp_path, rank) for rank in (0, 1)]
    (tmp_path / "seen0.jsonl").unlink()
    assert trained([*own, "--ckpt_path=last"], tmp_path) == [0]
    after = seen(tmp_path)
    first = min(after)
    assert 0 < first <= 6
    old = [i for step in range(first) for rank in before for i in rank[step]["unlabeled"]]
    new = [i for step in sorted(after) for i in after[step]["unlabeled"]]
    assert len(old) == len(set(old)) == first * 8  # two disjoint ranks of 2 * 2
    assert len(new) == len(after) * 4
    count = 36 + 30
    left = count - len(old)
    assert not set(old) & set(new[: left - left % 4])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_run_equals_an_uninterrupted_one(ranks: int, shards: Path, tmp_path: Path) -> None:
    own = words(shards, "--data.init_args.num_workers=1", "--data.init_args.num_labels=20")
    check(own, tmp_path, [("step", 9), ("save", 2)], ranks)


def test_run_on_shards_is_tested_audited_and_predicts(
    shards: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.init_args.source={shards}", "--data.init_args.image_size=28", "--data.init_args.channels=1"]
    data += ["--data.init_args.num_labels=12", "--data.init_args.num_workers=0", "--data.init_args.steps_per_epoch=3"]
    config = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--trainer.max_epochs=1", "--run_name=run"]
    assert main(["fit", *config, *data, "--trainer.accelerator=cpu"]) == 0
    run = Path("lightning_logs/run/version_0")
    with (run / "split.csv").open() as file:
        file.readline()
        listed = [(row["split"], row["id"]) for row in csv.DictReader(file)]
    assert len(set(listed)) == 93
    assert main(["test", str(run)]) == 0  # reads split.csv
    assert main(["predict", str(run), str(shards)]) == 0
    with (run / "predictions.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == {name for _, name in listed}
    capsys.readouterr()
    assert main(["audit", *config[:2], *data]) == 0
    told = capsys.readouterr().out
    assert "sizes    28x28 (93)" in told
    assert "The data is clean." in told

"""Every new split reports classes, splits and groups that got fewer examples than requested."""

import re
from collections import Counter
from pathlib import Path

import pytest

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.quotas import quotas
from sft_lightning.data.split_checks import check_splits, check_unlabeled_batch
from sft_lightning.data.splits import SplitConfig, Splits, choose, make_splits
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.data.conftest import MakeFolder, make_examples, write_image, write_table

CLASSES = ["ant", "bee", "cat", "fly"]
Counts = list[list[int]]


def split(labels: list[int], request: SplitConfig, groups: list[str] | None = None) -> Splits:
    part = make_examples(labels)
    part.groups = groups
    splits = make_splits({"train": part}, None, request, CLASSES[: max(labels) + 1])
    check_splits(splits, {"train": part}, request, CLASSES[: max(labels) + 1])
    return splits


def counts(splits: Splits, classes: int) -> Counts:
    """Count the examples of each class in training, validation and test."""
    found = (Counter(splits[name].labels.tolist()) for name in ("labeled", "val", "test"))
    return [[one[c] for c in range(classes)] for one in found]


@pytest.mark.parametrize(
    ("sizes", "request_", "expected", "said"),
    [
        (
            [20, 20, 1, 2],
            SplitConfig(),
            [[14, 15, 1, 1], [2, 1, 0, 0], [4, 4, 0, 1]],
            ["validation has no example of class 'cat', 'fly'", "test has no example of class 'cat'"],
        ),
        (
            [20, 20, 20, 1],
            SplitConfig(),
            [[14, 14, 15, 1], [2, 2, 1, 0], [4, 4, 4, 0]],
            ["neither validation nor test has an example of class 'fly'"],
        ),
        (
            [1, 1, 1, 1],
            SplitConfig(),
            [[1, 1, 1, 1], [0] * 4, [0] * 4],
            [
                "test is empty: test_size is 0.2 of 4 examples, but each one is the last of its class; give more, or "
                "set test_size: 0",
                "validation is empty: val_size is 0.1 of 4 examples, which is less than one; ask for more",
            ],
        ),
        ([20, 20, 1, 2], SplitConfig(val_size=0, test_size=0), [[20, 20, 1, 2], [0] * 4, [0] * 4], []),
        ([20, 20, 1, 2], SplitConfig(val_size=20, test_size=19), [[1, 1, 1, 1], [10, 10, 0, 0], [9, 9, 0, 1]], None),
        ([20, 20, 20, 20], SplitConfig(), [[14, 14, 15, 15], [2, 2, 1, 1], [4] * 4], []),
        (
            [3, 3],
            SplitConfig(val_size=3, test_size=0),
            [[1, 2], [2, 1], [0, 0]],
            [],
        ),
        (
            [2, 2],
            SplitConfig(val_size=0, test_size=3),  # who asks for a number gets it
            [[0, 1], [0, 0], [2, 1]],
            ["training has no label of class 'ant', so it cannot be learned: all of its labeled examples are in "
             "validation or test"],
        ),
        (
            [5, 0, 5],
            SplitConfig(val_size=0, test_size=0),
            [[5, 0, 5], [0] * 3, [0] * 3],
            ["training has no label of class 'bee', so it cannot be learned: the source has no labeled example of it "
             "that can be read and is in no other split"],
        ),
    ],
)  # fmt: skip
def test_every_class_keeps_a_training_label(
    sizes: list[int], request_: SplitConfig, expected: Counts, said: list[str] | None
) -> None:
    splits = split([c for c, n in enumerate(sizes) for _ in range(n)], request_)
    assert counts(splits, len(sizes)) == expected
    assert said is None or [*map(str, request_.findings)] == said


@pytest.mark.parametrize("seed", range(5))
def test_no_seed_loses_a_class(seed: int) -> None:
    sizes = [12, 1, 5, 2]
    splits = split([c for c, n in enumerate(sizes) for _ in range(n)], SplitConfig(seed, val_size=5, test_size=5))
    assert min(counts(splits, 4)[0]) >= 1
    assert [len(splits[name]) for name in ("labeled", "val", "test")] == [10, 5, 5]


def test_small_class_keeps_training_labels_while_others_give_more() -> None:
    assert quotas({0: 40, 1: 2, 2: 1}, 30, keep=1) == {0: 29, 1: 1, 2: 0}
    assert quotas({0: 40, 1: 2, 2: 1}, 30) == {0: 28, 1: 1, 2: 1}
    assert quotas({0: 2, 1: 1}, 2, keep=1) == quotas({0: 2, 1: 1}, 2)
    assert quotas({0: 600, 1: 300, 2: 100}, 10, keep=1) == quotas({0: 600, 1: 300, 2: 100}, 10)


def videos(count: int, frames: int, classes: int, within: bool) -> tuple[list[int], list[str]]:
    """Make labels and groups whose classes alternate within each video, or from video to video."""
    turns = range(count * frames)
    return [(i if within else i // frames) % classes for i in turns], [f"video {i // frames}" for i in turns]


FEW = "examples, but groups stay together, and each one holds the last examples of a class; give more, or set"
VAL, TEST = (f"25 examples are held out for {name} where" for name in ("validation", "test"))


@pytest.mark.parametrize(
    ("data", "sizes", "said"),
    [
        (videos(8, 25, 2, within=False), [125, 25, 50], [f"{VAL} 15", "validation has no example of class"]),
        (videos(8, 25, 2, within=True), [125, 25, 50], [f"{VAL} 15"]),
        (videos(3, 25, 2, within=True), [25, 25, 25], [f"{TEST} 15", f"{VAL} 5"]),
        (videos(2, 25, 2, within=True), [25, 0, 25], [f"{TEST} 10", f"val_size is 0.1 of 25 {FEW}"]),
        (videos(2, 25, 2, within=False), [50, 0, 0], [f"test is empty: test_size is 0.2 of 50 {FEW}", "validation is"]),
        (videos(1, 25, 2, within=True), [25, 0, 0], ["test is empty", "validation is empty"]),
        (videos(50, 4, 2, within=False), [144, 16, 40], []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_every_split_gets_a_group_if_there_are_enough(
    seed: int, data: tuple[list[int], list[str]], sizes: list[int], said: list[str]
) -> None:
    labels, groups = data
    request = SplitConfig(seed)
    splits = split(labels, request, groups)
    assert [len(splits[name]) for name in ("labeled", "val", "test")] == sizes
    assert set(splits["labeled"].labels.tolist()) == {0, 1}
    assert len(request.findings) == len(said), request.findings
    assert all(words in str(one) for words, one in zip(said, request.findings, strict=True)), request.findings


def test_class_of_a_single_group_stays_in_training() -> None:
    labels, groups = videos(20, 5, 2, within=False)
    ids = [str(i) for i in range(len(labels) + 5)]
    chosen = choose(ids[:-5], labels, groups, {0: 10, 1: 10}, 3, "test")
    kept = choose(ids, [*labels, *[2] * 5], [*groups, *["rare"] * 5], {0: 10, 1: 10, 2: 5}, 3, "test", keep=True)
    assert kept == chosen
    lost = choose(ids, [*labels, *[2] * 5], [*groups, *["rare"] * 5], {0: 10, 1: 10, 2: 5}, 3, "test")
    assert lost == chosen | {*range(100, 105)}


def test_unlabeled_members_of_held_out_groups_are_counted() -> None:
    request = SplitConfig(val_size=0, test_size=0.5)
    splits = split([0, 1, -1] * 4, request, [f"patient {i // 3}" for i in range(12)])
    assert len(splits["test"]) == 4
    (finding,) = request.findings
    assert str(finding) == "2 unlabeled examples were left out: their group is in validation or test"
    assert finding.kind == "held_out_group"
    assert set(finding.examples) | set(splits["unlabeled"].ids) == {f"train/{i}" for i in range(2, 12, 3)}


@pytest.mark.parametrize("number", [1, 2])
def test_fewer_labels_than_classes_are_refused(number: int, folder: MakeFolder) -> None:
    source = str(folder("a", "b", "c", count=6))
    names = "'b'" if number == 2 else "'a', 'b'"
    words = (
        f"num_labels is {number}, fewer than the 3 classes: {names} would have no training label; ask for at least 3"
    )
    with pytest.raises(InputError, match=words):
        ImageDataModule(source, num_labels=number).setup("fit")
    for allowed in (0, 3, None):
        ImageDataModule(source, num_labels=allowed).setup("fit")


def test_class_without_readable_or_clean_images_is_named(folder: MakeFolder) -> None:
    path = folder("train/a", "train/b", "train/gone", "train/leaks", "test/a", "test/leaks", "val/a", count=4)
    for i in range(4):
        (path / "train" / "gone" / f"{i}.png").write_bytes(b"")
        (path / "train" / "leaks" / f"{i}.png").write_bytes((path / "test" / "leaks" / f"{i}.png").read_bytes())
        (path / "val" / "a" / f"{i}.png").write_bytes((path / "test" / "a" / f"{i}.png").read_bytes())
    data = ImageDataModule(str(path), on_bad_image="skip")
    data.setup("fit")
    said = "; ".join(map(str, data.request.findings))
    for words in (
        "training has no label of class 'leaks', so it cannot be learned: all of its labeled examples are in",
        "training has no label of class 'gone', so it cannot be learned: the source has no labeled example of it that",
        "validation is empty, because each of its examples is held out for evaluation elsewhere",
        "test has no example of class 'b', 'gone'",
        "4 unreadable files are skipped",
    ):
        assert words in said, said
    kinds = {(finding.kind, *finding.examples[:2]) for finding in data.request.findings}
    assert {("missing_class", "leaks"), ("missing_class", "b", "gone"), ("empty_split", "val")} <= kinds
    (unreadable,) = (finding for finding in data.request.findings if finding.kind == "unreadable")
    assert list(unreadable.examples) == [str(path / "train" / "gone" / f"{i}.png") for i in range(4)]


def test_split_without_readable_images_is_named(folder: MakeFolder) -> None:
    path = folder("train/a", "train/b", "val/a", count=10)
    for i in range(10):
        (path / "val" / "a" / f"{i}.png").write_bytes(b"")
    data = ImageDataModule(str(path), on_bad_image="skip")
    data.setup("fit")
    assert f"none of the val examples of {path} can be read" in map(str, data.request.findings)


def test_fit_and_audit_report_missing_classes(
    workdir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{i}.png", "cat" if i // 5 % 2 else "dog", f"video {i // 5}") for i in range(40)]
    for k, (name, _, _) in enumerate(rows):
        write_image(Path(name), k)
    write_table(Path("m.csv"), [("path", "label", "group"), *rows])
    words = [
        f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", "--data.init_args.source=m.csv",
        "--data.init_args.image_size=16", "--trainer.max_epochs=1", "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    for command in ("fit", "audit"):
        caplog.clear()
        with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
            assert main([command, *words, "--data.init_args.num_labels=null"]) == 0
        assert "Data: 5 examples are held out for validation where 3 were asked for" in caplog.text
    assert main(["fit", *words, "--data.init_args.num_labels=1"]) == 2
    assert re.search("num_labels is 1, fewer than the 2 classes: '(cat|dog)' would have", capsys.readouterr().err)


def test_other_data_is_evaluated_on_its_test_split_with_a_message(folder: MakeFolder, tmp_path: Path) -> None:
    path = folder("train/a", "train/b", "Testing/a", "Testing/b", count=4)
    own = ImageDataModule(str(path))
    own.setup("fit")
    own.write_splits(tmp_path / "run" / "split.csv", own.splits)
    for k, name in enumerate(("Testing/a", "Testing/b", "train/a", "train/b")):
        for i in range(3):
            write_image(tmp_path / "other" / name / f"new {i}.png", 5000 + 10 * k + i)
    for source, count in (("other", 6), ("other/Testing", 6)):  # and what has no splits at all is measured as a whole
        data = ImageDataModule(str(tmp_path / source))
        data.followed_run = tmp_path / "run"
        data.setup("test")
        assert [len(data.splits[name]) for name in ("labeled", "val", "test")] == [0, 0, count]
        assert any("is not the data of the run: " in str(finding) for finding in data.request.findings)


@pytest.mark.parametrize(
    ("count", "said"), [(1, "has only 1 example, fewer than the 8 labeled"), (7, "0.875 of its weight"), (8, None)]
)
def test_few_unlabeled_images_give_a_warning(count: int, said: str | None) -> None:
    sentence = check_unlabeled_batch(count, 8)
    assert (sentence is None) if said is None else (said in (sentence or ""))


def test_fit_warns_of_few_unlabeled_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
    write_image(tmp_path / "unlabeled" / "one.png", 99)
    words = ["--config", str(CONFIGS / "semi_supervised" / "shared.yaml")]
    words += ["--config", str(CONFIGS / "semi_supervised" / "freematch.yaml"), f"--data.init_args.source={tmp_path}"]
    words += ["--data.init_args.num_labels=null", "--data.init_args.image_size=8", "--model.init_args.backbone=mlp"]
    words += ["--data.init_args.batch_size=8", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    with caplog.at_level("INFO"):
        assert main(["fit", *words]) == 0
    assert "Data: each unlabeled batch has only 1 example, fewer than the 8 labeled" in caplog.text

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from sft_lightning.data.quotas import quotas
from sft_lightning.data.source import Examples
from sft_lightning.data.split_files import digest_examples, read_split_file, write_split_file
from sft_lightning.data.splits import (
    NAMES,
    Split,
    SplitConfig,
    Splits,
    choose,
    make_splits,
)
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.images import FileImages
from sft_lightning.utils.errors import InputError
from tests.data.conftest import make_examples, write_image, write_plain_image

CLASSES = ["ant", "bee", "cat"]
LABELS = st.lists(st.integers(-1, 2), min_size=12, max_size=60).filter(lambda x: all(x.count(c) >= 3 for c in range(3)))
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.dictionaries(st.integers(0, 20), st.integers(1, 50), min_size=1, max_size=12)


def split_ids(part: Examples, request: SplitConfig, **others: Examples) -> dict[str, list[str]]:
    return {name: split.ids for name, split in make_splits({"train": part, **others}, None, request, CLASSES).items()}


def make_file_examples(paths: list[Path], labels: list[int]) -> Examples:
    ids = [path.name for path in paths]
    return Examples(FileImages(paths, ids), ids, torch.tensor(labels))


@given(COUNTS, st.data())
def test_quotas_add_up_and_are_feasible_and_proportional(counts: dict[int, int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts.values())))
    shares = quotas(counts, total)
    assert sum(shares.values()) == total
    assert all(0 <= shares[c] <= n for c, n in counts.items())
    assert total < len(counts) or min(shares.values()) >= 1
    assert all(shares[a] >= shares[b] for a in counts for b in counts if counts[a] > counts[b])
    assert quotas(dict(reversed(counts.items())), total) == shares


@given(COUNTS, st.data())
def test_quotas_never_shrink_when_the_total_grows(counts: dict[int, int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts.values()) - 1))
    smaller, larger = quotas(counts, total), quotas(counts, total + 1)
    assert all(smaller[c] <= larger[c] for c in counts)


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ({0: 50, 1: 50}, 10, {0: 5, 1: 5}),
        ({0: 50, 1: 50, 2: 50}, 8, {0: 3, 1: 3, 2: 2}),
        ({0: 600, 1: 300, 2: 100}, 10, {0: 6, 1: 3, 2: 1}),
        ({0: 998, 1: 1, 2: 1}, 10, {0: 8, 1: 1, 2: 1}),
        ({0: 3, 1: 5, 2: 4}, 2, {0: 0, 1: 1, 2: 1}),
    ],
)
def test_quotas_equal_hand_computed_values(counts: dict[int, int], total: int, expected: dict[int, int]) -> None:
    assert quotas(counts, total) == expected


@given(LABELS, SEEDS, st.integers(0, 3), st.sampled_from([0.0, 0.1, 3]), st.sampled_from([0.0, 0.2, 2]))
def test_splits_are_disjoint_and_complete_with_the_requested_sizes(
    labels: list[int], seed: int, budget: int, val: float, test: float
) -> None:
    part = make_examples(labels)
    known = len([c for c in labels if c >= 0])
    splits = split_ids(part, SplitConfig(seed, num_labels=budget, val_size=val, test_size=test))
    together = [name for ids in splits.values() for name in ids]
    assert sorted(together) == sorted(part.ids)
    assert len(splits["labeled"]) == budget
    held = int(test) if test >= 1 else round(test * known)
    assert len(splits["test"]) == held
    assert len(splits["val"]) == (int(val) if val >= 1 else round(val * (known - held)))
    evaluated = {int(name.split("/")[1]) for name in splits["val"] + splits["test"] + splits["labeled"]}
    assert all(labels[i] >= 0 for i in evaluated)


@given(LABELS, SEEDS, st.data())
def test_each_class_has_its_quota(labels: list[int], seed: int, data: st.DataObject) -> None:
    part = make_examples(labels)
    counts = {c: labels.count(c) for c in range(3)}
    total = data.draw(st.integers(0, sum(counts.values())))
    none = SplitConfig(seed, num_labels=total, val_size=0, test_size=0)
    labeled = make_splits({"train": part}, None, none, CLASSES)["labeled"]
    assert Counter(labeled.labels.tolist()) == Counter(quotas(counts, total))
    each = data.draw(st.integers(0, min(counts.values())))
    some = SplitConfig(seed, labels_per_class=each, val_size=0, test_size=0)
    labeled = make_splits({"train": part}, None, some, CLASSES)["labeled"]
    assert labeled.labels.bincount(minlength=3).tolist() == [each] * 3


@given(LABELS, SEEDS, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_files(labels: list[int], seed: int, shuffler: object) -> None:
    part = make_examples(labels)
    order = list(range(len(labels)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    assert isinstance(part.storage, TensorStorage)
    moved = Examples(TensorStorage(part.storage.data[order]), [part.ids[i] for i in order], part.labels[order])
    request = SplitConfig(seed, num_labels=4)
    one, two = split_ids(part, request), split_ids(moved, request)
    assert {name: set(ids) for name, ids in one.items()} == {name: set(ids) for name, ids in two.items()}


@given(LABELS, SEEDS, st.data())
def test_smaller_label_budget_is_a_subset_of_a_larger_one(labels: list[int], seed: int, data: st.DataObject) -> None:
    part = make_examples(labels)
    known = len([c for c in labels if c >= 0]) - 2
    small, large = sorted(data.draw(st.tuples(st.integers(0, known), st.integers(0, known))))
    one, two = (split_ids(part, SplitConfig(seed, num_labels=n, val_size=1, test_size=1)) for n in (small, large))
    assert set(one["labeled"]) <= set(two["labeled"])
    assert (one["val"], one["test"]) == (two["val"], two["test"])


@given(LABELS, SEEDS, st.integers(2, 6), st.data())
def test_no_group_straddles_training_validation_and_test(
    labels: list[int], seed: int, count: int, data: st.DataObject
) -> None:
    part = make_examples(labels)
    groups = data.draw(st.lists(st.integers(0, count), min_size=len(labels), max_size=len(labels)))
    part.groups = [f"patient {g}" for g in groups]
    splits = make_splits({"train": part}, None, SplitConfig(seed, val_size=0.3, test_size=0.3), CLASSES)
    places: dict[str, set[str]] = {}
    for name, split in splits.items():
        for i in split.indices:
            places.setdefault(part.groups[i], set()).add("train" if name in ("labeled", "unlabeled") else name)
    assert all(len(names) == 1 for names in places.values())


def test_splits_by_group_come_close_to_the_requested_sizes() -> None:
    part = make_examples([i % 2 for i in range(200)])
    part.groups = [f"video {i // 4}" for i in range(200)]
    splits = make_splits({"train": part}, None, SplitConfig(val_size=0.2, test_size=0.2), CLASSES)
    assert splits["test"].labels.bincount().tolist() == [20, 20]
    assert splits["val"].labels.bincount().tolist() == [16, 16]


def test_unlabeled_examples_of_held_out_groups_are_left_out() -> None:
    train, given_part = make_examples([0, 1] * 10), make_examples([-1] * 4, "unlabeled", seed=1)
    train.groups = [f"p{i // 2}" for i in range(20)]
    given_part.groups = ["p0", "p4", "p5", "x"]
    request = SplitConfig(val_size=0, test_size=0.5)
    splits = split_ids(train, request, unlabeled=given_part)
    held = {train.groups[int(name.split("/")[1])] for name in splits["test"]}
    kept = {given_part.groups[int(name.split("/")[1])] for name in splits["unlabeled"]}
    assert len(splits["test"]) == 10
    assert kept == {"p0", "x"}
    assert held >= {"p4", "p5"}
    assert re.match(r"\d unlabeled examples were left out: their group", str(request.findings[0]))


def test_split_of_a_fixed_seed_never_changes() -> None:
    labels = [0, 1, 2] * 10
    splits = make_splits({"train": make_examples(labels)}, None, SplitConfig(seed=7, num_labels=6), CLASSES)
    assert {name: split.indices for name, split in splits.items() if name != "unlabeled"} == {
        "labeled": [1, 7, 8, 15, 18, 29],
        "val": [3, 16],
        "test": [6, 11, 13, 19, 21, 26],
    }


def test_different_seeds_give_different_splits() -> None:
    part = make_examples([0, 1, 2] * 100)
    one, two = (split_ids(part, SplitConfig(seed, num_labels=30)) for seed in (0, 1))
    for name in ("labeled", "val", "test"):
        assert len(set(one[name]) & set(two[name])) < 0.5 * len(one[name])
    assert one == split_ids(part, SplitConfig(0, num_labels=30))


def test_choices_of_one_seed_are_independent() -> None:
    ids, labels = [f"{i}" for i in range(300)], [0] * 300
    val, test = (choose(ids, labels, None, {0: 100}, 0, purpose) for purpose in ("val", "test"))
    assert 15 < len(val & test) < 55


def test_existing_splits_are_kept_and_only_missing_ones_are_created() -> None:
    train, val = make_examples([0, 1, 2] * 10), make_examples([0, 1], "val", seed=1)
    splits = split_ids(train, SplitConfig(num_labels=3), val=val)
    assert splits["val"] == val.ids
    assert len(splits["test"]) == 6
    assert len(splits["unlabeled"]) == 21


def test_unlabeled_split_includes_the_remaining_training_examples() -> None:
    train, own = make_examples([0, 1, 2] * 10), make_examples([-1] * 5, "unlabeled", seed=1)
    splits = make_splits({"train": train, "unlabeled": own}, None, SplitConfig(num_labels=3, test_size=0), CLASSES)
    joined = splits["unlabeled"]
    assert joined.ids[-5:] == own.ids
    assert len(joined) == 30 - 3 - 3 + 5
    assert isinstance(joined.part.storage, TensorStorage)
    assert isinstance(own.images, TensorStorage)
    assert isinstance(train.images, TensorStorage)
    assert torch.equal(joined.part.storage.data[joined.indices[-5:]], own.images.data)
    first = train.ids.index(joined.ids[0])
    assert torch.equal(joined.part.storage.data[joined.indices[0]], train.images.data[first])


def test_second_source_replaces_the_unlabeled_split() -> None:
    second = make_examples([-1] * 4, "digits", seed=1)
    parts = {"train": make_examples([0, 1, 2] * 10)}
    assert make_splits(parts, second, SplitConfig(num_labels=3), CLASSES)["unlabeled"].ids == second.ids


def test_unlabeled_images_alone_get_a_validation_split() -> None:
    splits = make_splits({"unlabeled": make_examples([-1] * 20)}, None, SplitConfig(val_size=4), [])
    assert {name: len(split) for name, split in splits.items()} == {"labeled": 0, "unlabeled": 16, "val": 4, "test": 0}
    assert set(splits["val"].ids).isdisjoint(splits["unlabeled"].ids)


def test_unlabeled_images_with_a_validation_split_are_all_kept() -> None:
    parts = {"val": make_examples([0, 1, 2], "val", seed=1), "unlabeled": make_examples([-1] * 8)}
    splits = make_splits(parts, None, SplitConfig(), CLASSES)
    assert {name: len(split) for name, split in splits.items()} == {"labeled": 0, "unlabeled": 8, "val": 3, "test": 0}


@pytest.mark.parametrize("each", [0, 1])
def test_one_label_of_each_class_or_none(each: int) -> None:
    request = SplitConfig(labels_per_class=each, val_size=0, test_size=0)
    splits = make_splits({"train": make_examples([0, 1, 2])}, None, request, CLASSES)
    assert splits["labeled"].labels.tolist() == [0, 1, 2][: 3 * each]
    assert len(splits["unlabeled"]) == 3 - 3 * each


def test_all_labels_are_used_unless_fewer_are_requested() -> None:
    splits = split_ids(make_examples([0, 1, -1, 2]), SplitConfig(val_size=0, test_size=0))
    assert splits["labeled"] == ["train/0", "train/1", "train/3"]
    assert splits["unlabeled"] == ["train/2"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (SplitConfig(num_labels=28, val_size=1, test_size=2), "num_labels is 28, but only 27 labeled training"),
        (SplitConfig(labels_per_class=10), "labels_per_class is 10, but class 'ant' has only 7 labeled"),
        (SplitConfig(num_labels=1, labels_per_class=1), "are both set"),
        (SplitConfig(num_labels=-1), "give zero or more"),
        (SplitConfig(labels_per_class=-1), "give zero or more"),
        (SplitConfig(val_size=-0.1), "val_size is -0.1"),
        (SplitConfig(test_size=2.5), "test_size is 2.5"),
        (SplitConfig(test_size=30), "test_size asks for 30 of the 30 training examples"),
    ],
)
def test_impossible_requests_are_refused(request_: SplitConfig, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        split_ids(make_examples([0, 1, 2] * 10), request_)


def test_label_budget_for_a_source_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="num_labels is 5, but only 0 labeled"):
        make_splits({"unlabeled": make_examples([-1] * 20)}, None, SplitConfig(num_labels=5), [])
    with pytest.raises(InputError, match="give zero or more"):
        make_splits({"unlabeled": make_examples([-1] * 20)}, None, SplitConfig(num_labels=-5), [])


@pytest.fixture
def leaky(tmp_path: Path) -> dict[str, Examples]:
    train = [write_image(tmp_path / f"train{i}.png", i) for i in range(8)]
    train[3].write_bytes(write_plain_image(tmp_path / "test0.png", (9, 9, 9)).read_bytes())
    train[6].write_bytes(train[5].read_bytes())
    val = [write_image(tmp_path / "val0.png", 90), write_image(tmp_path / "val1.png", 2)]
    test = [tmp_path / "test0.png", write_image(tmp_path / "test1.png", 90), write_image(tmp_path / "test2.png", 91)]
    return {
        "train": make_file_examples(train, [0, 1, 2, 0, 1, 2, 0, 1]),
        "val": make_file_examples(val, [0, 2]),
        "test": make_file_examples(test, [0, 1, 2]),
    }


def test_held_out_images_are_dropped_from_training_and_reported(leaky: dict[str, Examples]) -> None:
    request = SplitConfig()
    splits = make_splits(leaky, None, request, CLASSES)
    assert splits["labeled"].ids == [f"train{i}.png" for i in (0, 1, 4, 5, 6, 7)]
    assert splits["val"].ids == ["val1.png"]  # the other one stands in test
    assert splits["test"].ids == ["test0.png", "test1.png", "test2.png"]
    contrary, dropped = request.findings
    assert contrary.kind == "label_conflict"
    assert contrary.examples == ("test1.png", "val0.png", "train5.png", "train6.png")
    assert (dropped.kind, dropped.examples) == ("leak", ("train3.png", "val0.png", "train2.png"))
    assert str(contrary).startswith("2 examples have copies with another label, such as 'test1.png' and 'val0.png': ")
    assert dropped.message.startswith("3 examples were dropped")
    for pair in (
        "'val0.png' (val) equals 'test1.png' (test)",
        "'train3.png' (train) equals 'test0.png' (test)",
        "'train2.png' (train) equals 'val1.png' (val)",
    ):
        assert pair in dropped.message


def test_leaks_are_refused_on_request(leaky: dict[str, Examples]) -> None:
    with pytest.raises(InputError, match=r"'train3.png' \(train\) equals 'test0.png' \(test\).*on_leak: drop"):
        make_splits(leaky, None, SplitConfig(on_leak="raise"), CLASSES)


def test_dropped_image_does_not_use_up_the_label_budget(leaky: dict[str, Examples]) -> None:
    for seed in range(5):
        labeled = make_splits(leaky, None, SplitConfig(seed, num_labels=6), CLASSES)["labeled"]
        assert labeled.ids == [f"train{i}.png" for i in (0, 1, 4, 5, 6, 7)]
    with pytest.raises(InputError, match="only 6 labeled"):
        make_splits(leaky, None, SplitConfig(num_labels=7), CLASSES)


def test_leaks_from_unlabeled_images_are_dropped() -> None:
    train, second = make_examples([0, 1, 2] * 4), make_examples([-1] * 12)  # the same images under other names
    second.ids = [f"again/{i}" for i in range(12)]
    request = SplitConfig(val_size=3, test_size=3, num_labels=3)
    splits = make_splits({"train": train}, second, request, CLASSES)
    held = {i for name in ("val", "test") for i in splits[name].indices}
    assert set(splits["unlabeled"].indices) == set(range(12)) - held
    assert str(request.findings[0]).startswith("6 examples were dropped")
    assert str(request.findings[0]).endswith("and 1 more")


def test_data_without_leaks_produce_no_message() -> None:
    request = SplitConfig(on_leak="raise")
    split_ids(make_examples([0, 1, 2] * 10), request)
    assert request.findings == []


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Splits, list[Examples]]:
    train, own = make_examples([0, 1, 2] * 10), make_examples([0, -1, 2], "unlabeled", seed=1)
    splits = make_splits({"train": train, "unlabeled": own}, None, SplitConfig(3, num_labels=6), CLASSES)
    write_split_file(tmp_path / "run" / "split.csv", splits, [train, own], CLASSES, {"seed": 3})
    return tmp_path / "run" / "split.csv", splits, [train, own]


def test_manifest_reproduces_the_splits(written: tuple[Path, Splits, list[Examples]]) -> None:
    path, splits, parts = written
    again = read_split_file(path, parts, CLASSES)
    assert list(again) == list(NAMES)
    for name, split in splits.items():
        assert again[name].ids == split.ids
        assert again[name].labels.tolist() == split.labels.tolist()
        assert torch.equal(get_pixels(again[name]), get_pixels(split))


def get_pixels(split: Split) -> torch.Tensor:
    assert isinstance(split.part.storage, TensorStorage)
    return split.part.storage.data[split.indices]


def test_manifest_records_its_settings_and_omits_hidden_labels(
    written: tuple[Path, Splits, list[Examples]],
) -> None:
    path, splits, parts = written
    first, columns, *rows = path.read_text().splitlines()
    assert json.loads(first.removeprefix("# ")) == {
        "seed": 3,
        "digest": "content",
        "sha256": digest_examples(parts),
        "counts": {name: len(split) for name, split in splits.items()},
    }
    assert columns == "id,split,label,content"
    val = splits["val"]
    content = val.part.storage.fingerprints(val.indices[:1])[0].hex()[:32]
    assert f"{val.ids[0]},val,{CLASSES[int(val.labels[0])]},{content}" in rows
    unlabeled = [row for row in rows if ",unlabeled," in row]
    assert len(unlabeled) == len(splits["unlabeled"])
    assert all(row.endswith(",unlabeled,,") for row in unlabeled)
    assert [p.name for p in path.parent.iterdir()] == ["split.csv"]


def test_manifest_of_changed_images_is_refused(written: tuple[Path, Splits, list[Examples]]) -> None:
    path, _, parts = written
    assert isinstance(parts[0].images, TensorStorage)
    parts[0].images.data[4, 0, 0, 0] ^= 1
    with pytest.raises(InputError, match="was made from other examples"):
        read_split_file(path, parts, CLASSES)


def test_manifest_of_changed_labels_is_refused(written: tuple[Path, Splits, list[Examples]]) -> None:
    path, splits, parts = written
    k = splits["labeled"].indices[0]
    was = CLASSES[int(parts[0].labels[k])]
    parts[0].labels[k] = (parts[0].labels[k] + 1) % 3
    with pytest.raises(InputError, match=f"'train/{k}' is '{was}', the source says"):
        read_split_file(path, parts, CLASSES)
    parts[0].labels[k] = -1
    with pytest.raises(InputError, match="the source says 'nothing'"):
        read_split_file(path, parts, CLASSES)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train/1,", "other/1,", "names 'other/1', which the source does not have"),
        ("train/1,", "train/4,", "lists 'train/4' twice"),
        (",val,", ",dev,", "is not a readable split ('dev')"),
        ("# {", "# ", "is not a readable split"),
        ('# {"seed"', '# 1\n# {"seed"', "its first line is not a JSON object"),
        ("id,split,label", "name,split,label", "is not a readable split ('id')"),
        ('"sha256": "', '"sha256": "0', "was made from other examples"),
    ],
)
def test_damaged_manifest_is_refused(
    written: tuple[Path, Splits, list[Examples]], old: str, new: str, words: str
) -> None:
    path, _, parts = written
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_split_file(path, parts, CLASSES)
    assert str(path) in str(caught.value)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.csv' is not a readable split .*No such file"):
        read_split_file(tmp_path / "gone.csv", [], CLASSES)

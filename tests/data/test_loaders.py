import random
from collections.abc import Iterable
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.loaders import EvalLoader, RawBatch, Stream, TrainLoader
from sft_lightning.data.sample_orders import group_by_size
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.images import FileImages, Geometry
from sft_lightning.paradigms.batch_schedule import BatchSchedule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import break_middle, make_examples, write_image

CROPS = Geometry(8, scale=(0.2, 1.0))


@pytest.fixture
def files(tmp_path: Path) -> Split:
    paths = [write_image(tmp_path / f"{i:02}.png", i, (20, 16)) for i in range(14)]
    part = Examples(
        FileImages(paths, [path.name for path in paths]), [path.name for path in paths], torch.arange(14) % 3
    )
    return Split(part, list(range(2, 14)))  # positions in the split are not positions in the part


def make_stream(split: Split, batch_size: int = 5, shuffle: bool = True, workers: int = 0, seed: int = 0) -> Stream:
    plan = BatchPlan(len(split), batch_size, seed, shuffle)
    return Stream(split, plan, CROPS if shuffle else Geometry(8), workers=workers)


def is_same(one: RawBatch, two: RawBatch) -> bool:
    assert one.labels is not None
    assert two.labels is not None
    return (
        torch.equal(one.inputs, two.inputs)
        and torch.equal(one.labels, two.labels)
        and torch.equal(one.indices, two.indices)
        and one.seed == two.seed
    )


def collect_epochs(loader: TrainLoader, numbers: Iterable[int]) -> list[RawBatch]:
    batches = []
    for number in numbers:
        loader.set_epoch(number)
        batches += [batch["labeled"] for batch in loader]
    return batches


def test_same_seed_gives_the_same_batches_for_any_number_of_workers(files: Split) -> None:
    one, two, other = (
        collect_epochs(TrainLoader({"labeled": make_stream(files, workers=workers, seed=seed)}, 4), range(3))
        for workers, seed in ((0, 1), (2, 1), (0, 2))
    )
    assert len(one) == len(two) == 12
    assert all(is_same(a, b) for a, b in zip(one, two, strict=True))
    assert not any(is_same(a, b) for a, b in zip(one, other, strict=True))


def test_image_is_cropped_differently_each_time(files: Split) -> None:
    batches = collect_epochs(TrainLoader({"labeled": make_stream(files)}, 3), range(4))
    seen = [batch.inputs[k] for batch in batches for k, i in enumerate(batch.indices.tolist()) if i == 3]
    assert len(seen) == 4
    assert len({bytes(image.numpy().tobytes()) for image in seen}) == 4


def test_equal_images_of_a_batch_are_cropped_independently(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", 1, (20, 16))
    part = Examples(FileImages([path] * 6, [f"{i}" for i in range(6)]), [f"{i}" for i in range(6)], torch.zeros(6))
    (batch,) = make_stream(Split(part, list(range(6))), 6).batches(0, 1)
    assert len({bytes(image.numpy().tobytes()) for image in batch.inputs}) == 6


def test_each_row_matches_its_index_and_label(files: Split) -> None:
    for batch in EvalLoader(make_stream(files, shuffle=False)):
        assert batch.labels is not None
        assert batch.seed is None
        for image, label, i in zip(batch.inputs, batch.labels, batch.indices.tolist(), strict=True):
            k = files.indices[i]
            assert isinstance(files.part.storage, FileImages)
            assert torch.equal(image, files.part.storage.read(k, Geometry(8), None))
            assert label == k % 3


@pytest.mark.parametrize("indices", [list(range(12)), [11, 3, 4, 7]])
def test_rows_from_memory_match_their_index_and_label(indices: list[int]) -> None:
    part = make_examples([i % 3 for i in range(12)])
    for batch in collect_epochs(TrainLoader({"labeled": make_stream(Split(part, indices), 3)}, 4), range(2)):
        assert batch.labels is not None
        rows = [indices[i] for i in batch.indices.tolist()]
        assert torch.equal(batch.inputs, part.storage.data[rows])  # type: ignore[attr-defined]
        assert batch.labels.tolist() == [row % 3 for row in rows]


def test_batches_never_contain_labels_of_unlabeled_examples(files: Split) -> None:
    for split in (files, Split(make_examples([0, 1, 2]), [0, 1, 2])):
        loaded = Stream(split, BatchPlan(len(split), 2, shuffle=True), CROPS, with_labels=False)
        assert [batch.labels for batch in loaded.batches(0, 2)] == [None, None]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resumed_epoch_continues_with_the_remaining_batches(files: Split, workers: int, stop: int) -> None:
    whole = collect_epochs(TrainLoader({"labeled": make_stream(files)}, 5), [0, 1, 2])
    first = TrainLoader({"labeled": make_stream(files, workers=workers)}, 5)
    collect_epochs(first, [0])
    first.set_epoch(1)
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    state = first.state_dict()
    second = TrainLoader({"labeled": make_stream(files, workers=workers)}, 5)
    second.load_state_dict(state)
    rest = collect_epochs(second, [1, 2] if stop < 5 else [2])
    expected = whole[5 + stop :]
    assert len(rest) == len(expected)
    assert all(is_same(a, b) for a, b in zip(rest, expected, strict=True))


def test_epoch_after_an_interrupted_one_starts_at_its_first_batch(files: Split) -> None:
    whole = collect_epochs(TrainLoader({"labeled": make_stream(files)}, 5), [0, 1])
    loader = TrainLoader({"labeled": make_stream(files, workers=2)}, 5)
    loader.set_epoch(0)
    next(iter(loader))
    assert all(is_same(a, b) for a, b in zip(collect_epochs(loader, [1]), whole[5:], strict=True))


SIZES = {"count": st.integers(1, 60), "batch_size": st.integers(1, 9), "seed": st.integers(0, 2**33)}


@settings(max_examples=40)
@given(**SIZES)
def test_each_pass_contains_every_example_once(count: int, batch_size: int, seed: int) -> None:
    plan = BatchPlan(count, batch_size, seed, shuffle=True)
    batches = [plan[g][0] for g in range(2 * plan.per_pass)]
    for half in (batches[: plan.per_pass], batches[plan.per_pass :]):
        assert torch.cat(half).sort().values.tolist() == list(range(count))
        assert all(len(batch) == batch_size for batch in half[:-1])
        assert len(half[-1]) <= batch_size + 1
        assert count == 1 or batch_size == 1 or len(half[-1]) >= 2


@given(world=st.integers(2, 4), **SIZES)
def test_processes_together_see_the_batches_of_one_process(count: int, batch_size: int, seed: int, world: int) -> None:
    count += world
    ranks = [BatchPlan(count, batch_size, seed, True, rank, world) for rank in range(world)]
    alone = BatchPlan(count, batch_size * world, seed, shuffle=True)
    assert len({plan.per_pass for plan in ranks}) == 1
    passed: list[int] = []
    draws = set()
    for g in range(ranks[0].per_pass):
        pieces = [plan[g] for plan in ranks]
        assert min(len(indices) for indices, _ in pieces) >= 1
        together = [i for indices, _ in pieces for i in indices.tolist()]
        if g < min(ranks[0].per_pass, alone.per_pass) - 1:
            assert together == alone[g][0].tolist()
        passed += together
        draws |= {draw for _, draw in pieces}
    everything = torch.cat([alone[g][0] for g in range(alone.per_pass)]).tolist()
    assert passed == everything
    assert sorted(passed) == list(range(count))
    assert len(draws) == world * ranks[0].per_pass


@given(world=st.integers(1, 4), **SIZES)
def test_evaluation_shards_contain_each_example_once(count: int, batch_size: int, seed: int, world: int) -> None:
    plans = [BatchPlan(count, batch_size, seed, False, rank, world) for rank in range(world)]
    seen = [i for plan in plans for g in range(plan.per_pass) for i in plan[g][0].tolist()]
    assert sorted(seen) == list(range(count))
    assert len(seen) == count


def test_orders_differ_between_passes_and_seeds() -> None:
    plan = BatchPlan(50, 50, 0, shuffle=True)
    orders = [plan[g][0].tolist() for g in range(3)] + [BatchPlan(50, 50, 1, shuffle=True)[0][0].tolist()]
    assert len({tuple(order) for order in orders}) == 4
    assert plan[1][0].tolist() == orders[1]


def test_fewer_examples_than_a_batch_make_one_batch_a_pass() -> None:
    split = Split(make_examples([0, 1, 2]), [0, 1, 2])
    batches = collect_epochs(TrainLoader({"labeled": make_stream(split, 64)}, 3), [0])
    assert [sorted(batch.indices.tolist()) for batch in batches] == [[0, 1, 2]] * 3


def test_shorter_stream_repeats_beside_a_longer_one() -> None:
    few, many = Split(make_examples([0, 1]), [0, 1]), Split(make_examples([-1] * 20), list(range(20)))
    loader = TrainLoader({"labeled": make_stream(few, 2), "unlabeled": make_stream(many, 4)}, 5)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert sorted(i for batch in batches for i in batch["unlabeled"].indices.tolist()) == list(range(20))
    assert all(sorted(batch["labeled"].indices.tolist()) == [0, 1] for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_state_unchanged(files: Split, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    collect_epochs(TrainLoader({"labeled": make_stream(files, workers=workers)}, 3), [0, 1])
    list(EvalLoader(make_stream(files, shuffle=False, workers=workers)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_batches_do_not_depend_on_the_global_seed(files: Split, seed: int) -> None:
    expected = collect_epochs(TrainLoader({"labeled": make_stream(files, workers=2)}, 3), [0])
    torch.manual_seed(seed)
    random.seed(seed)
    actual = collect_epochs(TrainLoader({"labeled": make_stream(files, workers=2)}, 3), [0])
    assert all(is_same(a, b) for a, b in zip(expected, actual, strict=True))


def test_closed_stream_can_be_restarted(files: Split) -> None:
    one = make_stream(files, workers=2)
    before = list(one.batches(0, 3))
    one.close()
    assert active_children() == []
    one.close()  # of nothing
    assert all(is_same(a, b) for a, b in zip(before, one.batches(0, 3), strict=True))
    memory = Stream(Split(make_examples([0, 1, 2, 0]), [0, 1, 2, 3]), BatchPlan(4, 2), Geometry(8))
    memory.close()
    assert len(list(memory.batches(0, 2))) == 2


def spoil(split: Split, *positions: int) -> list[str]:
    assert isinstance(split.part.storage, FileImages)
    return [str(break_middle(split.part.storage.paths[split.indices[i]])) for i in positions]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_file_that_fails_during_training_stops_the_run_by_name(files: Split, workers: int, shuffle: bool) -> None:
    (name,) = spoil(files, 6)
    loaded = make_stream(files, shuffle=shuffle, workers=workers)
    with pytest.raises(InputError, match="on_bad: skip") as caught:
        list(loaded.batches(0, 3))
    loaded.close()
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_file_that_fails_during_training_is_skipped_and_listed(files: Split, workers: int) -> None:
    names = spoil(files, 6, 1)
    bad = BadFiles("skip")
    loaded = Stream(files, BatchPlan(12, 5, shuffle=False), Geometry(8), workers=workers, bad=bad)
    batches = list(EvalLoader(loaded))
    assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3, 4], [5, 7, 8, 9], [10, 11]]
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.tolist() == [(i + 2) % 3 for i in batch.indices.tolist()]
        assert len(batch.inputs) == len(batch.indices)
    assert sorted(bad.reasons) == sorted(names)
    assert all(bad.reasons.values())


def test_batch_of_failing_files_is_skipped_in_evaluation_and_refused_in_training(files: Split) -> None:
    names = spoil(files, 3)
    evaluated = Stream(files, BatchPlan(12, 1), Geometry(8), bad=BadFiles("skip"))
    assert [batch.indices.item() for batch in EvalLoader(evaluated)] == [i for i in range(12) if i != 3]
    trained = Stream(files, BatchPlan(12, 1, shuffle=True), CROPS, bad=BadFiles("skip"))
    with pytest.raises(InputError, match="no example of a whole batch could be read") as caught:
        list(trained.batches(0, 12))
    assert names[0] in str(caught.value)


# --- few labels and many unlabeled examples


@given(world=st.integers(1, 3), steps=st.integers(1, 12), **SIZES)
def test_endless_batches_are_full_and_complete_each_pass(
    count: int, batch_size: int, seed: int, world: int, steps: int
) -> None:
    ranks = [BatchPlan(count, batch_size, seed, True, rank, world, endless=True) for rank in range(world)]
    seen: list[int] = []
    for g in range(steps):
        for plan in ranks:
            indices, _ = plan[g]
            assert len(indices) == batch_size
            seen += indices.tolist()
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))
    alone = BatchPlan(count, batch_size * world, seed, True, endless=True)
    assert seen == [i for g in range(steps) for i in alone[g][0].tolist()]
    again = BatchPlan(count, batch_size * world, seed, True, endless=True)
    assert again[steps - 1][0].tolist() == alone[steps - 1][0].tolist()  # whatever was asked before


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_balanced_sampling_alternates_between_classes(labels: list[int], seed: int) -> None:
    classes = sorted(set(labels))
    size, most = len(classes), max(labels.count(c) for c in classes)
    plan = BatchPlan(len(labels), size, seed, True, endless=True, balance=torch.tensor(labels))
    batches = [plan[g][0].tolist() for g in range(3 * most)]
    for batch in batches:
        assert sorted(labels[i] for i in batch) == classes  # one of each
    first_pass = [i for batch in batches[:most] for i in batch]
    assert set(first_pass) == set(range(len(labels)))  # nobody is left out


def test_each_endless_pass_is_reshuffled() -> None:
    plan = BatchPlan(20, 20, 0, True, endless=True)
    orders = [tuple(plan[g][0].tolist()) for g in range(4)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("needs_labels", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resumed_alternating_epoch_continues_with_the_remaining_batches(needs_labels: bool, stop: int) -> None:
    split = Split(make_examples([i % 3 for i in range(40)]), list(range(40)))

    def loader() -> TrainLoader:
        plans = {
            "labeled": BatchPlan(40, 3, 0, True, endless=True),
            "unlabeled": BatchPlan(40, 7, 1, True),
        }
        streams = {name: Stream(split, plan, Geometry(8)) for name, plan in plans.items()}
        return TrainLoader(streams, 10, BatchSchedule(3, 2, 3, needs_labels))

    def summarize(batches: list[dict[str, RawBatch]]) -> list[dict[str, tuple[list[int], int | None]]]:
        return [{name: (raw.indices.tolist(), raw.seed) for name, raw in batch.items()} for batch in batches]

    whole = loader()
    expected = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        expected += summarize(list(whole))
    first = loader()
    first.set_epoch(0)
    list(first)
    first.set_epoch(1)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(stop)]
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    resumed.set_epoch(1)
    seen += list(resumed)
    resumed.set_epoch(2)
    seen += list(resumed)
    assert summarize(seen) == expected[10:]


@given(count=st.integers(1, 200), group=st.integers(1, 30), seed=st.integers(0, 99))
def test_groups_of_similar_size_hold_each_example_once(count: int, group: int, seed: int) -> None:
    sizes = torch.randint(1, 9, (count,), generator=torch.Generator().manual_seed(seed))
    order = group_by_size(sizes, group, seed)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, group_by_size(sizes, group, seed))


def test_groups_of_similar_size_come_in_a_random_order() -> None:
    sizes = torch.randint(1, 101, (1000,), generator=torch.Generator().manual_seed(0))
    groups = sizes[group_by_size(sizes, 10, 3)].view(100, 10)
    spread = groups.max(1).values - groups.min(1).values
    assert float(spread.double().mean()) < 5  # of 82 where groups are drawn at random
    means = groups.double().mean(1)
    assert abs(float(torch.corrcoef(torch.stack([means[:-1], means[1:]]))[0, 1])) < 0.3
    assert not torch.equal(group_by_size(sizes, 10, 3), group_by_size(sizes, 10, 4))

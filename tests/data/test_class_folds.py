import numpy as np
import pytest

from sft_lightning.data.class_folds import find_unjudged, make_folds
from sft_lightning.utils.errors import InputError


def test_folds_are_stratified_and_equally_large() -> None:
    labels = np.repeat([0, 1, 2], [10, 12, 21])
    fold = make_folds(labels, repeats=4)
    assert fold.shape == (4, 43)
    for row in fold:
        sizes = np.bincount(row, minlength=5)
        assert len(sizes) == 5
        assert sizes.max() - sizes.min() <= 1
        for label in range(3):
            counts = np.bincount(row[labels == label], minlength=5)
            assert counts.max() - counts.min() <= 1


def test_folds_follow_from_the_seed_and_differ_between_repeats() -> None:
    labels = np.arange(40) % 4
    fold = make_folds(labels, seed=3, repeats=3)
    assert (fold == make_folds(labels, seed=3, repeats=3)).all()
    assert (fold != make_folds(labels, seed=4, repeats=3)).any()
    partners = [row[:, None] == row for row in fold]
    assert (partners[0] != partners[1]).any()
    assert (partners[1] != partners[2]).any()


def test_names_of_classes_and_gaps_between_numbers_do_not_matter() -> None:
    labels = np.arange(40) % 4
    assert (make_folds(labels) == make_folds(labels * 7 + 2)).all()


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together_and_every_model_learns_from_all_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 4, 60), [str(g) for g in rng.integers(0, 30, 60)]
    fold = make_folds(labels, groups, repeats=2, seed=seed)
    for row in fold:
        for group in set(groups):
            assert len({int(k) for k, g in zip(row, groups, strict=True) if g == group}) == 1
        assert set(row) - {-1} == set(range(row.max() + 1))
        for k in range(row.max() + 1):
            assert set(labels[row != k]) == set(labels)


def test_a_class_with_one_label_is_learned_from_but_not_judged() -> None:
    labels = np.r_[np.arange(40) % 4, 9]
    fold = make_folds(labels, repeats=3)
    assert (fold[:, -1] == -1).all()
    assert (fold[:, :-1] >= 0).all()
    assert find_unjudged(labels, fold) == [9]
    assert find_unjudged(labels[:-1], fold[:, :-1]) == []


def test_the_only_group_of_a_class_takes_its_other_classes_along() -> None:
    labels, groups = [*np.arange(40) % 4, 9, 9, 0], [*map(str, range(40)), "a", "a", "a"]
    fold = make_folds(labels, groups, repeats=2)
    assert (fold[:, 40:] == -1).all()
    assert (fold[:, :40] >= 0).all()
    assert find_unjudged(labels, fold) == [9]


def test_a_group_that_is_always_learned_from_teaches_its_other_classes() -> None:
    """Class 0 is judged in one fold alone, but every model knows it from group "a"."""
    labels, groups = [*np.arange(40) % 4 + 1, 9, 0, 0], [*map(str, range(40)), "a", "a", "b"]
    fold = make_folds(labels, groups, folds=2, repeats=2)
    assert (fold[:, 40:42] == -1).all()
    assert (fold[:, 42] >= 0).all()


@pytest.mark.parametrize(
    "examples",  # of three classes in each group
    [
        [[3, 1, 1], [5, 0, 1], [4, 0, 0], [8, 4, 0], [7, 4, 0], [1, 0, 0]],  # in another order, the last is in one fold
        [[5, 0, 0], [3, 2, 0], [5, 0, 1], [4, 4, 1], [2, 0, 0], [2, 0, 1], [0, 1, 0]],  # small groups first, the second
    ],
)
def test_groups_of_rare_classes_are_divided_first_and_then_large_ones(examples: list[list[int]]) -> None:
    counts = np.array(examples)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    groups = [str(group) for group, row in enumerate(counts) for _ in range(row.sum())]
    for seed in range(6):
        fold = make_folds(labels, groups, folds=3, repeats=1, seed=seed)[0]
        for label in range(3):
            assert len(set(fold[labels == label])) == min((counts[:, label] > 0).sum(), fold.max() + 1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([2] * 10, 2),
        ([3, 4, 9], 3),
        ([4, 36], 5),  # a tenth of the examples
        ([4, 35], 4),
        ([2, 2, 2, 60], 5),
        ([9, 9], 5),
    ],
)
def test_there_are_fewer_folds_where_many_examples_are_of_small_classes(counts: list[int], expected: int) -> None:
    fold = make_folds(np.repeat(np.arange(len(counts)), counts))
    assert (fold.max(1) == expected - 1).all()
    labels = np.repeat(np.arange(len(counts)), counts)
    for row in fold:
        for label in range(len(counts)):
            assert len(set(row[labels == label])) == min(counts[label], expected)


def test_groups_limit_the_folds_as_labels_do() -> None:
    labels = np.repeat([0, 1], 20)
    groups = [str(i // 7) if i < 20 else str(i) for i in range(40)]  # three of class 0
    assert make_folds(labels, groups).max() == 2


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 0, 0], None, r"1 class\(es\) are labeled: add"),
        ([], None, r"0 class\(es\)"),
        ([0, 1, 1], None, "and class 'cat' has a single one: add labels until 2 classes have more than one labeled ex"),
        ([0, 0, 1, 1], ["a", "a", "b", "c"], "class 'cat' has a single one.*more than one group of labeled examples"),
        ([0, 1, 1, 2, 0, 2], ["a", "a", "b", "b", "c", "c"], "leave class '.*' in one fold: use smaller groups"),
    ],
)
def test_labels_that_cannot_be_divided_are_an_error(labels: list[int], groups: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_folds(labels, groups, class_names=["cat", "dog", "cow"])


def test_too_few_folds_or_repeats_are_an_error() -> None:
    with pytest.raises(InputError, match="folds is 1"):
        make_folds([0, 0, 1, 1], folds=1)
    with pytest.raises(InputError, match="repeats is 0"):
        make_folds([0, 0, 1, 1], repeats=0)

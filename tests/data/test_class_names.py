"""Class names: their order, and how they are matched."""

import random
from pathlib import Path

import pytest
import torch

from sft_lightning.data.class_names import (
    describe_difference,
    format_class_names,
    match_classes,
    parse_class_names,
    sort_classes,
)
from sft_lightning.runs.trained_classes import read_recorded_classes

ORDERED = [
    ["1", "2", "10"],
    ["-1", "0", "0.5", "1e3", "cat"],
    ["class 2", "class 10", "class 10a"],
    ["class 002", "class 10"],
    ["aa", "Banana", "c"],
    ["Cat", "cat", "cat 2"],
    ["01", "1", "02"],
    ["img9", "img" + "9" * 5000],
    ["7", "b", "inf", "nan"],
    ["a", "e\u0301a", "\u00e9b"],
    ["z", "e\u0301a", "\u00e9b"],
]


@pytest.mark.parametrize("names", ORDERED)
def test_sort_classes_gives_natural_order_from_any_order(names: list[str]) -> None:
    for seed in range(5):
        assert sort_classes(random.Random(seed).sample(names, len(names))) == tuple(names)


@pytest.mark.parametrize(
    ("names", "among", "expected"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b"], ["b", "c", "a"], [2, 0]),
        (["a", "x"], ["b", "a"], [1, -1]),
        (["Cat"], ["cat"], [-1]),
        (["1"], ["01"], [-1]),
        (["caf\u00e9"], ["tea", "cafe\u0301"], [1]),
        ([], ["a"], []),
        (["crane"], ["x", "crane", "crane"], [1]),
        (["crane", "crane"], ["crane", "crane"], [0, 1]),
    ],
)
def test_classes_are_matched_by_name(names: list[str], among: list[str], expected: list[int]) -> None:
    assert match_classes(names, among) == expected


def test_class_names_are_formatted_for_messages() -> None:
    assert format_class_names([str(i) for i in range(7)]) == "'0', '1', '2', '3', '4' and 2 more"
    assert format_class_names([]) == "none"
    assert describe_difference(["a", "b"], ["b", "a"]) == "class 0 is 'a' in the model and 'b' in the data"
    assert describe_difference(["a"], ["a", "b"]) == "only the model has none, only the data has 'b'"
    assert describe_difference(["a"], ["b"]) == "only the model has 'a', only the data has 'b'"


def test_class_names_are_read_from_a_file_or_its_run(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    assert read_recorded_classes({"class_names": ["a", "b"]}, file) == ["a", "b"]
    assert read_recorded_classes({"hyper_parameters": {"class_names": ["a"]}}, file) == ["a"]
    assert read_recorded_classes({}, file) is None
    (tmp_path / "fit.yaml").touch()
    assert read_recorded_classes({"hyper_parameters": {}}, file) is None
    (tmp_path / "split.csv").write_text('# {"class_names": ["x", "y"]}\nid,split,label\n')
    assert read_recorded_classes({"hyper_parameters": {"class_names": None}}, file) == ["x", "y"]
    (tmp_path / "split.csv").write_text("no JSON\n")
    assert read_recorded_classes({}, file) is None
    for value in ([1, 2], "ab", {"a": 0}, [], None, torch.ones(2)):
        assert parse_class_names(value) is None

import re

import pytest

from sft_lightning.data.issues import Finding, collect_faults
from sft_lightning.data.label_checks import check_class_names, check_missing_labels
from sft_lightning.data.source import split_of_name
from sft_lightning.utils.errors import InputError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "c\u200bat"),
        ("cat", "cat\ufeff"),
        ("big cat", "big\u00a0cat"),
        ("big cat", "big  cat"),
        ("cat", " cat"),
        ("cat", "'cat'"),
        ("cat", "\u201ccat\u201d"),
        ("1", "1.0"),
        ("1", "01"),
        ("1", "+1"),
        ("0", "-0.0"),
        ("cat", "\uff43\uff41\uff54"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_class_names_that_look_alike_are_refused(one: str, other: str) -> None:
    with pytest.raises(InputError, match=r"folder 'x' has the classes .* which look alike") as caught:
        check_class_names("folder 'x'", ["dog", one, other], places={one: "line 7"})
    assert "(line 7)" in str(caught.value)
    assert str(caught.value).isprintable()
    check_class_names("folder 'x'", ["dog", one, other], listed_classes=["dog", one, other])
    with pytest.raises(InputError, match="look alike"):
        check_class_names("folder 'x'", ["dog", one, other], listed_classes=["dog", one])
    with collect_faults() as found:
        check_class_names("folder 'x'", ["dog", one, other])
    assert [fault.title for fault in found] == ["class names that look alike"]


def test_distinct_class_names_give_no_warning() -> None:
    names = [
        "cat",
        "cats",
        "1",
        "10",
        "1e1",
        "v1",
        "v1.0",
        "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646",
        "\U0001f469\u200d\U0001f680",
    ]
    assert check_class_names("x", names) == []


def test_letters_of_another_script_that_look_the_same_are_reported() -> None:
    (finding,) = check_class_names("x", ["cat", "c\u0430t", "\u043a\u043e\u0442"])
    assert (finding.kind, finding.examples) == ("class_name", ("c\u0430t",))
    assert finding.message.endswith(r"mixes Latin and Cyrillic letters ('c\u0430t')")


def test_single_letters_may_differ_in_case() -> None:
    finding = Finding("class_name", "x: the classes 'a' and 'A' differ in case alone", ["a", "A"])
    assert check_class_names("x", ["a", "A", "b"]) == [finding]


@pytest.mark.parametrize("name", ["cat\u200b", "ca\u00a0t", "cat ", "\ufeffcat", "c\u200dat"])
def test_invisible_characters_are_escaped_in_messages(name: str) -> None:
    (finding,) = check_class_names("x", ["dog", name])
    assert finding.message == f"x: the class name {name!a} has characters that cannot be seen"
    assert check_class_names("x", ["dog", name], listed_classes=[name]) == []


@pytest.mark.parametrize(
    "label",
    [
        "NA",
        "N/A",
        "n/a",
        "#N/A",
        "NaN",
        "nan",
        "<NA>",
        "null",
        "NULL",
        "None",
        "-",
        "?",
        "-1",
        "TODO",
        "tbd",
        "unlabeled",
        "Unlabelled",
        "not_labeled",
        "no-label",
    ],
)
def test_labels_that_stand_for_missing_ones_are_refused(label: str) -> None:
    words = f"m: 7 labels are {label!r} (first: line 3): leave the label blank"
    with pytest.raises(InputError, match=re.escape(words)):
        check_missing_labels("m", {"cat": 3, label: 7}, places={label: "line 3"})
    assert check_missing_labels("m", {"cat": 3, label: 7}, listed_classes=["cat", label]) == []


@pytest.mark.parametrize("label", ["none", "unknown", "Unknown", "missing"])
def test_labels_that_may_be_a_class_are_reported(label: str) -> None:
    (finding,) = check_missing_labels("m", {"cat": 3, label: 1})
    assert (finding.kind, finding.examples) == ("unclear_label", (label,))
    assert finding.message.startswith(f"m: 1 label is {label!r}, which is read as a class")


def test_plus_and_minus_are_two_classes() -> None:
    assert len(check_missing_labels("m", {"-1": 3, "1": 1})) == 1
    with pytest.raises(InputError, match="3 labels are '-1'"):
        check_missing_labels("m", {"-1": 3, "1": 1, "0": 2})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN_SET", "train"),
        ("valid", "val"),
        ("validation set", "val"),
        ("Dev", "val"),
        ("Testing", "test"),
        ("test-data", "test"),
        ("unlabelled", "unlabeled"),
        ("un-labeled", "unlabeled"),
        ("trains", None),
        ("dataset", None),
        ("cat", None),
        ("", None),
    ],
)
def test_find_split_understands_names_of_splits(name: str, split: str | None) -> None:
    assert split_of_name(name) == split

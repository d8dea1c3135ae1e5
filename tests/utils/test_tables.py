"""Aligned text tables."""

import pytest

from sft_lightning.utils.tables import align_columns


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert align_columns([["name", "count"], ["a", "1"], ["longer", "12"]]) == [
        "name    count",
        "a       1",
        "longer  12",
    ]


def test_the_last_alignment_holds_for_further_columns() -> None:
    rows = [["name", "first", "second"], ["a", "1", "22"]]
    assert align_columns(rows, "<>") == ["name  first  second", "a         1      22"]
    assert align_columns(rows, ">") == ["name  first  second", "   a      1      22"]
    assert align_columns(rows, "<><") == ["name  first  second", "a         1  22"]


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        align_columns([["a", "b"], ["c"]])

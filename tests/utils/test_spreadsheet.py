import csv
import io

import pytest
from hypothesis import given, settings, strategies as st

from sft_lightning.utils.spreadsheet import format_csv, protect_cell, restore_cell


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+x",
        "-x",
        "@x",
        "\tx",
        "\rx",
        "\nx",
        " =1",
        "-1+2",
        "--1",
        "\uff1d1",
        "'=1",
        "''=1",
        "-cmd|' /C",
    ],
)
def test_what_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert protect_cell(text) == f"'{text}"
    assert restore_cell(f"'{text}") == text


@pytest.mark.parametrize(
    "text", ["", "x", "-", "=", "a=b", "'x'", "'", "-1", "+1.5", "-2e-05", "-inf", "-.5", "1-2", "x\n=1"]
)
def test_what_is_harmless_stays(text: str) -> None:
    assert protect_cell(text) == text
    assert restore_cell(text) == text


def test_numbers_stay_numbers() -> None:
    assert [protect_cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]


@settings(derandomize=True, deadline=None)
@given(st.text("'=+-@\t\r\n 1ax\uff1d"))
def test_all_text_is_read_back(text: str) -> None:
    protected = protect_cell(text)
    assert isinstance(protected, str)
    assert restore_cell(protected) == text


def test_a_table_is_read_back() -> None:
    rows = [["=a", "b"], ["-x", "-1"], ["'=y", "1,2"]]
    written = list(csv.reader(io.StringIO(format_csv(rows), newline="")))
    assert written == [["'=a", "b"], ["'-x", "-1"], ["''=y", "1,2"]]
    assert [[restore_cell(cell) for cell in row] for row in written] == rows

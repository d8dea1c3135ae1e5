"""Pages are one file, and text from users stays text in every element."""

import re
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from sft_lightning.utils.html import (
    Section,
    render_collapsible,
    render_columns,
    render_examples,
    render_figure,
    render_heading,
    render_image,
    render_matrix,
    render_note,
    render_page,
    render_paragraphs,
    render_table,
    render_tiles,
)

HOSTILE = "<b>&amp;'\"</b>"


class Parser(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(str(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for _, value in attrs:
            self.text += value or ""

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("element", "count"),
    [
        (render_paragraphs([HOSTILE]), 1),
        (render_note(HOSTILE), 1),
        (render_heading(HOSTILE), 1),
        (render_table([HOSTILE], [[HOSTILE]]), 2),
        (render_tiles([(Markup(), [HOSTILE])]), 1),
        (render_collapsible(HOSTILE, HOSTILE), 2),
        (render_image(b"", HOSTILE), 2),
        (render_examples([render_image(b"", HOSTILE)], "pair"), 2),
        (render_columns([render_note(HOSTILE)]), 1),
        (render_figure(Markup(), HOSTILE, [(HOSTILE, "red", "")]), 2),
        (render_matrix([[1]], [HOSTILE]), 4),
    ],
)
def test_elements_escape_text(element: Markup, count: int) -> None:
    parser = Parser(element)
    assert "b" not in parser.tags
    assert parser.text.count(HOSTILE) == count


def test_a_page_escapes_text_and_leaves_out_empty_sections() -> None:
    sections = [Section(HOSTILE, render_note(HOSTILE)), Section("empty", Markup())]
    parser = Parser(render_page(HOSTILE, HOSTILE, [HOSTILE], sections, render_heading("figure")))
    assert "b" not in parser.tags
    assert parser.text.count(HOSTILE) == 6  # the title twice
    assert "empty" not in parser.text
    assert parser.tags.count("h3") == 1
    assert "script" not in parser.tags


def test_a_body_that_is_not_markup_is_escaped() -> None:
    assert "b" not in Parser(render_page("", "", [], [Section("", HOSTILE)])).tags  # type: ignore[arg-type]


def test_the_verdict_shares_the_first_screen_with_a_figure_only_if_there_is_one() -> None:
    assert 'class="lead split"' in render_page("", "", [], [], Markup("<figure></figure>"))
    assert 'class="lead"' in render_page("", "", [], [])


def test_a_matrix_cuts_long_names_and_colors_shares_of_rows() -> None:
    matrix = render_matrix([[1, 0], [3, 1]], ["<i>" + "a" * 30, '"b"'])
    assert f'<th title="&lt;i&gt;{"a" * 30}">&lt;i&gt;{"a" * 15}…</th>' in matrix
    assert '<th title="&#34;b&#34;">&#34;b&#34;</th>' in matrix
    cells = re.findall(r'rgba\((.*?)\)">(\d*)</td>', matrix)
    right, wrong = "0,114,178", "213,94,0"
    assert cells == [(f"{right},0.70", "1"), (f"{wrong},0.00", ""), (f"{wrong},0.52", "3"), (f"{right},0.17", "1")]

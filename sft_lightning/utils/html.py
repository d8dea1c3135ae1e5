"""Pages that open offline: one file without anything to fetch, light or dark like the system.

Only `label.html`, the page for labeling, has a script. The HTML stands in `templates/`, where jinja2 escapes every
value that is not `Markup`. Strings from users (names of classes, files and runs) therefore go in as they are.
"""

import base64
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


class Section(NamedTuple):
    """A titled part of a page.

    Attributes:
        title: Plain text.
        body: HTML; a section with an empty body is left out.
    """

    title: str
    body: Markup


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sft_lightning.utils"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(macro: str, *values: Any) -> Markup:
    """Call a macro of `elements.html`."""
    return Markup(getattr(_environment().get_template("elements.html").module, macro)(*values))


def render_page(
    title: str, subtitle: str, verdict: Sequence[str], sections: Sequence[Section], figure: Markup | None = None
) -> str:
    """Return a page that starts with the verdict.

    Args:
        title: Plain text.
        subtitle: Plain text below the title.
        verdict: Sentences in plain text, the most important one first.
        sections: Parts of the page in their order.
        figure: Figure beside the verdict, or below it on a narrow screen.
    """
    return (
        _environment()
        .get_template("page.html")
        .render(title=title, subtitle=subtitle, verdict=verdict, sections=sections, figure=figure or Markup())
    )


def render_template(name: str, **values: Any) -> str:
    """Return a page with a template of its own.

    Args:
        name: File in `templates/`.
        values: Values of the template; text is escaped.
    """
    return _environment().get_template(name).render(**values)


def render_paragraphs(sentences: Sequence[str]) -> Markup:
    """Return a paragraph for each sentence.

    Args:
        sentences: Plain text.
    """
    return _render("paragraphs", sentences)


def render_note(text: str) -> Markup:
    """Return a paragraph in the color of captions.

    Args:
        text: Plain text.
    """
    return _render("note", text)


def render_heading(text: str) -> Markup:
    """Return a heading within a section.

    Args:
        text: Plain text.
    """
    return _render("heading", text)


def render_columns(parts: Sequence[Markup], kind: str = "columns") -> Markup:
    """Return parts side by side, which wrap on a narrow screen.

    Args:
        parts: HTML of each part.
        kind: `columns`, each as wide as its content, or `row`, all of one width.
    """
    return _render("columns", parts, kind)


def render_image(png: bytes, description: str) -> Markup:
    """Return a PNG that is part of the page.

    Args:
        png: Content of a PNG file.
        description: Plain text for readers who cannot see it; also shown under the pointer.
    """
    return _render("image", base64.b64encode(png).decode(), description)


def render_player(content: bytes, media_type: str, description: str) -> Markup:
    """Return a player of sound that is part of the page.

    Args:
        content: Content of the file.
        media_type: What it is, such as `audio/flac`.
        description: Plain text that is shown under the pointer.
    """
    return _render("player", base64.b64encode(content).decode(), media_type, description)


def render_excerpt(text: str, description: str) -> Markup:
    """Return a text that stands for an example, as a PNG does elsewhere.

    Args:
        text: Plain text.
        description: Plain text that is shown under the pointer.
    """
    return _render("excerpt", text, description)


def render_marked(parts: Sequence[tuple[str, float]], description: str) -> Markup:
    """Return a text that stands for an example, with some of its parts marked.

    Args:
        parts: Plain text of each part, and how strongly it is marked, 0 to 1.
        description: Plain text that is shown under the pointer.
    """
    return _render("marked", parts, description)


def render_examples(parts: Sequence[Markup], kind: str) -> Markup:
    """Return examples in one line.

    Args:
        parts: Examples from `render_image` or `render_excerpt`.
        kind: `pair`, or `near` for small ones.
    """
    return _render("examples", parts, kind)


def render_figure(content: Markup, title: str = "", legend: Sequence[tuple[str, str, str]] = ()) -> Markup:
    """Return a figure with its title and legend.

    Args:
        content: SVG or PNG.
        title: Plain text above the figure.
        legend: Name, color, and shape (`square`, or empty for a disk) of each entry.
    """
    return _render("figure", content, title, legend)


def render_table(head: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> Markup:
    """Return a table whose first column is text.

    Args:
        head: Titles of the columns.
        rows: Cells of each row.
        kind: `facts` where all columns are text, `explained` where the last one is.
    """
    return _render("table", head, rows, kind)


def render_matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Return a confusion matrix, colored by the share of each row.

    Args:
        counts: Number of examples by true class (row) and predicted class (column).
        names: Names of the classes.
    """
    return _render("matrix", counts, names)


def render_tiles(items: Sequence[tuple[Markup, Sequence[str]]]) -> Markup:
    """Return examples with lines of text below each.

    Args:
        items: HTML of the example, and lines of plain text.
    """
    return _render("tiles", items)


def render_collapsible(title: str, text: str) -> Markup:
    """Return preformatted text that opens with a click.

    Args:
        title: Plain text that is always shown.
        text: Plain text.
    """
    return _render("collapsible", title, text)

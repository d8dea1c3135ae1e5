"""A page that opens offline: one file, no script, nothing fetched; light or dark as the reader's system is."""

import html
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #5d6470; --paper: #fff; --card: #f4f5f7; --line: #d9dce2;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa2af; --paper: #14161a; --card: #1e2127;
  --line: #343942; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; } figure h3 { margin: .25rem 0; font-size: .9rem; }
p { margin: .5rem 0; } .soft, figcaption, small { color: var(--soft); }
.verdict { background: var(--card); border-left: .3rem solid var(--accent); padding: .75rem 1rem; margin: 1rem 0;
  border-radius: .2rem; } .verdict p:first-child { font-size: 1.2rem; line-height: 1.35; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.matrix td { text-align: center; min-width: 2.1rem; border: 1px solid var(--line); }
.matrix th { white-space: nowrap; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .6rem .25rem; }
.matrix thead th:first-child { writing-mode: initial; transform: none; vertical-align: bottom; }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); text-align: right; }
.told td:last-child, .told th:last-child { text-align: left; }
.beside { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .beside > * { min-width: 0; max-width: 100%; }
.facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { color: var(--soft); width: 11rem; }
@media (max-width: 40rem) { .facts td:first-child { width: 6.5rem; } th, td { padding: .25rem .4rem; } }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem; }
figure { margin: .5rem 0; max-width: 30rem; } figure.wide { max-width: 48rem; } figure img { max-width: 100%; }
.chart figure { min-width: 34rem; max-width: 48rem; }
figure svg { width: 100%; height: auto; display: block; color: var(--soft); }
figure svg text { font-family: system-ui, sans-serif !important; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; color: var(--ink); padding-left: .5rem; }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em; }
.legend i.square { border-radius: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem; }
.tile { background: var(--card); border-radius: .4rem; padding: .5rem; font-size: .8rem; line-height: 1.35; }
.tile div { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.tile div:first-of-type { font-weight: 600; } .tile div:last-child { color: var(--soft); }
.tile img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; background: #8883; }
.tile .near { display: flex; gap: .25rem; } .tile .near img { width: 0; flex: 1; max-width: 33%; }
.tile .pair { display: flex; gap: .25rem; margin: 0 0 .35rem; } .tile .pair img { width: 0; flex: 1; }
pre { background: var(--card); padding: .75rem; overflow-x: auto; font-size: .8rem; overflow-wrap: normal; }
summary { cursor: pointer; color: var(--accent); }
"""
_LONG = 18  # letters of a class name beside a matrix


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: Plain text.
        body: HTML; what came from outside is escaped by whoever made it.
    """

    title: str
    body: str


def render_page(title: str, under: str, verdict: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: Plain text.
        under: Plain text below it.
        verdict: Sentences in plain text.
        sections: In order; those without a body are left out.
    """
    parts = [f"<h2>{html.escape(s.title)}</h2>\n{s.body}" for s in sections if s.body]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(under)}</p>\n'
        f'<div class="verdict">{render_paragraphs(verdict)}</div>\n' + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def render_paragraphs(sentences: Sequence[str]) -> str:
    """Each a paragraph.

    Args:
        sentences: Plain text.
    """
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def render_table(head: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> str:
    """A table; the first column is text.

    Args:
        head: Titles of the columns.
        rows: Cells.
        kind: `facts` where all columns are text.
    """
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def render_matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix; the stronger the color, the larger the share of the row.

    Args:
        counts: Rows true, columns predicted.
        names: Of the classes.
    """
    named = [
        f'<th title="{html.escape(name)}">{html.escape(name if len(name) <= _LONG else name[:_LONG] + "…")}</th>'
        for name in names
    ]
    lines = []
    for k, (row, name) in enumerate(zip(counts, named, strict=True)):
        total = max(1, sum(row))
        color = ["0,114,178" if j == k else "213,94,0" for j in range(len(row))]
        cells = "".join(
            f'<td style="background:rgba({color[j]},{0.7 * n / total:.2f})">{n or ""}</td>' for j, n in enumerate(row)
        )
        lines.append(f"<tr>{name}{cells}</tr>")
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th>true \\ predicted</th>{"".join(named)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def render_tiles(found: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Pictures with words below.

    Args:
        found: The picture as HTML, and lines of plain text.
    """
    one = (
        f'<div class="tile">{picture}{"".join(f"<div>{html.escape(line)}</div>" for line in lines)}</div>'
        for picture, lines in found
    )
    return f'<div class="tiles">{"".join(one)}</div>'


def render_collapsible(title: str, text: str) -> str:
    """Plain text that is shown when asked for.

    Args:
        title: What it is.
        text: The text.
    """
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"

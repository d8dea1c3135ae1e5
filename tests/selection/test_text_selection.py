"""`select` and `label` with texts, the page in a real browser: right to left, emoji and HTML as it was written."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.data.label_files import read_label_rows
from sft_lightning.selection.label import LabelSession
from sft_lightning.selection.label_server import LabelServer
from sft_lightning.selection.select import select_examples
from tests.browser import Browser
from tests.modality.test_texts import make_texts

ODD = [
    ("arabic", "القمر والنجوم في السماء <b>الليل</b>"),
    ("emoji", "🍞🧀 très bon!\nSecond line"),
    ("script", "<script>alert(1)</script></script><img src=x onerror=alert(2)> & \u2028 {{ state }}"),
]


@pytest.fixture
def table(workdir: Path) -> Path:
    """30 texts with a label, 60 without, and three odd ones."""
    rows = [(f"t{i}", text, label if i < 30 else "") for i, (text, label) in enumerate(make_texts(90, 0.5))]
    rows += [(name, text, "") for name, text in ODD]
    with (workdir / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text", "label"), *rows])
    return workdir / "texts.csv"


def test_select_writes_the_texts(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "texts.csv", "--num_labels", "20", "--out", "chosen"]) == 0
    said = capsys.readouterr().out
    assert "20 of 63 unlabeled texts, beside " in said
    assert "by whitened principal components of the words" in said
    with Path("chosen/select.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = {row["id"]: row["text"] for row in csv.DictReader(table.open(newline="", encoding="utf-8"))}
    assert len(rows) == 20
    assert all(row["text"] == texts[row["id"]] for row in rows if row["id"] not in dict(ODD))
    page = Path("chosen/select.html").read_text(encoding="utf-8")
    assert page.count('<q dir="auto"') == 20
    assert "<script>" not in page
    hidden = select_examples("texts.csv", 5, "k_center", hide_labels=True)
    assert hidden.num_labeled == 0


def test_settings_of_other_data_are_refused(table: Path, cli_error: Callable[..., str]) -> None:
    said = cli_error("select", "texts.csv", "--image_size=32")
    assert "image_size is 32, and source 'texts.csv' holds texts: leave it out" in said


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the page with")
def test_texts_are_shown_as_they_were_written(table: Path, workdir: Path) -> None:
    ids = dict.fromkeys(dict(ODD), "")
    session = LabelSession("texts.csv", ids, Path("labels.csv"), None, 32)
    quoted = "document.querySelector('#example blockquote')"
    with Browser(workdir / "profile") as browser, LabelServer(
        0, session.render(embeds=False), session.read, session.answer
    ) as server:  # fmt: skip
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(server.address)
        for k, (_, text) in enumerate(ODD):
            assert browser.evaluate(f"{quoted}.textContent") == text
            assert browser.evaluate(f"{quoted}.childElementCount") == 0  # no tag of a text becomes one of the page
            style = browser.evaluate(f"(s => [s.direction, s.whiteSpace])(getComputedStyle({quoted}))")
            assert style == [["rtl", "ltr", "ltr"][k], "pre-wrap"]
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            browser.press(str(k + 1))
        browser.wait("pending.then(() => true)")
        server.shutdown()
        assert main(["label", "texts.csv", "--num_labels", "4", "--static", "page.html"]) == 0
        browser.open(Path("page.html").resolve().as_uri())
        texts = {row["id"]: row["text"] for row in csv.DictReader(table.open(newline="", encoding="utf-8"))}
        name = browser.evaluate("document.querySelector('figcaption').textContent")
        assert browser.evaluate(f"{quoted}.textContent") == texts[name]
        assert not browser.evaluate("performance.getEntriesByType('resource').length")
    assert [row[:2] for row in read_label_rows(Path("labels.csv"))] == [
        (name, label) for name, label in zip(ids, session.class_names, strict=True)
    ]  # fmt: skip

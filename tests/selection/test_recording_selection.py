"""Recordings are chosen by `select`, and heard on the page of `label`."""

import shutil
import threading
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.data.label_files import read_label_rows
from sft_lightning.selection.label import LabelSession
from sft_lightning.selection.label_server import LabelServer
from sft_lightning.selection.select import select_examples
from tests.browser import Browser
from tests.solver.test_solve_recordings import write_source


@pytest.fixture
def sounds(workdir: Path) -> Path:
    write_source(workdir / "sounds", 2, 12)
    return workdir / "sounds"


def test_a_recording_can_be_played_before_it_is_labeled(sounds: Path, workdir: Path) -> None:
    (sounds / "unlabeled" / "broken.wav").write_text("no sound")  # is left out
    chosen = select_examples("sounds", 2)
    assert len(chosen.ids) == 2
    session = LabelSession("sounds", dict.fromkeys(chosen.ids, ""), Path("labels.csv"), None, 64)
    content, kind = session.read("clip", 1)
    assert (content[:4], kind) == (b"fLaC", "audio/flac")
    assert session.read("image", 1)[1].startswith("image/")
    for wrong in (("clip", 2), ("text", 0)):
        with pytest.raises(IndexError):
            session.read(*wrong)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the page with")
def test_the_page_plays_recordings(sounds: Path, workdir: Path) -> None:
    ids = dict.fromkeys(["unlabeled/006.wav", "unlabeled/007.wav"], "")
    session = LabelSession("sounds", ids, Path("labels.csv"), None, 64)
    loaded = "document.querySelector('#example audio').readyState > 0"
    with Browser(workdir / "profile") as browser, LabelServer(
        0, session.render(embeds=False), session.read, session.answer
    ) as server:  # fmt: skip
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(server.address)
        for key in "12":
            browser.wait(loaded)
            browser.press(key)
        browser.wait("pending.then(() => true)")
        server.shutdown()
        assert main(["label", "sounds", "--num_labels", "2", "--static", "page.html"]) == 0
        browser.open(Path("page.html").resolve().as_uri())
        browser.wait(loaded)
        assert not browser.evaluate(
            "performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
        )
    labels = {row.id: row.label for row in read_label_rows(Path("labels.csv"))}
    assert labels == dict(zip(ids, session.class_names, strict=False))

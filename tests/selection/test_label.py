"""The page for labeling in a real browser, its server, and its file of labels."""

import csv
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from sft_lightning.__main__ import main
from sft_lightning.data.label_files import LabelRow, read_label_rows, write_label_rows
from sft_lightning.data.open_data import open_data
from sft_lightning.selection.label import LabelSession
from sft_lightning.selection.label_server import LabelServer
from sft_lightning.utils.errors import InputError
from tests.browser import Browser
from tests.conftest import ROOT

SETS = {"label_separator": ";"}
HOSTILE = "<img src=x onerror=alert(1)>'&.png"
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the page with")


@pytest.fixture
def folder(workdir: Path, write_folder: Callable[..., Path]) -> Path:
    """Three classes, and six unlabeled images, the first of which has a hostile name."""
    folder = write_folder(workdir / "images", {"train": 3, "unlabeled": 2})
    first = min((folder / "unlabeled").iterdir())
    first.rename(first.with_name(HOSTILE))
    names = [HOSTILE, *sorted({path.name for path in (folder / "unlabeled").iterdir()} - {HOSTILE})]
    rows = [["id", "suggestion"], *[[f"unlabeled/{name}", ["class_2", ""][k > 0]] for k, name in enumerate(names)]]
    with Path("ids.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def listed() -> list[str]:
    return [row["id"] for row in csv.DictReader(Path("ids.csv").read_text().splitlines())]


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command and return it with the address that it prints."""
    words = [sys.executable, "-m", "sft_lightning", "label", str(folder), "--ids", "ids.csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = re.match(r"Open (http://127\.0\.0\.1:\d+/[\w-]{32}/) in a browser", process.stdout.readline())
    assert found
    return process, found[1]


def answers() -> list[tuple[str, str, str]]:
    return [row[:3] for row in read_label_rows(Path("labels.csv"))]


@pytest.mark.slow
@needs_browser
def test_keys_label_and_a_killed_command_goes_on(folder: Path, workdir: Path) -> None:
    ids = listed()
    with Browser(workdir / "profile") as browser:
        process, address = start(folder)
        try:
            browser.open(address)
            assert browser.evaluate("document.querySelectorAll('img').length") == 1  # the name stays text
            assert browser.evaluate("document.querySelector('figcaption').textContent") == ids[0]
            browser.wait("document.querySelector('#example img').naturalWidth > 100")
            assert "Suggested: class_2" in browser.evaluate("document.body.innerText")
            browser.press("Enter", "1", "s", "n", "3")
            browser.press("u")
            browser.press("z", modifiers=2)
            browser.press("2")
            expected = [(ids[0], "class_2", ""), (ids[1], "class_0", ""), (ids[2], "", "skip"), (ids[3], "class_1", "")]
            browser.wait("pending.then(() => true)")
            assert answers() == expected
            assert browser.evaluate("at('where').textContent").startswith("4 of 6 · 3 labeled, 0 not sure, 1 skipped")
        finally:
            process.kill()  # no chance to write anything
            process.wait()
        process, address = start(folder)
        try:
            browser.open(address)
            assert browser.evaluate("document.querySelector('figcaption').textContent") == ids[4]
            browser.evaluate("document.querySelectorAll('#classes button')[2].click()")
            browser.press("1")
            browser.wait("pending.then(() => true)")
            assert answers() == [*expected, (ids[4], "class_2", ""), (ids[5], "class_0", "")]
            assert "All 6 are answered" in browser.evaluate("document.body.innerText")
            assert browser.evaluate("[...document.querySelectorAll('#classes button')].every(b => b.disabled)")
        finally:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=180)[0]
        assert "5 of 6 images have a label in labels.csv" in said
        assert process.returncode == 0


@needs_browser
def test_a_static_page_keeps_labels_and_downloads_the_same_file(folder: Path, workdir: Path) -> None:
    ids = listed()
    assert main(["label", str(folder), "--ids", "ids.csv", "--static", "page.html"]) == 0
    assert not Path("labels.csv").exists()
    address = Path("page.html").resolve().as_uri()
    catch = "HTMLAnchorElement.prototype.click = function () { window.caught = [this.download, this.href]; }"
    with Browser(workdir / "profile") as browser:
        browser.open(address)
        browser.wait("document.querySelector('#example img').naturalWidth > 100")
        assert not browser.evaluate(
            "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        browser.press("2", "s", "n", "3", "u")
        browser.open("about:blank")
        browser.open(address)
        assert browser.evaluate("at('where').textContent").startswith("3 of 6 · 1 labeled, 1 not sure, 1 skipped")
        browser.evaluate(catch)
        browser.evaluate("at('download').click(), 0")
        name, content = browser.evaluate("window.caught")
        backgrounds = []
        for scheme in ("light", "dark"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            backgrounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
        sizes = browser.evaluate("[...document.querySelectorAll('button:not([hidden])')].map(b => b.offsetHeight)")
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 22, 26)"]
    assert min(sizes) >= 44
    assert name == "labels.csv"
    Path("labels.csv").write_text(unquote(content.partition(",")[2]), encoding="utf-8")
    expected = [(ids[0], "class_1", ""), (ids[1], "", "skip"), (ids[2], "", "unsure")]
    assert answers() == expected
    text = Path("labels.csv").read_text()
    write_label_rows(Path("labels.csv"), [LabelRow(*row) for row in expected])
    assert Path("labels.csv").read_text() == text


@needs_browser
def test_many_classes_have_a_filter(folder: Path, workdir: Path) -> None:
    names = [f"class_{k}" for k in range(40)]
    session = LabelSession(str(folder), dict.fromkeys(listed(), ""), Path("labels.csv"), names, 32)
    Path("page.html").write_text(session.render(embeds=True), encoding="utf-8")
    with Browser(workdir / "profile") as browser:
        browser.open(Path("page.html").resolve().as_uri())
        browser.press("/", "3", "7", "Enter", "a", "9")
        assert browser.evaluate("answers") == {"0": ["class_37", ""], "1": ["class_8", ""]}


@pytest.fixture
def tagged(folder: Path) -> Path:
    """A table of the images whose labels are sets of three tags; four images have none yet."""
    names = listed()
    labeled = sorted(str(path.relative_to(folder)) for path in (folder / "train").rglob("*.png"))
    sets = ["a;b", "b;c", "c", ";", "a;b;c", "b", "a", "a;c", "b"]
    with (folder / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *zip(labeled, sets, strict=True), *[[one, ""] for one in names]])
    with Path("ids.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "suggestion"], [names[0], "c; b"], *[[one, ""] for one in names[1:]]])
    return folder / "tags.csv"


@needs_browser
def test_keys_choose_several_classes(tagged: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = listed()
    words = ["label", str(tagged), "--ids", "ids.csv", "--label_separator", ";", "--static", "page.html"]
    assert main(words) == 0
    catch = "HTMLAnchorElement.prototype.click = function () { window.caught = this.href; }"
    with Browser(workdir / "profile") as browser:
        browser.open(Path("page.html").resolve().as_uri())
        browser.wait("document.querySelector('#example img').naturalWidth > 100")
        pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(one => one.textContent)"
        assert browser.evaluate(pressed) == ["2 b", "3 c"]  # as suggested
        browser.press("1", "2", "Enter")  # b is taken back
        browser.press("Enter")  # none of them
        browser.press("3", "s")  # what was chosen does not go on to the next one
        assert browser.evaluate(pressed) == []
        browser.evaluate("document.querySelectorAll('#classes button')[1].focus(), 0")
        browser.press("3", "Enter")  # a focused class does not take the key
        assert browser.evaluate("at('last').textContent") == f"{ids[3]}: c"
        browser.press("u")
        assert browser.evaluate(pressed) == []
        browser.evaluate("document.querySelectorAll('#classes button')[1].click(), at('done').click(), 0")
        browser.evaluate(catch)
        browser.evaluate("at('download').click(), 0")
        Path("labels.csv").write_text(unquote(browser.evaluate("window.caught").partition(",")[2]), encoding="utf-8")
    assert answers() == [(ids[0], "a;c", ""), (ids[1], ";", ""), (ids[2], "", "skip"), (ids[3], "b", "")]
    data = open_data(str(tagged), {"labels": "labels.csv", "label_separator": ";"}, {"val_size": 0, "test_size": 0})
    data.setup("fit")
    assert len(data.splits["labeled"]) == 12
    session = LabelSession(str(tagged), dict.fromkeys(ids, ""), Path("labels.csv"), None, 32, SETS)
    assert session.summarize().startswith("3 of 6 images have a label")


def test_answers_of_several_classes_are_checked(tagged: Path, cli_error: Callable[..., str]) -> None:
    session = LabelSession(str(tagged), dict.fromkeys(listed(), ""), Path("labels.csv"), None, 32, SETS)
    for wrong in ("d", "a;d", "a,b", ""):
        with pytest.raises(ValueError, match="other classes than the command"):
            session.answer({"number": 0, "answer": [wrong, ""]})
    for label in ("a;c", ";"):
        session.answer({"number": 0, "answer": [label, ""]})
        assert answers() == [(listed()[0], label, "")]
    Path("ids.csv").write_text(f"id,suggestion\n{listed()[1]},a;x\n")
    words = ["label", str(tagged), "--ids=ids.csv", "--static=page.html"]
    assert "ids suggests the class 'x' for" in cli_error(*words, "--label_separator=;")


@pytest.fixture
def session(folder: Path) -> LabelSession:
    return LabelSession(str(folder), dict.fromkeys(listed(), ""), Path("labels.csv"), None, 32)


@pytest.fixture
def server(session: LabelSession) -> Iterator[LabelServer]:
    import threading

    with LabelServer(0, "page", session.read, session.answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LabelServer, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_the_server_answers_only_to_its_address(server: LabelServer) -> None:
    base = urlsplit(server.address).path
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, base) == (200, b"page")
    assert ask(server, f"{base}image/0")[1][:4] == b"\x89PNG"
    for path in ("/", base[:-1], base[:-3] + "x/", "/x" + base, f"/{'a' * 32}/image/0"):
        assert ask(server, path)[0] == 403
    assert ask(server, base, Host="evil.example")[0] == 403
    assert ask(server, base, Host=f"evil.example:{server.server_address[1]}")[0] == 403
    for path in ("image/6", "image/-1", "image/x", "image/../image/0", "labels.csv", "answer"):
        assert ask(server, base + path)[0] == 404
    answer = {"number": 0, "answer": ["class_1", ""]}
    kind = {"Content-Type": "application/json"}
    assert ask(server, f"{base[:-2]}/answer", answer, **kind)[0] == 403
    assert ask(server, f"{base}answer", answer, **{"Content-Type": "text/plain"})[0] == 404
    wrong: list[Any] = [[], {}, {"number": 6, "answer": None}, {"number": True, "answer": None}]
    wrong += [{"number": 0, "answer": one} for one in (["class_9", ""], ["class_1", "skip"], ["", ""], ["", 1], 1)]
    for message in wrong:
        assert ask(server, f"{base}answer", message, **kind)[0] == 400
    assert ask(server, f"{base}answer", ["x" * 70_000], **kind)[0] == 413
    assert not Path("labels.csv").exists()
    assert ask(server, f"{base}answer", answer, **kind) == (200, b"saved")
    assert answers() == [(listed()[0], "class_1", "")]


def test_rows_of_other_images_stay_in_the_file(session: LabelSession) -> None:
    write_label_rows(
        Path("labels.csv"), [LabelRow("train/class_0/" + min(os.listdir("images/train/class_0")), "class_1")]
    )
    again = LabelSession("images", dict.fromkeys(listed()[:2], ""), Path("labels.csv"), None, 32)
    again.answer({"number": 1, "answer": ["class_2", ""]})
    session.answer({"number": 4, "answer": ["class_0", ""]})  # of another process
    again.answer({"number": 1, "answer": None})
    assert [row[1:] for row in answers()] == [("class_1", ""), ("class_0", "")]
    assert again.summarize() == "0 of 2 images have a label in labels.csv; 2 are left, start the command again to go on"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id\nunlabeled/x.png\n", "has no readable training example 'unlabeled/x.png'"),
        ("id,suggestion\nx,clas_1\n", r"ids suggests the class 'clas_1' for 'x', which is unknown \(did you mean"),
        ("name\nx\n", "ids 'ids.csv' lacks the column 'id'"),
        ("id\n", "ids 'ids.csv' has no line below its header"),
    ],
)
def test_wrong_ids_are_one_sentence(folder: Path, text: str, said: str, cli_error: Callable[..., str]) -> None:
    Path("ids.csv").write_text(text)
    assert re.search(said, cli_error("label", str(folder), "--ids=ids.csv", "--static=page.html"))


def test_a_source_without_classes_needs_them(folder: Path) -> None:
    with pytest.raises(InputError, match="has no classes: list them in class_names"):
        LabelSession(str(folder / "unlabeled"), {HOSTILE: ""}, Path("labels.csv"), None, 32)
    session = LabelSession(str(folder / "unlabeled"), {HOSTILE: ""}, Path("labels.csv"), ["cat", "dog"], 32)
    session.answer({"number": 0, "answer": ["dog", ""]})
    again = LabelSession(str(folder / "unlabeled"), {HOSTILE: ""}, Path("labels.csv"), ["cat", "dog"], 32)
    assert again.summarize() == "1 of 1 images have a label in labels.csv"

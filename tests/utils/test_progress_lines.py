"""Long work says how far it is, with and without a terminal, and before torch is imported."""

import sys
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.cli.commands import COMMANDS
from sft_lightning.data.digests import digest_files
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.image_files import inspect_images
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.data.vision.images import FileImages, Geometry
from sft_lightning.utils import progress_lines
from tests.data.conftest import write_image


def test_every_stage_writes_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [write_image(tmp_path / f"{i}.png", i, (12, 10)) for i in range(3)]
    images = FileImages(paths, [path.name for path in paths])

    def work() -> None:
        inspect_images(paths)
        compute_image_stats("test", Split(Examples(images, images.ids, None), [0, 1, 2]), Geometry())  # type: ignore[arg-type]

    work()
    assert caplog.messages == []
    monkeypatch.setattr(progress_lines, "_SECONDS", 0.0)
    work()
    assert caplog.messages == [
        *("Checking files: 1 of 3 ...", "Checking files: 2 of 3 ..."),
        *("Images (test): 1 of 3 ...", "Images (test): 2 of 3 ..."),
    ]
    monkeypatch.setattr("sft_lightning.data.digests._CHUNK", 2)
    digest_files(paths)
    assert caplog.messages[4:] == ["Digests of files: 2 of 3 ..."]


def test_track_counts_an_item_when_its_work_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_lines, "_SECONDS", 0.0)
    lines = [list(caplog.messages) for _ in progress_lines.track(["a", "b", "c"], "Work", "letter")]
    assert lines == [[], ["Work: 1 of 3 ..."], ["Work: 1 of 3 ...", "Work: 2 of 3 ..."]]


def describe(words: list[str]) -> str:
    assert words == ["--data", "x.yaml"]
    return "done"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_command_announces_its_import_on_a_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").touch()
    monkeypatch.setitem(COMMANDS, "audit", COMMANDS["audit"]._replace(function=f"{__name__}:describe"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert main(["audit", "--data", "x.yaml"]) == 0
    assert capsys.readouterr() == ("done\n", "")
    monkeypatch.delitem(sys.modules, "torch")
    assert main(["audit", "--data", "x.yaml"]) == 0
    expected = "sft-lightning audit: importing PyTorch ...\n" if is_terminal else ""
    assert capsys.readouterr() == ("done\n", expected)


@pytest.mark.parametrize("name", ["fit", "test", "report"])
def test_every_command_that_imports_torch_says_so(name: str) -> None:
    assert COMMANDS[name].needs_torch

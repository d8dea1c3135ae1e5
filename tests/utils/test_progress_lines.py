"""Long work says how far it is, with and without a terminal, and before torch is imported."""

import sys
from pathlib import Path

import pytest

from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.dispatch import run_command
from sft_lightning.data.digests import digest_files
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.image_files import inspect_images
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.data.vision.images import FileImages, Geometry
from sft_lightning.utils import progress_lines
from tests.data.conftest import picture


def test_every_stage_writes_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [picture(tmp_path / f"{i}.png", i, (12, 10)) for i in range(3)]
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


def describe(words: list[str]) -> str:
    assert words == ["--data", "x.yaml"]
    return "done"


def test_a_command_says_that_it_imports_before_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = COMMANDS["audit"]._replace(function=f"{__name__}:describe")
    monkeypatch.setitem(COMMANDS, "audit", stub)
    run_command(["audit", "--data", "x.yaml"])
    assert capsys.readouterr() == ("done\n", "")
    monkeypatch.delitem(sys.modules, "torch")
    run_command(["audit", "--data", "x.yaml"])
    assert capsys.readouterr() == ("done\n", "sft-lightning audit: importing PyTorch ...\n")

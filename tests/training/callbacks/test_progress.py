"""Test the progress of `predict`: a bar on a terminal, lines elsewhere."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from sft_lightning import ImageDataModule
from sft_lightning.training.callbacks.progress import Progress
from sft_lightning.utils.inputs import InputSpec
from tests.data.conftest import write_image
from tests.doubles import FakeData
from tests.paradigms.helpers import classifier, trainer


@pytest.fixture
def data(tmp_path: Path) -> ImageDataModule:
    for i in range(7):
        write_image(tmp_path / "new" / f"{i}.png", i)
    return ImageDataModule("sample", predict_source=str(tmp_path / "new"), eval_batch_size=3, num_workers=0)


def predict(data: ImageDataModule, *callbacks: Callback) -> None:
    torch.manual_seed(0)
    trainer([*callbacks], enable_progress_bar=True).predict(classifier(), data, return_predictions=False)


def test_progress_is_printed_as_lines_without_a_terminal(
    data: ImageDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    predict(data, Progress(seconds=0))
    said = [record.getMessage() for record in caplog.records if "Predicted" in record.getMessage()]
    assert said == [f"Predicted {k} of 7 images." for k in (3, 6, 7)]
    caplog.clear()
    predict(data, Progress(seconds=60))
    assert "Predicted" not in caplog.text


def test_progress_bar_counts_examples_by_their_name(
    data: ImageDataModule,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = Progress(seconds=0)
    predict(data, bar)
    shown = capsys.readouterr().out
    assert "7/7 " in shown
    assert bar.predict_progress_bar.unit == "image"
    assert (bar.predict_progress_bar.n, bar.predict_progress_bar.total) == (7, 7)
    assert "Predicted" not in caplog.text


def test_progress_counts_the_examples_of_all_processes(caplog: pytest.LogCaptureFixture) -> None:
    data = FakeData(predict_count=1000, input_spec=InputSpec("text", (16,), "int64"))
    two: Any = SimpleNamespace(world_size=2, datamodule=data)
    progress = Progress(seconds=0)
    progress.on_predict_start(two, classifier())
    for k in range(2):
        progress.on_predict_batch_end(two, classifier(), {"indices": torch.zeros(3)}, None, k)
    said = [record.getMessage() for record in caplog.records if "Predicted" in record.getMessage()]
    assert said == ["Predicted 6 of 1,000 texts.", "Predicted 12 of 1,000 texts."]

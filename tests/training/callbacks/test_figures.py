import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_lightning.training.callbacks.figures import draw_confusion_matrix, draw_image_rows
from tests.paradigms.helpers import cli


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def _read_image(events: EventAccumulator, tag: str) -> Image.Image:
    return Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))


def test_autoencoder_logs_reconstructions_scalars_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = cli("fit", "autoencoder", "--run_name=a", "--trainer.log_every_n_steps=5")
    events = _events(tmp_path / "lightning_logs" / "a" / "version_0")
    assert {"train/loss", "val/loss", "lr"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/loss")][:2] == [4, 9]
    assert [e.step for e in events.Scalars("val/loss")] == [5, 11]
    image = _read_image(events, "val/reconstructions")
    assert image.size == (8 * 58 + 2, 2 * 58 + 2)
    inputs, _ = run.model._example
    upper = np.asarray(image)[2:58, 2:58, 0]
    expected = (inputs[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1) * 255).round().numpy()
    assert np.abs(upper - expected).max() <= 1
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_classifier_logs_confusion_and_metrics_by_their_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = cli("fit", "fine_tune", "--run_name=a", "--model.init_args.regularizer=L2")
    folder = tmp_path / "lightning_logs" / "a" / "version_0"
    cli("test", "fine_tune", f"--ckpt_path={folder}", "--run_name=a")
    events = _events(folder)
    scalars = {"train/loss", "train/task", "train/regularizer", "lr"}
    measures = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
    scalars |= {f"{s}/{m}" for s in ("val", "test") for m in measures}
    assert scalars <= set(events.Tags()["scalars"])
    assert {"val/confusion", "test/confusion"} <= set(events.Tags()["images"])
    assert _read_image(events, "test/confusion").width > 440
    assert {tag.split("/")[0] for tag in events.Tags()["scalars"]} == {"train", "val", "test", "lr", "epoch"}
    last = events.Scalars("val/accuracy")[-1].value
    assert last == pytest.approx(float(run.trainer.callback_metrics["val/accuracy"]))


def test_logged_averages_cover_all_steps_since_the_previous_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[int, list[float]] = {}
    for every in (1, 4):
        cli("fit", "autoencoder", f"--run_name=every_{every}", f"--trainer.log_every_n_steps={every}")
        events = _events(tmp_path / "lightning_logs" / f"every_{every}" / "version_0")
        values[every] = [e.value for e in events.Scalars("train/loss")]
    assert len(values[1]) == 12
    means = [sum(values[1][k : k + 4]) / 4 for k in (0, 4, 8)]
    assert values[4] == pytest.approx(means, rel=1e-5)


def test_training_shorter_than_the_logging_interval_logs_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("fit", "autoencoder", "--run_name=a", "--trainer.log_every_n_steps=1000")
    assert len(_events(tmp_path / "lightning_logs" / "a" / "version_0").Scalars("train/loss")) == 1


def test_confusion_matrix_is_darker_where_the_share_is_larger() -> None:
    counts = torch.tensor([[9, 1], [0, 0]])
    image = draw_confusion_matrix(counts, ["cat", "dog"]).float()
    height = image.shape[1]
    margin = height - 2 * 44 - 4
    corners = image[:, margin + 2 :: 44, margin + 2 :: 44].mean(0)[:2, :2]
    assert corners[0, 0] < corners[0, 1] < corners[1, 0] == corners[1, 1] == 255


@pytest.mark.parametrize("classes", [2, 10, 101, 1000])
def test_confusion_matrix_of_many_classes_has_a_bounded_size(classes: int) -> None:
    assert draw_confusion_matrix(torch.eye(classes, dtype=torch.int64)).shape[1] < 4100


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_are_drawn_in_color(channels: int) -> None:
    assert draw_image_rows(torch.rand(2, 5, channels, 64, 64)).shape == (3, 2 * 66 + 2, 5 * 66 + 2)


def test_each_validation_logs_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli("fit", "autoencoder", "--run_name=a", "--trainer.max_epochs=4")
    events = _events(tmp_path / "lightning_logs" / "a" / "version_0")
    assert len({image.step for image in events.Images("val/reconstructions")}) == 4

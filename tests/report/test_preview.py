from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.vision.views import strong, weak
from tests.boxes import write_boxes_folder
from tests.conftest import CONFIGS
from tests.scenes import write_scenes

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")


def test_the_preview_shows_the_views_of_training(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", FINE_TUNE, "--data.init_args.weak_view={crop_padding: 2, flip: true}"]) == 0
    folder = workdir / "lightning_logs" / "quickstart" / "fine_tune_preview"
    shown = capsys.readouterr().out
    assert f"Written: {folder.relative_to(workdir) / 'preview.png'}" in shown
    assert "row 5  strong view" in shown
    with Image.open(folder / "preview.png") as image:
        drawn = np.asarray(image.convert("L"), dtype=np.float32) / 255

    # Images of 28 x 28 are drawn twice as large, with 2 pixels between them.
    def cell(r: int, c: int) -> Any:
        return drawn[58 * r + 2 : 58 * r + 58 : 2, 58 * c + 2 : 58 * c + 58 : 2]

    cells = np.stack([[cell(r, c) for c in range(10)] for r in range(5)])
    data = ImageDataModule("sample", num_labels=100)
    data.setup("fit")
    labeled = torch.stack([data.inputs_of("labeled", [i])[0, 0] for i in range(100)]).numpy()
    distances = np.abs(labeled[:, None] - cells[0][None]).mean((2, 3))
    assert distances.min(0).max() < 0.01  # ten of the labeled ones
    chosen = distances.argmin(0).tolist()
    assert len({*chosen}) == 10
    x = data.inputs_of("labeled", chosen)
    view = data.weak_view.__class__(flip=True, crop_padding=2)
    expected = [weak(x, view, seed) for seed in (0, 1)]
    expected += [strong(x, view, data.strong_view, seed) for seed in (0, 1)]
    for row, views in enumerate(expected, 1):
        assert np.abs(views[:, 0].numpy() - cells[row]).max() < 0.01
    (file,) = folder.glob("events.*")
    events = EventAccumulator(str(file), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["preview"]


def test_the_preview_shows_unlabeled_images_if_there_are_no_labels(
    workdir: Path, write_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(workdir / "images", {"train": 2, "unlabeled": 9})
    words = ["--config", str(CONFIGS / "quickstart" / "autoencoder.yaml"), "--data.init_args.source=images"]
    words += ["--data.init_args.num_labels=0", "--data.init_args.image_size=28", "--data.init_args.num_workers=0"]
    words += ["--data.init_args.strong_view={operations: 0, cutout: 0}", "--data.init_args.val_size=0"]
    assert main(["preview", *words, "--data.init_args.test_size=0"]) == 0
    shown = capsys.readouterr().out
    assert "unlabeled images of shape (3, 28, 28)" in shown
    assert "strong" not in shown


def test_invalid_settings_give_one_sentence(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", FINE_TUNE, "--data.init_args.source=nowhere"]) == 2
    assert "source 'nowhere' is neither a folder" in capsys.readouterr().err


def test_the_preview_draws_boxes(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes_folder(workdir / "d", {"train": 12})
    words = ["--model=AutoencoderModule", "--data=DetectionDataModule", "--data.source=d", "--data.image_size=64"]
    assert main(["preview", *words, "--data.weak_view.flip=true", "--run_name=mine"]) == 0
    assert "9 labeled images of shape (3, 64, 64)" in capsys.readouterr().out
    with Image.open(workdir / "lightning_logs/mine_preview/preview.png") as image:
        drawn = np.asarray(image.convert("RGB"))
    frames = [(drawn == color).all(-1) for color in ((128, 0, 0), (0, 128, 0))]  # of squares and discs
    for row in range(5):
        assert all(frame[row * 66 : (row + 1) * 66].sum() > 100 for frame in frames)


def test_the_preview_draws_masks(workdir: Path) -> None:
    write_scenes(workdir / "d", 8)
    words = ["--model=AutoencoderModule", "--data=SegmentationDataModule", "--data.source=d", "--data.image_size=32"]
    words += ["--data.weak_view.translation=0.4", "--data.strong_view.gray=1", "--data.strong_view.jitter=0"]
    assert main(["preview", *words, "--run_name=mine"]) == 0
    with Image.open(workdir / "lightning_logs/mine_preview/preview.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    for row in range(5):  # classes by VOC's colors: a dark red square and a dark green disc over a half of the image
        cells = drawn[row * 34 : (row + 1) * 34]
        redder = cells[..., 0] - cells[..., 1]
        assert min((redder > 40).sum(), (redder < -40).sum()) > 100

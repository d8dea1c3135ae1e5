"""One example in a training batch, and batch normalization over one pixel: a sentence, not torch's ValueError."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from sft_lightning import DecoupledFeatureClassifier, FineTuneClassifier, ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.losses.features.supcon import SupCon
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS

SETTINGS: dict[str, Any] = {
    "backbone": "torchvision/resnet18",
    "num_classes": 10,
    "image_shape": (3, 32, 32),
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
}
KINDS: dict[str, Callable[[], LightningModule]] = {
    "fine-tuned": lambda: FineTuneClassifier(**SETTINGS),
    "decoupled": lambda: DecoupledFeatureClassifier(feature_loss=SupCon(), **SETTINGS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_sentence(kind: str) -> None:
    settings: dict[str, Any] = {"image_size": 32, "channels": 3, "num_workers": 0, "steps_per_epoch": 1}
    data = ImageDataModule("sample", num_labels=10, batch_size=1, **settings)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"a training batch has one example.*, or set a larger image_size$"):
        trainer.fit(KINDS[kind](), datamodule=data)


def test_the_command_line_has_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--model.init_args.backbone=torchvision/resnet18", "--data.init_args.batch_size=1",
        "--data.init_args.image_size=32", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["fit", f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", *words]) == 2
    said = capsys.readouterr().err
    assert "sft-lightning: a training batch has one example" in said
    assert "Traceback" not in said

"""What docs/training.md shows for Python, with a plain Trainer."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sft_lightning
from sft_lightning import AutoencoderModule, FineTuneClassifier, ImageDataModule
from sft_lightning.__main__ import main
from tests.conftest import CONFIGS, ROOT


def adam(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)  # type: ignore[arg-type]


def test_pretrain_and_fine_tune_in_ten_lines(workdir: Path) -> None:
    torch.manual_seed(0)  # the bound must not depend on the tests before
    data = ImageDataModule("sample", num_labels=100, steps_per_epoch=5)
    autoencoder = AutoencoderModule("mlp", image_shape=data.image_shape, optimizer=adam)
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(autoencoder, data)
    autoencoder.save_encoder("encoder.safetensors")
    classifier = FineTuneClassifier(
        "mlp", data.num_classes, data.image_shape, weights="encoder.safetensors", optimizer=adam
    )
    trainer = Trainer(max_epochs=5, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(classifier, data)
    assert trainer.test(classifier, data, verbose=False)[0]["test/accuracy"] > 0.3
    assert Path(str(trainer.log_dir), "split.csv").is_file()


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(sft_lightning, name).__doc__ for name in sft_lightning.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sft_lightning.Nothing


def test_a_checkpoint_loads_without_its_optimizer(workdir: Path) -> None:
    data = ImageDataModule("sample", num_labels=20, steps_per_epoch=2)
    model = FineTuneClassifier("mlp", data.num_classes, data.image_shape, optimizer=adam)
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, data)
    trainer.save_checkpoint("model.ckpt")
    loaded = FineTuneClassifier.load_from_checkpoint("model.ckpt", weights_only=True)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_a_strategy_in_a_file_of_ones_own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/extending.md, as it stands there, named by its class path."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as where a console script begins
    monkeypatch.delitem(sys.modules, "my_strategy", raising=False)
    text = (ROOT / "docs" / "extending.md").read_text()
    block = next(b for b in text.split("```python\n")[1:] if b.startswith("# my_strategy.py")).split("```")[0]
    Path("my_strategy.py").write_text(block)
    semi_supervised = CONFIGS / "semi_supervised"
    words = ["fit", "--config", str(semi_supervised / "shared.yaml"), "--data.init_args.steps_per_epoch=3"]
    words += ["--model.init_args.strategy=my_strategy.TopShare", "--model.init_args.strategy.init_args.share=0.25"]
    words += ["--trainer.log_every_n_steps=3", "--trainer.max_epochs=1", "--run_name=mine"]
    assert main(words) == 0
    events = EventAccumulator(str(workdir / "lightning_logs" / "mine" / "version_0"))
    events.Reload()
    (accepted,) = events.Scalars("pseudo_labels/accepted")
    assert accepted.value == pytest.approx(0.25, abs=0.01)
    rows = list(csv.DictReader((workdir / "lightning_logs" / "mine" / "version_0" / "metrics.csv").open()))
    logged = [float(row["value"]) for row in rows if row["metric"] == "pseudo_labels/accepted"]
    assert logged == pytest.approx([accepted.value])

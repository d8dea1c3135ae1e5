"""Lightning's `BatchSizeFinder` on two loaders: it finds the size, the training is one of that size, nothing stays."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning import SemiSupervisedModule
from sft_lightning.__main__ import main
from tests.conftest import CONFIGS

ME = "tests.promises.test_batch_size_finder"
WORDS = [
    "fit", *(f"--config={CONFIGS / 'semi_supervised' / name}.yaml" for name in ("shared", "flexmatch")),
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2",
    "--data.init_args.num_labels=40", "--data.init_args.labeled_view=weak", "--data.init_args.steps_per_epoch=4",
    "--model.init_args.backbone=mlp", "--data.init_args.unlabeled_ratio=3", f"--model.class_path={ME}.Bounded",
]  # fmt: skip
FINDER = ["--trainer.callbacks+=BatchSizeFinder"]
RUN = Path("lightning_logs/run/version_0")


class Bounded(SemiSupervisedModule):
    """Takes four petabytes for more labeled and unlabeled images than `most`; `broken` for more than `works`."""

    most, works = 64, 10**6

    def step(self, batch: Any) -> Any:
        images = sum(len(part.indices) for part in batch.values())
        if images > self.most:
            torch.empty(10**15)
        if images > self.works:
            raise ValueError("broken")
        return super().step(batch)


def left(folder: Path) -> list[str]:
    """Names of all files, without those that carry a time."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name)


@pytest.mark.slow
def test_the_training_is_one_of_the_size_that_was_found(workdir: Path) -> None:
    assert main([*WORDS, *FINDER, "--run_name=run"]) == 0
    assert main([*WORDS, "--data.init_args.batch_size=16", "--run_name=plain"]) == 0
    plain = Path("lightning_logs/plain/version_0")
    assert left(RUN) == left(plain)
    assert (RUN / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()
    found, expected = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (RUN, plain))
    assert found["global_step"] == expected["global_step"] == 8
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())


@pytest.mark.slow
def test_it_halves_where_the_first_size_is_too_large(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The config's size would be tried for that, and `binsearch` would end at 1."""
    words = ["--trainer.callbacks.init_args.mode=binsearch", "--trainer.callbacks.init_args.margin=0"]
    with caplog.at_level("INFO"):
        assert main([*WORDS, *FINDER, *words, "--data.init_args.batch_size=200", "--run_name=run"]) == 0
    assert "will continue with full run using batch size 16" in caplog.text
    assert not [name for name in left(RUN) if "scale_batch_size" in name]


def test_it_leaves_nothing_where_something_else_fails(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounded, "works", 20)
    with pytest.raises(ValueError, match="broken"):
        main([*WORDS, *FINDER, "--run_name=run"])
    assert left(RUN) == ["fit.yaml", "split.csv"]


def test_it_leaves_nothing_where_nothing_fits(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bounded, "most", 3)
    assert main([*WORDS, *FINDER, "--run_name=run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sft-lightning: batch_size is 0: give a number of at least 1; if not even one example fits into memory, lower "
        "image_size or unlabeled_ratio"
    )
    assert left(RUN) == ["fit.yaml", "split.csv"]

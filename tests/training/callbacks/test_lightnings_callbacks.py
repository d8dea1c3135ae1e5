"""Test that Lightning's callbacks and flags that change a running training keep their meaning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from sft_lightning import SemiSupervisedModule, WarmupCosine
from sft_lightning.losses.unlabeled import FixMatch
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, classifier, cli, sample, trainer

AVERAGES = (
    "--trainer.callbacks={class_path: lightning.pytorch.callbacks.StochasticWeightAveraging, "
    "init_args: {swa_lrs: 0.05, swa_epoch_start: 1}}"
)


# No save is due at the end of an epoch, and each one is.
@pytest.mark.parametrize(("backbone", "share"), [("mlp", 0.0), ("conv", 1e9)])
def test_last_checkpoint_holds_averaged_weights(
    backbone: str, share: float, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunCheckpoint, "SHARE", share)
    done = cli("fit", "fine_tune", AVERAGES, f"--model.init_args.backbone={backbone}", "--trainer.max_epochs=3")
    saved = torch.load(Path(str(done.trainer.log_dir)) / "checkpoints" / "last.ckpt")["state_dict"]
    now = done.model.state_dict()
    assert {name for name in now if not torch.equal(saved[name], now[name])} == set()


@pytest.mark.parametrize("count", [1, 3])
def test_overfit_batches_repeats_its_batches(count: int) -> None:
    recorder = Recorder()
    trainer([recorder], max_epochs=3, overfit_batches=count).fit(classifier(), sample(num_labels=40))
    seen = [batch["labeled"].indices.tolist() for batch in recorder.batches]
    assert len(seen) == 3 * count
    assert seen[:count] == seen[count : 2 * count] == seen[2 * count :]
    assert len({tuple(sorted(batch)) for batch in seen}) == count


@pytest.mark.parametrize("scheduling", [{0: 1, 1: 2}, {0: 2, 2: 3}, {1: 7}])
def test_schedule_ends_with_the_training_despite_changing_accumulation(scheduling: dict[int, int]) -> None:
    model = classifier(lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_steps=1))
    made = trainer([GradientAccumulationScheduler(scheduling)], max_epochs=3)
    made.fit(model, sample(steps_per_epoch=5))
    schedule: Any = made.lr_scheduler_configs[0].scheduler
    assert made.global_step == schedule.total_steps == schedule.last_epoch
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_alternating_training_refuses_changing_accumulation() -> None:
    model = SemiSupervisedModule(
        FixMatch(), "alternating", backbone="mlp", num_classes=10, input_spec=SHAPE,
        optimizer=lambda p: torch.optim.SGD(p, 0.01),
    )  # fmt: skip
    with pytest.raises(InputError, match="GradientAccumulationScheduler changes from 1 to 2 batches"):
        trainer([GradientAccumulationScheduler({1: 2})], max_epochs=2).fit(model, sample(steps_per_epoch=4))

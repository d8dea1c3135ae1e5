"""Test the comparison of semi-supervised training with its start on real runs, and the way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning import ImageDataModule, SemiSupervisedModule
from sft_lightning.cli.lightning_cli import DryRunCLI, run as run_cli
from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from sft_lightning.training.callbacks.roll_back import RollBack
from sft_lightning.training.judges import mcnemar
from tests.paradigms.helpers import ROOT, SHAPE, classifier, moved, sample, state, trainer


class Wrong(Strategy):
    """Teach a class that the network does not predict."""

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        label = (step.student.logits.argmax(1) + 1) % 10
        return StrategyOutput(F.cross_entropy(step.student.logits, label))


class Nothing(Strategy):
    """Teach nothing."""

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        return StrategyOutput(0 * step.student.logits.sum())


def data(**settings: Any) -> ImageDataModule:
    sizes = {"num_labels": 100, "batch_size": 16, "unlabeled_ratio": 2, "steps_per_epoch": 6, "val_size": 200}
    return sample(**{**sizes, **settings})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a trained classifier."""
    run = trainer(limit_val_batches=0, max_epochs=8)
    run.fit(classifier(optimizer=lambda p: torch.optim.Adam(p, 0.003)), data(steps_per_epoch=20))
    path = tmp_path_factory.mktemp("start") / "start.ckpt"
    run.save_checkpoint(path)
    return str(path)


def module(strategy: Strategy, lr: float = 0.02, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {
        "backbone": "mlp",
        "num_classes": 10,
        "input_spec": SHAPE,
        "ema_decay": 0.5,
        "lambda_u": 5.0,
        "warmup_steps": 0,
        "ramp_steps": 0,
    }
    return SemiSupervisedModule(strategy, **{**fixed, "optimizer": lambda p: torch.optim.Adam(p, lr), **settings})


def fit(model: SemiSupervisedModule, callbacks: Any = None, ckpt_path: str | None = None, **settings: Any) -> Trainer:
    run = trainer([RollBack()] if callbacks is None else callbacks, **{"max_epochs": 2, **settings})
    run.fit(model, data(), ckpt_path=ckpt_path, weights_only=True)
    return run


def weights(network: nn.Module | None) -> dict[str, Tensor]:
    assert network is not None
    parts = ("backbone.", "head.")
    return {name: tensor for name, tensor in state(network).items() if name.startswith(parts)}


def test_mcnemar_equals_hand_computed_probabilities() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == 1 / 32
    assert mcnemar(3, 1) == 5 / 16
    assert mcnemar(0, 4) == 1
    assert mcnemar(2600, 2400) == pytest.approx(0.0024, abs=1e-4)  # normal: z = 199.5 / sqrt(5000) = 2.82


@pytest.mark.parametrize("ema_decay", [0.5, 0.0])
def test_a_run_that_did_harm_returns_to_its_start(
    start: str, caplog: pytest.LogCaptureFixture, ema_decay: float
) -> None:
    model = module(Wrong(), weights=start, ema_decay=ema_decay)
    assert model.has_trained_head
    before = weights(model)
    with caplog.at_level("INFO"):
        run = fit(model)
    assert not moved(before, weights(model))
    assert ema_decay == 0 or not moved(before, weights(model.average))
    (said,) = [r.message for r in caplog.records if "semi-supervised training" in r.message]
    assert said.startswith("Warning: semi-supervised training lowered the accuracy from ")
    assert "at step 0 to" in said
    assert "on 200 validation examples" in said
    # The last validation measured the network that is kept.
    accuracy = float(run.callback_metrics["val/accuracy"])
    assert f"from {accuracy:.3f} at step 0" in said
    assert run.validate(model, data(), verbose=False)[0]["val/accuracy"] == pytest.approx(accuracy)


def test_a_run_without_a_last_validation_returns_before_its_last_checkpoint(start: str, tmp_path: Path) -> None:
    model = module(Wrong(), weights=start)
    before = weights(model)
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(model, [RollBack(), RunCheckpoint()], check_val_every_n_epoch=5, max_epochs=2, **settings)
    assert not moved(before, weights(model))
    (last,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"average.{name}"], tensor) for name, tensor in before.items())


def test_a_comparison_changes_nothing_in_a_run_that_did_no_harm(start: str, caplog: pytest.LogCaptureFixture) -> None:
    states = []
    for callbacks in ([RollBack()], []):
        model = module(Nothing(), weights=start, lr=0.001)
        with caplog.at_level("INFO"):
            fit(model, callbacks, max_epochs=2)
        states.append(state(model))
    assert not moved(*states)
    (said,) = [r.message for r in caplog.records if "emi-supervised training" in r.message]
    assert said.startswith("Semi-supervised training changed the accuracy from 0.")


def test_the_reference_is_the_network_after_the_warm_up(caplog: pytest.LogCaptureFixture) -> None:
    model = module(Wrong(), warmup_steps=100, lr=0.003)
    seen: list[Any] = []

    class Watched(RollBack):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == 100:
                seen.append(weights(pl_module.average))

    with caplog.at_level("INFO"):
        fit(model, [Watched()], max_epochs=34)
    assert not moved(seen[0], weights(model.average))
    assert "the run returned to the network of step 100" in caplog.text


def test_a_fitted_head_is_a_reference(caplog: pytest.LogCaptureFixture) -> None:
    model = module(Wrong(), head_start="logistic_regression")
    with caplog.at_level("INFO"):
        fit(model)
    assert model.has_trained_head
    assert "the run returned to the network of step 0" in caplog.text


def test_a_new_head_without_a_warm_up_has_no_reference(caplog: pytest.LogCaptureFixture) -> None:
    model = module(Wrong())
    assert not model.has_trained_head
    with caplog.at_level("INFO"):
        fit(model)
    assert "emi-supervised training" not in caplog.text


def test_a_run_that_holds_nothing_out_says_that_it_cannot_notice_harm(caplog: pytest.LogCaptureFixture) -> None:
    for size, times in ((0, 1), (30, 0)):
        caplog.clear()
        with caplog.at_level("INFO"):
            trainer([RollBack()]).fit(module(Wrong()), sample(val_size=size))
        assert caplog.text.count("no label is held out (val_size), so this run cannot notice") == times


@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {"fast_dev_run": True}])
def test_a_run_without_validation_is_not_compared(
    start: str, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    with caplog.at_level("INFO"):
        fit(module(Wrong(), weights=start), **settings)
    assert "emi-supervised training" not in caplog.text


def test_a_resumed_run_returns_to_the_same_network(start: str, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    fit(whole := module(Wrong(), weights=start), [RollBack(), keep], enable_checkpointing=True)
    resumed = module(Wrong())  # without the weights that the run started from
    fit(resumed, ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert not moved(state(whole), state(resumed))
    assert not moved(weights(module(Wrong(), weights=start)), weights(resumed))


def test_a_checkpoint_without_the_reference_resumes(start: str, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    fit(module(Wrong(), weights=start, warmup_steps=2), [keep], enable_checkpointing=True)
    resumed = module(Wrong(), warmup_steps=2)
    callback = RollBack()
    fit(resumed, [callback], ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert callback.state_dict() == {}


def test_the_command_line_compares_unless_it_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [str(ROOT / "configs" / "semi_supervised" / name) for name in ("shared.yaml", "fixmatch.yaml")]
    argv = ["fit", "--config", configs[0], "--config", configs[1], "--trainer.accelerator=cpu"]
    counts = []
    for more in ([], ["--roll_back=false"]):
        made = run_cli([*argv, *more], DryRunCLI)
        counts.append(sum(isinstance(c, RollBack) for c in made.trainer.callbacks))  # type: ignore[attr-defined]
    assert counts == [1, 0]

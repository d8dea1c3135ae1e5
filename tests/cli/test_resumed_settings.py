from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from sft_lightning.__main__ import main
from sft_lightning.cli.resumed_settings import restore_settings
from tests.conftest import CONFIGS

FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--run_name=run"]
FIT += ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=2", "--trainer.limit_val_batches=0"]
RUN = Path("lightning_logs/run/version_0")
MORE = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"]


def optimizer() -> dict[str, float]:
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    group: dict[str, float] = state["optimizer_states"][0]["param_groups"][0]
    return group


def test_settings_that_the_checkpoint_overrides_are_named_and_recorded(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rate = "--model.init_args.optimizer.init_args.lr"
    assert main([*FIT, f"{rate}=0.01"]) == 0
    assert main([*MORE, f"{rate}=0.5", "--model.init_args.optimizer.init_args.weight_decay=0.3"]) == 0
    decay = yaml.safe_load((RUN / "fit.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]
    said = "The checkpoint overrides settings of the model: optimizer.lr is 0.01, not 0.5, optimizer.weight_decay is "
    assert f"{said}{decay['weight_decay']}, not 0.3." in caplog.text
    recorded = yaml.safe_load((RUN / "fit-resumed.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]
    assert (recorded["lr"], recorded["weight_decay"]) == (0.01, decay["weight_decay"])
    assert optimizer()["initial_lr"] == 0.01
    assert optimizer()["weight_decay"] == decay["weight_decay"]
    caplog.clear()
    assert main([*MORE, "--trainer.max_epochs=3"]) == 0
    assert "overrides" not in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.1"], "optimizer"),
        (["--model.init_args.lr_scheduler=null"], "lr_scheduler is null"),
        (
            [
                "--model.init_args.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR",
                "--model.init_args.lr_scheduler.init_args.T_max=5",
            ],
            "lr_scheduler is CosineAnnealingLR",
        ),
    ],
)
def test_another_optimizer_or_schedule_is_refused(
    words: list[str], said: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FIT) == 0
    assert main([*MORE, *words]) == 2
    told = capsys.readouterr().err
    assert f"model.{said}" in told
    assert "resumes with the state of" in told


def test_a_schedule_that_ends_before_the_training_is_refused(
    workdir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = "--model.init_args.lr_scheduler"
    words = [f"{cycle}=torch.optim.lr_scheduler.OneCycleLR", f"{cycle}.init_args.max_lr=0.01"]
    assert main([*FIT, *words, f"{cycle}.init_args.total_steps=1"]) == 2
    assert "OneCycleLR ends after 1 steps, the training after 2: set its total_steps" in capsys.readouterr().err
    run = ["--run_name=cycle"]
    assert main([*FIT, *words, *run, f"{cycle}.init_args.total_steps=2"]) == 0
    more = ["fit", "--ckpt_path=lightning_logs/cycle/version_0", "--trainer.max_epochs=2"]
    assert main([*more, f"{cycle}.init_args.total_steps=4"]) == 2
    assert "lr_scheduler.total_steps is 2, not 4" in caplog.text
    assert "OneCycleLR ends after 2 steps, the training after 4" in capsys.readouterr().err


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": None, "betas": [0.9, 0.99]}}


def keep(folder: Path, then: object, now: dict[str, object]) -> dict[str, object]:
    """Return the settings that a run goes on with whose own were others."""
    (folder / "fit.yaml").write_text(yaml.safe_dump({"model": then}))
    restore_settings({"init_args": now}, folder)
    return now


def test_factors_of_learning_rates_are_those_of_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = keep(
        tmp_path,
        {"init_args": {"backbone_lr_scale": 0.5, "layer_decay": 0.7, "label_smoothing": 0.1}},
        {"backbone_lr_scale": 1.0, "layer_decay": 1.0, "label_smoothing": 0.2},
    )
    assert now == {"backbone_lr_scale": 0.5, "layer_decay": 0.7, "label_smoothing": 0.2}
    assert "backbone_lr_scale is 0.5, not 1.0, layer_decay is 0.7, not 1.0." in caplog.text


def test_what_was_null_may_be_set_and_equal_settings_are_not_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"lr": 0.1, "momentum": 0.9, "betas": (0.9, 0.99)}  # the parser gives tuples, a file has lists
    now = keep(tmp_path, {"init_args": {"optimizer": SGD}}, {"optimizer": {**SGD, "init_args": given}})
    assert now == {"optimizer": {**SGD, "init_args": {"lr": 0.1, "momentum": 0.9, "betas": (0.9, 0.99)}}}
    assert caplog.text == ""


@pytest.mark.parametrize("then", [None, "a word", {"init_args": None}, {"init_args": {"other": 1}}])
def test_a_run_that_recorded_no_such_settings_overrides_nothing(then: object, tmp_path: Path) -> None:
    assert keep(tmp_path, then, {"optimizer": SGD, "layer_decay": 0.5}) == {"optimizer": SGD, "layer_decay": 0.5}
    (tmp_path / "fit.yaml").unlink()
    restore_settings({"init_args": {"optimizer": SGD}}, tmp_path)

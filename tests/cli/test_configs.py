"""Every shipped config runs over the real command line; those that download or name the user's data get local data."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.losses import strategies
from tests.conftest import CONFIGS

SHARED = CONFIGS / "semi_supervised" / "shared.yaml"
STRATEGIES = sorted({*(CONFIGS / "semi_supervised").glob("*.yaml")} - {SHARED})
SHIPPED = sorted([*(CONFIGS / "reference").glob("*.yaml"), *(CONFIGS / "quickstart").glob("*.yaml"), *STRATEGIES])
DATA = sorted((CONFIGS / "data").glob("*semi_supervised.yaml"))
HEADER = ("Hardware:", "Expect:", "Time:")


def local(config: Path, root: Path, folder: Path) -> list[str]:
    """What stands in for data and weights that only a network could bring."""
    text = config.read_text()
    given = ["--data.init_args.root", str(root)]
    if "source: CIFAR10" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "32"]
        given += ["--data.init_args.batch_size", "4"]
    if "num_labels: 1000" in text:
        given += ["--data.init_args.num_labels", "6", "--data.init_args.val_size", "3"]
    if "source: my_images" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "64"]
    if "weights: default" in text:
        given += ["--model.init_args.weights", "none"]
    return given


def given_to_fit(config: Path) -> list[str]:
    return [*(["--config", str(SHARED)] if config in STRATEGIES else []), "--config", str(config)]


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_config_runs_one_batch_of_every_command(
    config: Path,
    workdir: Path,
    idx_root: Path,
    write_folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_folder(workdir / "images", {"train": 4, "val": 1, "test": 2, "unlabeled": 2})
    few = ["--trainer.max_epochs", "1", "--data.init_args.steps_per_epoch", "1", "--run_name", "shipped"]
    few += ["--data.init_args.num_workers", "0"]
    assert main(["fit", *given_to_fit(config), *few, *local(config, idx_root, folder)]) == 0
    run = workdir / "lightning_logs" / "shipped" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    if config in STRATEGIES and config.stem != "fixmatch":  # they differ in training alone
        return
    for command in ("validate", "test", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
    assert re.search(r"test/loss +\d+\.\d+", caplog.text)
    assert len((run / "predictions.csv").read_text().splitlines()) > 1
    assert {p.name for p in run.glob("*.yaml")} >= {"fit.yaml", "test.yaml", "predict.yaml"}


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
@pytest.mark.parametrize("config", DATA, ids=lambda p: p.stem)
def test_data_config_takes_the_place_of_another(
    config: Path, schedule: str, workdir: Path, idx_root: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(workdir / "images", {"train": 9, "val": 1, "test": 2})
    small = ["--data.init_args.num_labels=20", "--data.init_args.val_size=20", "--data.init_args.num_workers=0"]
    words = ["fit", "--config", str(SHARED), "--config", str(CONFIGS / "semi_supervised" / "freematch.yaml")]
    words += ["--data", str(config), *local(config, idx_root, folder), *small, "--trainer.max_epochs=1"]
    words += ["--data.init_args.steps_per_epoch=2", f"--model.init_args.schedule={schedule}"]
    assert main(words) == 0
    written = (workdir / "lightning_logs" / "semi_supervised" / "freematch" / "version_0" / "fit.yaml").read_text()
    assert "FreeMatch" in written
    assert "num_labels: 20" in written


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_strategy_has_a_config(name: str) -> None:
    own = [config for config in STRATEGIES if f"class_path: {name}" in config.read_text()]
    assert own


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda p: p.stem)
def test_config_opens_with_its_header(config: Path) -> None:
    comment = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(word in comment for word in HEADER)
    assert f"configs/{config.parent.name}/{config.name}" in comment

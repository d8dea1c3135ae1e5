"""Every shipped config runs over the real command line; those that download or name the user's data get local data."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS

SHIPPED = sorted([*(CONFIGS / "reference").glob("*.yaml"), *(CONFIGS / "quickstart").glob("*.yaml")])
LIMIT = {"validate": "val", "test": "test", "predict": "predict"}
HEADER = ("sft-lightning fit --config", "Hardware:", "Expect:", "Time:")


def local(config: Path, root: Path, folder: Path) -> list[str]:
    """What stands in for data and weights that only a network could bring."""
    text = config.read_text()
    given = ["--data.init_args.root", str(root)]
    if "source: CIFAR10" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "32"]
        given += ["--data.init_args.batch_size", "4"]
    if "source: my_images" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "64"]
    if "weights: default" in text:
        given += ["--model.init_args.weights", "none"]
    return given


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_config_runs_one_batch_of_every_command(
    config: Path,
    workdir: Path,
    idx_root: Path,
    write_folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_folder(workdir / "images", {"train": 4, "val": 1, "test": 2})
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    few += ["--data.init_args.num_workers", "0", "--run_name", "shipped"]
    assert main(["fit", "--config", str(config), *few, *local(config, idx_root, folder)]) == 0
    run = workdir / "lightning_logs" / "shipped" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    for command in ("validate", "test", "predict"):
        assert main([command, "--ckpt_path", str(run), f"--trainer.limit_{LIMIT[command]}_batches", "1"]) == 0
    assert re.search(r"test/loss +\d+\.\d+", caplog.text)
    assert len((run / "predictions.csv").read_text().splitlines()) > 1
    assert {p.name for p in run.glob("*.yaml")} >= {"fit.yaml", "test.yaml", "predict.yaml"}


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_config_opens_with_its_header(config: Path) -> None:
    comment = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(word in comment for word in HEADER)
    assert f"configs/{config.parent.name}/{config.name}" in comment

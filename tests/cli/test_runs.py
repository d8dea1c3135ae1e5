import csv
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import run
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.data.conftest import break_middle

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
AUTOENCODER = str(CONFIGS / "quickstart" / "autoencoder.yaml")
SHORT = ["--trainer.max_epochs", "2", "--data.init_args.steps_per_epoch", "5"]


def state(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return loaded


def test_pretrain_then_fine_tune_then_test_and_predict(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["fit", "--config", AUTOENCODER, *SHORT, "--run_name", "ae"]) == 0
    encoder = workdir / "lightning_logs" / "ae" / "version_0"
    assert (
        main(["fit", "--config", FINE_TUNE, *SHORT, "--run_name", "ft", "--model.init_args.weights", str(encoder)]) == 0
    )
    assert "6 of 6 backbone tensors matched" in caplog.text
    caplog.clear()
    tuned = workdir / "lightning_logs" / "ft" / "version_0"
    assert main(["test", "--ckpt_path", str(tuned)]) == 0
    assert main(["validate", "--ckpt_path", str(tuned)]) == 0
    said = caplog.text
    assert "test/accuracy" in said
    assert "val/macro_f1" in said
    assert "matched" not in said  # the checkpoint holds the weights
    assert main(["predict", "--ckpt_path", str(tuned)]) == 0
    rows = list(csv.DictReader((tuned / "predictions.csv").open()))
    assert [row["path"] for row in rows] == [f"test/{i}" for i in range(2000)]
    for row in rows[:20]:
        shares = {name[2:-1]: float(value) for name, value in row.items() if name.startswith("p(")}
        assert row["predicted"] == max(shares, key=lambda name: shares[name])
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_encoder_starts_the_classifier(workdir: Path) -> None:
    autoencoder = run(["fit", "--config", AUTOENCODER, *SHORT, "--run_name", "ae"]).model
    start = ["--model.init_args.weights", "lightning_logs/ae/version_0", "--trainer.max_epochs", "0"]
    classifier = run(["fit", "--config", FINE_TUNE, *start]).model
    learned = autoencoder.encoder.state_dict()
    assert all(torch.equal(t, learned[n]) for n, t in classifier.backbone.state_dict().items())


def test_a_second_run_is_a_new_version(workdir: Path) -> None:
    for _ in range(2):
        assert main(["fit", "--config", FINE_TUNE, *SHORT, "--run_name", "a/b"]) == 0
    assert {p.name for p in (workdir / "lightning_logs" / "a" / "b").iterdir()} == {"version_0", "version_1"}


def test_same_command_same_weights(workdir: Path) -> None:
    for name in ("a", "b"):
        assert main(["fit", "--config", FINE_TUNE, *SHORT, "--run_name", name]) == 0
    a, b = (state(workdir / "lightning_logs" / name / "version_0") for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "what", [pytest.param("fine-tuning", marks=pytest.mark.slow), "denoising and masked autoencoder"]
)
def test_resumed_run_ends_where_an_uninterrupted_one_does(what: str, workdir: Path) -> None:
    config, schedule = FINE_TUNE, ["--model.init_args.lr_scheduler.init_args.total_steps", "20"]
    if what != "fine-tuning":
        config, schedule = AUTOENCODER, ["--model.init_args.noise", "0.2", "--model.init_args.hidden", "0.3"]
    longer = ["--trainer.max_epochs", "4", "--data.init_args.steps_per_epoch", "5"]
    assert main(["fit", "--config", config, *longer, *schedule, "--run_name", "whole"]) == 0
    assert main(["fit", "--config", config, *SHORT, *schedule, "--run_name", "parts"]) == 0
    assert main(["fit", "--config", config, *longer, *schedule, "--run_name", "parts", "--ckpt_path", "last"]) == 0
    whole, parts = (state(workdir / "lightning_logs" / name / "version_0") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (workdir / "lightning_logs" / "parts" / "version_1").exists()
    assert main(["test", "--ckpt_path", "last", "--run_name", "parts"]) == 0


@pytest.mark.parametrize(
    ("strategy", "schedule"),
    [
        ("DST", "alternating"),
        *(
            pytest.param(name, "joint", marks=pytest.mark.slow)
            for name in ("FlexMatch", "FreeMatch", "DST", "MeanTeacher", "MixMatch", "CoMatch", "SimMatch")
        ),
        *(
            pytest.param(name, "alternating", marks=pytest.mark.slow)
            for name in ("FlexMatch", "FreeMatch", "MeanTeacher", "MixMatch", "CoMatch", "SimMatch")
        ),
    ],
)
def test_resumed_semi_supervised_run_ends_where_an_uninterrupted_one_does(
    strategy: str, schedule: str, workdir: Path
) -> None:
    shared = ["fit", "--config", str(CONFIGS / "semi_supervised" / "shared.yaml"), "--model.init_args.backbone=mlp"]
    shared += [f"--model.init_args.strategy={strategy}", f"--model.init_args.schedule={schedule}"]
    shared += [
        "--data.init_args.steps_per_epoch=5",
        "--model.init_args.warmup_steps=2",
        "--model.init_args.ramp_steps=0",  # otherwise half of the run, which is longer for one of the two
        "--data.init_args.batch_size=4",
    ]
    shared += ["--model.init_args.lr_scheduler.init_args.total_steps=20"]
    if strategy == "CoMatch":  # full within a few steps
        shared.append("--model.init_args.strategy.init_args.memory=64")
    if strategy == "FlexMatch":  # low enough that something is remembered
        shared += ["--model.init_args.strategy.init_args.threshold=0.12"]
    assert main([*shared, "--trainer.max_epochs=4", "--run_name=whole"]) == 0
    assert main([*shared, "--trainer.max_epochs=2", "--run_name=parts"]) == 0
    assert main([*shared, "--trainer.max_epochs=4", "--run_name=parts", "--ckpt_path=last"]) == 0
    whole, parts = (state(workdir / "lightning_logs" / name / "version_0") for name in ("whole", "parts"))
    assert len([name for name in whole if name.startswith("average.")]) > 6
    validated = []
    for name in ("whole", "parts"):
        rows = csv.reader((workdir / "lightning_logs" / name / "version_0" / "metrics.csv").open())
        validated.append([row for row in rows if row[1].startswith("val/")])
    assert validated[0] == validated[1]
    assert len([row for row in validated[1] if row[1] == "val/accuracy"]) == 4
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert main(["test", "--ckpt_path=last", "--run_name=parts"]) == 0


def test_predict_reads_new_folders_and_lists_skipped_images(
    workdir: Path, write_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(workdir / "images", {"train": 6, "test": 2})
    new = write_folder(workdir / "new", {"unlabeled": 3})
    (new / "unlabeled" / "broken.png").write_bytes(b"no picture")
    given = ["--data.init_args.source", str(folder), "--data.init_args.num_labels", "null"]
    given += [
        "--data.init_args.image_size",
        "28",
        "--data.init_args.channels",
        "1",
        "--data.init_args.num_workers",
        "0",
    ]
    assert main(["fit", "--config", FINE_TUNE, *SHORT, *given, "--run_name", "folder"]) == 0
    done = workdir / "lightning_logs" / "folder" / "version_0"
    predict = ["predict", "--ckpt_path", str(done), "--data.init_args.predict_source", str(new)]
    assert main(predict) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main([*predict, "--data.init_args.on_bad_image", "skip"]) == 0
    rows = list(csv.DictReader((done / "predictions.csv").open()))
    assert len(rows) == 9
    assert {row["predicted"] for row in rows} <= {"class_0", "class_1", "class_2"}
    assert "broken.png" in (done / "skipped_images.txt").read_text()


def test_options_win_over_files_wherever_they_stand(workdir: Path) -> None:
    assert main(["fit", *SHORT, "--run_name=a", "--config", FINE_TUNE]) == 0
    place = "lightning_logs/a/version_0"
    assert "max_epochs: 2\n" in Path(place, "fit.yaml").read_text()
    for config in (["--config", f"{place}/fit.yaml"], ["-c", f"{place}/fit.yaml"], [f"--config={place}/fit.yaml"]):
        assert run(["test", "--ckpt_path", place, *config]).config.test.ckpt_path == f"{place}/checkpoints/last.ckpt"
    # Of two files, the second still rules, and a number below zero is a value.
    Path("more.yaml").write_text("run_name: b")
    words = ["fit", "--config", FINE_TUNE, "--trainer.max_steps", "-1", "--config", "more.yaml"]
    done = run([*words, "--trainer.max_epochs=0"])
    assert done.config.fit.run_name == "b"
    assert done.trainer.max_steps == -1


def test_a_run_may_stand_without_its_option(workdir: Path) -> None:
    assert main(["fit", "--config", FINE_TUNE, *SHORT, "--run_name=a"]) == 0
    for command in ("test", "validate"):
        assert main([command, "--trainer.enable_progress_bar", "false", "lightning_logs/a/version_0"]) == 0
    assert Path("lightning_logs/a/version_0/test.yaml").is_file()


def test_one_batch_is_one_batch_and_not_all(workdir: Path) -> None:
    words = ["--trainer.max_epochs=2", "--trainer.limit_train_batches", "1"]
    assert run(["fit", "--config", FINE_TUNE, *words]).trainer.global_step == 2
    assert run(["fit", "--config", FINE_TUNE, *SHORT, "--trainer.limit_train_batches=1.0"]).trainer.global_step == 10


@pytest.mark.slow
def test_console_shows_no_advertising_and_no_warning(workdir: Path) -> None:
    """In a process that a console script starts, as a user does."""
    command = [str(Path(sys.executable).with_name("sft-lightning")), "fit", "--config", FINE_TUNE, *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == [
        "Data:", "Model:", "Run:", "Finished", "results", "test", "TensorBoard"
    ]  # fmt: skip


class Children(Callback):
    """Counts the processes beside this one in each step."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append(len(active_children()))


def test_nothing_is_left_of_a_training_on_files(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 6, "val": 3, "test": 2})
    words = ["--config", FINE_TUNE, *SHORT, "--data.init_args.source", str(folder), "--data.init_args.num_labels=null"]
    words += ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--data.init_args.num_workers=2"]
    done = run(["fit", *words, "--trainer.callbacks=tests.cli.test_runs.Children"])
    (children,) = (c for c in done.trainer.callbacks if isinstance(c, Children))  # type: ignore[attr-defined]
    assert set(children.found) == {2, 4}  # those of the training, from the second epoch on also of the validation
    assert active_children() == []
    trainer, model = weakref.ref(done.trainer), weakref.ref(done.model)
    del done, children
    gc.collect()
    assert trainer() is None
    assert model() is None
    run(["test", *words, "--ckpt_path=last", "--run_name=quickstart/fine_tune"])
    assert active_children() == []
    break_middle(min((folder / "train").rglob("*.png")))
    with pytest.raises(InputError, match="cannot be read"):
        run(["fit", *words])
    assert active_children() == []

"""One clear sentence, exit code 2, before the first step: over the real command line."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from torchvision.datasets import svhn

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
SEMI_SUPERVISED = CONFIGS / "semi_supervised"
AUTOENCODER = str(CONFIGS / "quickstart" / "autoencoder.yaml")


@pytest.fixture
def fit_error(cli_error: Callable[..., str]) -> Callable[..., str]:
    """Run `fit` on input that it must refuse, and return the sentence that it prints."""

    def run(*argv: str, config: str = FINE_TUNE) -> str:
        return cli_error("fit", "--config", config, *argv)

    return run


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.init_args.source", "nowhere"], "source 'nowhere' is neither a folder"),
        (["--data.init_args.source", "FasionMNIST"], "did you mean 'FashionMNIST'"),
        (["--data.init_args.source", "CIFAR10"], "'CIFAR10' is not in root 'data'"),
        (["--data.init_args.num_labels", "20000"], "num_labels is 20000, but only 9000"),
        (["--data.init_args.num_labels", "null", "--data.init_args.labels_per_class", "5000"], "has only 900"),
        (["--data.init_args.labels_per_class", "3"], "num_labels and labels_per_class are both set"),
        (["--data.init_args.num_labels", "0"], "gives no label to train on"),
        (["--data.init_args.num_labels", "-3"], "num_labels is -3"),
        (["--data.init_args.batch_size", "0"], "batch_size is 0"),
        (["--data.init_args.val_size", "1.5"], "val_size is 1.5"),
        (["--data.init_args.val_size", "20000"], "val_size asks for 20000 of the 10000"),
        (["--data.init_args.sorce", "sample"], "no option 'sorce' (did you mean 'source'"),
        (["--model.init_args.backbone", "reznet18"], "backbone 'reznet18' is unknown (did you mean 'resnet18'"),
        (["--model.init_args.weights", "nothing.ckpt"], "weights 'nothing.ckpt' does not exist"),
        (["--model.init_args.weights", "default"], "nobody publishes weights of 'mlp'"),
        (["--model.init_args.tune", "last_k_blocks", "--model.init_args.last_k_blocks", "9"], "has 3 blocks"),
        (["--model.init_args.class_weights", "[1.0, 2.0]"], "class_weights has 2 numbers for 10 classes"),
        (["--model.init_args.tune", "most"], "model.tune is 'most': give head, last_k_blocks or all"),
        (["--model.init_args.tune", "heat"], "model.tune is 'heat' (did you mean 'head'?): give head, "),
        (["--data.init_args.channels", "2"], "data.channels is '2': give 1 or 3"),
        (["--model.class_path", "FineTuneClasifier"], "did you mean 'FineTuneClassifier'"),
        (["--model.init_args.optimizer", "null"], "FineTuneClassifier has no optimizer"),
        (["--model.init_args.optimizer.init_args.lr", "fast"], "model.optimizer.lr is 'fast': give a number"),
        (["--model.init_args.optimizer.init_args.lr", "null"], "model.optimizer.lr is 'None': give a number"),
        (["--model.init_args.optimizer.init_args.eps", "x"], "model.optimizer.eps is 'x': give a number"),
        (["--model.init_args.optimizer.init_args.betas", "null"], "optimizer.betas is 'None': give a list"),
        (["--model.init_args.backbone", "null"], "model.backbone is missing: set it"),
        (["--model.init_args.weights", "null"], "model.weights is null, which is not allowed: give a value"),
        (["--model.init_args.compile", "null"], "model.compile is null"),
        (["--data.init_args.source", "null"], "data.source is null, which is not allowed: give a value"),
        (["--data.init_args.seed", "null"], "data.seed is null"),
        (["--trainer.accelerator", "gpuu"], "trainer.accelerator is 'gpuu' (did you mean 'gpu'?): give auto, "),
        (["--trainer.max_epochss", "1"], "no option --trainer.max_epochss (did you mean --trainer.max_epochs?)"),
        (["--ckpt_path", "gone.ckpt"], "ckpt_path 'gone.ckpt' is neither a checkpoint"),
        (["--ckpt_path", "last"], "no run in 'lightning_logs/quickstart/fine_tune' has a checkpoint yet"),
        (["--data.init_args.split_file", "gone.csv"], "split_file 'gone.csv' is not a readable split"),
    ],
)
def test_one_sentence(args: list[str], expected: str, workdir: Path, fit_error: Callable[..., str]) -> None:
    assert expected in fit_error(*args)


def test_unknown_keys_of_a_file_are_refused_by_name(workdir: Path, fit_error: Callable[..., str]) -> None:
    text = Path(FINE_TUNE).read_text()
    for old, new, expected in (
        ("backbone: mlp", "bakbone: mlp", "FineTuneClassifier has no option 'bakbone' (did you mean 'backbone'"),
        ("lr: 0.001", "lrr: 0.001", "Adam has no option 'lrr' (did you mean 'lr'?)"),
        ("max_epochs", "max_epochss", "Trainer has no option 'max_epochss' (did you mean 'max_epochs'"),
        ("num_labels", "n_labels", "ImageDataModule has no option 'n_labels'"),
        ("run_name", "runname", "no option 'runname'"),
    ):
        Path("bad.yaml").write_text(text.replace(old, new, 1) if old != "run_name" else text.replace("run_name", new))
        assert expected in fit_error(config="bad.yaml")


def test_no_unlabeled_images_where_they_are_needed(workdir: Path, fit_error: Callable[..., str]) -> None:
    assert "gives no unlabeled example" in fit_error("--data.init_args.num_labels", "null", config=AUTOENCODER)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.init_args.lambda_u=-1"], "lambda_u is -1.0: give a number of at least 0"),
        (["--model.init_args.supervised_steps=0"], "supervised_steps is 0: give a number of at least 1"),
        (["--model.init_args.unsupervised_steps=0"], "unsupervised_steps is 0: give a number of at least 1"),
        (["--model.init_args.ema_decay=1"], "ema_decay is 1.0"),
        (["--model.init_args.lambda_u=null"], "model.lambda_u is null"),
        (["--model.init_args.label_smoothing=null"], "model.label_smoothing is null"),
        (["--model.init_args.strategy=null"], "model.strategy is missing: set it"),
        (["--data.init_args.strong_view=null"], "data.strong_view is null"),
        (["--model.init_args.lambda_ramp=cosine"], "model.lambda_ramp"),
        (["--model.init_args.strategy.class_path=FixMach"], "did you mean 'FixMatch'"),
        (
            ["--model.init_args.strategy.class_path=SupCon"],
            "class 'SupCon' does not fit strategy: give DST, UDA",
        ),
        (["--model.class_path=SupCon"], "class 'SupCon' does not fit model: give AnomalyDetector, Autoencoder"),
        (["--model.init_args.strategy.init_args.treshold=0.9"], "FixMatch has no option 'treshold' (did you mean"),
        (["--model.init_args.strategy.init_args.threshold=95"], "threshold is 95.0: give a share from 0 to 1"),
        (["--model.init_args.bakbone=mlp"], "SemiSupervisedModule has no option 'bakbone' (did you mean 'backbone'"),
        (["--model.init_args.strategy=MeanTeacher", "--model.init_args.ema_decay=0"], "set ema_decay"),
        (["--data.init_args.num_labels=null"], "gives no unlabeled example"),
        (["--data.init_args.unlabeled_ratio=0"], "unlabeled_ratio is 0"),
        (["--data.init_args.strong_view.cutout=3"], "cutout is 3.0: give a share from 0 to 1"),
        (["--data.init_args.weak_view.crop_padding=-2"], "crop_padding is -2"),
        (["--data.init_args.strong_view", "{operations: 0, cutout: 0.0}"], "strong_view changes nothing"),
    ],
)
def test_semi_supervised(args: list[str], expected: str, workdir: Path, fit_error: Callable[..., str]) -> None:
    fixmatch = ["--config", str(SEMI_SUPERVISED / "fixmatch.yaml")]
    assert expected in fit_error(*fixmatch, *args, config=str(SEMI_SUPERVISED / "shared.yaml"))


def test_a_strategy_without_the_shared_config(workdir: Path, fit_error: Callable[..., str]) -> None:
    assert "give the config that does as the first" in fit_error(config=str(SEMI_SUPERVISED / "fixmatch.yaml"))


def test_an_unlabeled_source_of_another_size_or_channels(
    workdir: Path, fit_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svhn, "check_integrity", lambda path, md5: Path(path).is_file())  # fakes have other checksums
    Path("root", "MNIST", "raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 4, 6, 6) + bytes(4 * 6 * 6)
        Path("root", "MNIST", "raw", f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3])
        Path("root", "MNIST", "raw", f"{part}-labels-idx1-ubyte").write_bytes(labels)
    for part in ("train", "test"):
        pictures = np.arange(3 * 32 * 32 * 2).astype(np.uint8).reshape(32, 32, 3, 2)
        savemat(Path("root", f"{part}_32x32.mat"), {"X": pictures, "y": np.array([[1], [2]], np.uint8)})
    for name, shape in (("MNIST", "(1, 6, 6)"), ("SVHN", "(3, 32, 32)")):
        words = ["--config", str(SEMI_SUPERVISED / "fixmatch.yaml"), "--data.init_args.root=root"]
        words += [f"--data.init_args.unlabeled_source={name}"]
        said = fit_error(*words, config=str(SEMI_SUPERVISED / "shared.yaml"))
        assert f"unlabeled_source {name!r} has examples of shape {shape}, source 'sample' of (1, 28, 28)" in said
        assert "set image_size and channels" in said


def test_weights_that_fit_nothing(workdir: Path, fit_error: Callable[..., str]) -> None:
    save_file({"a.weight": torch.zeros(3)}, "other.safetensors")
    assert "fit nothing" in fit_error("--model.init_args.weights", "other.safetensors")


def test_folders(workdir: Path, fit_error: Callable[..., str], write_folder: Callable[..., Path]) -> None:
    Path("empty").mkdir()
    assert "folder 'empty' holds no image" in fit_error("--data.init_args.source", "empty")
    folder = write_folder(Path("images"), {"train": 4, "val": 2})
    (folder / "train" / "class_9").mkdir()
    assert "class folder 'images/train/class_9' holds no image" in fit_error("--data.init_args.source", "images")
    (folder / "train" / "class_9").rmdir()
    (folder / "val" / "class_1").rename(folder / "val" / "klass_1")
    assert "class 'klass_1' in 'images/val' does not exist" in fit_error("--data.init_args.source", "images")


def test_unreadable_images(workdir: Path, fit_error: Callable[..., str], write_folder: Callable[..., Path]) -> None:
    folder = write_folder(Path("images"), {"train": 6, "test": 2})
    bad = min((folder / "train" / "class_0").iterdir())
    for content, reason in (
        (b"", "it has zero bytes"),
        (bad.read_bytes()[:99], "cannot be read"),
        (b"x" * 99, "not an image"),
    ):
        bad.write_bytes(content)
        said = fit_error("--data.init_args.source", "images", "--data.init_args.num_labels", "null")
        assert str(bad) in said
        assert reason in said
        assert "on_bad_image: skip" in said


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["file,label", "a.png,x"], "lacks the column 'path'"),
        (["path,label", "a.png,x", "gone.png,y"], "line 3: file 'gone.png' does not exist"),
        (["path,label", "a.png,", "b.png,"], "has no labels"),
        (["path,label"], "has no line below its header"),
    ],
)
def test_manifests(lines: list[str], expected: str, workdir: Path, fit_error: Callable[..., str]) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(name)
    Path("images.csv").write_text("\n".join(lines) + "\n")
    assert expected in fit_error("--data.init_args.source", "images.csv")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_needs_a_trained_model(command: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", FINE_TUNE]) == 2
    assert f"{command} needs a trained model" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "garbage", "other"])
def test_checkpoints_that_are_damaged_or_of_another_model(
    damage: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--trainer.max_epochs", "1", "--data.init_args.steps_per_epoch", "2"]
    assert main(["fit", "--config", FINE_TUNE, *short, "--run_name", "run"]) == 0
    last = workdir / "lightning_logs" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    config = FINE_TUNE
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "garbage":
        last.write_bytes(b"nothing")
    else:
        config = AUTOENCODER
    assert main(["test", "--config", config, "--ckpt_path", str(last)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"sft-lightning: ckpt_path {str(last)!r} ")


def test_clipping_with_mixed_precision_names_the_fused_optimizer(workdir: Path, fit_error: Callable[..., str]) -> None:
    flags = ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"]
    assert "set fused: false" in fit_error(*flags)


def test_a_cyclic_schedule_would_undo_the_slower_backbone(workdir: Path, fit_error: Callable[..., str]) -> None:
    schedule = ["--model.init_args.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR"]
    schedule += ["--model.init_args.lr_scheduler.init_args.max_lr", "0.01"]
    schedule += ["--model.init_args.lr_scheduler.init_args.total_steps", "10"]
    assert "cannot keep a slower backbone" in fit_error(*schedule, "--model.init_args.backbone_lr_scale", "0.1")


def test_predict_without_a_picture(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = str(write_folder(Path("images"), {"train": 6}))
    given = [
        "--data.init_args.source",
        folder,
        "--data.init_args.num_labels",
        "null",
        "--data.init_args.test_size",
        "0",
    ]
    given += ["--data.init_args.image_size", "28", "--trainer.max_epochs", "1", "--data.init_args.num_workers", "0"]
    assert main(["fit", "--config", FINE_TUNE, *given, "--run_name", "run"]) == 0
    assert main(["predict", "--ckpt_path", "lightning_logs/run/version_0"]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [", "a YAML file cannot be read"),
        ("", "a YAML file holds no settings"),
        ("run_name: a", "no model: add --model with a class such as FineTuneClassifier, or --config"),
        ("data: {class_path: ImageDataModule, init_args: {source: sample}}", "no model: add --model with a class"),
        (
            "model: {class_path: FineTuneClassifier, init_args: {backbone: resnet8, optimizer: {class_path: AdamW}}}",
            "no data: add --data with a class such as ImageDataModule",
        ),
    ],
)
def test_configs_that_are_none(text: str, expected: str, workdir: Path, fit_error: Callable[..., str]) -> None:
    Path("my.yaml").write_text(text)
    assert expected in fit_error(config="my.yaml")


def test_resuming_with_fewer_epochs_than_were_done(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--data.init_args.steps_per_epoch", "2", "--run_name", "run"]
    assert main(["fit", "--config", FINE_TUNE, *short, "--trainer.max_epochs", "3"]) == 0
    assert main(["fit", "--config", FINE_TUNE, *short, "--trainer.max_epochs", "1", "--ckpt_path", "last"]) == 2
    assert "max_epochs=1" in capsys.readouterr().err


def test_null_in_a_class_of_the_user(workdir: Path, fit_error: Callable[..., str]) -> None:
    Path("of_the_user.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from sft_lightning import FineTuneClassifier\n"
        "if TYPE_CHECKING:\n"
        "    from nowhere import Thing\n"
        "class Typed(FineTuneClassifier):\n"
        "    def __init__(self, num_classes: int, scale: float = 1.0, thing: None = None, untyped=None, **kwargs):\n"
        "        super().__init__(num_classes=num_classes, **kwargs)\n"
        "class Unknown(Typed):\n"
        "    def __init__(self, more: Thing = None, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
    )
    for cls in ("Typed", "Unknown"):
        words = [f"--model.class_path=of_the_user.{cls}", "--trainer.fast_dev_run=1"]
        assert "model.scale is null" in fit_error(*words, "--model.init_args.scale=null")
        assert "model.weights is null" in fit_error(*words, "--model.init_args.weights=null")
    taken = ["--model.init_args.more=null", "--model.init_args.thing=null", "--model.init_args.untyped=null"]
    assert main(["fit", "--config", FINE_TUNE, *words, *taken]) == 0

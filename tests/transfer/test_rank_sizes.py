"""At which size `rank` compares candidates, and that it says so, over the real command line."""

import csv
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from sft_lightning.transfer.scores import logme

VIT = "timm/vit_tiny_patch16_224"
LABELS = ["--data=ImageDataModule", "--data.init_args.num_labels=20", "--data.init_args.val_size=30"]


def export(name: str, shape: tuple[int, int, int], path: str) -> None:
    """Write what `export --part backbone` would write of an untrained network."""
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, shape)
    write_weights(Path(path), dict(backbone.state_dict()), backbone.describe())


def ranked(capsys: pytest.CaptureFixture[str], candidates: str, *words: str) -> tuple[str, dict[str, dict[str, str]]]:
    assert main(["rank", *LABELS, *words, f"--candidates=[{candidates}]", "--folds=2", "--out=found"]) == 0
    with Path("found/rank.csv").open(newline="") as file:
        return capsys.readouterr().out, {row["start"]: row for row in csv.DictReader(file)}


def test_files_see_the_size_that_was_asked_for_where_their_weights_fit_it(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export("conv", (1, 28, 28), "conv.safetensors")
    export("mlp", (1, 28, 28), "mlp.safetensors")
    export(VIT, (3, 48, 48), "vit.safetensors")
    size = "--data.init_args.image_size=32"
    shown, rows = ranked(capsys, "conv.safetensors, mlp.safetensors, vit.safetensors", size)
    assert {name: row["image_size"] for name, row in rows.items()} == {
        "conv.safetensors": "32",
        "mlp.safetensors": "28",
        "vit.safetensors": "32",
    }
    why = "the size of its training, since its weights do not fit 32 px"
    assert f"mlp.safetensors is compared on images of 28 px, {why}" in shown
    assert shown.count("is compared on images of") == 1

    data = ImageDataModule("sample", num_labels=20, val_size=30, image_size=32, channels=3)
    data.setup("fit")
    backbone, _ = build_backbone(VIT, (3, 32, 32), "vit.safetensors")  # its positions are resampled
    (batch,) = data.batches_of("labeled", torch.device("cpu"))
    with torch.no_grad():
        x = backbone.eval()(batch.x)
    expected = logme(x, data.splits["labeled"].labels, 10)
    assert float(rows["vit.safetensors"]["logme"]) == pytest.approx(expected, abs=1e-4)


def test_without_a_size_files_see_that_of_their_training_and_it_is_said(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export("conv", (1, 20, 20), "conv.safetensors")
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), "theirs.safetensors")
    given = "conv.safetensors, {backbone: timm/resnet10t, weights: theirs.safetensors}"
    shown, rows = ranked(capsys, given)
    assert [rows[name]["image_size"] for name in ("conv.safetensors", "theirs.safetensors")] == ["20", "28"]
    assert "conv.safetensors is compared on images of 20 px, the size of its training: set data.init_args" in shown
    assert shown.count("is compared on images of") == 1

"""Starts ranked for masks: pixels as vectors, masks in one fold, and what has no maps."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import SegmentationDataModule
from sft_lightning.__main__ import main
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.transfer.folds import plan_folds
from sft_lightning.transfer.mask_vectors import sample_vectors
from sft_lightning.transfer.scores import cross_validate, logme
from tests.scenes import write_scenes

DATA = ["--data=SegmentationDataModule", "--data.source=d", "--data.image_size=32", "--data.val_size=0"]
DATA += ["--data.test_size=0", "--data.num_workers=0"]


@pytest.fixture
def scenes(workdir: Path) -> Path:
    write_scenes(Path("d"), 12)
    return Path("d")


def test_starts_are_ranked_by_pixels_of_all_masks(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open("d/masks/s000.png") as mask:  # the only one of a fourth class
        Image.fromarray(np.where(np.arange(32) < 4, 3, np.asarray(mask)).astype(np.uint8)).save(mask.filename)
    for k in (1, 2):  # copies
        (scenes / f"images/s00{k}.png").write_bytes((scenes / "images/s003.png").read_bytes())
        (scenes / f"masks/s00{k}.png").write_bytes((scenes / "masks/s003.png").read_bytes())
    starts = "--candidates=[{backbone: pixels, weights: none}, {backbone: mlp, weights: none}]"
    assert main(["rank", *DATA, starts, "--folds=3", "--out=found"]) == 0
    said = capsys.readouterr().out
    assert "linear probe and k-NN: accuracy of pixels ± s.e." in said
    assert re.search(r"without '?3'?, with pixels in fewer masks than there are folds", said)
    assert "left out: mlp (random): backbone 'mlp' gives no maps" in said
    with Path("found/rank.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["backbone"], first["num_features"], first["leep"], second["linear"]) == ("pixels", "12", "", "")
    data = SegmentationDataModule("d", image_size=32, val_size=0, test_size=0, num_workers=0)
    data.setup("validate")
    plan = plan_folds(data, data.splits["labeled"], 3)
    network = build_backbone("pixels", (3, 32, 32), "none")[0]
    x, y, groups, distinct = sample_vectors(network, data, plan)
    assert y.unique().tolist() == [0, 1, 2]
    examples = [k for k in range(12) for _ in range(64)]
    assert len(groups) == len(y) < len(examples)
    assert len({*groups}) == 10  # three copies are one
    assert len(distinct) == len(y) - 2 * 64
    expected = cross_validate(x, y, 3, 0, groups, kind="linear")[0]
    assert float(first["linear"]) == pytest.approx(expected)
    assert float(first["logme"]) == pytest.approx(logme(x[torch.tensor(distinct)], y[torch.tensor(distinct)], 4))
    assert float(first["linear"]) > 0.7


def test_criteria_of_one_class_and_too_few_masks_are_refused(scenes: Path, cli_error: Callable[..., str]) -> None:
    start = "--candidates=[{backbone: pixels, weights: none}]"
    assert "takes examples of one class each, and these have masks: give linear" in cli_error(
        "rank", *DATA, start, "--by=leep"
    )
    said = cli_error("rank", *DATA, start, "--folds=13")
    assert said.startswith("0 class(es) have pixels in 13 masks or more, one for each fold, and 2 are needed")

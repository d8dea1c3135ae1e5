import csv
from pathlib import Path

import pytest
import torch

from sft_lightning.callbacks.predictions import PredictionWriter
from sft_lightning.data.batches import Labeled
from tests.paradigms.helpers import SHAPE, batches, classifier, cli, trainer


def test_columns_and_order_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = cli("fit", "fine_tune", "--run_name=a")
    folder = Path("lightning_logs", "a", "version_0")
    data = cli("predict", "fine_tune", "--run_name=a", f"--ckpt_path={folder}").datamodule
    rows = list(csv.reader((folder / "predictions.csv").open()))
    names = run.model.class_names
    assert rows[0] == ["path", "predicted", *[f"p({name})" for name in names], "distance_percentile", "unlike_training"]
    assert [row[0] for row in rows[1:]] == data.splits["test"].ids
    for row in rows[1:]:
        chances = [float(v) for v in row[2:12]]
        assert sum(chances) == pytest.approx(1, abs=1e-5)
        assert row[1] == names[chances.index(max(chances))]
    assert not list(folder.glob("*.part*"))


def test_plain_loaders_give_positions_instead_of_paths(tmp_path: Path) -> None:
    given = [Labeled(torch.rand(2, *SHAPE), torch.tensor([-1, -1]), torch.tensor([k, k + 1])) for k in (0, 2)]
    trainer([PredictionWriter(tmp_path / "new")]).predict(classifier(), batches(*given), return_predictions=False)
    rows = list(csv.reader((tmp_path / "new" / "predictions.csv").open()))
    assert [row[0] for row in rows] == ["path", "0", "1", "2", "3"]

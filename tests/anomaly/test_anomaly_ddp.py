"""Two gloo processes learn the memory bank, Gaussians, student and threshold that one learns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from tests.anomaly.anomaly_worker import NAMES, TEACHER, learn
from tests.defects import write_textures
from tests.forks import both_ranks, work
from tests.paradigms.helpers import ROOT, left_by_ranks, moved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    write_textures(out / "d", {"train/good": 18, "test/good": 5, "test/spot": 4, "test/scratch": 4}, masks=True)
    torch.manual_seed(3)
    teacher, _ = build_backbone(TEACHER, (3, 32, 32))
    write_weights(out / "teacher.safetensors", teacher.state_dict(), teacher.describe())
    return out


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    done = both_ranks(work, "tests.anomaly.anomaly_worker", "d", folder, folder=ROOT, files=folder)
    assert [rank.code for rank in done] == [0, 0], "".join(rank.stderr[-4000:] for rank in done)
    return left_by_ranks(folder)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], folder: Path, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = learn(name, 1, folder / "d")
    assert first["state"].keys() == alone["state"].keys()
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-9, rtol=1e-7, msg=key)
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    assert first["metrics"] == second["metrics"]
    assert len(first["state"]["alarm.normal_scores"]) == (6 if name == "student_teacher" else 5)
    assert {"test/pro", "test/pixel_auroc", "test/auroc_spot"} <= first["metrics"].keys()

"""Two gloo processes learn the masks that one learns with the same global batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.forks import both_ranks, work
from tests.paradigms.helpers import ROOT, left_by_ranks, moved
from tests.scenes import make_scene, write_scenes
from tests.tasks.segmentation_worker import NAMES, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    write_scenes(out / "d", 29, 20)  # 12 unlabeled ones: batches of one process and of two end alike
    for k in range(0, 20, 2):  # half of the masks are mostly ignored
        mask = make_scene(k)[1]
        mask[: 10 + k] = 255
        Image.fromarray(mask.astype(np.uint8)).save(out / "d" / "masks" / f"s{k:03}.png")
    return out


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    done = both_ranks(work, "tests.tasks.segmentation_worker", "d", folder, folder=ROOT, files=folder)
    assert [rank.code for rank in done] == [0, 0], "".join(rank.stderr[-4000:] for rank in done)
    return left_by_ranks(folder)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], folder: Path, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = train(name, 1, folder / "d")
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-9, rtol=1e-6, msg=key)
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    assert first["metrics"] == second["metrics"]

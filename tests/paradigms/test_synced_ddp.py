"""Two gloo processes with batch normalization over both learn what one learns with the same global batch."""

from typing import Any

import pytest
import torch
from torch import nn

from sft_lightning.training.sync_batchnorm import SyncBatchNormsOnCPU
from tests.paradigms.ddp_worker import SYNCED, train_synced
from tests.paradigms.helpers import left_by_ranks, moved, two_processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return left_by_ranks(two_processes("synced", tmp_path_factory.mktemp("ddp")))


@pytest.mark.parametrize("name", SYNCED)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = train_synced(name, 1)
    assert any("running_var" in key for key in alone["state"]) == (name != "autoencoder without")
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-5)


def test_fewer_examples_than_processes_are_refused(ranks: list[dict[str, Any]]) -> None:
    sentence = "there are 1 unlabeled examples for 2 processes: use fewer devices"
    assert [rank["refused"] for rank in ranks] == [sentence, sentence]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_process_normalizes_as_it_did(momentum: float | None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))
    synced = SyncBatchNormsOnCPU().apply(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)))
    x = torch.randn(4, 3, 5, 5)
    for _ in range(2):
        torch.testing.assert_close(synced(x), plain(x))
    assert not moved(plain.state_dict(), synced.state_dict())
    assert torch.equal(synced.eval()(x), plain.eval()(x))

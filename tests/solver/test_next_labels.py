"""Which examples `solve` asks to label next."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sft_lightning.solver import recipes
from sft_lightning.solver.deliver import NEXT, choose_next
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.recipes import Space


def test_the_next_labels_are_one_of_each_cluster_that_has_none() -> None:
    torch.manual_seed(0)
    cluster = torch.arange(NEXT + 5).repeat_interleave(12)
    x = 10 * F.one_hot(cluster).float() + 0.1 * torch.randn(len(cluster), NEXT + 5)
    is_labeled = (cluster < 5) & (torch.arange(len(cluster)) % 12 == 0)
    space = Space("clusters", (), 24, labeled=x[is_labeled], pool=x[~is_labeled])
    order = torch.randperm(len(space.pool))
    space.pool, space.pool_positions = space.pool[order], order  # the pool is read in another order
    chosen = choose_next(space)
    assert sorted(cluster[~is_labeled][chosen].tolist()) == list(range(5, NEXT + 5))


def test_a_small_pool_is_chosen_as_a_whole() -> None:
    space = Space("few", (), 4, labeled=torch.randn(4, 3), pool=torch.randn(7, 3), pool_positions=torch.arange(7))
    assert choose_next(space) == list(range(7))


def test_a_pool_that_is_read_in_part_keeps_the_positions_of_its_examples(
    tmp_path: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "MAX_GRAPH", 20)
    folder = write_folder(tmp_path / "images", {"train": 3, "unlabeled": 15}, classes=3)
    source = read_source(str(folder), tmp_path, None, 16, 0, "data")
    space = Space("pixels", (), 4)
    space.read(source)
    assert len(space.pool) == 20 - len(source.labels) < source.pool_size
    every = source.data.inputs_of("unlabeled", list(range(source.pool_size))).flatten(1)
    assert torch.equal(every[space.pool_positions], space.pool)
    assert len(space.pool_positions.unique()) == len(space.pool)

"""Which examples `solve` asks to label next."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sft_lightning.solver import space as space_module
from sft_lightning.solver.deliver import NEXT, choose_next, measure_certainty
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.space import Space
from sft_lightning.tasks.classification import Classification


def test_the_next_labels_are_one_of_each_cluster_of_the_doubtful_half() -> None:
    torch.manual_seed(0)
    cluster = torch.arange(2 * NEXT).repeat_interleave(12)
    x = 10 * F.one_hot(cluster).float() + 0.1 * torch.randn(len(cluster), 2 * NEXT)
    doubt = (cluster >= NEXT).float() * 0.3
    probabilities = torch.stack([0.9 - doubt, 0.1 + doubt], 1)
    order = torch.randperm(len(x))  # the pool is read in another order
    space = Space("clusters", (), 48, pool=x[order], pool_positions=order)
    chosen = choose_next(measure_certainty(probabilities, Classification(2)), space)
    assert sorted(cluster[chosen].tolist()) == list(range(NEXT, 2 * NEXT))


def test_a_small_pool_is_chosen_as_a_whole_the_most_doubtful_first() -> None:
    space = Space("few", (), 4, pool=torch.randn(7, 3), pool_positions=torch.arange(7))
    first = torch.arange(0.55, 0.9, 0.05)
    probabilities = torch.stack([first, 1 - first], 1).flip(0)
    chosen = choose_next(measure_certainty(probabilities, Classification(2)), space)
    assert chosen == [6, 5, 4, 3, 2, 1, 0]


def test_a_pool_that_is_read_in_part_keeps_the_positions_of_its_examples(
    tmp_path: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_module, "MAX_GRAPH", 20)
    folder = write_folder(tmp_path / "images", {"train": 3, "unlabeled": 15}, classes=3)
    source = read_source(str(folder), tmp_path, None, 16, 0, "data")
    space = Space("pixels", (), 4)
    space.read(source)
    assert len(space.pool) == 20 - len(source.labels) < source.pool_size
    every = source.data.inputs_of("unlabeled", list(range(source.pool_size))).flatten(1)
    assert torch.equal(every[space.pool_positions], space.pool)
    assert len(space.pool_positions.unique()) == len(space.pool)

"""What a GPU gets of the data, on a CPU that takes its place; `tests/gpu` has the rest."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning import ImageDataModule
from sft_lightning.data import loaders, storage
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.storage import TensorStorage
from sft_lightning.utils import transfer
from tests.data.conftest import break_middle
from tests.paradigms.helpers import classifier, trainer

CPU = torch.device("cpu")


def test_a_quarter_of_the_free_memory_of_a_gpu_and_nothing_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (4000, 9000))
    gpu = torch.device("cuda", 0)
    assert transfer.fits_in_memory(1000, gpu)
    assert not transfer.fits_in_memory(1001, gpu)
    assert not transfer.fits_in_memory(1, CPU)


def test_pictures_are_copied_once_for_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = torch.device("meta")
    own = TensorStorage(torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2))
    assert own.on(elsewhere) is own.data  # which do not fit
    monkeypatch.setattr(storage, "fits_in_memory", lambda size, where: size == 12)
    there = own.on(elsewhere)
    assert there.device == elsewhere
    assert there is own.on(elsewhere)


def test_the_next_item_is_made_while_one_is_used() -> None:
    made, used = [], threading.Event()

    def items() -> Any:
        for k in range(3):
            made.append(threading.current_thread())
            if k == 1:
                used.set()
            yield k

    found = transfer.prefetch(items())
    assert next(found) == 0
    assert used.wait(10)
    assert [*found] == [1, 2]
    assert threading.current_thread() not in made
    assert list(transfer.prefetch(iter([]))) == []


def test_a_mistake_in_the_thread_is_one_here() -> None:
    def items() -> Any:
        yield 1
        raise ValueError("broken")

    found = transfer.prefetch(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_results_arrive_late_and_all() -> None:
    asked: list[int] = []

    def computed() -> Any:
        for k in range(3):
            asked.append(k)
            yield torch.tensor(k), torch.tensor(10 * k)

    seen = [(int(which), int(own), len(asked)) for which, own in transfer.stream_to_cpu(computed())]
    assert seen == [(0, 0, 2), (1, 10, 3), (2, 20, 3)]
    assert list(transfer.stream_to_cpu([])) == []


def batches(data: ImageDataModule) -> list[RawBatch]:
    trainer(max_epochs=0).fit(classifier(), datamodule=data)  # so that the loader knows the device
    train = data.train_dataloader()
    found = []
    for epoch in range(2):
        train.set_epoch(epoch)
        found += [batch["labeled"] for batch in train]
    return [*found, *data.val_dataloader()]


@pytest.mark.parametrize("files", [False, True])
def test_batches_of_pictures_that_are_kept_are_the_same(
    files: bool, workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_folder(workdir / "pictures", {"train": 8, "val": 3, "test": 1})) if files else "sample"
    settings: dict[str, Any] = {"image_size": 28, "channels": 1, "cache": "cache"} if files else {"num_labels": 30}
    found = []
    for kept in (False, True):
        asked: list[int] = []
        for where in (storage, loaders):
            monkeypatch.setattr(
                where, "fits_in_memory", lambda size, to, kept=kept, asked=asked: [kept, asked.append(size)][0]
            )
        data = ImageDataModule(source, batch_size=5, num_workers=0, **settings)
        found.append(batches(data))
        assert asked
        if files:
            assert set(asked) == {24 * 28 * 28}
    assert len(found[0]) == len(found[1])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.indices, two.indices)
        assert one.seed == two.seed


def test_a_file_that_cannot_be_read_is_told_batch_by_batch(
    workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(workdir / "pictures", {"train": 8, "val": 3, "test": 1})
    bad = sorted((folder / "train" / "class_0").iterdir())[0]
    break_middle(bad)
    monkeypatch.setattr(loaders, "fits_in_memory", lambda size, to: True)
    settings: dict[str, Any] = {"image_size": 28, "channels": 1, "num_workers": 0, "on_bad_image": "skip"}
    data = ImageDataModule(str(folder), batch_size=5, cache="cache", **settings)
    found = batches(data)
    seen = {i for batch in found[: -len(data.val_dataloader())] for i in batch.indices.tolist()}
    assert len(seen) == 23
    assert [Path(name).name for name in data.bad.reasons] == [bad.name]

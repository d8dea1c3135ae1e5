"""Examples and labels belong together in whatever order a split lists the examples."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.source import is_whole
from sft_lightning.data.splits import Split
from tests.modality.test_texts import make_texts


@pytest.mark.parametrize(
    ("indices", "whole"),
    [(range(3), True), ([0, 1, 2], True), ([2, 1, 0], False), (range(2, -1, -1), False), ([0, 0, 1], False)],
)  # fmt: skip
def test_a_whole_split_has_all_examples_in_their_order(indices: list[int] | range, whole: bool) -> None:
    assert is_whole(indices, 3) is whole


def open_memory(folder: Path) -> FewLabelDataModule:
    return ImageDataModule("sample", val_size=0, num_labels=None, eval_batch_size=1000)


def open_texts(folder: Path) -> FewLabelDataModule:
    rows = "".join(f"{text},{label}\n" for text, label in make_texts(60))
    (folder / "texts.csv").write_text(f"text,label\n{rows}")
    return TextDataModule(str(folder / "texts.csv"), val_size=0, test_size=0)


@pytest.mark.parametrize("open_data", [open_memory, open_texts])
def test_all_examples_in_another_order_keep_their_labels(
    open_data: Callable[[Path], FewLabelDataModule], workdir: Path
) -> None:
    data = open_data(workdir)
    data.setup("fit")
    split = data.splits["labeled"]
    plain = [*data.batches_of("labeled", torch.device("cpu"))]
    data.splits["labeled"] = Split(split.part, list(split.indices)[::-1])
    turned = [*data.batches_of("labeled", torch.device("cpu"))]
    vectors = [torch.cat([data.views.flatten(batch.x) for batch in batches]) for batches in (plain, turned)]
    labels = [torch.cat([batch.y for batch in batches]) for batches in (plain, turned)]
    assert torch.equal(labels[0].flip(0), labels[1])
    assert torch.equal(vectors[0].flip(0), vectors[1])

"""Helpers for the tests of a run's split: the data of a small run, and the content of its split file."""

from pathlib import Path
from typing import Any

from sft_lightning.data.split_files import read_rows
from sft_lightning.data.vision.datamodule import ImageDataModule

SETTINGS: dict[str, Any] = {"num_labels": 8, "test_size": 6, "val_size": 4, "image_size": 8, "num_workers": 0}
Ids = dict[str, list[str]]


def make_data(source: Path, run: Path | None = None, stage: str = "test", **settings: Any) -> ImageDataModule:
    data = ImageDataModule(**{"source": str(source), **SETTINGS, **settings})
    data.followed_run = run
    data.setup(stage)
    return data


def collect_ids(data: ImageDataModule) -> Ids:
    return {name: split.ids for name, split in data.splits.items()}


def join_messages(data: ImageDataModule) -> str:
    return "\n".join(map(str, data.request.findings))


def write_run(data: ImageDataModule, folder: Path) -> Path:
    data.write_splits(folder / "split.csv", data.splits)
    return folder


def read_recorded_ids(run: Path) -> Ids:
    rows = list(read_rows(run / "split.csv"))
    return {name: [row.id for row in rows if row.split == name] for name in ("labeled", "unlabeled", "val", "test")}

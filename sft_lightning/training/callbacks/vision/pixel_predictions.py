"""What writers of predicted pixels share: folders, names of files, originals, and maps enlarged to their size."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.bad_examples import format_path
from sft_lightning.data.frames import remove_extension
from sft_lightning.data.storage import RecordStorage, Storage, TensorStorage
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.decoding import open_image
from sft_lightning.data.vision.images import Geometry, place_box
from sft_lightning.training.callbacks.predictions import PredictionWriter, describe_predictions
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError

_DESCRIPTION = "predictions.json"
_STRIP = 2**24  # numbers in memory at once
_SAME = ("source", "checkpoint_sha256")


class PixelWriter(PredictionWriter):
    """Writes images beside the table; those of another source or checkpoint get another folder, with a number.

    Attributes:
        folder_name: Name of the folder of the images.
        data_kind: Class of the data module that is needed.
    """

    folder_name: ClassVar[str]
    data_kind: ClassVar[type[ImageDataModule]]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the folder of the images, equal on all processes.

        Raises:
            InputError: The data is of another class.
        """
        super().on_predict_start(trainer, pl_module)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, self.data_kind):
            raise InputError(
                f"{self.folder_name} need {self.data_kind.__name__}, and the data is {type(data).__name__}: set data "
                "to it"
            )
        self._data = data
        home = self._path.parent
        if self.needs_folder(pl_module):
            chosen = _choose_folder(home, self.folder_name, trainer) if trainer.is_global_zero else home
            self._folder: Path = trainer.strategy.broadcast(chosen)
        self._split = split = data.open_predicted()
        self._storage, self._position = split.part.storage, split.indices
        self._names = name_files(split.ids)

    def needs_folder(self, pl_module: LightningModule) -> bool:
        """Return whether there will be images to write.

        Args:
            pl_module: Module that is about to predict.
        """
        return True

    def open_original(self, position: int) -> Image.Image:
        """Return an image at its own size, RGB, upright as its EXIF says.

        Args:
            position: Position among the images to predict.
        """
        return open_original(self._storage, self._position[position], self._data.geometry)

    def make_path(self, position: int) -> Path:
        """Return the path of the PNG of an image, whose folder is made.

        Args:
            position: Position among the images to predict.
        """
        file = self._folder / self._names[position]
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def name_in_table(self, file: Path) -> str:
        """Return the path of a file relative to the table.

        Args:
            file: Path of the file.
        """
        return file.relative_to(self._path.parent).as_posix()


def open_original(storage: Storage, index: int, geometry: Geometry) -> Image.Image:
    """Return an image at its own size, RGB, upright as its EXIF says.

    Args:
        storage: Storage of the image.
        index: Position in the storage.
        geometry: How images are read.
    """
    if isinstance(storage, TensorStorage):
        return Image.fromarray(storage.data[index].permute(1, 2, 0).squeeze(2).numpy()).convert("RGB")
    assert isinstance(storage, RecordStorage)
    return open_image(storage.path_of(index), 3, geometry.background, ranges=geometry.ranges)


@contextmanager
def explain_write_errors(file: Path) -> Iterator[None]:
    """Turn an error in writing a file into one sentence.

    Args:
        file: Path of the file.

    Raises:
        InputError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{str(file)!r} cannot be written ({error.strerror or error}): free space or fix the permissions"
        ) from error


def enlarge_in_strips(
    maps: Tensor, sides: tuple[int, int], box: tuple[float, float, float, float]
) -> Iterator[tuple[int, int, Tensor]]:
    """Enlarge maps of a square image to the size of the original bilinearly, as by `F.interpolate`.

    Strips of rows come one after the other, so that large images take little memory.

    Args:
        maps: Maps of a square image, (C, S, S).
        sides: Width and height of the original in pixels.
        box: Part of the original that the square image shows, as `Geometry.box` gives it.

    Yields:
        First and last + 1 row, and the maps there, (C, rows, width).
    """
    (width, height), channels = sides, len(maps)
    _, columns, rows = place_box(sides, maps.shape[-1], box)
    inside = maps[None, :, rows[0] : rows[1], columns[0] : columns[1]]
    across = (2 * torch.arange(width, device=maps.device) + 1) / width - 1
    step = max(1, _STRIP // (channels * width))
    for start in range(0, height, step):
        stop = min(height, start + step)
        down = (2 * torch.arange(start, stop, device=maps.device) + 1) / height - 1
        grid = torch.stack([across.expand(len(down), -1), down[:, None].expand(-1, width)], -1)[None].to(maps)
        strip = F.grid_sample(inside, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        yield start, stop, strip


def _choose_folder(folder: Path, name: str, trainer: Trainer) -> Path:
    """Return the folder of images of the same source and checkpoint, or a new one."""
    about = describe_predictions(trainer)
    for k in count():
        chosen = folder / (f"{name}_{k}" if k else name)
        try:
            old = json.loads((chosen / _DESCRIPTION).read_text(encoding="utf-8")) if chosen.exists() else about
        except (OSError, ValueError):
            continue
        if isinstance(old, dict) and all(old.get(key) == about[key] for key in _SAME):
            chosen.mkdir(parents=True, exist_ok=True)
            write_json(chosen / _DESCRIPTION, about)
            return chosen
    raise AssertionError


def name_files(ids: Sequence[str]) -> list[str]:
    """Return a PNG for each image: its name with another extension, or an added one where two collide.

    Args:
        ids: Names of the images.
    """
    plain = [format_path(name).replace("\\", "/").lstrip("/").replace("../", "") for name in ids]
    stems = [remove_extension(name) for name in plain]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len({*stems}) < len(stems) else set()
    return [f"{name if stem in twice else stem}.png" for name, stem in zip(plain, stems, strict=True)]

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.data import image_cache
from sft_lightning.data.batches import Labeled
from sft_lightning.data.views import WeakView

SIZE = 24
ROW = 3 * SIZE * SIZE


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEG and PNG pictures of several shapes, with detail at every scale, and a few without labels."""
    home = tmp_path_factory.mktemp("photos")
    for k, folder in enumerate(("train/a", "train/b", "test/a", "test/b", "unlabeled")):
        (home / folder).mkdir(parents=True)
        for i in range(12):
            draw = np.random.default_rng(100 * k + i)
            coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
            smooth = coarse.resize((60 + 5 * i, 70 - 3 * i), Image.Resampling.BICUBIC)
            if i == 5:
                smooth = smooth.convert("L")
            smooth.save(home / folder / (f"{i:02}.png" if i % 3 == 0 else f"{i:02}.jpg"))
    return home


def opened(source: Path, cache: Path | None, **settings: Any) -> ImageDataModule:
    options = {"image_size": SIZE, "batch_size": 5, "num_workers": 0, "val_size": 4, "steps_per_epoch": 9, **settings}
    data = ImageDataModule(str(source), cache=None if cache is None else str(cache), **options)
    data.setup("fit")
    return data


def batches(data: ImageDataModule, epochs: int = 2) -> Iterator[Labeled]:
    """Training, validation and test batches as a network sees them."""
    train = data.train_dataloader()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        for batch in train:
            yield data.on_after_batch_transfer(batch, 0)["labeled"]
        for part in (data.val_dataloader(), data.test_dataloader()):
            for batch in part:
                yield data.on_after_batch_transfer(batch, 0)


def same(one: Labeled, two: Labeled) -> bool:
    return (
        torch.equal(one.x, two.x)
        and one.x.stride() == two.x.stride()
        and torch.equal(one.y, two.y)
        and torch.equal(one.indices, two.indices)
    )


def all_same(one: ImageDataModule, two: ImageDataModule) -> bool:
    pairs = list(zip(batches(one), batches(two), strict=True))
    assert len(pairs) == 2 * (9 + 1 + 5)
    return all(same(a, b) for a, b in pairs)


class Decoded(NamedTuple):
    """What a run decoded."""

    paths: list[Path]

    def taken(self) -> list[Path]:
        found = sorted(self.paths)
        self.paths.clear()
        return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Each file that is decoded in this process, from here on."""
    from sft_lightning.data import images

    seen = Decoded([])
    real = images.open_image

    def noted(path: Path, *rest: Any) -> Image.Image:
        seen.paths.append(path)
        return real(path, *rest)

    for module in (images, image_cache):
        monkeypatch.setattr(module, "open_image", noted)
    return seen


VIEWS = WeakView(flip=True, crop_padding=2)


@pytest.mark.parametrize("settings", [{"weak_view": VIEWS}, {"channels": 1, "center_crop": 0.8, "num_labels": 10}])
def test_batches_are_the_same_bit_for_bit_and_files_are_decoded_once(
    settings: dict[str, Any], photos: Path, tmp_path: Path, decoded: Decoded
) -> None:
    for _ in range(2):  # filled, and found filled by the next run
        assert all_same(opened(photos, None, **settings), opened(photos, tmp_path, **settings))
    decoded.taken()
    list(batches(opened(photos, tmp_path, **settings)))
    assert decoded.taken() == []

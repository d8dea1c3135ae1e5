"""Long images are cropped, padded or squashed as asked; a run says so where many lose much."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.audit.image_checks import summarize_files
from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.cached_images import ImageCaches
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.data.vision.images import FileImages, Geometry, decode
from tests.data.conftest import MakeFolder, write_image


def half(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    """Black on its left, gray on its right half."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_padding_keeps_the_whole_image_on_the_background(tmp_path: Path) -> None:
    made = decode(half(tmp_path / "x.png"), Geometry(16, 3, (10, 200, 30), resize="pad"), None)
    assert made[:, :4].flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]
    assert made[:, 12:].flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]
    assert made[:, 4:12, :7].max() == 0
    assert made[:, 4:12, 9:].unique().tolist() == [100]
    tall = decode(half(tmp_path / "y.png", (20, 40)), Geometry(16, 1, resize="pad"), None)
    assert tall.shape == (1, 16, 16)
    assert tall[0, :, :4].min() == tall[0, :, 12:].min() == 255
    assert tall[0, :, 4:7].max() == 0


def test_squashing_keeps_the_whole_image_without_a_border(tmp_path: Path) -> None:
    made = decode(half(tmp_path / "x.png"), Geometry(16, 1, resize="squash"), None)
    assert made[0, :, :7].max() == 0
    assert made[0, :, 9:].unique().tolist() == [100]


def test_padding_with_a_central_share_and_square_images_is_cropping(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", 0, (40, 40))
    for share in (1.0, 0.875):
        cropped = decode(path, Geometry(16, center=share), None)
        assert decode(path, Geometry(16, center=share, resize="pad"), None).equal(cropped)
        assert decode(path, Geometry(16, center=share, resize="squash"), None).equal(cropped)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (300, 1), (40, 20)])
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_any_shape_and_crop_has_a_result(size: tuple[int, int], resize: str, tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", 0, size)
    geometry = Geometry(16, scale=(0.08, 1.0), resize=resize)  # type: ignore[arg-type]
    for seed in (None, *range(20)):
        assert decode(path, geometry, seed).shape == (3, 16, 16)


def test_a_cache_has_the_same_padded_images(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i, (40, 20 + i)) for i in range(4)]
    part = Examples(FileImages(paths, [p.name for p in paths]), [p.name for p in paths], np.zeros(4))  # type: ignore[arg-type]
    green = (10, 200, 30)
    for scale in (None, (0.3, 1.0)):
        geometry = Geometry(16, background=green, resize="pad", scale=scale)
        split = ImageCaches(tmp_path / "cache", [part]).cached(Split(part, [0, 1, 2, 3]), geometry, 0, BadFiles())
        for i, path in enumerate(paths):
            seed = None if geometry.scale is None else i
            found = split.part.storage.read(i, geometry, seed)  # type: ignore[attr-defined]
            straight = decode(path, geometry, seed)
            if seed is None:
                assert found.equal(straight)
            else:
                assert (found.float() - straight.float()).abs().mean() < 40  # noise that was resized once before
                border = (straight == torch.tensor(green)[:, None, None]).all(0)
                assert (torch.tensor(green) == found[:, border].T).all()


def test_earlier_keys_of_a_geometry_stay() -> None:
    old = "Geometry(size=224, channels=3, background=(255, 255, 255), center=1.0, scale=None)"
    assert repr(Geometry()) == old
    assert repr(Geometry(resize="pad")) == f"{old[:-1]}, resize='pad')"


def test_a_run_says_how_many_images_lose_much(folder: MakeFolder) -> None:
    source = folder("train/a", "train/b", count=6)  # 12 x 10
    write_image(source / "train" / "a" / "long.png", 99, (40, 20))
    said = "1 of 13 images (8%) lose more than a third of their area to the central square: set resize: pad"
    for resize, expected in (("crop", 1), ("pad", 0), ("squash", 0)):
        data = ImageDataModule(str(source), image_size=8, resize=resize)  # type: ignore[arg-type]
        data.setup("fit")
        assert sum(str(finding).startswith(said) for finding in data.request.findings) == expected


def test_an_audit_counts_what_is_cut_off(folder: MakeFolder) -> None:
    source = folder("train/a", count=3)  # 12 x 10
    write_image(source / "train" / "a" / "long.png", 99, (40, 10))
    data = ImageDataModule(str(source), image_size=8, val_size=0, test_size=0)
    data.setup("fit")
    facts = summarize_files([compute_image_stats("labeled", data.splits["labeled"], data.geometry)], data.geometry)
    assert facts["cut_off"] == {"more than 10%": 4, "more than 33%": 1, "more than 50%": 1}
    assert facts["cut_off_on_average"] == round((0.75 + 3 / 6) / 4, 3)

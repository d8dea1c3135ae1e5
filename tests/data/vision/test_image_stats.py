"""Statistics of an image do not depend on the strips in which its pixels are processed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sft_lightning.data.vision import image_stats
from sft_lightning.data.vision.image_stats import ImageStats, identify_contents
from sft_lightning.data.vision.images import FileImages, Geometry, open_image
from tests.conftest import Crop


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("is_flat", [False, True])
def test_strips_do_not_change_the_statistics(
    kind: str, channels: int, is_flat: bool, crop: Crop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = crop(3).convert(kind)
    if is_flat:
        image = image.point(lambda v: v // 16 + 200)
    if kind == "RGBA":
        image.putalpha(Image.linear_gradient("L").point(lambda v: max(v, 200 * is_flat)).resize(image.size))
    image.save(path := tmp_path / "image.png")
    images, geometry = FileImages([path], ["image"]), Geometry(channels=channels)
    whole = image_stats._compute_stats(images, 0, geometry)
    digest = image_stats._digest(whole)
    monkeypatch.setattr(image_stats, "_STRIP", 7 * image.width)
    strips = image_stats._compute_stats(images, 0, geometry)
    assert np.array_equal(whole.thumbnail, strips.thumbnail)
    assert (digest, whole.gray_std, whole.is_gray) == (image_stats._digest(strips), strips.gray_std, strips.is_gray)
    assert whole.header == strips.header
    assert whole.is_gray == (kind == "L")
    gray = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("L"))
    assert whole.gray_std == (pytest.approx(gray.std()) if is_flat else None)


def test_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see_through = Image.new("RGBA", (8, 6), (255, 0, 0, 255))
    see_through.putpixel((3, 3), (0, 0, 0, 254))
    see_through.save(tmp_path / "0.png")
    see_through.convert("RGB").convert("RGBA").save(tmp_path / "1.png")
    decoded: list[str] = []
    finish = PngImagePlugin.PngImageFile.load_end

    def ended(image: PngImagePlugin.PngImageFile) -> None:
        decoded.append("once")
        finish(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", ended)
    images = FileImages([tmp_path / "0.png", tmp_path / "1.png"], ["0", "1"])
    found = [image_stats._compute_stats(images, i, Geometry()).header for i in (0, 1)]
    assert [header is not None and header.is_transparent for header in found] == [True, False]
    assert len(decoded) == 2


def compute_stats(path: Path) -> ImageStats:
    return image_stats._compute_stats(FileImages([path], [path.name]), 0, Geometry())


def test_only_images_with_equal_thumbnails_are_decoded_again(
    crop: Crop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop(1).save(tmp_path / "a.png")
    crop(1).convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    crop(2).save(tmp_path / "c.png")
    crop(3).save(tmp_path / "gone.png")
    crop(3).save(tmp_path / "too.png")
    nearly = crop(1).resize((3000, 3000))  # one pixel is lost in the small image
    nearly.save(tmp_path / "large.png", compress_level=1)
    nearly.putpixel((1500, 1500), (0, 0, 0) if nearly.getpixel((1500, 1500)) != (0, 0, 0) else (1, 1, 1))
    nearly.save(tmp_path / "nearly.png", compress_level=1)
    names = ("a.png", "b.webp", "c.png", "gone.png", "too.png", "large.png", "nearly.png")
    seen = {name: compute_stats(tmp_path / name) for name in names}
    assert seen["large.png"].key == seen["nearly.png"].key
    (tmp_path / "gone.png").unlink()
    (tmp_path / "too.png").unlink()
    decoded: list[Path] = []

    def decode(path: Path, *more: Any, **settings: Any) -> Image.Image:
        decoded.append(path)
        return open_image(path, *more, **settings)

    monkeypatch.setattr(image_stats, "open_image", decode)
    found = dict(zip(("?", *names), identify_contents(["it is a folder", *seen.values()]), strict=True))
    assert found.pop("?") is None
    assert found["a.png"] == found["b.webp"]
    assert len(set(found.values())) == 6
    assert sorted(path.name for path in decoded) == sorted(set(names) - {"c.png"})
    assert identify_contents(list(seen.values())) == list(found.values())
    assert len(decoded) == 6


@pytest.mark.parametrize("size", [(512, 700), (1999, 777), (2400, 2400)])
def test_thumbnail_of_a_large_image_covers_all_its_pixels(size: tuple[int, int], crop: Crop, tmp_path: Path) -> None:
    image = crop(0).resize(size, Image.Resampling.NEAREST)
    image.save(tmp_path / "x.png", compress_level=1)
    exact = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(compute_stats(tmp_path / "x.png").thumbnail - exact).mean() < 0.3


def test_color_and_noise_invisible_in_the_thumbnail_are_detected(tmp_path: Path) -> None:
    gray = Image.new("RGB", (3000, 3000), (90, 90, 90))
    gray.save(tmp_path / "flat.png", compress_level=1)
    gray.putpixel((2999, 2999), (90, 91, 90))
    gray.save(tmp_path / "color.png", compress_level=1)
    board = np.indices((1024, 1024)).sum(0).astype(np.uint8) % 2 * 255  # one gray when it is reduced
    Image.fromarray(board).save(tmp_path / "board.png")
    assert (compute_stats(tmp_path / "flat.png").is_gray, compute_stats(tmp_path / "flat.png").gray_std) == (True, 0)
    assert not compute_stats(tmp_path / "color.png").is_gray
    assert compute_stats(tmp_path / "board.png").gray_std == pytest.approx(127.5)

"""Flattening transparent pixels over a background equals Pillow's `alpha_composite`."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sft_lightning.data.vision.decoding import _flatten

BACKGROUNDS = ((255, 255, 255), (10, 200, 30))


def composite(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    over = image.convert("RGBA")
    made = Image.new("RGBA", over.size, (*background, 255))
    made.alpha_composite(over)
    return made.convert("L" if channels == 1 else "RGB")


def through_file(image: Image.Image, kind: str, transparency: object = None) -> Image.Image:
    file = BytesIO()
    image.save(file, kind, **({} if transparency is None else {"transparency": transparency}))
    return Image.open(file)


def palette_image(colors: int, draw: np.random.Generator, mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(draw.integers(0, colors, (20, 30), dtype=np.uint8), "L")
    image.putpalette(draw.integers(0, 256, colors * len(mode), dtype=np.uint8).tobytes(), mode)
    return image


def check(image: Image.Image) -> None:
    for background in BACKGROUNDS:
        for channels in (1, 3):
            expected = composite(image.copy(), channels, background)
            made = _flatten(image, channels, background)
            assert (made.mode, made.size, made.tobytes()) == (expected.mode, expected.size, expected.tobytes())


def test_flattening_equals_alpha_compositing_for_all_values() -> None:
    values, opacity = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([values, 255 - values, values, opacity], -1))
    check(image)
    check(image.convert("LA"))
    check(through_file(image, "TIFF"))
    for level in range(0, 256, 5):
        background = (level, 255 - level, 128)
        assert _flatten(image, 3, background).tobytes() == composite(image, 3, background).tobytes()


@pytest.mark.filterwarnings("error")  # Pillow warns where a palette with opacity becomes RGB
@pytest.mark.parametrize("colors", [2, 5, 200, 256])
def test_flattening_palettes_equals_alpha_compositing(colors: int) -> None:
    draw = np.random.default_rng(colors)
    image = palette_image(colors, draw)
    some = draw.integers(0, 256, colors, dtype=np.uint8).tobytes()
    for transparency in (0, colors - 1, some, some[: colors // 2], b"\0"):
        opened = through_file(image, "PNG", transparency)
        assert opened.mode == "P"
        check(opened)
        assert opened.has_transparency_data  # the image itself stays as it was
    check(through_file(image, "GIF", colors - 1))
    check(palette_image(colors, draw, "RGBA"))


@pytest.mark.parametrize(("mode", "transparency"), [("L", 7), ("1", 0), ("RGB", (5, 250, 5))])
def test_flattening_a_transparent_value_equals_alpha_compositing(mode: str, transparency: object) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, 255 - values, values], -1)).convert(mode)
    check(through_file(image, "PNG", transparency))


def test_opaque_image_of_a_file_is_copied() -> None:
    file = through_file(Image.new("RGB", (4, 3), (1, 2, 3)), "PNG")
    assert _flatten(file, 3, BACKGROUNDS[0]) is not file

"""One look at an image: what it says does not depend on the strips in which pixels are gone through."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sft_lightning.data.images import FileImages, Geometry
from sft_lightning.preflight import looks
from tests.preflight.conftest import Crop


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_change_nothing(
    kind: str, channels: int, crop: Crop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = crop(3).convert(kind)
    if kind == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path := tmp_path / "image.png")
    images, geometry = FileImages([path], ["image"]), Geometry(channels=channels)
    whole = looks._look(images, 0, geometry)
    monkeypatch.setattr(looks, "_STRIP", 7 * image.width)
    strips = looks._look(images, 0, geometry)
    assert np.array_equal(whole.small, strips.small)
    assert (whole.digest, whole.spread, whole.gray) == (strips.digest, strips.spread, strips.gray)
    assert whole.header == strips.header
    assert whole.gray == (kind == "L")
    gray = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("L"))
    assert whole.spread == pytest.approx(gray.std())


def test_a_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = [looks._look(images, i, Geometry()).header for i in (0, 1)]
    assert [header is not None and header.transparent for header in found] == [True, False]
    assert len(decoded) == 2

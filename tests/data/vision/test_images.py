from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.equal_examples import find_duplicates
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.data.vision.images import FileImages, Geometry, cut_out, decode, open_image
from sft_lightning.utils.errors import InputError
from tests.data.conftest import break_middle, write_image, write_plain_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# Corners of an image: red, green / blue, white.
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(8, 0).repeat(8, 1)


def corners(image: Image.Image) -> list[Any]:
    w, h = image.size
    return [image.getpixel(at) for at in ((2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3))]


def is_near(image: Image.Image, expected: list[tuple[int, int, int]], tolerance: int) -> bool:
    return int(np.abs(np.array(corners(image)) - np.array(expected)).max()) <= tolerance


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("x.png", {}, 0),
        ("x.bmp", {}, 0),
        ("x.tif", {}, 0),
        ("x.tiff", {"compression": "tiff_lzw"}, 0),
        ("x.gif", {}, 0),
        ("x.webp", {"lossless": True}, 0),
        ("x.webp", {"quality": 95}, 12),
        ("x.jpg", {"quality": 95, "subsampling": 0}, 6),
        ("x.jpeg", {"quality": 95, "subsampling": 0, "progressive": True}, 6),
        ("x.JPG", {"quality": 95, "subsampling": 0}, 6),
    ],
)
def test_common_formats_open_as_rgb(tmp_path: Path, name: str, options: dict[str, Any], tolerance: int) -> None:
    Image.fromarray(CORNERS).save(tmp_path / name, **options)
    image = open_image(tmp_path / name)
    assert image.mode == "RGB"
    assert image.size == (16, 16)
    assert is_near(image, [RED, GREEN, BLUE, WHITE], tolerance)
    assert find_damage(tmp_path / name) is None


@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_cmyk_converts_to_rgb(tmp_path: Path, name: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.paste((255, 255, 0, 128), (8, 0, 16, 16))
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if name == "x.jpg" else {}
    image.save(tmp_path / name, **options)
    assert is_near(open_image(tmp_path / name), [RED, (0, 0, 127), RED, (0, 0, 127)], 3)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_images_keep_their_range(tmp_path: Path, name: str, channels: int) -> None:
    Image.fromarray(np.array([[0, 257], [65535, 32768]], np.uint16)).save(tmp_path / name)
    read = np.asarray(open_image(tmp_path / name, channels)).reshape(2, 2, -1)
    assert read.shape[-1] == channels
    assert read[..., 0].tolist() == [[0, 1], [255, 128]]


@pytest.mark.parametrize(("top", "expected"), [(1.0, 128), (255.0, 128), (65535.0, 128)])
def test_floating_point_images_are_scaled_by_their_range(tmp_path: Path, top: float, expected: int) -> None:
    Image.fromarray(np.array([[0, top / 2], [top, top]], np.float32)).save(tmp_path / "x.tif")
    assert np.asarray(open_image(tmp_path / "x.tif", 1)).tolist() == [[0, expected], [255, 255]]


def test_palette_images_open_in_their_colors(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).quantize(4).save(tmp_path / "x.png")
    assert corners(open_image(tmp_path / "x.png")) == [RED, GREEN, BLUE, WHITE]


def test_one_bit_images_open_as_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "x.png")
    assert np.asarray(open_image(tmp_path / "x.png", 1)).tolist() == [[255, 0]]


def rgba(path: Path) -> None:
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:8, :8], alpha[8:, :8] = 0, 128
    Image.fromarray(np.concatenate([CORNERS, alpha], 2)).save(path)


def gray_alpha(path: Path) -> None:
    pixels = np.zeros((16, 16, 2), np.uint8)
    pixels[:, 8:, 1], pixels[8:, :8, 1] = 255, 128
    Image.fromarray(pixels).save(path)


def transparent_palette(path: Path) -> None:
    image = Image.fromarray(np.zeros((16, 16), np.uint8), "P")
    image.putpalette([*RED, *GREEN])
    image.paste(1, (8, 0, 16, 16))
    image.save(path, transparency=0)


@pytest.mark.parametrize("background", [WHITE, (10, 200, 30)])
@pytest.mark.parametrize(
    ("make", "alphas", "colors"),
    [
        (rgba, (0, 1, 128 / 255, 1), [RED, GREEN, BLUE, WHITE]),
        (gray_alpha, (0, 1, 128 / 255, 1), [(0, 0, 0)] * 4),
        (transparent_palette, (0, 1, 0, 1), [RED, GREEN, RED, GREEN]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_the_background(
    tmp_path: Path,
    make: Callable[[Path], None],
    alphas: tuple[float, ...],
    colors: list[tuple[int, int, int]],
    background: tuple[int, int, int],
    channels: int,
) -> None:
    make(tmp_path / "x.png")
    over = [np.array(c) * a + np.array(background) * (1 - a) for c, a in zip(colors, alphas, strict=True)]
    read = np.array(corners(open_image(tmp_path / "x.png", channels, background)), float)
    expected = np.array(over) if channels == 3 else np.array(over) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read - expected).max() <= 1.5


def test_background_is_white_unless_set(tmp_path: Path) -> None:
    rgba(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png").getpixel((2, 2)) == WHITE
    assert FileImages([tmp_path / "x.png"], ["x"]).read(0, Geometry(16, center=1), None)[:, 2, 2].tolist() == [255] * 3


def test_transparent_gif_and_webp_show_the_background(tmp_path: Path) -> None:
    transparent_palette(tmp_path / "x.gif")
    rgba(tmp_path / "y.png")
    Image.open(tmp_path / "y.png").save(tmp_path / "x.webp", lossless=True)
    for name in ("x.gif", "x.webp"):
        assert open_image(tmp_path / name, background=BLUE).getpixel((2, 2)) == BLUE
        assert open_image(tmp_path / name, background=BLUE).getpixel((13, 2)) == GREEN


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_animated_images_show_their_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    options: dict[str, Any] = {"lossless": True} if name == "x.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as file:
        assert getattr(file, "n_frames", 1) == 3
    assert corners(open_image(tmp_path / name)) == [RED] * 4


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, name: str, orientation: int, expected: list[tuple[int, int, int]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if name == "x.jpg" else {"lossless": True}
    Image.fromarray(CORNERS).resize((32, 16), Image.Resampling.NEAREST).save(tmp_path / name, exif=exif, **options)
    image = open_image(tmp_path / name)
    assert image.size == ((16, 32) if orientation in (6, 8) else (32, 16))
    assert is_near(image, expected, 6)


PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640 x 427


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("channels", "kind"), [(3, "RGB"), (1, "RGB"), (3, "CMYK"), (3, "L"), (3, "MPO")])
def test_large_jpeg_is_decoded_at_reduced_size(
    tmp_path: Path, channels: Literal[1, 3], kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.open(PHOTO).convert("RGB" if kind == "MPO" else kind).crop((0, 0, 640, 424))
    more: dict[str, Any] = {"save_all": True, "append_images": [photo], "format": "MPO"} if kind == "MPO" else {}
    photo.save(tmp_path / "x.jpg", quality=95, exif=exif, **more)
    turned = orientation == 6
    for enough, size in ((424, (640, 424)), (213, (640, 424)), (212, (320, 212)), (53, (80, 53)), (10, (80, 53))):
        assert open_image(tmp_path / "x.jpg", channels, min_side=enough).size == (size[::-1] if turned else size)
    whole = open_image(tmp_path / "x.jpg", channels)
    assert whole.size == ((424, 640) if turned else (640, 424))
    for geometry, seed in ((Geometry(100, channels), None), (Geometry(40, channels, scale=(0.2, 1.0)), 7)):
        assert min(open_image(tmp_path / "x.jpg", channels, min_side=geometry.enough).size) == 212
        plain = cut_out(whole, geometry.size, geometry.box(*whole.size, seed))
        off = decode(tmp_path / "x.jpg", geometry, seed).float() - plain
        assert 0 < off.abs().mean() < 1
        assert off.abs().max() < 12
    small = Geometry(107, channels)
    assert torch.equal(decode(tmp_path / "x.jpg", small, None), cut_out(whole, 107, small.box(*whole.size, None)))
    photo.crop((0, 0, 639, 424)).save(tmp_path / "x.jpg", quality=95, exif=exif, **more)
    assert max(open_image(tmp_path / "x.jpg", channels, min_side=10).size) == 639  # would be shifted


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.bmp", "x.tif", "x.gif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, 0.97])
def test_truncated_files_are_detected_before_the_run(tmp_path: Path, name: str, share: float) -> None:
    write_image(tmp_path / "good" / name, 1, (40, 30))
    content = (tmp_path / "good" / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    images = FileImages([tmp_path / "good" / name, tmp_path / name], ["good", "bad"])
    assert list(images.unreadable([0, 1])) == [1]
    with pytest.raises((OSError, SyntaxError, ValueError)):
        open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "zero bytes"), (b"hello " * 99, "not an image of a known format")]
)
def test_file_that_is_not_an_image_gets_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert reason in str(find_damage(tmp_path / "x.png"))


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    assert find_damage(tmp_path / "gone.png") == "it does not exist"


def test_image_damaged_in_the_middle_fails_when_decoded(tmp_path: Path) -> None:
    path = break_middle(write_image(tmp_path / "x.png", 1, (40, 30)))
    assert find_damage(path) is None
    with pytest.raises((OSError, SyntaxError)):
        open_image(path)


def test_unreadable_images_are_refused_or_listed() -> None:
    with pytest.raises(InputError, match=r"file 'a.png' cannot be read: zero bytes; .* on_bad_image: skip"):
        BadFiles("raise", "on_bad_image").report("a.png", "zero bytes")
    bad = BadFiles("skip")
    bad.report("a.png", "zero bytes")
    assert bad.reasons == {"a.png": "zero bytes"}


def test_center_crop_is_square_and_keeps_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 255  # the middle half
    Image.fromarray(pixels).save(tmp_path / "x.png")
    read = FileImages([tmp_path / "x.png"], ["x"]).read(0, Geometry(8, center=0.875), None)
    assert read.shape == (3, 8, 8)
    assert read.dtype == torch.uint8
    assert read.min() == 255
    assert Geometry(8, center=0.875).box(128, 64, seed=3) == (36, 4, 92, 60)
    assert Geometry(8).box(128, 64, seed=3) == (32, 0, 96, 64)


@pytest.mark.parametrize("size", [(100, 100), (150, 100), (80, 160)])
def test_random_crop_keeps_the_requested_area_inside_the_image(size: tuple[int, int]) -> None:
    geometry = Geometry(8, scale=(0.2, 0.6))
    shares, ratios = [], []
    for seed in range(400):
        left, top, right, bottom = geometry.box(*size, seed)
        assert left >= 0
        assert top >= 0
        assert right <= size[0]
        assert bottom <= size[1]
        shares.append((right - left) * (bottom - top) / (size[0] * size[1]))
        ratios.append((right - left) / (bottom - top))
    assert 0.2 <= min(shares) < 0.23
    assert 0.5 < max(shares) <= 0.6 + 1e-9
    assert min(ratios) > 0.74
    assert max(ratios) < 1.34
    assert len(set(shares)) == 400
    assert geometry.box(*size, 7) == geometry.box(*size, 7)


@pytest.mark.parametrize(("size", "box"), [((90, 90), (0, 0, 90, 90)), ((200, 90), (40, 0, 160, 90))])
def test_crop_that_does_not_fit_becomes_the_largest_possible(
    size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    assert Geometry(8, scale=(1.0, 1.0)).box(*size, seed=1) == box


def test_file_digest_depends_on_names_and_contents_but_not_order(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i, (10 + i, 9)) for i in range(3)]
    ids = [path.name for path in paths]
    digest = FileImages(paths, ids).digest()
    assert FileImages(paths[::-1], ids[::-1]).digest() == digest
    assert FileImages(paths, ["a", *ids[1:]]).digest() != digest
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-1] + b"x")
    assert FileImages(paths, ids).digest() != digest
    paths[1].write_bytes(content)
    assert FileImages(paths, ids).digest() == digest


def test_memory_digest_depends_on_pixels() -> None:
    data = torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4)
    changed = data.clone()
    changed[2, 0, 3, 3] += 1
    assert TensorStorage(data).digest() == TensorStorage(data.clone()).digest() != TensorStorage(changed).digest()


def test_duplicate_files_are_found_despite_their_names(tmp_path: Path) -> None:
    one = FileImages(
        [write_plain_image(tmp_path / "a.png", RED), write_plain_image(tmp_path / "b.png", BLUE)], ["a", "b"]
    )
    two = FileImages(
        [write_plain_image(tmp_path / "c.png", GREEN), write_plain_image(tmp_path / "d.png", RED)], ["c", "d"]
    )
    assert find_duplicates({"one": (one, [0, 1]), "two": (two, [0, 1])}) == [[("one", 0), ("two", 1)]]
    assert find_duplicates({"one": (one, [1]), "two": (two, [0, 1])}) == []


def test_duplicate_pixels_are_found_in_memory() -> None:
    data = torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4)
    sets = {"one": (TensorStorage(data), [0, 2]), "two": (TensorStorage(data.flip(0).clone()), [0, 1])}
    assert find_duplicates({**sets}) == [[("one", 2), ("two", 0)]]

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from sft_lightning.data.vision.affine import invert_affine, resample
from sft_lightning.data.vision.views import StrongView, WeakView, strong, to_float, weak
from sft_lightning.utils.errors import InputError

ALL = WeakView(flip=True, crop_padding=3, crop_scale=[0.3, 1.0])


def make_batch(count: int, channels: int = 1, side: int = 12) -> Tensor:
    return torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(0))


def make_ramps(count: int, side: int = 64) -> Tensor:
    """Return images whose pixels encode their column and row, from 0 to 1."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack([at.expand(side, side), at[:, None].expand(side, side)]).expand(count, 2, side, side)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [WeakView(flip=True), WeakView(crop_padding=3), WeakView(crop_scale=[0.2, 1.0]), ALL])
def test_views_are_seeded_and_differ_between_images(view: WeakView, channels: int) -> None:
    x = make_batch(1, channels).expand(64, -1, -1, -1)
    one, again, other = weak(x, view, 5), weak(x, view, 5), weak(x, view, 6)
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len({image.numpy().tobytes() for image in one}) > 1
    assert 0 <= one.min() <= one.max() <= 1


@pytest.mark.parametrize(("view", "draw"), [(WeakView(), 5), (ALL, None)])
def test_disabled_views_leave_images_unchanged(view: WeakView, draw: int | None) -> None:
    x = make_batch(4)
    assert weak(x, view, draw) is x


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_equals_plain_indexing(channels: int) -> None:
    x = make_batch(32, channels)
    flipped = torch.rand(32, generator=torch.Generator().manual_seed(9)) < 0.5
    expected = torch.stack([image.flip(-1) if f else image for image, f in zip(x, flipped, strict=True)])
    assert torch.equal(weak(x, WeakView(flip=True), 9), expected)
    assert 0 < flipped.sum() < 32


def test_half_of_the_images_are_flipped() -> None:
    x = make_ramps(4000, 2)
    assert 0.46 < (weak(x, WeakView(flip=True), 1)[:, 0, 0, 0] > 0.5).float().mean() < 0.54


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_crop_equals_plain_indexing(channels: int) -> None:
    x = make_batch(16, channels)
    top, left = torch.randint(0, 7, (2, 16), generator=torch.Generator().manual_seed(4)).tolist()
    padded = F.pad(x, (3, 3, 3, 3))
    expected = torch.stack([padded[i, :, top[i] : top[i] + 12, left[i] : left[i] + 12] for i in range(16)])
    assert torch.equal(weak(x, WeakView(crop_padding=3), 4), expected)


def test_all_shifts_are_equally_likely_and_pad_with_zeros() -> None:
    x = torch.zeros(4900, 1, 9, 9)
    x[:, :, 4, 4] = 1
    places = weak(x, WeakView(crop_padding=3), 2).sum(0)[0]
    assert places.sum() == 4900
    assert places[1:8, 1:8].min() > 60
    assert places[1:8, 1:8].max() < 140
    assert weak(torch.ones(50, 1, 9, 9), WeakView(crop_padding=3), 2).amin() == 0


def test_flip_is_drawn_independently_of_the_shift() -> None:
    both = weak(make_ramps(2000, 8), WeakView(flip=True, crop_padding=2), 3)
    mirrored = both[:, 0, 4, 3] > both[:, 0, 4, 4]
    shift = both[:, 1].amax((1, 2))
    assert 0.4 < mirrored[shift < 0.9].float().mean() < 0.6


def measure_crops(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return width, height and center of the crop of each ramp image."""
    side = x.shape[-1]
    width = (x[:, 0, side // 2, side - 1] - x[:, 0, side // 2, 0]) * side / (side - 1)
    height = (x[:, 1, side - 1, side // 2] - x[:, 1, 0, side // 2]) * side / (side - 1)
    return width, height, (x[:, 0, side // 2, 0] + x[:, 0, side // 2, side - 1]) / 2


@pytest.mark.parametrize("scale", [[0.1, 0.4], [0.5, 0.95], [0.9, 1.0]])
def test_random_crop_keeps_the_requested_area(scale: list[float]) -> None:
    width, height, center = measure_crops(weak(make_ramps(1000), WeakView(crop_scale=scale), 8))
    area, ratio = width * height, width / height
    assert scale[0] - 0.01 < area.min() < scale[0] + 0.05
    assert scale[1] - 0.05 < area.max() < scale[1] + 0.01
    assert abs(area.mean() - sum(scale) / 2) < 0.02
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert abs(ratio.log().mean()) < 0.02
    assert width.max() < 1.01
    assert ((center - width / 2) > -0.01).all()
    assert ((center + width / 2) < 1.01).all()
    assert abs(center.mean() - 0.5) < 0.02


def test_crop_of_the_full_area_is_the_image() -> None:
    x = make_batch(8, 3)
    assert torch.allclose(weak(x, WeakView(crop_scale=[1.0, 1.0]), 1), x, atol=1e-5)


def test_random_crops_cover_the_image() -> None:
    _, _, center = measure_crops(weak(make_ramps(1000), WeakView(crop_scale=[0.1, 0.1]), 8))
    assert center.min() < 0.22
    assert center.max() > 0.78
    assert 0.15 < center.std() < 0.25


def test_to_float_scales_bytes() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    assert to_float(x, 1, None).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert x.flatten().tolist() == [0, 51, 255]


def test_to_float_converts_channels() -> None:
    color = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert to_float(color, 1, None).item() == pytest.approx(0.299 + 0.114 / 5)
    assert to_float(color[:, 2:], 3, None).flatten().tolist() == pytest.approx([0.2] * 3)
    assert to_float(color, 3, None).flatten().tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.parametrize(("size", "shape"), [(None, (2, 1, 6, 8)), (4, (2, 1, 4, 4)), (9, (2, 1, 9, 9))])
def test_to_float_resizes(size: int | None, shape: tuple[int, ...]) -> None:
    x = torch.full((2, 1, 6, 8), 51, dtype=torch.uint8)
    y = to_float(x, 1, size)
    assert y.shape == shape
    assert torch.allclose(y, torch.tensor(0.2))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 33)])
@pytest.mark.parametrize(
    ("angle", "shift", "factor", "shear"),
    [(30, (0, 0), 1.0, 0), (0, (3, -2), 1.0, 0), (0, (0, 0), 1.3, 0), (0, (0, 0), 1.0, 20), (-17, (2, 4), 0.8, -12)],
)
def test_affine_equals_torchvision(
    shape: tuple[int, int, int], angle: float, shift: tuple[int, int], factor: float, shear: float
) -> None:
    x = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    numbers = (math.radians(angle), math.tan(math.radians(shear)), *shift, factor)
    resampled = resample(x, invert_affine(*(torch.full((2,), float(n)) for n in numbers)))
    bilinear = InterpolationMode.BILINEAR
    expected = torch.stack([affine(image, angle, list(shift), factor, [shear, 0.0], bilinear) for image in x])
    torch.testing.assert_close(resampled, expected, atol=2e-4, rtol=0)


def test_affine_draws_are_uniform_in_their_ranges() -> None:
    shifted = weak(torch.ones(4000, 1, 16, 16), WeakView(translation=0.25), 3)[:, 0]
    for over in (1, 2):  # what is left of a white row, and of a column
        gone = 16 - shifted.sum(over).amax(1)
        assert 3.9 < gone.max() <= 4.001  # a quarter of 16
        assert 1.9 < gone.mean() < 2.1
    turned = weak(make_batch(8), WeakView(rotation=20.0, scale=[0.8, 1.2], shear=5.0), 3)
    assert len({image.numpy().tobytes() for image in turned}) == 8


@pytest.mark.parametrize(
    "view",
    [
        WeakView(flip=True),
        WeakView(crop_padding=3),
        WeakView(crop_scale=[0.3, 1.0]),
        WeakView(rotation=9, scale=[1, 2]),
    ],
)
def test_each_view_of_a_batch_has_independent_draws(view: WeakView) -> None:
    x = make_batch(64)
    first, second, plain = weak(x, view, 7), weak(x, view, 7, 1), StrongView(operations=0, cutout=0.0)
    third, next_batch = strong(x, view, plain, 7), weak(x, view, 8)
    views = [first, second, third, next_batch]
    for i, a in enumerate(views):
        for b in views[:i]:
            same = (a == b).flatten(1).all(1).float().mean()
            assert same < 0.8  # half of the flips agree by chance
    assert torch.equal(second, weak(x, view, 7, 1))


def test_cutout_and_operations_are_drawn_independently_of_the_crop() -> None:
    """A view that only erases differs from one that also shifts, for the same draw."""
    x = torch.ones(400, 1, 28, 28)
    shift = WeakView(crop_padding=10)
    rows = (weak(x, shift, 3)[:, 0].amax(2) > 0).float()  # where rows of zeros came in from above
    top = rows.argmax(1).float()
    covered = (strong(x, WeakView(), StrongView(0, 0.3), 3)[:, 0].amin(2) < 1).float().argmax(1).float()
    correlation = torch.corrcoef(torch.stack([top, covered]))[0, 1]
    assert abs(float(correlation)) < 0.2  # 4 deviations of independent draws


@pytest.mark.parametrize(
    ("view", "settings", "words"),
    [
        (WeakView, {"crop_padding": -1}, "crop_padding is -1"),
        (WeakView, {"crop_scale": [0.5]}, "crop_scale is [0.5]"),
        (WeakView, {"crop_scale": [0.0, 1.0]}, "crop_scale is [0.0, 1.0]"),
        (WeakView, {"crop_scale": [0.9, 0.1]}, "crop_scale is [0.9, 0.1]"),
        (WeakView, {"rotation": -5.0}, "rotation is -5.0"),
        (WeakView, {"translation": 1.5}, "translation is 1.5"),
        (WeakView, {"scale": [1.1, 0.9]}, "scale is [1.1, 0.9]"),
        (WeakView, {"shear": 90.0}, "shear is 90.0"),
        (StrongView, {"operations": -1}, "operations is -1"),
        (StrongView, {"cutout": 1.5}, "cutout is 1.5"),
        (StrongView, {"cutout": -0.5}, "cutout is -0.5"),
    ],
)
def test_views_with_invalid_settings_are_refused(view: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        view(**settings)

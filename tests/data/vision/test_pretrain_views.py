from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from sft_lightning.data.vision.pretrain_views import (
    PretrainView,
    blur_gaussian,
    jitter_colors,
    make_local_view,
    make_pretrain_view,
    shift_hue,
)
from sft_lightning.utils.errors import InputError

NOTHING: dict[str, Any] = {"crop_scale": [1.0, 1.0], "flip": False, "jitter": 0, "gray": 0, "blur": 0, "solarize": 0}


def images(count: int, channels: int = 3, side: int = 12) -> Tensor:
    return torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(0))


def view(x: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    return make_pretrain_view(x, PretrainView(**{**NOTHING, **settings}), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": [0.2, 1.0]},
        {"flip": True},
        {"jitter": 0.8},
        {"blur": 0.5},
        {"solarize": 0.5},
        {"gray": 0.5, "flip": True},
    ],
)
def test_views_are_seeded_and_differ_between_images(settings: dict[str, Any], channels: int) -> None:
    x = images(1, channels).expand(64, -1, -1, -1)
    before = x.clone()
    one, again, other = view(x, 5, **settings), view(x, 5, **settings), view(x, 6, **settings)
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len({image.numpy().tobytes() for image in one}) > 1
    assert 0 <= one.min() <= one.max() <= 1
    assert torch.equal(x, before)


def test_a_view_may_be_smaller() -> None:
    x = images(6, side=28)
    small = view(x, side=14)
    assert small.shape == (6, 3, 14, 14)
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)), atol=0.05, rtol=0)
    local = make_local_view(PretrainView(blur=0.3), 224)
    assert (local.side, local.crop_scale, local.blur) == (96, [0.05, 0.4], 0.3)


def test_a_view_without_changes_gives_the_images() -> None:
    x = images(4)
    assert not PretrainView(**NOTHING)
    assert PretrainView()
    assert torch.equal(view(x), x)


def test_shares_are_those_of_the_settings() -> None:
    x = images(1, 3, 4).expand(4000, -1, -1, -1)
    for settings in ({"jitter": 0.8}, {"gray": 0.2}, {"blur": 0.5}, {"solarize": 0.1}):
        changed = (view(x, 1, **settings) != x).flatten(1).any(1).float().mean()
        assert float(changed) == pytest.approx(next(iter(settings.values())), abs=0.03)


def test_every_image_may_be_changed() -> None:
    x = images(20)
    gray = view(x, gray=1.0)
    torch.testing.assert_close(gray, torch.stack([tv.rgb_to_grayscale(image, 3) for image in x]), atol=1e-3, rtol=0)
    dark = x.flatten(1) < 0.5
    assert torch.equal(view(x, solarize=1.0).flatten(1), torch.where(dark, x.flatten(1), 1 - x.flatten(1)))


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.1, 0.45])
def test_hue_is_that_of_torchvision(shift: float) -> None:
    x = images(8)
    x[0] = 0.3  # gray, of no hue
    x[1, :2] = 0.7  # two channels alike
    expected = torch.stack([tv.adjust_hue(image, shift) for image in x])
    torch.testing.assert_close(shift_hue(x, torch.full((8,), shift)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "adjust"), [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast),
                                              ("saturation", tv.adjust_saturation)])  # fmt: skip
def test_jitter_scales_each_image_by_an_amount_of_its_own(name: str, adjust: Any) -> None:
    x = images(16)
    settings = {**NOTHING, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.6}
    amounts = torch.rand(4, 16, generator=torch.Generator().manual_seed(3))
    row = ("brightness", "contrast", "saturation").index(name)
    out = jitter_colors(x, PretrainView(**settings), torch.Generator().manual_seed(3))
    expected = torch.stack([adjust(image, 0.4 + 1.2 * float(a)) for image, a in zip(x, amounts[row], strict=True)])
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)


def test_ranges_end_at_zero() -> None:
    out = view(torch.ones(500, 1, 3, 3), jitter=1.0, brightness=2.0, contrast=0.0)
    assert 0 <= out.min() < 0.05
    assert out.max() == 1  # clipped


def test_gray_images_ignore_saturation_and_hue() -> None:
    x = images(32, channels=1)
    assert torch.equal(view(x, jitter=1.0, brightness=0.0, contrast=0.0, gray=1.0), x)
    three = x.expand(-1, 3, -1, -1)
    torch.testing.assert_close(view(three, jitter=1.0, brightness=0.0, contrast=0.0, gray=1.0), three)


@pytest.mark.parametrize(("side", "width"), [(12, 3), (40, 5), (224, 23)])
def test_blur_is_that_of_torchvision(side: int, width: int) -> None:
    x, sigma = images(2, 3, side), torch.tensor([0.4, 1.9])
    expected = torch.stack(
        [tv.gaussian_blur(image, [width, width], [float(s)]) for image, s in zip(x, sigma, strict=True)]
    )
    torch.testing.assert_close(blur_gaussian(x, sigma), expected, atol=1e-5, rtol=0)


def test_blur_leaves_images_of_one_pixel() -> None:
    x = images(2, 1, 1)
    assert torch.equal(blur_gaussian(x, torch.tensor([1.0, 1.0])), x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_scale": [0.5]}, r"crop_scale is \[0.5\]: give two shares of the area such as \[0.08, 1.0\]"),
        ({"crop_scale": [0.9, 0.5]}, "crop_scale is"),
        ({"side": 0}, "side is 0: give a number of at least 1"),
        ({"hue": 0.6}, "hue is 0.6: give a number from 0 to 0.5"),
        ({"blur": 1.5}, "blur is 1.5: give a share from 0 to 1"),
        ({"brightness": -0.1}, "brightness is -0.1: give a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PretrainView(**settings)

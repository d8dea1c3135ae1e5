"""Compare each operation with torchvision's, and check the random operations of a batch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sft_lightning.data.vision.affine import resample
from sft_lightning.data.vision.randaugment import GEOMETRIC, OPERATIONS, PIXELS, build_affine, cutout, randaugment


def make_images(count: int = 6, channels: int = 3, height: int = 24, width: int = 30) -> Tensor:
    """Make images, uint8, with wide, narrow and constant ranges of values."""
    x = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(3))
    x[1] = x[1] // 4 + 50
    x[2] = 77
    return x.to(torch.uint8)


THEIRS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "autocontrast": lambda x, m: tv.autocontrast(x),
    "brightness": tv.adjust_brightness,
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "equalize": lambda x, m: tv.equalize(x),
    "identity": lambda x, m: x,
    "posterize": lambda x, m: tv.posterize(x, int(m)),
    "sharpness": tv.adjust_sharpness,
    "solarize": lambda x, m: tv.solarize(x, round(m * 255)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(PIXELS))
def test_pixel_operations_equal_torchvision(name: str, channels: int) -> None:
    change, low, high = PIXELS[name]
    x = make_images(channels=channels)
    m = torch.linspace(low, high - 0.01, len(x))
    if name == "solarize":
        m = (m * 255).round() / 255
    ours = change(x.float() / 255, m) * 255
    other_layout = x.contiguous(memory_format=torch.channels_last)  # that of decoded files
    torch.testing.assert_close(change(other_layout.float() / 255, m) * 255, ours)
    theirs = torch.stack([THEIRS[name](one, float(k)) for one, k in zip(x, m, strict=True)]).float()
    off = (ours - theirs).abs().max()
    exact = name in ("posterize", "equalize", "identity")
    # torchvision rounds or cuts to whole values, and its mean gray is cut, too.
    assert off < (1e-3 if exact else 2.1), off
    if name not in ("identity", *(("color",) if channels == 1 else ())):
        assert (ours - x).abs().max() > 5


def test_comparison_detects_a_changed_operation() -> None:
    assert set(THEIRS) == set(PIXELS)
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("shape", [(24, 24), (24, 40)])
def test_geometric_operations_equal_torchvision(name: str, shape: tuple[int, int]) -> None:
    # A smooth image: interpolation must not hide a wrong place.
    rows, columns = torch.meshgrid(torch.linspace(0, 3, shape[0]), torch.linspace(0, 5, shape[1]), indexing="ij")
    x = (0.5 + 0.4 * torch.sin(rows) * torch.cos(columns)).expand(2, 1, *shape).clone()
    m = torch.tensor([0.2, -0.25])
    kind = torch.full((2,), GEOMETRIC.index(name))
    ours = resample(x, build_affine(kind, m, *shape))

    def theirs(one: Tensor, k: float) -> Tensor:
        degrees = torch.tensor(k).rad2deg().item()
        settings = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
        center = None
        if name == "rotate":
            settings["angle"] = degrees
        elif name.startswith("shear"):
            slope = torch.tensor(k).atan().rad2deg().item()
            settings["shear"] = [slope, 0.0] if name.endswith("x") else [0.0, slope]
        else:
            place = [-k * shape[1], 0.0] if name.endswith("x") else [0.0, -k * shape[0]]
            settings["translate"] = place
        out: Tensor = tv.affine(one, **settings, interpolation=tv.InterpolationMode.BILINEAR, center=center)
        return out

    both = [theirs(one, float(k)) for one, k in zip(x, m, strict=True)]
    mirrored = [theirs(one, -float(k)) for one, k in zip(x, m, strict=True)]
    # The sign of the magnitude is drawn at random; it only must be one of the two directions, the same for both.
    best = min(float((ours - torch.stack(t)).abs().mean()) for t in (both, mirrored))
    assert best < 2e-3
    assert (ours - x).abs().mean() > 0.02


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (3, 1, 1), (1, 2, 5)])
def test_results_of_any_shape_stay_in_range(shape: tuple[int, int, int]) -> None:
    x = torch.rand(64, *shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    y = cutout(randaugment(x, 2, torch.Generator().manual_seed(1)), 0.5, torch.Generator().manual_seed(2))
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert y.min() >= -1e-6
    assert y.max() <= 1 + 1e-6
    assert torch.equal(x, before)
    if shape[1] > 8:
        assert not torch.equal(y, x)


@given(seed=st.integers(0, 2**40), count=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_result_depends_only_on_the_seed(seed: int, count: int) -> None:
    x = make_images(6, 1).float().div(255).repeat(7, 1, 1, 1)[:count]
    a, b = (randaugment(x, 2, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a, b)


def test_operations_are_drawn_uniformly_for_each_image() -> None:
    """One operation on 14,000 copies of an image: each of the fourteen gets about 1,000, at all magnitudes."""
    rows = torch.linspace(0, 1, 64).view(8, 8)
    x = torch.stack([rows, rows.T, (rows * 7) % 1]).expand(14000, 3, 8, 8)
    y = randaugment(x, 1, torch.Generator().manual_seed(0))
    unchanged = (y == x).flatten(1).all(1)
    # identity changes nothing; autocontrast and equalize little, as the channels span the range.
    assert 900 < int(unchanged.sum()) < 2300
    bright = x[0] > 0.05
    dark = y[:, bright] / x[0][bright]
    even = (dark.amax(1) - dark.amin(1)) < 1e-3
    factors = dark[even & ~unchanged, 0]
    factors = factors[factors < 0.96]  # autocontrast of an image that spans the range
    assert 850 < len(factors) < 1150  # brightness
    assert factors.min() < 0.07
    assert factors.max() > 0.93
    assert abs(float(factors.mean()) - 0.5) < 0.03


def test_cutout_covers_the_given_share() -> None:
    x = torch.zeros(4000, 1, 32, 32)
    y = cutout(x, 0.5, torch.Generator().manual_seed(0))
    covered = (y == 0.5).float().mean((1, 2, 3))
    assert covered.max() == pytest.approx(0.25, abs=0.01)
    # A center anywhere in the image leaves (1 - side / 4)^2 of the square inside on average.
    assert covered.mean() == pytest.approx(0.25 * (1 - 0.5 / 4) ** 2 / 1, rel=0.15)
    assert torch.equal(cutout(x, 0.0, torch.Generator().manual_seed(0)), x)

"""Views of images and masks: they move together, strong views stay in place, and CutMix moves pseudo-labels alike."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import ColorView, WeakView
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.vision.segmentation_views import SegmentationViews, draw_cut
from sft_lightning.utils.errors import InputError
from tests.scenes import make_scene

STILL = ColorView(jitter=0, gray=0, blur=0)
MOVES = WeakView(flip=True, crop_padding=5)
ALL = WeakView(True, 3, [0.5, 1.0], 20.0, 0.2, [0.8, 1.2], 10.0)


def pair(count: int = 8) -> dict[str, Tensor]:
    """Masks, and images whose gray is 50 for each class from 1 on: the mask can be read off the image."""
    masks = torch.stack([torch.from_numpy(make_scene(k)[1]).long() for k in range(count)])
    return {"image": ((masks + 1) * 50 / 255).float()[:, None].expand(-1, 3, -1, -1).contiguous(), "mask": masks}


def views(weak: WeakView = MOVES, strong: ColorView = STILL) -> SegmentationViews:
    return SegmentationViews((3, 32, 32), weak, strong)


def read_off(image: Tensor) -> Tensor:
    return (image[:, 0] * 255 / 50).round().long() - 1  # -1 where black came in


def test_images_and_masks_move_together() -> None:
    made: Any = views().weak(pair(), 3)
    assert torch.equal(read_off(made["image"]), made["mask"])  # whole pixels: exactly
    assert (made["mask"] == -1).any()
    assert not torch.equal(made["mask"], pair()["mask"])
    made = views(ALL).weak(pair(), 3)
    exact = (made["image"][:, 0] * 255 / 50 - (made["image"][:, 0] * 255 / 50).round()).abs() < 1e-3
    assert exact.float().mean() > 0.7  # the others are mixtures of neighbors
    same = read_off(made["image"]) == made["mask"]
    assert same[exact].float().mean() > 0.99
    assert views().weak(pair(), None)["mask"].equal(pair()["mask"])


def test_ignored_pixels_stay_ignored() -> None:
    given = pair()
    given["mask"][:, :, :16] = -1
    made: Any = views(WeakView(flip=True)).weak(given, 1)
    assert ((made["mask"] == -1).sum((1, 2)) == 32 * 16).all()


def raw(seed: int | None = 7) -> RawBatch:
    return RawBatch((pair()["image"] * 255).byte(), None, torch.arange(8), seed)


def test_strong_views_change_colors_in_place() -> None:
    made = views(ALL, ColorView(blur=0)).make_unlabeled(raw(), ("weak", "weak_2", "strong", "strong_2"))
    assert made.strong is not None
    assert made.strong_2 is not None
    assert made.outside is not None
    assert not torch.equal(made.strong, made.weak)
    assert not torch.equal(made.strong, made.strong_2)
    assert torch.equal(made.weak, made.weak_2)  # type: ignore[arg-type]
    still = views(ALL).make_unlabeled(raw(), ("weak", "strong"))
    assert torch.equal(still.strong, still.weak)  # type: ignore[arg-type] # without colors, nothing moves
    black = still.weak.sum(1) == 0
    assert torch.equal(black[~made.outside], torch.zeros_like(black[~made.outside]))
    assert made.outside.any()


def test_cutmix_pastes_images_and_maps_alike() -> None:
    made = views(MOVES, ColorView(jitter=0, gray=0, blur=0, cutmix=1.0)).make_unlabeled(raw(), ("weak", "strong"))
    assert made.cut is not None
    assert made.strong is not None
    assert not torch.equal(made.strong, made.weak)
    assert torch.equal(read_off(made.strong), made.cut.paste(read_off(made.weak)))
    assert torch.equal(made.strong, made.cut.paste(made.weak))
    again = views(MOVES, ColorView(jitter=0, gray=0, blur=0, cutmix=1.0)).make_unlabeled(raw(), ("weak", "strong"))
    assert torch.equal(again.strong, made.strong)  # type: ignore[arg-type] # a seed gives the same
    share = torch.stack([draw_cut(64, (32, 32), 1.0, s).inside.float().mean((1, 2)) for s in range(20)])
    assert share.min() > 0.005
    assert share.max() < 0.45
    used = torch.stack([draw_cut(64, (32, 32), 0.5, s).inside.any((1, 2)) for s in range(20)]).float().mean()
    assert 0.4 < used < 0.6


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="cutmix is 2: give a share from 0 to 1"):
        ColorView(cutmix=2)
    with pytest.raises(InputError, match=r"hue is 0\.7: give a number from 0 to 0\.5"):
        ColorView(hue=0.7)
    assert not STILL
    assert ColorView(jitter=0, gray=0, blur=0, cutmix=0.5)

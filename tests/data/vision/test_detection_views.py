"""Views of images and boxes: boxes follow the pixels exactly, and strong views stay in place."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import PatchView, WeakView
from sft_lightning.data.batches import BatchViews
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.vision.boxes import (
    PADDING,
    UNKNOWN,
    clip_boxes,
    find_annotated,
    mark_unknown,
    move_boxes,
    pad_boxes,
    trim_boxes,
)
from sft_lightning.data.vision.detection_views import DetectionViews
from sft_lightning.data.vision.views import Moves
from sft_lightning.utils.errors import InputError

STILL = PatchView(jitter=0, gray=0, blur=0, patches=0)
SIZE = 64
MOVES = {
    "flip": WeakView(flip=True),
    "padding": WeakView(crop_padding=12),
    "crop": WeakView(crop_scale=[0.3, 1.0]),
    "zoom": WeakView(scale=[0.6, 1.5]),
    "shift": WeakView(translation=0.3),
    "all": WeakView(True, 6, [0.5, 1.0], 0.0, 0.2, [0.7, 1.4]),
}


def draw_boxes(count: int) -> Tensor:
    """One box an image, (B, 1, 6), whose sides are whole pixels."""
    draw = torch.Generator().manual_seed(0)
    corner = torch.randint(0, SIZE - 24, (count, 2), generator=draw)
    sides = torch.randint(8, 24, (count, 2), generator=draw)
    return torch.cat([torch.zeros(count, 1), corner, corner + sides, torch.zeros(count, 1)], 1)[:, None].float()


def paint(boxes: Tensor) -> Tensor:
    """White boxes on black, (B, 3, SIZE, SIZE)."""
    image = torch.zeros(len(boxes), 3, SIZE, SIZE)
    for one, own in zip(image, boxes[:, 0].long(), strict=True):
        one[:, own[2] : own[4], own[1] : own[3]] = 1
    return image


def views(weak: WeakView, strong: PatchView = STILL, least: float = 0.0) -> DetectionViews:
    return DetectionViews((3, SIZE, SIZE), weak, strong, least)


@pytest.mark.parametrize("name", MOVES)
def test_boxes_follow_their_pixels(name: str) -> None:
    boxes = draw_boxes(60)
    made: Any = views(MOVES[name]).weak({"image": paint(boxes), "boxes": boxes}, 5)
    places, reach = torch.arange(SIZE) + 0.5, 2 if name == "all" else 1  # of the interpolation
    moved, checked = 0, 0
    for image, (kind, x1, y1, x2, y2, _) in zip(made["image"][:, 0], made["boxes"][:, 0].tolist(), strict=True):
        if kind < 0:
            assert image.max() < 0.51  # nothing is left but an edge that is mixed with its neighbor
            continue
        for first, last, light in ((x1, x2, image.amax(0)), (y1, y2, image.amax(1))):
            assert 0 <= first < last <= SIZE
            if last - first > 2 * reach + 1 and x2 - x1 > 1 and y2 - y1 > 1:  # a sliver is mixed with the black around
                inside = (places > first + reach) & (places < last - reach)
                outside = (places < first - reach) | (places > last + reach)
                assert light[inside].min() > 0.99
                assert light[outside].max() < 0.01
                checked += 1
        moved += [x1, y1, x2, y2] != boxes[0, 0, 1:5].tolist()
    assert moved
    assert checked > 80


def test_shares_that_stay_visible_decide() -> None:
    boxes = torch.tensor(
        [[[0.0, -10, 0, 10, 10, 0], [1, -4, 0, 6, 10, 1], [2, 50, 50, 60, 60, 0], [-1, 0, 0, 0, 0, 0]]]
    )
    kept = clip_boxes(boxes, (SIZE, SIZE), 0.55)
    assert kept[0].tolist() == [[1, 0, 0, 6, 10, 1], [2, 50, 50, 60, 60, 0], [-1, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]]
    assert clip_boxes(boxes, (SIZE, SIZE), 0.5)[0, 0].tolist() == [0, 0, 0, 10, 10, 0]
    gone = clip_boxes(torch.tensor([[[0.0, -10, 0, 0, 10, 0]]]), (SIZE, SIZE), 0.0)
    assert gone[0, 0, 0] == PADDING


def test_what_a_crop_cuts_off_does_not_come_back() -> None:
    # The right half is kept and widened, and the result is made half as large: the left half of the box stays away.
    crop = torch.tensor([[[0.5, 0, 0.5], [0, 1, 0]]])
    source = torch.tensor([[[2.0, 0, 0], [0, 2, 0]]])
    moves = Moves(crop, None, None, source, 0)
    boxes = torch.tensor([[[0.0, 22, 20, 42, 40, 0]]])  # 10 of its 20 columns are in the right half
    moved = move_boxes(boxes, moves, (SIZE, SIZE), 0.49)
    assert moved[0, 0].tolist() == [0, 16, 26, 26, 36, 0]
    light = moves.apply(paint(boxes))[0, 0] > 0.5
    assert light.any(0).nonzero()[[0, -1], 0].tolist() == [16, 25]
    assert light.any(1).nonzero()[[0, -1], 0].tolist() == [26, 35]
    assert move_boxes(boxes, moves, (SIZE, SIZE), 0.51)[0, 0, 0] == PADDING


def test_strong_views_stay_in_place_and_cover_patches() -> None:
    boxes = draw_boxes(16)
    raw = RawBatch({"image": (paint(boxes) * 255).byte(), "boxes": boxes}, torch.zeros(16), torch.arange(16), 9)
    made: Any = BatchViews(views(MOVES["all"], PatchView(jitter=0, gray=0, blur=0)), ("weak", "strong")).labeled(raw)
    weak, strong = made.x["image"].chunk(2)
    first, second = made.x["boxes"].chunk(2)
    assert torch.equal(first, second)
    covered = (strong == 0.5) & (weak != 0.5)
    share = covered[:, 0].float().mean((1, 2))
    assert (weak[~covered] == strong[~covered]).all()
    assert 0.02 < share.mean() < 0.2  # two patches of 2 to 10 %
    assert share.unique().numel() > 8


def test_unlabeled_views_share_their_movements() -> None:
    boxes = draw_boxes(8)
    raw = RawBatch((paint(boxes) * 255).byte(), None, torch.arange(8), 9)
    strong = PatchView(gray=0, blur=0, patches=0, hue=0)
    made = views(MOVES["all"], strong).make_unlabeled(raw, ("weak", "strong", "strong_2"))
    labeled: Any = views(MOVES["all"]).weak({"image": paint(boxes), "boxes": boxes}, 9)
    assert torch.equal(made.weak, labeled["image"])
    assert made.strong is not None
    assert made.strong_2 is not None
    assert made.outside is not None
    assert not torch.equal(made.strong, made.weak)
    assert not torch.equal(made.strong, made.strong_2)
    for image, strong_image in zip(made.weak, made.strong, strict=True):
        if bool((image > 0.99).any()):
            assert strong_image[image > 0.99].min() > strong_image[image == 0].max()
    again = views(MOVES["all"], strong).make_unlabeled(raw, ("weak", "strong"))
    assert again.strong is not None
    assert torch.equal(again.strong, made.strong)
    assert (made.weak[:, 0][made.outside] == 0).all()


def test_rows_are_padded_and_trimmed() -> None:
    rows = torch.tensor([[1.0, 1, 2, 3, 4, 0]])
    padded = pad_boxes([rows, torch.zeros(0, 6), rows.repeat(3, 1)], 9)
    assert padded.shape == (3, 9, 6)
    assert padded[:, :, 0].tolist() == [[1.0] + [-1] * 8, [-1.0] * 9, [1.0] * 3 + [-1] * 6]
    assert trim_boxes(padded).shape == (3, 3, 6)
    assert pad_boxes([torch.zeros(0, 6)]).tolist() == [[[PADDING, 0, 0, 0, 0, 0]]]
    assert trim_boxes(padded[1:2]).shape == (1, 1, 6)
    both = torch.stack([mark_unknown(9), padded[1]])
    assert find_annotated(both).tolist() == [False, True]
    moved: Any = views(MOVES["all"]).weak({"image": torch.zeros(2, 3, SIZE, SIZE), "boxes": both}, 3)
    assert moved["boxes"][0, :, 0].tolist() == [UNKNOWN] * 9
    assert moved["boxes"][1, :, 0].tolist() == [PADDING] * 9


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"weak_view has rotation 5, under which a box no more fits"):
        views(WeakView(rotation=5))
    with pytest.raises(InputError, match="weak_view has shear 3"):
        views(WeakView(shear=3))
    with pytest.raises(InputError, match=r"patch_area is \[0.3, 0.1\]: give two shares"):
        PatchView(patch_area=[0.3, 0.1])
    with pytest.raises(InputError, match="patches is -1"):
        PatchView(patches=-1)
    with pytest.raises(InputError, match=r"hue is 0\.7"):
        PatchView(hue=0.7)
    assert not STILL
    assert PatchView(jitter=0, gray=0, blur=0)


def test_boxes_are_drawn_where_they_are() -> None:
    y = torch.tensor([[[0.0, 10, 20, 30, 50, 0], [2, -5, 60, 99, 70, 0], [PADDING, 0, 0, 9, 9, 0]]])
    drawn = views(WeakView()).show({"image": torch.zeros(1, 3, SIZE, SIZE), "boxes": y})[0]
    frame = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    frame[[20, 49], 10:30] = frame[20:50, 10] = frame[20:50, 29] = True
    frame[[60, 63], :] = frame[60:, [0, 63]] = True
    assert torch.equal(drawn.amax(0) > 0, frame)
    assert drawn[:, 20, 10].tolist() != drawn[:, 60, 10].tolist()
    plain = {"image": torch.zeros(1, 1, SIZE, SIZE), "boxes": y}
    gray = DetectionViews((1, SIZE, SIZE), WeakView(), STILL, 0.0).show(plain)
    assert torch.equal(gray[0, 0] == 1, frame)

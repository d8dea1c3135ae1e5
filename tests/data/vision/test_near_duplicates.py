import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.data.source import Examples
from sft_lightning.data.split_stats import Pair
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.image_stats import ImageSplitStats, ImageStats, compute_image_stats, identify_contents
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.near_duplicates import (
    _SplitIndex,
    compute_coefficients,
    compute_differences,
    find_near_duplicates,
)
from tests.conftest import Crop


def split(name: str, originals: Sequence[Any], channels: int = 3) -> ImageSplitStats:
    data = np.stack([np.asarray(image.convert("RGB")) for image in originals])
    images = TensorStorage(torch.from_numpy(data).permute(0, 3, 1, 2))
    part = Examples(images, [f"{name}/{i}" for i in range(len(data))], torch.zeros(len(data), dtype=torch.long))
    return compute_image_stats(name, Split(part, list(range(len(data)))), Geometry(channels=channels))


def list_positions(pairs: list[Pair]) -> list[tuple[str, int, str, int]]:
    return sorted((p.first[0].name, p.first[1], p.second[0].name, p.second[1]) for p in pairs)


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": jpeg,
    "smaller": lambda x: x.resize((64, 64)).resize((96, 96)),
    "darker": lambda x: x.point(lambda v: int(v * 0.7)),
    "less contrast": lambda x: x.point(lambda v: int(100 + v * 0.4)),
    "noise": lambda x: Image.fromarray(
        (np.asarray(x) + np.random.default_rng(0).normal(0, 8, (96, 96, 3))).clip(0, 255).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("channels", [1, 3])
def test_only_changed_copies_are_near_duplicates(change: str, channels: int, crop: Crop) -> None:
    originals = split("test", [crop(i) for i in range(20)], channels)
    copies = split("labeled", [CHANGES[change](crop(i)) for i in (19, 4, 50, 51, 7)], channels)
    exact, near = find_near_duplicates([originals, copies])
    assert exact == []
    assert list_positions(near) == [("test", 4, "labeled", 1), ("test", 7, "labeled", 4), ("test", 19, "labeled", 0)]
    assert all(0 < pair.difference <= 0.25 for pair in near)
    assert [pair.difference for pair in near] == sorted(pair.difference for pair in near)


def test_small_object_makes_a_different_image(crop: Crop) -> None:
    def marked(size: int) -> Image.Image:
        image = crop(3)
        ImageDraw.Draw(image).rectangle((40, 40, 40 + size, 40 + size), fill=(255, 0, 255))
        return image

    plain = split("test", [crop(3)])
    assert list_positions(find_near_duplicates([plain, split("labeled", [marked(0)])])[1]) == [
        ("test", 0, "labeled", 0)
    ]
    assert find_near_duplicates([plain, split("labeled", [marked(1)])]) == ([], [])


def test_small_difference_everywhere_makes_a_different_image(crop: Crop) -> None:
    pattern = np.random.default_rng(0).choice([-1, 1], (32, 32)).repeat(3, 0).repeat(3, 1)[..., None]

    def rough(strength: float) -> Image.Image:
        pixels = np.asarray(crop(3), dtype=np.float32)
        middle = (pixels - pixels.mean()) * 0.6 + 128  # so that nothing is cut off
        return Image.fromarray((middle + strength * 0.6 * pixels.std() * pattern).round().astype(np.uint8))

    plain = split("test", [rough(0)])
    assert [p.difference for p in find_near_duplicates([plain, split("labeled", [rough(0.14)])])[1]] == [
        pytest.approx(0.12, 0.1)
    ]
    assert find_near_duplicates([plain, split("labeled", [rough(0.25)])]) == ([], [])


def test_different_color_makes_a_different_color_image(crop: Crop) -> None:
    def turned(image: Image.Image) -> Image.Image:
        bands = image.split()
        return Image.merge("RGB", (bands[2], bands[0], bands[1]))

    # Equal as gray images: the colored one has the gray levels of the other.
    gray = crop(5).convert("L")
    levels = np.asarray(gray, dtype=np.float32)
    colored = np.stack([levels, levels, np.full_like(levels, 128)], 2).astype(np.uint8)
    assert find_near_duplicates([split("test", [crop(5)]), split("labeled", [turned(crop(5))])])[1] == []
    assert find_near_duplicates([split("test", [gray]), split("labeled", [Image.fromarray(colored)])])[1] == []
    assert (
        len(find_near_duplicates([split("test", [gray], 1), split("labeled", [Image.fromarray(colored)], 1)])[1]) == 1
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_distance_of_coefficients_is_a_lower_bound(channels: int, crop: Crop) -> None:
    seen = split("test", [crop(k) for k in range(20)], channels)
    photos = np.stack([look.thumbnail for _, look in seen.readable])
    ramp = np.tile(np.linspace(0, 255, 32), (32, 1))[..., None].repeat(channels, 2).astype(np.uint8)
    one, other = np.concatenate([photos, ramp[None]]), np.concatenate([photos[::-1], ramp.swapaxes(0, 1)[None]])
    apart = np.linalg.norm(compute_coefficients(one) - compute_coefficients(other), axis=1)
    whole = compute_differences(one, other)[0]
    assert (apart <= whole + 1e-4).all()
    assert apart[-1] == pytest.approx(whole[-1], rel=0.05)  # two ramps have next to no high frequencies


def test_exact_duplicates_are_reported_once(crop: Crop) -> None:
    a, b, c, d = (crop(i) for i in range(4))
    seen = [split("test", [a, b, a, jpeg(b)]), split("labeled", [c, a, d, c, c]), split("unlabeled", [jpeg(d), d])]
    exact, near = find_near_duplicates(seen)
    assert list_positions(exact) == [
        ("labeled", 2, "unlabeled", 1),
        ("labeled", 3, "labeled", 0),
        ("labeled", 4, "labeled", 0),
        ("test", 0, "labeled", 1),
        ("test", 2, "labeled", 1),
        ("test", 2, "test", 0),
    ]
    # The labeled d has its equal in the unlabeled part: that it has a changed copy there, too, tells nothing new.
    assert list_positions(near) == [("test", 3, "test", 1), ("unlabeled", 1, "unlabeled", 0)]
    assert all(pair.difference == 0 for pair in exact)


def test_each_copy_in_the_test_split_counts_with_its_nearest_image(crop: Crop) -> None:
    a = crop(8)
    exact, near = find_near_duplicates(
        [split("test", [a, a]), split("labeled", [crop(9), CHANGES["noise"](a), jpeg(a)])]
    )
    assert list_positions(exact) == [("test", 1, "test", 0)]
    found = list_positions(near)
    assert [place[:3] for place in found] == [
        ("labeled", 2, "labeled"),
        ("test", 0, "labeled"),
        ("test", 1, "labeled"),
    ]
    small = {pair.second[1]: pair.difference for pair in near if pair.first[0].name == "test"}
    assert len(small) == 1  # both have the same nearest one
    (nearest,) = small
    other = find_near_duplicates([split("test", [a]), split("labeled", [(CHANGES["noise"](a), jpeg(a))[2 - nearest]])])[
        1
    ]
    assert other[0].difference > small[nearest]


def test_many_duplicates_within_a_split_do_not_hide_a_leak(crop: Crop) -> None:
    def again(k: int) -> Image.Image:
        return Image.fromarray(
            (np.asarray(crop(2)) + np.random.default_rng(k).normal(0, 3, (96, 96, 3))).clip(0, 255).astype(np.uint8)
        )

    seen = [split("test", [again(99)]), split("labeled", [again(k) for k in range(30)])]
    near = find_near_duplicates(seen)[1]
    assert sum(pair.first[0].name == "test" for pair in near) == 1
    assert sum(pair.first[0].name == "labeled" for pair in near) >= 25


def test_many_equal_thumbnails_leave_none_out(crop: Crop) -> None:
    (look,) = split("labeled", [crop(2)]).examples
    assert isinstance(look, ImageStats)
    part = Examples(
        TensorStorage(torch.zeros(400, 3, 1, 1, dtype=torch.uint8)), [str(i) for i in range(400)], torch.zeros(400)
    )
    crowd = [replace(look, size=(96, 97 + i)) for i in range(400)]  # of other sizes, so that they are not equal
    seen = ImageSplitStats("labeled", Split(part, list(range(400))), [*crowd])
    exact, near = find_near_duplicates([split("test", [crop(2), crop(3)]), seen])
    assert list_positions(exact) == []
    assert _SplitIndex(seen, identify_contents(seen.examples)).offered.tolist() == [
        0
    ]  # or each would be compared with each
    assert [place for place in list_positions(near) if place[0] == "test"] == [("test", 0, "labeled", 0)]
    assert list_positions(near)[:-1] == [("labeled", i, "labeled", 0) for i in range(1, 400)]


def test_uniform_images_are_only_compared_exactly() -> None:
    plain = [Image.new("RGB", (96, 96), (k, k, k)) for k in (10, 200, 10)]
    exact, near = find_near_duplicates([split("labeled", plain)])
    assert list_positions(exact) == [("labeled", 2, "labeled", 0)]
    assert near == []


def test_digits_are_not_near_duplicates(fashion: tuple[Tensor, Tensor]) -> None:
    data = ImageDataModule("sample-digits", num_labels=0, val_size=0, test_size=0)
    data.setup("fit")
    part = data.splits["unlabeled"].part
    assert len(part) == 10_000
    exact, near = find_near_duplicates(
        [compute_image_stats("unlabeled", Split(part, list(range(3000))), Geometry(channels=1))]
    )
    assert (exact, near) == ([], [])


def test_sample_has_a_few_true_near_duplicates() -> None:
    data = ImageDataModule("sample")
    data.request = replace(data.request, on_leak="keep")
    data.setup("fit")
    part = data.splits["labeled"].part
    chosen = [4849, 334, 3568, 5448, 0, 1, 2]
    exact, near = find_near_duplicates([compute_image_stats("labeled", Split(part, chosen), Geometry(channels=1))])
    assert exact == []
    assert list_positions(near) == [("labeled", 1, "labeled", 0), ("labeled", 3, "labeled", 2)]


def test_file_and_tensor_of_the_same_image_are_equal(tmp_path: Path, crop: Crop) -> None:
    from sft_lightning.data.vision.images import FileImages

    crop(0).save(tmp_path / "a.png")
    crop(0).convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    part = Examples(FileImages([tmp_path / "a.png", tmp_path / "b.webp"], ["a", "b"]), ["a", "b"], torch.zeros(2))
    exact, _ = find_near_duplicates(
        [split("test", [crop(0)]), compute_image_stats("labeled", Split(part, [0, 1]), Geometry(channels=3))]
    )
    assert list_positions(exact) == [("labeled", 1, "labeled", 0), ("test", 0, "labeled", 0)]

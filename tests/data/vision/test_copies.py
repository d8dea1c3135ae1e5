"""Find sets of copies among real image files, and keep them together in cross-validation."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from sft_lightning.data.copies import Copies, get_groups
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.copies import find_copies
from sft_lightning.data.vision.image_stats import ImageStats, Pixels, compute_image_stats
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.near_duplicates import FIELD, WHOLE, Floats, compute_differences


def scene(seed: int) -> Image.Image:
    """Make a smooth random image of 64 x 64 pixels that depends on the seed."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)


def resave(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def compute_stats(images: list[Image.Image]) -> list[ImageStats | str]:
    data = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    part = Examples(
        TensorStorage(data), [str(i) for i in range(len(images))], torch.zeros(len(images), dtype=torch.long)
    )
    return compute_image_stats("labeled", Split(part, list(range(len(images)))), Geometry()).examples


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved as JPEG": resave,
    "resized": lambda image: image.resize((40, 40)).resize((64, 64)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "mirrored": ImageOps.mirror,
    "mirrored and saved as JPEG": lambda image: resave(ImageOps.mirror(image)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_copies(change: str) -> None:
    originals = [scene(i) for i in range(20)]
    copies = find_copies(compute_stats([*originals, *(CHANGES[change](image) for image in originals)]))
    assert copies.sets[:20] == copies.sets[20:]
    assert len(set(copies.sets)) == 20
    assert (copies.exact, copies.near) == (0, 20)


def test_copies_are_found_across_the_chunks_of_large_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lightning.data.vision.copies.CHUNK", 7)
    originals = [scene(i) for i in range(20)]
    copies = find_copies(
        compute_stats([*originals, *map(resave, originals), *(resave(ImageOps.mirror(i)) for i in originals)])
    )
    assert copies.sets[:20] == copies.sets[20:40] == copies.sets[40:]
    assert len(set(copies.sets)) == 20


@pytest.mark.parametrize("change", ["one field", "all fields"])
def test_images_that_differ_in_one_field_or_everywhere_are_not_copies(change: str) -> None:
    base = np.array(scene(0)).astype(float) / 2 + 64
    fields = np.zeros((8, 8))
    if change == "one field":
        fields[3, 3] = 0.6
    else:
        fields[:] = 0.21 * (-1.0) ** np.add.outer(range(8), range(8))
    offsets = np.kron(fields, np.ones((8, 8)))[..., None] * base.std()
    a, b = (Image.fromarray(pixels.round().astype(np.uint8)) for pixels in (base, base + offsets))
    one, other = (look.thumbnail for look in compute_stats([a, b]) if isinstance(look, ImageStats))
    whole, field = (float(found[0]) for found in compute_differences(one[None], other[None]))
    assert (whole < WHOLE < FIELD < field) if change == "one field" else (WHOLE < whole < field < FIELD)
    assert find_copies(compute_stats([a, b])).near == 0


def test_exact_and_near_copies_join_one_set() -> None:
    a, b = scene(0), scene(1)
    copies = find_copies(
        [*compute_stats([a, b, resave(a), resave(a), a, scene(2)]), "cannot be read", "cannot be read"]
    )
    assert [copies.sets.index(number) for number in copies.sets] == [0, 1, 0, 0, 0, 5, 6, 7]
    assert (copies.exact, copies.near, copies.count) == (2, 1, 3)
    assert str(copies) == "2 exact and 1 near copies of others"
    assert copies.pick_representatives([0, 1, 0, 1, 0, 1, 1, 1]) == [0, 1, 3, 5, 6, 7]


def test_set_may_be_larger_than_the_number_of_neighbors() -> None:
    draw = np.random.default_rng(0)
    base = np.array(scene(0)).astype(int)
    noisy = [
        Image.fromarray((base + draw.integers(-3, 4, base.shape)).clip(0, 255).astype(np.uint8)) for _ in range(90)
    ]
    assert len(set(find_copies(compute_stats([*noisy, scene(1)])).sets)) == 2


def test_large_set_of_copies_needs_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    base = np.array(scene(0)).astype(int)
    noisy = [
        Image.fromarray((base + draw.integers(-3, 4, base.shape)).clip(0, 255).astype(np.uint8)) for _ in range(90)
    ]
    compared: list[int] = []

    def compare(one: Pixels, other: Pixels) -> tuple[Floats, Floats]:
        compared.append(len(one))
        return compute_differences(one, other)

    monkeypatch.setattr("sft_lightning.data.vision.copies.compute_differences", compare)
    assert len(set(find_copies(compute_stats(noisy)).sets)) == 1
    assert sum(compared) < 4 * 90  # each with its 32 nearest would be 2,880


def test_images_with_equal_thumbnails_are_near_copies() -> None:
    one, other, mirrored = compute_stats([scene(0), scene(1), ImageOps.mirror(scene(0))])
    assert isinstance(one, ImageStats)
    crowd = [replace(one, size=(64, 64 + i)) for i in range(100)]  # of other sizes, so that they are not equal
    copies = find_copies([other, *crowd, mirrored])
    assert copies.sets == [copies.sets[0], *[copies.sets[1]] * 101]
    assert copies.sets[0] != copies.sets[1]
    assert (copies.exact, copies.near) == (0, 100)


def test_images_without_contrast_are_not_near_copies() -> None:
    flat = [Image.new("RGB", (64, 64), (level, level, level)) for level in (10, 20, 20)]
    copies = find_copies(compute_stats(flat))
    assert (copies.exact, copies.near) == (1, 0)


def test_groups_that_share_a_copy_are_joined() -> None:
    copies = Copies([0, 1, 2, 0, 3, 4], exact=1, near=0)
    joined = copies.join_groups(["a", "a", "b", "b", "c", "d"])
    assert joined is not None
    assert [joined.index(name) for name in joined] == [0, 0, 0, 0, 4, 5]
    alone = copies.join_groups(None)
    assert alone is not None
    assert [alone.index(name) for name in alone] == [0, 1, 2, 0, 4, 5]
    assert Copies([0, 1], 0, 0).join_groups(None) is None
    assert Copies([0, 1], 0, 0).join_groups(["x", "x"]) == ["x", "x"]


def test_no_images_have_no_copies() -> None:
    assert find_copies([]) == Copies([], 0, 0)
    part = Examples(
        TensorStorage(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), ["one"], torch.zeros(1, dtype=torch.long)
    )
    grouped = Examples(part.storage, ["two"], part.labels, ["patient"])
    assert get_groups([(part, 0)]) is None
    assert get_groups([(part, 0), (grouped, 0)]) == ["one", "patient"]

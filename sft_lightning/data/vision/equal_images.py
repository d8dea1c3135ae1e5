"""Find equal images across splits, and report those with different labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lightning.data.vision.images import repeated

if TYPE_CHECKING:
    from sft_lightning.data.splits import SplitConfig, Splits


def find_equal_images(splits: Splits, request: SplitConfig) -> list[list[tuple[str, int]]]:
    """Find groups of equal images, and report those with different labels.

    Args:
        splits: Splits to compare; labels of unlabeled images are ignored.
        request: Request whose messages are appended to.

    Returns:
        Groups of two or more equal images; each image is the name of its split and its position in the collection.
    """
    groups = repeated({name: (split.part.images, split.indices) for name, split in splits.items()})
    contrary = []
    for group in groups:
        first = {int(splits[name].part.labels[i]): splits[name].part.ids[i] for name, i in group if name != "unlabeled"}
        first.pop(-1, None)
        if len(first) > 1:
            contrary.append(list(first.values()))
    if contrary:
        images = "1 image has" if len(contrary) == 1 else f"{len(contrary):,} images have"
        request.messages.append(
            f"{images} copies with another label, such as {contrary[0][0]!r} and {contrary[0][1]!r}: correct the "
            "labels or remove the copies"
        )
    return groups

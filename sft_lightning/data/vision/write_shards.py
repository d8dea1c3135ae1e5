"""Write a source as shards: its images in few large files, its names, labels, groups and splits beside them."""

from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sft_lightning.data.bad_examples import UNREADABLE, BadFiles, describe_read_error
from sft_lightning.data.frames import split_path
from sft_lightning.data.mmap_columns import write_texts
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.split_files import read_split_file
from sft_lightning.data.storage import Storage, TensorStorage
from sft_lightning.data.vision.image_files import is_gray_mode, open_image_file
from sft_lightning.data.vision.image_source import find_image_shape, find_value_ranges
from sft_lightning.data.vision.images import EncodedImages, open_image
from sft_lightning.data.vision.shards import FORMAT, INDEX, require_litdata
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges, choose_ranges, serialize_ranges
from sft_lightning.utils.atomic import open_atomic_folder, write_json
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.progress_lines import track

_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
_QUALITY = 95  # of JPEG


def write_shards(
    source: Source,
    out: Path,
    shard_size: int = 1000,
    image_size: int | None = None,
    split_file: Path | None = None,
    bad: BadFiles | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write a folder of shards, completely or not at all.

    The images of each split are written in random order: a source lists them by class, and each shard should be as
    mixed as its split.

    Args:
        source: Source to write.
        out: Path of the new folder, which must not exist.
        shard_size: Number of images per shard.
        image_size: Length in pixels that the shorter side of larger images is reduced to; None keeps the bytes.
        split_file: Path of a run's `split.csv` whose splits replace the source's.
        bad: Policy for unreadable images.
        seed: Seed of the order.

    Returns:
        Number of images in each split.

    Raises:
        InputError: The folder exists, litdata is not installed, or an unreadable image may not be left out.
    """
    require_litdata("making shards")
    check_min(1, shard_size=shard_size, **({} if image_size is None else {"image_size": image_size}))
    if out.exists():
        raise InputError(f"{str(out)!r} already exists: give the path of a new folder, or remove it")
    bad = bad or BadFiles(setting="on_bad_image")
    parts = {name: readable(part, bad, measures=True) for name, part in source.load().items()}
    facts = [part.storage.facts for part in parts.values() if isinstance(part.storage, EncodedImages)]
    measured = choose_ranges(value for one in facts if one is not None for value in one.values)
    ranges = ValueRanges(*(own or other for own, other in zip(find_value_ranges(source), measured, strict=True)))
    chosen: dict[str, tuple[Examples, Sequence[int]]] = {name: (part, range(len(part))) for name, part in parts.items()}
    if split_file is not None:
        splits = read_split_file(split_file, parts.values(), source.class_names)
        chosen = {"train" if name == "labeled" else name: (s.part, s.indices) for name, s in splits.items() if len(s)}
    shape = find_image_shape(source) if image_size is None else None
    entries: dict[str, Any] = {}
    with open_atomic_folder(out) as staged:
        for name, (part, indices) in chosen.items():
            order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
            written = _PartWriter(staged / name, shard_size, image_size, bad, ranges).write(part, indices, order)
            if written["count"]:
                entries[name] = written
        if not entries:
            raise InputError(f"source {source.name!r} has no readable image: give a source with images")
        index: dict[str, Any] = {"format": FORMAT, "source": source.name, "class_names": list(source.class_names)}
        if serialize_ranges(ranges):
            index["value_ranges"] = serialize_ranges(ranges)
        write_json(staged / INDEX, {**index, "image_shape": shape, "parts": entries})
    return {name: part["count"] for name, part in entries.items()}


class _PartWriter:
    """Writer of the shards of one split."""

    def __init__(
        self, folder: Path, shard_size: int, image_size: int | None, bad: BadFiles, ranges: ValueRanges
    ) -> None:
        self.folder, self.shard_size, self.image_size = folder, shard_size, image_size
        self.bad, self.ranges = bad, ranges

    def write(self, part: Examples, indices: Sequence[int], order: Tensor) -> dict[str, Any]:
        from litdata.streaming import Cache

        self.folder.mkdir()
        cache = Cache(str(self.folder), chunk_size=self.shard_size)
        total = sha256()
        kept: list[int] = []
        with ExitStack() as stack:
            names = ("labels", "sizes", "hashes")
            labels, sizes, hashes = (stack.enter_context((self.folder / f"{n}.bin").open("wb")) for n in names)
            for k in track(order.tolist(), self.folder.name, "image"):
                index = int(indices[k])
                try:
                    content = encode_for_shard(part.storage, index, self.image_size, self.ranges)
                except UNREADABLE as error:
                    assert isinstance(part.storage, EncodedImages)
                    self.bad.report(part.storage.path_of(index), describe_read_error(error))
                    continue
                cache[len(kept)] = content
                kept.append(index)
                digest = sha256(content).digest()
                labels.write(np.array(int(part.labels[index]), "<i8").tobytes())
                sizes.write(np.array(len(content), "<i8").tobytes())
                hashes.write(digest)
                total.update(part.ids[index].encode("utf-8", "replace") + b"\0" + digest)
        if not kept:
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()
            return {"count": 0}
        cache.done()
        cache.merge()
        write_texts(self.folder / "ids.bin", (part.ids[i] for i in kept))
        if part.groups is not None:
            write_texts(self.folder / "groups.bin", (part.groups[i] for i in kept))
        return {"count": len(kept), "sha256": total.hexdigest(), "groups": part.groups is not None}


def encode_for_shard(
    images: Storage,
    index: int,
    image_size: int | None,
    ranges: ValueRanges = UNKNOWN,
) -> bytes:
    """Encode an image for a shard: keep the bytes of a file, and store frames and pixels in memory as PNG.

    An image whose shorter side is longer than `image_size` is decoded (upright, 8 bits, on white), reduced by Pillow's
    antialiased bicubic filter, and stored as PNG if its format was lossless, else as JPEG.

    Args:
        images: Collection that the image is in.
        index: Index of the image.
        image_size: Maximum length of the shorter side in pixels, or None for any.
        ranges: Values of black and white in images of more than 8 bits.

    Raises:
        OSError: The image cannot be read.
    """
    if isinstance(images, TensorStorage):
        pixels = images.data[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        return _encode(_shrink(image, image_size), "PNG")
    assert isinstance(images, EncodedImages)
    file = images.file(index)
    if isinstance(file, Path) and split_path(file)[1] is not None:  # its pixels, as nothing else holds one frame alone
        with open_image_file(file) as header:
            gray = is_gray_mode(header.mode)
        return _encode(_shrink(open_image(file, 1 if gray else 3, ranges=ranges), image_size), "PNG")
    content = file.getvalue() if isinstance(file, BytesIO) else file.read_bytes()
    if image_size is None:
        return content
    with open_image_file(BytesIO(content)) as header:
        small = min(header.size) <= image_size
        kind = "PNG" if header.format in _LOSSLESS else "JPEG"
        gray = is_gray_mode(header.mode)
    if small:
        return content
    image = open_image(BytesIO(content), 1 if gray else 3, ranges=ranges)
    return _encode(_shrink(image, image_size), kind)


def _shrink(image: Image.Image, side: int | None) -> Image.Image:
    shorter = min(image.size)
    if side is None or shorter <= side:
        return image
    size = (max(1, round(image.width * side / shorter)), max(1, round(image.height * side / shorter)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, kind: str) -> bytes:
    into = BytesIO()
    image.save(into, kind, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return into.getvalue()

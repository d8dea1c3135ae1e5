"""Checks of single files and images: extensions, modes, orientation, cropping, stray files."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.modality_checks import ModalityChecks, Places
from sft_lightning.data.bad_examples import UNREADABLE, show_path
from sft_lightning.data.copies import Copies
from sft_lightning.data.frames import name_frames, split_name, split_path
from sft_lightning.data.issues import Fault, FindingKind
from sft_lightning.data.source import relative
from sft_lightning.data.split_stats import Pair
from sft_lightning.data.vision.copies import find_copies
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.dicom_header import count_frames
from sft_lightning.data.vision.file_kinds import is_named_image, is_system_folder
from sft_lightning.data.vision.folder_source import FolderSource
from sft_lightning.data.vision.image_files import LONG, open_image_file
from sft_lightning.data.vision.image_stats import (
    SIDE,
    Header,
    ImageSplitStats,
    ImageStats,
    compute_image_stats,
    stack_thumbnails,
)
from sft_lightning.data.vision.images import EncodedImages, FileImages, Geometry
from sft_lightning.data.vision.near_duplicates import FIELD, WHOLE, find_near_duplicates
from sft_lightning.data.vision.value_ranges import serialize_ranges

# Standard deviation in gray levels; a JPEG of one color reaches 1, the darkest of Fashion-MNIST's 70,000 images has 7.
CONSTANT = 2.0
_MAX_SIZES = 5
_POOLED = 16  # side of the pixels that stand in for features: as telling as 32, and four times as fast


def find_odd_images(stats: Sequence[ImageSplitStats], geometry: Geometry) -> list[CheckResult]:
    """Find readable images that may not be what they seem.

    Args:
        stats: Statistics of all splits.
        geometry: Settings that turn files into images of one size.
    """
    gray = sum(look.is_gray for one in stats for _, look in one.readable)
    colored = sum(not look.is_gray for one in stats for _, look in one.readable)
    few = geometry.channels == 3 and 0 < gray < colored

    def of(
        kind: FindingKind, test: Callable[[ImageSplitStats, int, ImageStats], str | None], name: str, advice: str
    ) -> CheckResult:
        rows = []
        for one in stats:
            for i, look in one.readable:
                detail = test(one, i, look)
                if detail is not None:
                    rows.append(CheckRow(one.name, one.id(i), detail))
        return CheckResult(kind, name, advice, rows)

    def header(test: Callable[[Header], str | None]) -> Callable[[ImageSplitStats, int, ImageStats], str | None]:
        return lambda one, i, look: None if look.header is None else test(look.header)

    def misnamed(one: ImageSplitStats, i: int, look: ImageStats) -> str | None:
        if look.header is None or not isinstance(one.split.part.storage, FileImages):  # in shards names are only names
            return None
        suffix, content = Path(split_name(one.id(i))[0]).suffix.lower(), look.header.format
        promised = Image.registered_extensions().get(suffix, None if suffix else "DICOM")  # which often has none
        # An MPO of a camera is a JPEG that is followed by others.
        return None if promised == content.replace("MPO", "JPEG") else f"is {content}"

    def constant(one: ImageSplitStats, i: int, look: ImageStats) -> str | None:
        is_constant = look.gray_std is not None and look.gray_std < CONSTANT
        return f"deviation {look.gray_std:.1f} of 255 gray levels" if is_constant else None

    return [
        of(
            "file_format",
            misnamed,
            "files whose extension does not match their content",
            "They are read by their content: rename them for other tools",
        ),
        of("constant", constant, "images that are (nearly) of one color", "They show nothing: remove them"),
        of(
            "color",
            lambda one, i, look: "" if few and look.is_gray else None,
            "gray images among colored ones",
            "They are read with three equal channels: if one class is gray more often, a network can tell it by that",
        ),
        of(
            "color",
            header(lambda h: h.mode if h.is_transparent else None),
            "images with transparent pixels",
            f"They are laid over the color {list(geometry.background)}: set background to what the others have",
        ),
        of(
            "color",
            header(lambda h: h.mode if h.mode == "CMYK" else None),
            "images in CMYK",
            "They are converted without their color profile, and colors may be off: save them as RGB",
        ),
        of(
            "value_range",
            header(lambda h: h.mode if h.mode.startswith(("I", "F")) else None),
            "images of more than 8 bits",
            f"{_describe_ranges(geometry)} becomes 0 to 255: set value_range for another scale",
        ),
        of(
            "cropped",
            header(lambda h: _describe_loss(h, geometry)),
            "long images of which a third or more is cut off",
            "The central square is kept: set resize: pad to keep all of them",
        ),
        of(
            "extra_frames",
            header(lambda h: f"{h.frames} frames" if h.frames > 1 else None),
            "animations or stacks of pages",
            "Only the first frame is read: save the others as files of their own if they matter",
        ),
        of(
            "orientation",
            header(lambda h: "EXIF" if h.is_rotated else None),
            "images with an EXIF orientation",
            "They are turned upright here, not by every other tool: save them upright",
        ),
    ]


def _describe_ranges(geometry: Geometry) -> str:
    kinds = [f"{kind} from {low:g} to {high:g}" for kind, (low, high) in serialize_ranges(geometry.ranges).items()]
    return f"One scale for all: {', '.join(kinds)}"


def compute_lost_share(header: Header, geometry: Geometry) -> float:
    """Compute the share of an image's area that is cut off, 0 to 1.

    Args:
        header: Header of the image file.
        geometry: Settings that turn files into images of one size.
    """
    if geometry.resize != "crop":
        return 1 - geometry.center**2
    return 1 - min(header.width, header.height) / max(header.width, header.height) * geometry.center**2


def _describe_loss(header: Header, geometry: Geometry) -> str | None:
    is_long = max(header.width, header.height) > LONG * min(header.width, header.height)
    return f"{compute_lost_share(header, geometry):.0%} is cut off" if is_long and geometry.resize == "crop" else None


def find_strays(folder: Path, taken: set[Path]) -> list[CheckResult]:
    """Find what a folder holds but is not read: folders and links named like images, and images named otherwise.

    Args:
        folder: Folder of the source.
        taken: Files that are read, or whose fault is reported elsewhere.
    """
    named: list[CheckRow] = []
    others: list[CheckRow] = []
    been: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        place_of = os.stat(here)
        if (known := (place_of.st_dev, place_of.st_ino)) in been:  # a link has led back
            folders.clear()
            continue
        been.add(known)
        folders[:] = sorted(name for name in folders if not is_system_folder(name))
        place = relative(Path(here), folder).split("/")[0]
        for name in folders:
            if is_named_image(name) and Path(here, name) not in taken:
                named.append(CheckRow(place, relative(Path(here, name), folder), "a folder"))
        for name in sorted(files):
            path = Path(here, name)
            if path in taken or name.startswith("."):
                continue
            if path.is_symlink() and not path.exists():
                named.append(CheckRow(place, relative(path, folder), "a broken link"))
            elif (kind := _read_format(path)) is not None:
                others.append(CheckRow(place, relative(path, folder), kind))
    return [
        CheckResult(
            "ignored", "folders and links that are no images", "They are passed over: rename or remove them", named
        ),
        CheckResult(
            "ignored",
            "images that are not read",
            "Give them the extension of an image, and a place in a class folder",
            others,
        ),
    ]


def _read_format(path: Path) -> str | None:
    try:
        with open_image_file(name_frames(str(path), count_frames(path))[0]) as file:
            return file.format
    except UNREADABLE:
        return None


def summarize_files(stats: Sequence[ImageSplitStats], geometry: Geometry) -> dict[str, object]:
    """Summarize sizes and modes of the files in JSON types; return nothing for images in memory.

    Args:
        stats: Statistics of all splits.
        geometry: Settings that turn files into images of one size.
    """
    headers = [look.header for one in stats for _, look in one.readable if look.header is not None]
    if not headers:
        return {}
    sizes = Counter((h.width, h.height) for h in headers)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    lost = [compute_lost_share(h, geometry) for h in headers]
    enlarged = sum(min(h.width, h.height) * geometry.center < geometry.size for h in headers)
    return {
        "files": len(headers),
        "sizes": {_format_size(size): count for size, count in sizes.most_common(_MAX_SIZES)},
        "different_sizes": len(sizes),
        "smallest": _format_size(by_area[0]),
        "largest": _format_size(by_area[-1]),
        "modes": dict(Counter(h.mode for h in headers).most_common()),
        "formats": dict(Counter(h.format for h in headers).most_common()),
        "enlarged": enlarged,
        "image_size": geometry.size,
        "cut_off": {f"more than {share:.0%}": sum(one > share for one in lost) for share in (0.1, 1 / 3, 0.5)},
        "cut_off_on_average": round(sum(lost) / len(lost), 3),
    }


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def format_file_summary(facts: dict[str, object]) -> list[str]:
    """Format a summary of files as lines of text.

    Args:
        facts: Summary from `summarize_files`.
    """
    if not facts:
        return []

    def listed(name: str) -> str:
        of = facts[name]
        assert isinstance(of, dict)
        return ", ".join(f"{key} ({count:,})" for key, count in of.items())

    more = ", ..." if facts["different_sizes"] != len(list(facts["sizes"])) else ""  # type: ignore[call-overload]
    return [
        f"sizes    {listed('sizes')}{more}; smallest {facts['smallest']}, largest {facts['largest']}",
        f"modes    {listed('modes')}; formats {listed('formats')}",
        f"cut off  {facts['cut_off_on_average']:.0%} of an image's area on average; {listed('cut_off')} of images",
        f"scale    {facts['enlarged']:,} of {facts['files']:,} are enlarged to {facts['image_size']} pixels a side",
    ]


class ImageChecks(ModalityChecks):
    """Checks of images, each of which is decoded once."""

    data: ImageDataModule
    action: ClassVar[str] = "decoding"
    bounds: ClassVar[dict[str, float]] = {"difference": WHOLE, "difference_of_a_field": FIELD}

    def measure(self, name: str) -> ImageSplitStats:
        """Decode the images of a split."""
        return compute_image_stats(name, self.data.splits[name], self.data.geometry)

    def find_duplicates(self, stats: Sequence[ImageSplitStats]) -> tuple[list[Pair], list[Pair]]:
        """Compare pixels, and thumbnails for near-duplicates."""
        return find_near_duplicates(stats)

    def find_copies(self, places: Places) -> Copies:
        """Find exact and near copies, mirror images included."""
        return find_copies([one.examples[i] for one, i in places])

    def make_features(self, places: Places) -> NDArray[np.float32]:
        """Return pixels of small thumbnails."""
        pieces = []
        for start, end in _find_runs(places):
            images = stack_thumbnails(places[start][0], [i for _, i in places[start:end]])
            n, step = len(images), SIDE // _POOLED
            pooled = images.reshape(n, _POOLED, step, _POOLED, step, -1).mean((2, 4), dtype=np.float32)
            pieces.append(pooled.reshape(n, -1) / 255)
        return np.concatenate(pieces)

    def find_unreadable(self, stats: Sequence[ImageSplitStats], policy: str, faults: Sequence[Fault]) -> CheckResult:
        """Find files that were left out before splitting, and those that failed to decode."""
        reported, bad = {fault.name for fault in faults}, self.data.bad
        rows = []
        for name, part in (self.data.source.load() if bad.reasons else {}).items():
            images = part.storage
            for i, known in enumerate(part.ids):
                if not isinstance(images, EncodedImages):
                    break
                path = images.path_of(i)
                if known not in reported and (reason := bad.reasons.pop(show_path(path), None)) is not None:
                    rows.append(CheckRow(name, known, reason))
                elif known in reported:
                    bad.reasons.pop(show_path(path), None)
        rows += [CheckRow("unlabeled", name, reason) for name, reason in sorted(bad.reasons.items())]
        rows += super().find_unreadable(stats, policy, faults).rows
        return self.report_unreadable(rows, policy)

    def find_odd(self, stats: Sequence[ImageSplitStats]) -> list[CheckResult]:
        """Find odd formats, colors, sizes and orientations."""
        return find_odd_images(stats, self.data.geometry)

    def find_strays(self, faults: Sequence[Fault]) -> list[CheckResult]:
        """Find files in the source's folder that are not read."""
        source = self.data.opened_source  # as it lies on the disk, whatever the order of its classes
        if not isinstance(source, FolderSource):
            return []
        known = {source.path / fault.name for fault in faults}
        paths = [path for part in source.load().values() for path in part.storage.paths]  # type: ignore[attr-defined]
        read = {Path(split_path(path)[0]) for path in paths}
        return find_strays(source.path, known | read)

    def summarize(self, stats: Sequence[ImageSplitStats]) -> dict[str, object]:
        """Summarize sizes and modes of the files."""
        return summarize_files(stats, self.data.geometry)

    def format_summary(self, facts: dict[str, Any]) -> list[str]:
        """Format sizes and modes."""
        return format_file_summary(facts)


def _find_runs(places: Places) -> list[tuple[int, int]]:
    """Return the begin and end of each run of examples of one split."""
    begins = [k for k in range(len(places)) if not k or places[k][0] is not places[k - 1][0]]
    return list(zip(begins, [*begins[1:], len(places)], strict=True))

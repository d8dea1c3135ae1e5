"""Folders in which annotation files have the names of their images."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.frames import describe_frames, list_frames, name_frame, name_frames, remove_extension
from sft_lightning.data.listed_files import IgnoredFiles, find_files
from sft_lightning.data.source import SPLITS, split_of_name
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.utils.errors import InputError


class PairedFolder(ImageSource):
    """Folder with `images` and one of annotation files of the same names, or folders train, val, test and unlabeled.

    Splits may also lie inside, as in `images/train` with `masks/train`. An image without an annotation is unlabeled.

    Attributes:
        targets: Name of the folder beside `images` that holds the annotations.
        noun: Word for an annotation.
        expected: Files that are expected, for messages.
        hint: How an annotation of an image without anything to annotate is added, for messages.
    """

    targets: ClassVar[str]
    noun: ClassVar[str]
    expected: ClassVar[str]
    hint: ClassVar[str] = ""

    def __init__(self, path: Path) -> None:
        """List images and annotations, and match them by their names.

        Args:
            path: Path of the folder.

        Raises:
            InputError: The source lacks images, an annotation belongs to none or two, or an evaluated image lacks one.
        """
        self.path, self.name = path, str(path)
        self._ignored = IgnoredFiles(IMAGES)
        self._counts: list[int] = []  # frames of each file
        self.pairs: dict[str, list[tuple[Path, Path | None]]] = {}
        for split, folder in self._find_splits().items():
            self._add(split, self.list_images(folder / "images" if (folder / "images").is_dir() else folder), folder)
        if (path / "images").is_dir():
            self._add_inner(self.list_images(path / "images"))
        for split in ("val", "test"):
            for image, target in self.pairs.get(split, []):
                if target is None:
                    raise InputError(
                        f"image '{show_path(image)}' of the split {split} has no {self.noun}: add it{self.hint}, or "
                        f"move the image to {str(path / 'unlabeled')!r}"
                    )
        if not any(self.pairs.values()):
            raise InputError(f"folder {self.name!r} holds no image with a {self.noun}: expected {self.expected}")
        frames = describe_frames(self.name, self._counts, IMAGES.phrase)
        self.messages = [*self._ignored.describe(self.name), *frames]

    def _find_splits(self) -> dict[str, Path]:
        """Return the folders of splits: those with a folder `images`, and one of unlabeled images."""
        found: dict[str, Path] = {}
        for child in sorted(self.path.iterdir()):
            split = split_of_name(child.name) if child.is_dir() else None
            if split is None or not (split == "unlabeled" or (child / "images").is_dir()):
                continue
            if split in found:
                raise InputError(
                    f"folders {found[split].name!r} and {child.name!r} in {self.name!r} both mean the split {split}: "
                    "join them, or rename or remove one"
                )
            found[split] = child
        return found

    def list_images(self, folder: Path) -> dict[str, list[Path]]:
        """Return the image files of a folder by their names without extension.

        Args:
            folder: Folder of images.
        """
        files: dict[str, list[Path]] = {}
        for name, path in find_files(str(folder), IMAGES, ignored=self._ignored):
            (count,) = self.count_frames([Path(path)])
            self._counts.append(count)
            for own, frame in zip(name_frames(name, count), list_frames(path, count), strict=True):
                files.setdefault(remove_extension(own), []).append(Path(frame))
        return files

    @abstractmethod
    def list_targets(self, folder: Path) -> dict[str, list[Path]]:
        """Return the annotation files by their names without extension.

        Args:
            folder: Folder of the annotations.
        """

    def _add(self, split: str, images: dict[str, list[Path]], folder: Path) -> None:
        targets = self.list_targets(folder / self.targets) if (folder / self.targets).is_dir() else {}
        self._match(split, images, targets, folder)

    def _add_inner(self, images: dict[str, list[Path]]) -> None:
        """Add the images of the folder itself, in the splits that the folders inside `images` mean."""
        own = self.path / self.targets
        targets = self.list_targets(own) if own.is_dir() else {}
        splits = {stem: split_of_name(stem.split("/")[0]) if "/" in stem else None for stem in {**images, **targets}}
        are_splits = all(splits.values())
        for split in SPLITS:
            chosen = {stem for stem, own in splits.items() if (own if are_splits else "train") == split}
            if chosen:
                own_images, own_targets = (
                    {s: p for s, p in files.items() if s in chosen} for files in (images, targets)
                )
                self._match(split, own_images, own_targets, self.path)

    def _match(self, split: str, images: dict[str, list[Path]], targets: dict[str, list[Path]], folder: Path) -> None:
        pairs = self.pairs.setdefault(split, [])
        for stem, paths in targets.items():
            if name_frame(stem, 1) in images:
                raise InputError(
                    f"{self.noun} '{show_path(paths[0])}' has the name of a file with several frames, and a "
                    f"{self.noun} belongs to one of them: add its number to the name, as in "
                    f"'{name_frame(paths[0].stem, 1)}{paths[0].suffix}'"
                )
            if stem not in images:
                raise InputError(
                    f"{self.noun} '{show_path(paths[0])}' has no image of its name in {str(folder / 'images')!r}: add "
                    f"the image, or remove the {self.noun}"
                )
            if len(paths) > 1 or len(images[stem]) > 1:
                several = paths if len(paths) > 1 else images[stem]
                raise InputError(
                    f"'{show_path(several[0])}' and '{show_path(several[1])}' have one name, so that images and "
                    f"{self.noun}s cannot be matched: rename or remove one"
                )
        for stem, paths in images.items():
            target = targets[stem][0] if stem in targets and split != "unlabeled" else None
            pairs += [(path, target) for path in paths]

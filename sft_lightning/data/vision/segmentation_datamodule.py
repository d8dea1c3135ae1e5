"""`SegmentationDataModule`: images of which few have masks, in batches of the parts that a paradigm requests."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Source
from sft_lightning.data.splits import LeakPolicy
from sft_lightning.data.vision.annotated_datamodule import AnnotatedImageDataModule, check_resize
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.mask_classes import check_colors
from sft_lightning.data.vision.mask_sources import HAS_MASK, MaskSource
from sft_lightning.data.vision.mask_storage import MaskGeometry
from sft_lightning.data.vision.masks import Color, MaskCoding, make_palette, unpack_color
from sft_lightning.data.vision.open_masks import open_mask_source
from sft_lightning.data.vision.segmentation_views import ColorView, SegmentationViews
from sft_lightning.data.vision.views import WeakView, make_view
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import Inputs

_MAX_SHARES = 8  # classes whose share is listed
_MAX_LISTED = 5  # classes without a training pixel that a message names
_MOST_READ = 2_000  # masks of a held-out split that are read to find classes without a pixel
_AT_ONCE = 64  # masks that are read before it is asked whether all classes were seen
_UNCHANGED, _COLORS = WeakView(), ColorView()


class SegmentationDataModule(AnnotatedImageDataModule):
    """Images of which some have masks, in batches whose targets are classes of pixels, (B, H, W); -1 is not counted."""

    in_addition: ClassVar[str] = " with masks"
    annotation: ClassVar[str] = "mask"
    strong_settings: ClassVar[str] = "jitter, gray, blur or cutmix"

    def __init__(
        self,
        source: str,
        root: str = "data",
        num_labels: int | None = None,
        unlabeled_source: str | None = None,
        seed: int = 0,
        val_size: int | float = 0.1,
        test_size: int | float = 0.2,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_leak: LeakPolicy = "drop",
        on_bad_image: Literal["raise", "skip"] = "raise",
        class_names: list[str] | None = None,
        class_colors: dict[str, list[int]] | None = None,
        ignore_index: int = 255,
        image_size: int = 256,
        channels: Literal[1, 3] = 3,
        background: tuple[int, int, int] = (255, 255, 255),
        resize: Literal["pad", "squash"] = "pad",
        value_range: tuple[float, float] | None = None,
        weak_view: WeakView = _UNCHANGED,
        strong_view: ColorView = _COLORS,
        labeled_view: Literal["weak", "strong", "both"] = "weak",
        batch_size: int = 8,
        unlabeled_ratio: int = 1,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        predict_source: str | None = None,
        predict_tile: int | None = None,
    ) -> None:
        """Open the source; `setup` reads the masks once, to check them.

        Args:
            source: Folder with `images` and `masks` of the same names, or with folders train, val, test and unlabeled
                of such; polygons of YOLO in `labels` instead; a folder or `.json` of COCO; or a `.csv` / `.parquet`
                table with the columns path,mask[,split][,group]. An image without a mask is unlabeled.
            root: Second folder that the files of a table or a JSON may be in.
            num_labels: Number of masks to train on; 0 for none, null for all.
            unlabeled_source: Another source whose training images are the unlabeled ones, instead of the rest.
            seed: Seed of the splits and of the order and views of training batches.
            val_size: Share (below 1) or number of images with masks held out if the source has no validation split.
            test_size: Share or number of images with masks held out if the source has no test split.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: Data that `test` and `validate` of a run use: `split` for the held-out images, or `all` for all
                images with masks of a source that the run was not trained on.
            on_leak: `drop` to remove a held-out image from training if it is there, too, or `raise` to stop the run.
            on_bad_image: `raise` to stop at an unreadable image or mask, or one of another size or with an unknown
                value, or `skip` to leave its image out, count and list it.
            class_names: Names of the classes in the order of their numbers; null for those of `class_colors`, or of
                `classes.txt` (one a line) or `classes.csv` (name[,r,g,b]) beside the data, or else for numbers.
            class_colors: Color of each class in masks that hold colors, as in {road: [128, 64, 128]}; the name
                `ignore` stands for a color that is not counted.
            ignore_index: Value of pixels that neither loss nor metrics count, in masks that hold numbers.
            image_size: Side of the square images in pixels, a multiple of 4.
            channels: 1 for gray, 3 for color.
            background: Color under transparent pixels and beside padded images, 0 to 255.
            resize: Method that makes images square: `pad` adds background to the shorter side, which is not counted,
                and `squash` changes the ratio of the sides. Masks follow by the nearest pixel.
            value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null to find them as
                `ImageDataModule` does.
            weak_view: Random movements of training images, which masks follow; what comes in at the borders is not
                counted.
            strong_view: Changes of colors that a strong view adds to the same movements, and CutMix.
            labeled_view: View of labeled training images; `both` doubles the size of their batches.
            batch_size: Training images per batch and process; those with masks where both kinds come together.
            unlabeled_ratio: Unlabeled images per labeled one if a paradigm trains on both.
            eval_batch_size: Images per batch in validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches per epoch; null for one pass over the unlabeled images if the paradigm uses them,
                else over the labeled ones.
            num_workers: Number of processes that decode files; null for one per available core, at most 8.
            predict_source: Folder, table or file of images that `predict` reads; null for the test split.
            predict_tile: Side in pixels of the squares in which `predict` looks at larger images, each resized to
                `image_size`, and whose masks are joined; null to look at whole images.

        Raises:
            InputError: A setting has an invalid value.
        """
        check_min(4, image_size=image_size, predict_tile=predict_tile)
        if image_size % 4:
            raise InputError(
                f"image_size is {image_size}: give a multiple of 4, the stride of a network's map of pixels"
            )
        check_resize(resize)
        if not 0 <= ignore_index < 2**16:
            raise InputError(f"ignore_index is {ignore_index}: give a value of masks from 0 to 65535")
        self.predict_tile = predict_tile
        self.class_colors, self.ignore_index = class_colors, ignore_index  # `open_source` needs them
        if class_colors is not None:
            check_colors(class_colors)
        self.color_view = make_view(ColorView, strong_view, "strong_view")
        super().__init__(
            source,
            root,
            num_labels=num_labels,
            unlabeled_source=unlabeled_source,
            seed=seed,
            val_size=val_size,
            test_size=test_size,
            split_file=split_file,
            test_on=test_on,
            on_leak=on_leak,
            on_bad_image=on_bad_image,
            image_size=image_size,
            channels=channels,
            background=background,
            resize=resize,
            value_range=value_range,
            weak_view=weak_view,
            labeled_view=labeled_view,
            batch_size=batch_size,
            unlabeled_ratio=unlabeled_ratio,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_workers=num_workers,
            predict_source=predict_source,
            class_names=class_names,
        )
        self.views = self.make_views(self.weak_view)

    # --- sources

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, and what its masks mean."""
        return repr((super().source_key, self.class_colors, self.ignore_index))

    def open_source(self, name: str) -> MaskSource:
        """Open the source of images with masks."""
        skip = self.bad.policy == "skip"
        return open_mask_source(name, self.root, skip, self._class_names, self.class_colors, self.ignore_index)

    @property
    def target(self) -> str:
        """What networks learn of an example: its mask."""
        return "mask"

    def require_classes(self, what: str) -> None:
        """Refuse what takes classes of examples.

        Args:
            what: Command or class that cannot take masks, as the subject of a sentence.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{what} takes classes of examples, and SegmentationDataModule gives masks: use FineTuneClassifier or "
            "SemiSupervisedModule with fit, validate, test, predict, study, report, audit and export"
        )

    require_one_class = require_classes

    def name_targets(self, targets: Tensor) -> list[str]:
        """Return `mask` for each target with a counted pixel, and an empty text for others."""
        return [HAS_MASK if bool((target >= 0).any()) else "" for target in targets]

    def labeled_counts(self) -> Tensor:
        """Return the number of pixels of each class in the training masks, int64 of shape (num_classes,)."""
        split = self.splits["labeled"]
        counts = split.part.storage.count_classes(split.indices)
        return torch.zeros(self.num_classes, dtype=torch.int64) if counts is None else counts.sum(0)

    def labeled_memberships(self) -> Tensor | None:
        """Return 1 for each class that a training mask has a pixel of and 0 for the others, int64, (N, C)."""
        split = self.splits["labeled"]
        counts = split.part.storage.count_classes(split.indices)
        return None if counts is None else (counts > 0).long()

    def on_splits_read(self, source: Source) -> None:
        """Say which classes no mask of a split has a pixel of, and which other masks have one that training lacks."""
        super().on_splits_read(source)
        for name, title in (("labeled", "training"), ("val", "validation"), ("test", "test")):
            lacking = self._find_unseen(name) if len(self.splits[name]) else []
            if not lacking:
                continue
            names = [self.class_names[k] for k in lacking]
            listed = ", ".join(map(repr, names[:_MAX_LISTED])) + (", ..." if len(names) > _MAX_LISTED else "")
            message = f"no {title} mask has a pixel of {listed}, "
            if name == "labeled":
                message += f"which cannot be learned{self._describe_evaluated(lacking)}{self._describe_largest()}"
                message += self._explain_unseen()
            else:
                message += "whose IoU is not measured there"
            self.request.findings.append(Finding("missing_class", message, names))

    def _explain_unseen(self) -> str:
        """Return a clause on why training masks may seem to lack a class, and what to do then."""
        if self.class_colors is not None:
            return ""
        remedy = ": where they are a class, set class_colors, such as {other: [0, 0, 0], object: [255, 255, 255]}"
        is_likely = self.ignore_index == 255 and self.num_classes <= 2
        return f"; pixels of value {self.ignore_index} (ignore_index) are not counted{remedy * is_likely}"

    def _find_unseen(self, name: str) -> list[int]:
        """Return the classes without a pixel in the masks of a split, of which no more are read than it takes."""
        split, seen = self.splits[name], torch.zeros(self.num_classes, dtype=torch.bool)
        if name != "labeled" and len(split) > _MOST_READ:
            return []
        for start in range(0, len(split), _AT_ONCE):
            counts = split.part.storage.count_classes(split.indices[start : start + _AT_ONCE])
            seen |= torch.ones_like(seen) if counts is None else counts.sum(0) > 0
            if bool(seen.all()):
                break
        return (~seen).nonzero()[:, 0].tolist()

    def _describe_evaluated(self, classes: Sequence[int]) -> str:
        """Return a clause with the first validation or test mask of each of some classes; empty where none has them."""
        first: dict[int, str] = {}
        for name in ("val", "test"):
            split = self.splits.get(name)
            counts = None if split is None else split.part.storage.count_classes(split.indices[:_MOST_READ])
            if split is None or counts is None:
                continue
            for k in classes:
                if k not in first and len(having := counts[:, k].nonzero()):
                    where = split.part.ids[split.indices[int(having[0])]]
                    value = self._describe_value(k)
                    first[k] = f"the {name} mask of '{where}' has pixels of {self.class_names[k]!r}{value}"
        listed = ", ".join([*first.values()][:_MAX_LISTED]) + (", ..." if len(first) > _MAX_LISTED else "")
        return f"; {listed}, all of which count as wrong" if first else ""

    def _describe_value(self, number: int) -> str:
        """Return the value or color of a class in the masks; an empty text where its name says it, or for outlines."""
        coding = self._coding
        numbers = coding.numbers if coding is not None else {}
        value = next((value for value, own in numbers.items() if own == number), None)
        if coding is None or value is None or str(value) == self.class_names[number]:
            return ""
        return f" (color {list(unpack_color(value))})" if coding.by_color else f" (value {value})"

    def _describe_largest(self) -> str:
        """Return a clause with the mask of the largest value, where values number the classes."""
        if self._coding is None or self._coding.largest is None:
            return ""
        where = show_path(self._coding.largest)
        return f"; classes are numbered up to the largest value of the masks, {self.num_classes - 1} in '{where}'"

    def describe_labels(self) -> str:
        """Return the number of training masks, and the share of the pixels of each class."""
        counts, held = self.labeled_counts(), self.labeled_memberships()
        total, masks = int(counts.sum()), f"{len(self.splits['labeled']):,} masks"
        shares = [
            f"{name} {int(n) / max(1, total):.1%}"
            for n, name in sorted(zip(counts.tolist(), self.class_names, strict=True), reverse=True)
        ]
        more = f", and {len(shares) - _MAX_SHARES} more" if len(shares) > _MAX_SHARES else ""
        alone = 0 if held is None else int((held.sum(1) < 2).sum())
        note = f"; {alone:,} of them of one class alone" if alone else ""
        return f"{masks} of {len(shares)} classes ({', '.join(shares[:_MAX_SHARES])}{more} of the pixels){note}"

    @property
    def _coding(self) -> MaskCoding | None:
        """Meaning of the values of the masks of the source; None for a source of one's own."""
        source = self.source.original
        return source.coding if isinstance(source, MaskSource) else None

    @property
    def palette(self) -> list[Color]:
        """Color of each class: that of its masks where they hold colors."""
        coding, names = self._coding, self.class_names
        colors = {} if coding is None else {coding.class_names[k]: rgb for k, rgb in coding.palette.items()}
        return make_palette(len(names), {names.index(name): rgb for name, rgb in colors.items() if name in names})

    # --- how files are read, and views

    def with_annotations(self, geometry: Geometry) -> MaskGeometry:
        """Return the geometry with which masks are read, too."""
        return MaskGeometry.of(geometry)

    def annotated_inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return images with their masks, a mapping of `image` and `mask`; those of an unlabeled split alone."""
        if name == "unlabeled":
            return self.inputs_of(name, positions)
        pairs = [self.read_pair(name, position) for position in positions]
        return {"image": torch.stack([x for x, _ in pairs]), "mask": torch.stack([y for _, y in pairs])}

    def show_annotated(self, x: Inputs) -> Tensor:
        """Return images under the colors of their masks; pixels that are not counted keep their color."""
        if isinstance(x, Tensor):
            return self.views.show(x)
        image = self.views.show(x["image"]).expand(-1, 3, -1, -1)
        colors = torch.tensor(self.palette, dtype=image.dtype)[x["mask"].clamp(min=0)].permute(0, 3, 1, 2) / 255
        return torch.where(x["mask"][:, None] < 0, image, (image + colors) / 2)

    def make_views(self, weak_view: WeakView) -> SegmentationViews:
        """Make the views of images and masks."""
        return SegmentationViews(self.image_shape, weak_view, self.color_view)

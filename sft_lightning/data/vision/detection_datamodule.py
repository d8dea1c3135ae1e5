"""`DetectionDataModule`: images of which few have boxes, in batches of the parts that a paradigm requests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sft_lightning.data.issues import Finding
from sft_lightning.data.loaders import RawBatch, TrainLoader
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.splits import LeakPolicy, Split
from sft_lightning.data.vision.annotated_datamodule import AnnotatedImageDataModule, check_resize
from sft_lightning.data.vision.box_sources import HAS_BOXES, BoxSource
from sft_lightning.data.vision.box_storage import BoxedImages, BoxGeometry
from sft_lightning.data.vision.boxes import find_annotated, pad_boxes, trim_boxes
from sft_lightning.data.vision.detection_views import DetectionViews, PatchView
from sft_lightning.data.vision.images import FileImages, Geometry
from sft_lightning.data.vision.masks import upright_size
from sft_lightning.data.vision.objects import place_back
from sft_lightning.data.vision.open_boxes import open_box_source
from sft_lightning.data.vision.views import WeakView, make_view
from sft_lightning.utils.errors import InputError, check_fraction, check_min
from sft_lightning.utils.inputs import Inputs

_UNCHANGED, _PATCHES = WeakView(), PatchView()
_MAX_COUNTS = 8  # classes whose objects are counted in a sentence
_STRIDE = 32  # of the coarsest map that most backbones have


class DetectionDataModule(AnnotatedImageDataModule):
    """Images of which some have annotated objects, in batches whose targets are boxes, as `boxes` describes them."""

    has_boxes: ClassVar[bool] = True
    in_addition: ClassVar[str] = " with boxes of objects"
    annotation: ClassVar[str] = "boxes"
    strong_settings: ClassVar[str] = "jitter, gray, blur or patches"

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
        image_size: int = 512,
        channels: Literal[1, 3] = 3,
        background: tuple[int, int, int] = (255, 255, 255),
        resize: Literal["pad", "squash"] = "pad",
        value_range: tuple[float, float] | None = None,
        weak_view: WeakView = _UNCHANGED,
        strong_view: PatchView = _PATCHES,
        min_visible: float = 0.25,
        labeled_view: Literal["weak", "strong", "both"] = "weak",
        batch_size: int = 8,
        unlabeled_ratio: int = 1,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        predict_source: str | None = None,
    ) -> None:
        """Open the source; `setup` checks the boxes against the sizes of their images.

        Args:
            source: Folder or `.json` of COCO; folder of YOLO with `images` and `labels`; folder of Pascal VOC with
                `JPEGImages` and `Annotations`; or a `.csv` / `.parquet` table with the columns
                path,class,x1,y1,x2,y2[,split][,group]. An image without an annotation is unlabeled.
            root: Second folder that the files of a table or a JSON may be in.
            num_labels: Number of annotated images to train on; 0 for none, null for all.
            unlabeled_source: Another source whose training images are the unlabeled ones, instead of the rest.
            seed: Seed of the splits and of the order and views of training batches.
            val_size: Share (below 1) or number of annotated images held out if the source has no validation split.
            test_size: Share or number of annotated images held out if the source has no test split.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: Data that `test` and `validate` of a run use: `split` for the held-out images, or `all` for all
                annotated images of a source that the run was not trained on.
            on_leak: `drop` to remove a held-out image from training if it is there, too, or `raise` to stop the run.
            on_bad_image: `raise` to stop at an unreadable image or an annotation that does not fit, or `skip` to leave
                its image out, count and list it.
            class_names: Names of the classes in the order of their numbers; null for those of the data.
            image_size: Side of the square images in pixels, a multiple of 32.
            channels: 1 for gray, 3 for color.
            background: Color under transparent pixels and beside padded images, 0 to 255.
            resize: Method that makes images square: `pad` adds background to the shorter side, and `squash` changes
                the ratio of the sides. Boxes follow.
            value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null to find them as
                `ImageDataModule` does.
            weak_view: Random movements of training images, which boxes follow exactly; without rotation and shear.
            strong_view: Changes of colors and covered patches that a strong view adds to the same movements.
            min_visible: Share of the area of an object that has to stay in a moved or cropped training image; of which
                less stays is left out.
            labeled_view: View of labeled training images; `both` doubles the size of their batches.
            batch_size: Training images per batch and process; annotated ones where both kinds come together.
            unlabeled_ratio: Unlabeled images per labeled one if a paradigm trains on both.
            eval_batch_size: Images per batch in validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches per epoch; null for one pass over the unlabeled images if the paradigm uses them,
                else over the labeled ones.
            num_workers: Number of processes that decode files; null for one per available core, at most 8.
            predict_source: Folder, table or file of images that `predict` reads; null for the test split.

        Raises:
            InputError: A setting has an invalid value.
        """
        check_min(_STRIDE, image_size=image_size)
        if image_size % _STRIDE:
            raise InputError(
                f"image_size is {image_size}: give a multiple of {_STRIDE}, the stride of a network's coarsest map"
            )
        check_resize(resize)
        check_fraction(min_visible=min_visible)
        self.min_visible = min_visible
        self.patch_view = make_view(PatchView, strong_view, "strong_view")
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

    def open_source(self, name: str) -> BoxSource:
        """Open the source of images with boxes."""
        return open_box_source(name, self.root, self.bad.policy == "skip", self._class_names)

    def open_to_predict(self, name: str) -> BoxSource:
        """Open a source whose boxes are not used, and whose classes may be others."""
        return open_box_source(name, self.root, self.bad.policy == "skip")

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training images, without what may be annotated in them."""
        part = super().open_unlabeled(name)
        images = part.storage
        return replace(part, storage=FileImages(images.paths, images.ids)) if isinstance(images, BoxedImages) else part

    @property
    def target(self) -> str:
        """What networks learn of an example: its boxes."""
        return "boxes"

    def require_classes(self, what: str) -> None:
        """Refuse what takes classes of examples.

        Args:
            what: Command or class that cannot take boxes, as the subject of a sentence.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{what} takes classes of examples, and DetectionDataModule gives boxes: use FineTuneDetector or "
            "SemiSupervisedDetector with fit, validate, test, predict, study, report, audit and export"
        )

    require_one_class = require_classes

    def name_targets(self, targets: Tensor) -> list[str]:
        """Return `boxes` for each target of an annotated image, and an empty text for others."""
        return [HAS_BOXES if is_known else "" for is_known in find_annotated(targets).tolist()]

    def labeled_counts(self) -> Tensor:
        """Return the number of training objects of each class, int64 of shape (num_classes,)."""
        return self.count_objects("labeled").sum(0)

    def count_objects(self, name: str) -> Tensor:
        """Count the objects of each class in the images of a split, int64, (N, num_classes), without ignored ones.

        Args:
            name: Name of the split.
        """
        split = self.splits[name]
        counts = split.part.storage.count_classes(split.indices)
        return torch.zeros(len(split), self.num_classes, dtype=torch.int64) if counts is None else counts

    def labeled_memberships(self) -> Tensor:
        """Return 1 for each class that a training image has an object of and 0 for the others, int64, (N, C)."""
        return (self.count_objects("labeled") > 0).long()

    def describe_labels(self) -> str:
        """Return the number of annotated training images, and of their objects of each class."""
        counts, images = self.labeled_counts().tolist(), self.count_objects("labeled")
        listed = [f"{name} {n:,}" for n, name in sorted(zip(counts, self.class_names, strict=True), reverse=True)]
        more = f", and {len(listed) - _MAX_COUNTS} more" if len(listed) > _MAX_COUNTS else ""
        empty = int((images.sum(1) == 0).sum())
        note = f"; {empty:,} of them show none" if empty else ""
        return (
            f"{len(images):,} annotated images with {sum(counts):,} objects of {len(listed)} classes "
            f"({', '.join(listed[:_MAX_COUNTS])}{more}){note}"
        )

    def objects_of(self, name: str) -> list[Tensor]:
        """Return the objects of each image of a split in the network's image, (M, 6) each; no image is read.

        Args:
            name: Name of the split, whose images are annotated.
        """
        split, geometry = self.splits[name], self.with_annotations(self.geometry)
        storage = split.part.storage
        if not isinstance(storage, BoxedImages):  # of an empty split
            return []
        return [storage.place_objects(index, geometry, None) for index in split.indices]

    def on_splits_read(self, source: Source) -> None:
        """Say which boxes are clipped, and which classes cannot be learned or judged."""
        super().on_splits_read(source)
        self.request.findings += [*_describe_clipped(self._parts)]
        for name, title, what in (
            ("labeled", "training", "it cannot be learned"),
            ("val", "validation", "its average precision is not measured there"),
            ("test", "test", "its average precision is not measured there"),
        ):
            counts = self.count_objects(name).sum(0).tolist()
            lacking = [one for one, count in zip(self.class_names, counts, strict=True) if not count]
            if lacking and (any(counts) or (name != "labeled" and len(self.splits[name]))):
                listed = ", ".join(map(repr, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
                message = f"the {title} split has no object of {listed}, so that {what}"
                self.request.findings.append(Finding("missing_class", message, lacking))

    # --- how files are read, and views

    def with_annotations(self, geometry: Geometry) -> BoxGeometry:
        """Return the geometry with which boxes are read, too."""
        return BoxGeometry.of(geometry, self.min_visible)

    def make_views(self, weak_view: WeakView) -> DetectionViews:
        """Make the views of images and boxes."""
        return DetectionViews(self.image_shape, weak_view, self.patch_view, self.min_visible)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Drop rows that no image of a batch needs, before they are moved."""
        is_mapping = isinstance(batch, dict)
        trimmed = {name: _trim(raw) for name, raw in batch.items()} if is_mapping else _trim(batch)
        return super().transfer_batch_to_device(trimmed, device, dataloader_idx)

    def train_dataloader(self) -> TrainLoader:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part has no image, the labeled one no object, or strong views change nothing.
        """
        if "labeled" in self._request.parts and len(self.splits["labeled"]) and not self.labeled_counts().any():
            raise InputError(
                f"the {len(self.splits['labeled'])} annotated training image(s) of source {self.source.name!r} hold no "
                "object to learn from: ask for more by num_labels, choose another seed, or annotate some"
            )
        return super().train_dataloader()

    def annotated_inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return images with their boxes, a mapping of `image` and `boxes`."""
        pairs = [self.read_pair(name, position) for position in positions]
        return {"image": torch.stack([x for x, _ in pairs]), "boxes": pad_boxes([y for _, y in pairs])}

    # --- boxes in pixels of files

    def original_boxes(self, split: str | Split, positions: Sequence[int] | Tensor, boxes: Tensor) -> Tensor:
        """Return boxes of the network's images in pixels of their files, turned upright, and within their sides.

        Args:
            split: Split or its name; `open_predicted()` is that of `predict`.
            positions: Positions in the split, as `Labeled.indices` has them, of B images.
            boxes: Corners x1, y1, x2, y2 in pixels of the network's images, (B, K, 4).

        Returns:
            Tensor of the shape of `boxes`.
        """
        chosen = self.splits[split] if isinstance(split, str) else split
        storage, made = chosen.part.storage, []
        assert isinstance(storage, FileImages)
        for position, own in zip(torch.as_tensor(positions).tolist(), boxes, strict=True):
            index = chosen.indices[position]
            sides = storage.sides_of(index) if isinstance(storage, BoxedImages) else upright_size(storage.paths[index])
            made.append(place_back(own, sides, self.geometry.size, self.geometry.box(*sides, None)))
        return torch.stack(made) if made else boxes


def _trim(raw: RawBatch) -> RawBatch:
    if not isinstance(raw.inputs, Mapping):
        return raw
    return raw._replace(inputs={**raw.inputs, "boxes": trim_boxes(raw.inputs["boxes"])})


def _describe_clipped(parts: Sequence[Any]) -> list[Finding]:
    """Return a sentence on boxes that reach beyond their images, if some do."""
    names, count = [], 0
    for part in parts:
        if isinstance(part.storage, BoxedImages):
            clipped = part.storage.count_clipped()
            names += [part.ids[i] for i in clipped]
            count += sum(clipped.values())
    if not count:
        return []
    boxes, images = "1 box reaches" if count == 1 else f"{count:,} boxes reach", f"{len(names):,} image(s)"
    message = f"{boxes} beyond the border in {images}, such as {names[0]!r}, and are clipped"
    return [Finding("cropped", message.replace("and are", "and is") if count == 1 else message, names)]

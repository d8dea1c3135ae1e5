"""`AnomalyDataModule`: normal images to learn from, and normal and defective ones to test on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from sft_lightning.data.class_order import RenumberedSource
from sft_lightning.data.issues import Finding
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.normal_splits import find_normal_class
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Source
from sft_lightning.data.splits import LeakPolicy, Split
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.defects import open_defect_source, resolve_mask
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.mask_storage import MaskedImages, MaskGeometry
from sft_lightning.data.vision.prediction import read_files
from sft_lightning.utils.errors import InputError


class AnomalyDataModule(ImageDataModule):
    """Normal images to train on, held-out normal ones for a threshold, and normal and defective ones to test on.

    Label 0 is that of normal images, and each kind of defect has another one.
    """

    def __init__(
        self,
        source: str,
        root: str = "data",
        download: bool = False,
        normal_class: str | None = None,
        num_labels: int | None = None,
        unlabeled_as_normal: bool = False,
        unlabeled_source: str | None = None,
        seed: int = 0,
        val_size: int | float = 0.2,
        test_size: int | float = 0.2,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_leak: LeakPolicy = "drop",
        on_bad_image: Literal["raise", "skip"] = "raise",
        class_names: list[str] | None = None,
        image_size: int = 224,
        channels: Literal[1, 3] = 3,
        background: tuple[int, int, int] = (255, 255, 255),
        resize: Literal["pad", "squash"] = "squash",
        value_range: tuple[float, float] | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        predict_source: str | None = None,
    ) -> None:
        """Open the source; `setup` reads the images.

        Args:
            source: Folder with a folder of normal images and one for each kind of defect, or with folders train, val
                and test of such; a `.csv` / `.parquet` table with the columns path,label[,mask][,split][,group]; or a
                torchvision data set. Masks of defects lie in `ground_truth/KIND`, as in MVTec AD.
            root: Folder of torchvision data sets, and second folder that the files of a table may be in.
            download: Fetch a torchvision data set that is not in `root`.
            normal_class: Name of the class of normal images; null for the one that is named normal, good, nominal or
                ok.
            num_labels: Number of normal images to train on; null for all that are not held out.
            unlabeled_as_normal: Whether images without a label are trained on as if they were normal. A few defects
                among them do little harm to a large memory bank, and more of them hide defects of their kind.
            unlabeled_source: Another source whose training images are the unlabeled ones.
            seed: Seed of the splits and of the choices of the method.
            val_size: Share (below 1) or number of normal images held out for the threshold if the source has no
                validation split.
            test_size: Share or number of normal images held out for the test if the source has no test split; all
                defective ones are tested, too.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: Data that `test` and `validate` of a run use: `split` for the held-out images, or `all` for all
                labeled images of a source that the run was not trained on.
            on_leak: `drop` to remove a held-out image from training if it is there, too, or `raise` to stop the run.
            on_bad_image: `raise` to stop at an unreadable image or mask, or `skip` to leave its image out, count and
                list it.
            class_names: Names of the classes, the normal one first; null for those of the source.
            image_size: Side of the square images in pixels; small defects need a larger one.
            channels: 1 for gray, 3 for color.
            background: Color under transparent pixels and beside padded images, 0 to 255.
            resize: Method that makes images square: `squash` changes the ratio of the sides, and `pad` adds background
                to the shorter side. Both keep all of an image, as a defect may be anywhere.
            value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null to find them as
                `ImageDataModule` does.
            batch_size: Images per batch and process.
            num_workers: Number of processes that decode files; null for one per available core, at most 8.
            predict_source: Folder, table or file of images that `predict` reads; null for the test split.

        Raises:
            InputError: A setting has an invalid value.
        """
        if resize not in ("pad", "squash"):
            raise InputError(f"resize is {resize!r}: give pad or squash, under which all of an image is seen")
        if class_names and normal_class not in (None, class_names[0]):
            raise InputError(
                f"normal_class is {normal_class!r}, and class_names begins with {class_names[0]!r}: list the normal "
                "class first"
            )
        self.normal_class, self.unlabeled_as_normal = normal_class, unlabeled_as_normal
        super().__init__(
            source,
            root,
            download,
            num_labels=num_labels,
            unlabeled_source=unlabeled_source,
            seed=seed,
            val_size=val_size,
            test_size=test_size,
            split_file=split_file,
            test_on=test_on,
            on_leak=on_leak,
            on_bad_image=on_bad_image,
            class_names=class_names,
            image_size=image_size,
            channels=channels,
            background=background,
            resize=resize,
            value_range=value_range,
            batch_size=batch_size,
            num_workers=num_workers,
            predict_source=predict_source,
        )
        self.request = replace(self.request, normal_class=0)

    # --- sources and classes

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, and which class is normal."""
        return repr((super().source_key, self.normal_class))

    def open_source(self, name: str) -> ImageSource:
        """Open the source of normal and defective images."""
        return open_defect_source(name, self.root, self.download, self.bad.policy == "skip", self._class_names or ())

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, the normal one first."""
        if self._class_names is not None:
            return [*self._class_names]
        names = [*self.labeled_source.class_names]
        normal = find_normal_class(names, self.normal_class, self._named)
        return [normal, *(name for name in names if name != normal)]

    @property
    def source(self) -> Source:
        """Source of the images with labels in the order of `class_names`."""
        names = self.class_names
        is_ordered = names == [*self.labeled_source.class_names]
        return self.labeled_source if is_ordered else RenumberedSource(self.labeled_source, names)

    @property
    def target(self) -> str:
        """What is found out about an image: whether it has a defect."""
        return "defect"

    @property
    def normal_splits(self) -> tuple[str, ...]:
        """Names of the splits that are learned from as normal."""
        return ("labeled", "unlabeled") if self.unlabeled_as_normal else ("labeled",)

    def require_classes(self, what: str) -> None:
        """Refuse what learns classes from labels.

        Args:
            what: Command or class that cannot take normal images alone, as the subject of a sentence.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{what} learns classes from labels, and AnomalyDataModule gives labels of normal images alone: use "
            "AnomalyDetector with fit, validate, test and predict, or give the folder to ImageDataModule"
        )

    require_one_class = require_classes

    def on_splits_read(self, source: Source) -> None:
        """Say what a test cannot measure."""
        super().on_splits_read(source)
        test = self.splits["test"].labels
        if len(self.splits["labeled"]) and len(test) and not bool((test > 0).any() and (test == 0).any()):
            lacking = "defective" if not bool((test > 0).any()) else "normal"
            message = f"the test split has no {lacking} image, so that it shows no AUROC"
            self.request.findings.append(Finding("missing_class", message, [self.class_names[0]]))

    # --- how files are read

    def prepare_reading(self, name: str, split: Split, train: bool) -> tuple[Split, Geometry, int]:
        """Return the split, how it is read, and the number of workers; masks are read in evaluations alone."""
        split, geometry, workers = super().prepare_reading(name, split, train)
        has_masks = name in ("val", "test") and isinstance(split.part.storage, MaskedImages)
        return split, MaskGeometry.of(geometry) if has_masks else geometry, workers

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the views on the device, and give masks beside the labels."""
        if not isinstance(batch, RawBatch) or not isinstance(batch.inputs, Mapping):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        image, mask = batch.inputs["image"], batch.inputs["mask"]
        made = super().on_after_batch_transfer(batch._replace(inputs=image), dataloader_idx)
        return made._replace(mask=resolve_mask(mask, made.y.to(mask.device)))

    # --- prediction

    def read_predicted(self, name: str) -> Split:
        """Return the images of a folder, table or file, or of the test split of a source.

        Raises:
            InputError: The data does not exist or is empty.
        """
        return read_files(name, self.root, self.bad)

"""`ImageDataModule`: labeled, unlabeled, validation and test batches of the images of a source."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import PIL
from lightning.pytorch.utilities import rank_zero_info
from PIL import features

from sft_lightning.data.copies import Copies
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.loaders import RawBatch, TrainLoader
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.split_datamodule import MANIFEST as MANIFEST
from sft_lightning.data.splits import LeakPolicy, Split, SplitConfig
from sft_lightning.data.vision.cached_images import ImageCaches
from sft_lightning.data.vision.copies import find_copies
from sft_lightning.data.vision.image_frames import describe_pages
from sft_lightning.data.vision.image_source import ImageSource, find_image_shape, find_value_ranges
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.data.vision.images import DECODING, EncodedImages, FileImages, Geometry, Resize
from sft_lightning.data.vision.pixel_scale import (
    check_value_range,
    choose_scale,
    describe_long_images,
    describe_values,
    merge_learned,
)
from sft_lightning.data.vision.prediction import FileLoader
from sft_lightning.data.vision.prediction_files import Listing, open_prediction_source
from sft_lightning.data.vision.pretrain_views import PretrainView
from sft_lightning.data.vision.sources import open_source, open_unlabeled
from sft_lightning.data.vision.value_ranges import UNKNOWN, parse_ranges, serialize_ranges
from sft_lightning.data.vision.views import ImageViews, StrongView, WeakView, make_pretrain_views, make_view
from sft_lightning.utils.errors import InputError, check_fraction, check_min, check_positive
from sft_lightning.utils.inputs import InputSpec

_UNCHANGED, _STRONG, _PRETRAIN = WeakView(), StrongView(), PretrainView()


class ImageDataModule(FewLabelDataModule):
    """Labeled and unlabeled images, in batches of the parts that the paradigm requests, as in `FewLabelDataModule`."""

    shares_splits: ClassVar[bool] = True
    bad_setting: ClassVar[str] = "on_bad_image"

    def __init__(
        self,
        source: str = "sample",
        root: str = "data",
        download: bool = False,
        num_labels: int | None = None,
        labels_per_class: int | None = None,
        unlabeled_source: str | None = None,
        seed: int = 0,
        val_size: int | float = 0.1,
        test_size: int | float = 0.2,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_leak: LeakPolicy = "drop",
        on_bad_image: Literal["raise", "skip"] = "raise",
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        center_crop: float = 1.0,
        resize: Resize = "crop",
        value_range: tuple[float, float] | None = None,
        weak_view: WeakView = _UNCHANGED,
        strong_view: StrongView = _STRONG,
        pretrain_view: PretrainView = _PRETRAIN,
        pretrain_view_2: PretrainView | None = None,
        pretrain_view_local: PretrainView | None = None,
        labeled_view: Literal["weak", "strong", "both"] = "weak",
        batch_size: int = 64,
        unlabeled_ratio: int = 7,
        balanced_labels: bool = False,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        cache: str | None = None,
        shard_window: int = 16,
        predict_source: str | None = None,
        class_names: list[str] | None = None,
        labels: str | None = None,
        label_separator: str | None = None,
        label_columns: str | list[str] | None = None,
    ) -> None:
        """Open the source; `setup` reads the images.

        Args:
            source: `sample` (shipped with the package), `sample-digits`, a torchvision data set such as `CIFAR10`, a
                folder of class folders or of shards, or a `.csv` / `.parquet` manifest with the columns
                path,label[,split][,group].
            root: Folder that holds torchvision data sets; a manifest may name files in it and in its own folder.
            download: Fetch a torchvision data set that is not in `root`.
            num_labels: Number of training labels, divided among the classes; 0 for none, null for all.
            labels_per_class: Number of training labels of each class, instead of `num_labels`.
            unlabeled_source: Another source whose training images are the unlabeled ones, instead of the rest.
            seed: Seed of the splits and of the order and views of training batches.
            val_size: Share (below 1) or number of training examples held out if the source has no validation split.
            test_size: Share or number of training examples held out if the source has no test split.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: Data that `test` and `validate` of a run use: `split` for the held-out images, or `all` for all
                labeled images of a source that the run was not trained on, including its training images.
            on_leak: `drop` to remove a held-out image from training if it is there, too, or `raise` to stop the run.
            on_bad_image: `raise` to stop at an unreadable image, or `skip` to leave it out, count and list it.
            image_size: Side of the square images; null for that of data sets in memory, and 224 for files.
            channels: 1 for gray, 3 for color; null for that of data sets in memory, and 3 for files.
            background: Color under transparent pixels, 0 to 255.
            center_crop: Share of the shorter side of an image file that is kept; 0.875 is the usual test view of
                ImageNet (256 to 224).
            resize: Method that makes image files square: `crop` keeps the central square, `pad` adds background to the
                shorter side, and `squash` changes the ratio of its sides.
            value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null for one scale
                per data set: the smallest of 1, 8, 10, 12, 14 and 16 bits that holds all integers, 0 to 1, 255 or
                65,535 for floating point, or the range of the data. The checkpoint keeps it for other images.
            weak_view: Random changes of training images.
            strong_view: Changes that a strong view adds, for paradigms that use one.
            pretrain_view: Changes of the views for self-supervised pre-training.
            pretrain_view_2: Changes of every second of these views; null for those of `pretrain_view`.
            pretrain_view_local: Changes of the local views of `DINO` and `SwAV`, with a smaller `side`; null for those
                of `pretrain_view` with crops of 5 to 40 % of the area and 3/7 of the side (96 of 224 pixels).
            labeled_view: View of labeled training images; `both` doubles the size of their batches (as in AdaMatch).
            batch_size: Training images per batch and process.
            unlabeled_ratio: Unlabeled images per labeled one if a paradigm trains on both (mu in FixMatch).
            balanced_labels: Whether classes take turns in labeled batches if unlabeled images are trained on, too.
            eval_batch_size: Images per batch in validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches per epoch; null for one pass over the unlabeled images if the paradigm uses them,
                else over the labeled ones.
            num_workers: Number of processes that decode files; null for one per available core, at most 8.
            cache: Folder that keeps decoded image files for later epochs and runs, or null for none; each image takes
                pixels times channels bytes. Without `crop_scale`, batches are the same, bit for bit; with it, crops are
                the same rectangles, taken from whole images stored with twice as many pixels as a crop. All files are
                decoded again if one is added or changes its name or content. The folder may be removed when no run
                uses it. `predict` does not use it.
            shard_window: Number of shards that are read and shuffled together (`scripts/shard`).
            predict_source: Folder, manifest, file or data set that `predict` reads; null for the test split.
            class_names: Names of the classes in the order of their numbers, matched with the source by name. If these,
                `image_size` and `channels` are given, the source is opened only when its images are needed.
            labels: A CSV with the columns id,label, whose labels are added to those of the source and replace them. Ids
                are those of split.csv. A source without labels takes the classes of the CSV.
            label_separator: Separator of several classes in a label of a table, such as `;` in `dog;outdoors`; the
                separator alone labels an example of no class. null where each example has one class.
            label_columns: Columns of a table that are 1 where an example has a class and 0 where it lacks it, in place
                of one column of labels: a list of columns, each a class, or a pattern such as `tag_*`, in which the
                star stands for the class. Rows in which all are blank are unlabeled.

        Raises:
            InputError: A setting has an invalid value.
        """
        check_min(1, image_size=image_size)
        check_positive(center_crop=center_crop)
        check_fraction(center_crop=center_crop)
        self.root, self.download, self.predict_source = root, download, predict_source
        super().__init__(
            source,
            SplitConfig(seed, num_labels, labels_per_class, float(val_size), float(test_size), on_leak),
            unlabeled_source,
            split_file,
            test_on,
            on_bad_image,
            class_names,
            ("weak", "strong") if labeled_view == "both" else (labeled_view,),
            batch_size,
            unlabeled_ratio,
            balanced_labels,
            eval_batch_size,
            steps_per_epoch,
            num_workers,
            shard_window,
            labels,
            label_separator,
            label_columns,
        )
        self.weak_view = make_view(WeakView, weak_view, "weak_view")
        self.strong_view = make_view(StrongView, strong_view, "strong_view")
        pretraining = make_pretrain_views(pretrain_view, pretrain_view_2, pretrain_view_local)
        self.pretrain_views, self.local_view = pretraining
        self.shape_remedy = "image_size and channels" if image_size is None and channels is None else None
        is_known = class_names is not None and image_size is not None and channels is not None
        shape = (3, 224, 224) if is_known else find_image_shape(self.opened_source) or (3, 224, 224)
        side = image_size or shape[1]
        self.given_image_size, self._image_shape = image_size, (channels or shape[0], side, side)
        self.views = ImageViews(self._image_shape, self.weak_view, self.strong_view, *pretraining)
        self.value_range, ranges = value_range, check_value_range(value_range)
        self.geometry = Geometry(side, self._image_shape[0], background, center_crop, resize=resize, ranges=ranges)
        self._cache = None if cache is None else Path(cache)
        self._caches: ImageCaches | None = None
        self._predict_loader: FileLoader | None = None

    # --- sources

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of network inputs."""
        return self._image_shape

    @property
    def input_spec(self) -> InputSpec:
        """Pixels in [0, 1], of `image_shape`."""
        return InputSpec("image", self._image_shape)

    @property
    def given_size(self) -> int | None:
        """Side of the images that the user set, or None."""
        return self.given_image_size

    def settings_to_show(self, side: int) -> dict[str, Any]:
        """Return settings for whole images, large ones of files."""
        return {"image_size": side, "resize": "pad"} if find_image_shape(self.opened_source) is None else {}

    @classmethod
    def settings_for(cls, input_spec: InputSpec) -> dict[str, Any]:
        """Return `channels` and `image_size` for networks that take images."""
        if input_spec.modality != "image":
            return {}
        return {"channels": input_spec.shape[0], "image_size": input_spec.shape[1]}

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, the folder of data sets included."""
        return repr((super().source_key, self.root))

    def open_source(self, name: str) -> ImageSource:
        """Open the source of labeled and unlabeled images."""
        skip = self.bad.policy == "skip"
        listed, needs_labels = self._class_names or (), self.labels is None
        how = "source", skip, listed, needs_labels, self.label_separator, self.label_columns
        return open_source(name, self.root, self.download, *how)

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training images, without labels."""
        return open_unlabeled(name, self.root, self.download, self.bad.policy == "skip")

    # --- how files are read

    @property
    def read_settings(self) -> Geometry:
        """Size, channels, crop and scale of files' images."""
        return self.geometry

    @property
    def size_settings(self) -> dict[str, Any]:
        """Side of the images."""
        return {"image_size": self._image_shape[-1]}

    @property
    def measures_values(self) -> bool:
        """Whether to measure the values of images of more than 8 bits, whose scale is not known yet."""
        return self.geometry.ranges == UNKNOWN

    def on_splits_read(self, source: Source) -> None:
        """Choose the scale of images of more than 8 bits, say what the user should know, and open the cache."""
        kept = [part.storage.facts for part in self._parts if isinstance(part.storage, EncodedImages)]
        facts = [one for one in kept if one is not None]
        ranges = choose_scale(facts, self.geometry.ranges, find_value_ranges(source))
        self.geometry = replace(self.geometry, ranges=ranges)
        self.request.findings += describe_values(facts, ranges)
        self.request.findings += describe_long_images(facts, self.geometry)
        self._caches = None if self._cache is None else ImageCaches(self._cache, self._parts)
        if self._caches is not None and not self._caches:
            rank_zero_info(f"Data: cache {str(self._cache)!r} is not used: none of the images is a separate file.")

    def prepare_reading(self, name: str, split: Split, train: bool) -> tuple[Split, Geometry, int]:
        """Return the split, from the cache if there is one, how it is read, and the number of workers."""
        scale = self.weak_view.crop_scale if train and self._crops_once(name) else None
        geometry = replace(self.geometry, scale=None if scale is None else (scale[0], scale[1]))
        if self._caches is None or name == "predict" or not isinstance(split.part.storage, FileImages):
            return split, geometry, self.num_workers
        # One process of a machine decodes, with the workers of all that wait for it.
        workers = self.num_workers * (self.trainer.num_devices if self.trainer is not None else 1)
        split = self._caches.cached(split, geometry, workers, self.bad)
        return split, geometry, self.num_workers if geometry.scale is not None else 0  # copying rows needs no workers

    @property
    def reading_key(self) -> str:
        """Text of the geometry, and of the versions of the decoders, since others give other pixels."""
        return repr((DECODING, PIL.__version__, features.version("jpg"), self.geometry))

    @property
    def value_ranges(self) -> dict[str, list[float]]:
        """Values of black and white of images of more than 8 bits, by their kind."""
        return serialize_ranges(self.geometry.ranges)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale for the checkpoint, so that later images are read like those of training."""
        return {"value_ranges": self.value_ranges} if self.value_ranges else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scale of training, unless the user set another.

        Args:
            state: State from `state_dict`.
        """
        if self.value_range is None:
            learned = parse_ranges(state.get("value_ranges"), "the checkpoint")
            self.geometry = replace(self.geometry, ranges=merge_learned(self.geometry.ranges, learned))

    def find_copies(self, labeled: Split, others: Split | None = None) -> tuple[Copies, Copies]:
        """Find exact and near copies, mirror images included."""
        splits = [labeled] if others is None or not len(others) else [labeled, others]
        stats = [one for split in splits for one in compute_image_stats("labeled", split, self.geometry).examples]
        joint = find_copies(stats)
        return joint if len(splits) == 1 else find_copies(stats[: len(labeled)]), joint

    # --- views

    @property
    def fixed_views(self) -> bool:
        """Whether labeled training images are the same in every epoch."""
        return not self.weak_view and self.labeled_views == ("weak",)

    def _crops_once(self, name: str) -> bool:
        """Return whether a worker may crop while it decodes: only for a single view, because each has its own crop."""
        views = self.labeled_views if name == "labeled" else self._request.views
        return isinstance(self.splits[name].part.storage, EncodedImages) and len(views) == 1 and "pretrain" not in views

    def views_of(self, name: str) -> ImageViews:
        """Return the views of a training split, without the crop if a worker has cropped."""
        view = self.weak_view
        if view.crop_scale is not None and self._crops_once(name):
            view = replace(view, crop_scale=None)
        return ImageViews(self._image_shape, view, self.strong_view, self.pretrain_views, self.local_view)

    def train_dataloader(self) -> TrainLoader:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part has no image, or strong views are requested that change nothing.
        """
        if {"strong", "strong_2"} & {*self._request.views, *self.labeled_views} and not self.strong_view:
            raise InputError(
                "strong_view changes nothing (operations and cutout are 0), but strong views are to be learned from: "
                "set one of them"
            )
        if self._request.views.count("pretrain") > 1 and not all(self.pretrain_views):
            raise InputError(
                "pretrain_view changes nothing, but an objective is to be learned from different views of an image: "
                "set crop_scale, flip or another change"
            )
        return super().train_dataloader()

    # --- prediction

    def read_predicted(self, name: str) -> Listing | Split:
        """Return the files of a listing, or the images of a source.

        Raises:
            InputError: The data does not exist or is empty.
        """
        opened = open_prediction_source(name, self.root, self.bad.policy == "raise")
        if isinstance(opened, Examples):
            part = readable(opened, self.bad)
            return Split(part, list(range(len(part))))
        for message in opened.messages:
            rank_zero_info(f"Data: {message}.")
        return opened

    @property
    def predict_count(self) -> int:
        """Number of images to predict, as far as it is known before they are read."""
        opened = self.open_predicted()
        return opened.count if isinstance(opened, Listing) else len(opened)

    @property
    def predict_listed(self) -> tuple[int, int]:
        """Number and checksum of the listed files (`FileLoader.listed`); zeros for a split."""
        return (0, 0) if self._predict_loader is None else self._predict_loader.listed

    def predict_dataloader(self) -> Iterable[RawBatch]:
        """Return batches of the data to predict.

        Raises:
            InputError: The data does not exist or is empty.
        """
        opened = self.open_predicted()
        if isinstance(opened, Split):
            self._predict_loader = None
            return self.named_batches(opened)
        where = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        settings = self.geometry, self.eval_batch_size, self.num_workers, self.bad
        self._predict_loader = FileLoader(opened, *settings, *where)
        return self._predict_loader

    def teardown(self, stage: str) -> None:
        """Say also which predicted files hold more than the image that was read."""
        super().teardown(stage)
        paged = self._predict_loader.paged if self._predict_loader is not None and stage == "predict" else []
        for finding in describe_pages(paged):
            rank_zero_info(f"Data: {finding}.")

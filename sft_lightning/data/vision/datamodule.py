"""`ImageDataModule`: from one word that names pictures to labeled, unlabeled, validation and test batches."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.batch_size import BatchSize
from sft_lightning.data.batches import Labeled, Unlabeled, ViewMaker, moved
from sft_lightning.data.class_order import ClassOrder
from sft_lightning.data.contract import BatchRequest, FewLabelData, RequestsBatches, batch_request
from sft_lightning.data.eval_batches import AsTheyAre
from sft_lightning.data.loaders import EvalLoader, RawBatch, Stream, TrainLoader, close
from sft_lightning.data.prepare_splits import read_splits
from sft_lightning.data.run_splits import TestOn, choose_run_split, get_split_settings
from sft_lightning.data.shards import choose_pass_order
from sft_lightning.data.source import Examples
from sft_lightning.data.split_checks import check_unlabeled_batch
from sft_lightning.data.split_files import write_split_file
from sft_lightning.data.splits import LeakPolicy, Split, SplitConfig, Splits
from sft_lightning.data.vision.cached_images import ImageCaches
from sft_lightning.data.vision.file_checks import BadImages
from sft_lightning.data.vision.images import EncodedImages, Geometry, Resize
from sft_lightning.data.vision.pixel_scale import PixelScale, check_value_range
from sft_lightning.data.vision.prediction import PredictionData
from sft_lightning.data.vision.views import StrongView, WeakView, make_view
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, check_fraction, check_min, check_positive

MANIFEST = "split.csv"
_UNCHANGED, _STRONG = WeakView(), StrongView()


class ImageDataModule(AsTheyAre, PredictionData, BatchSize, PixelScale, ClassOrder, FewLabelData, LightningDataModule):
    """Labeled and unlabeled pictures.

    A training batch is a mapping with `labeled` (`Labeled`), `unlabeled` (`Unlabeled`) or both: a paradigm names what
    it needs in `batch_parts`, and only that is loaded. Validation, test and prediction batches are `Labeled`.
    """

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
    ) -> None:
        """Opens the source; pictures are read by `setup`.

        Args:
            source: `sample` (shipped with the package), `sample-digits`, a torchvision data set such as `CIFAR10`, a
                folder of class folders or of shards, or a `.csv` / `.parquet` manifest with the columns
                path,label[,split][,group].
            root: Folder that holds torchvision data sets; a manifest may name files in it, beside those in its own.
            download: Fetch a torchvision data set that is not in `root`.
            num_labels: How many training labels are used, divided among the classes; 0 for none, null for all.
            labels_per_class: How many training labels of each class are used, instead of `num_labels`.
            unlabeled_source: Another source whose training pictures are the unlabeled ones, instead of what is left.
            seed: Chooses the splits, and the order and views of training batches.
            val_size: Share (below 1) or number of training examples held out where the source has no validation part.
            test_size: The same where the source has no test part.
            split_file: A `split.csv` that an earlier run wrote, instead of choosing anew.
            test_on: What `test` and `validate` of a run measure: `split` for the held-out part, or `all` for all
                labeled images of a source that the run was not trained on, its training part included.
            on_leak: A picture that is held out for evaluation and stands in training, too, is dropped from training
                (`drop`) or stops the run (`raise`).
            on_bad_image: An unreadable picture stops the run (`raise`) or is left out, counted and listed (`skip`).
            image_size: Side of the square pictures; null keeps that of data sets in memory and makes files 224.
            channels: 1 for gray, 3 for color; null keeps that of data sets in memory and makes files 3.
            background: Color under transparent pixels, 0 to 255.
            center_crop: Share of the shorter side of a file's picture that is kept; 0.875 is the usual test view of
                ImageNet (256 to 224).
            resize: How a file's picture becomes square: `crop` keeps the central square, `pad` adds background to the
                shorter side, and `squash` changes the ratio of its sides.
            value_range: What is black and white in images of more than 8 bits, as in [0, 4095]; null takes one scale
                for the data set: the smallest of 1, 8, 10, 12, 14 and 16 bits that holds all integers, 0 to 1, 255 or
                65,535 for floating point, or the range of the data. The checkpoint keeps it for other images.
            weak_view: Random changes of training pictures.
            strong_view: What a strong view adds, for paradigms that use one.
            labeled_view: Which of them labeled training pictures get; `both` makes each batch of them twice as large
                (as AdaMatch has it).
            batch_size: Training examples of each batch and process.
            unlabeled_ratio: Unlabeled examples for each labeled one where a paradigm trains on both (mu of FixMatch).
            balanced_labels: Classes take turns in labeled batches that come beside unlabeled ones.
            eval_batch_size: The same for validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches of an epoch; null for one pass over the first part that the paradigm needs.
            num_workers: Processes that decode files; null for one per available core, at most 8.
            cache: Folder in which decoded pictures of files are kept for later epochs and runs, or null for none; each
                takes as many bytes as it has pixels times channels. Without `crop_scale` batches are the same, bit for
                bit; with it, crops are the same rectangles, taken from whole pictures that are kept with twice as many
                pixels as a crop has. All is decoded anew where a file is added or changes its name or content. The
                folder may be removed when no run uses it. `predict` does without.
            shard_window: So many shards are read, and their examples shuffled, at a time (`scripts/shard`).
            predict_source: What `predict` reads: a folder, manifest, file or data set; null for the test split.
            class_names: The classes in the order of their numbers; those of the source are matched by name. Where
                these, `image_size` and `channels` are given, the source is opened only when its images are needed.

        Raises:
            InputError: Something of this cannot be.
        """
        super().__init__()
        whole = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "steps_per_epoch": steps_per_epoch}
        whole |= {"unlabeled_ratio": unlabeled_ratio, "shard_window": shard_window, "image_size": image_size}
        check_min(1, **whole)
        check_min(0, num_workers=num_workers)
        if not 0 <= seed < 2**32:
            raise InputError(f"seed is {seed}: give a whole number from 0 to 4294967295")
        check_positive(center_crop=center_crop)
        check_fraction(center_crop=center_crop)
        self._named, self.root, self.download, self._class_names = source, root, download, class_names
        self.unlabeled_source, self.predict_source, self.split_file = unlabeled_source, predict_source, split_file
        self.request = SplitConfig(seed, num_labels, labels_per_class, float(val_size), float(test_size), on_leak)
        self.bad = BadImages(on_bad_image)
        self.weak_view = make_view(WeakView, weak_view, "weak_view")
        self.strong_view = make_view(StrongView, strong_view, "strong_view")
        self.labeled_views = ("weak", "strong") if labeled_view == "both" else (labeled_view,)
        self.unlabeled_ratio, self.balanced_labels = unlabeled_ratio, balanced_labels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.steps_per_epoch, self.shard_window, self.test_on = steps_per_epoch, shard_window, test_on
        self.num_workers = min(8, count_cores()) if num_workers is None else num_workers
        self._converts = image_size is not None or channels is not None
        told = class_names is not None and image_size is not None and channels is not None
        shape = (3, 224, 224) if told else self.opened_source.image_shape or (3, 224, 224)
        side = image_size or shape[1]
        self.given_image_size, self._image_shape = image_size, (channels or shape[0], side, side)
        self.value_range, ranges = value_range, check_value_range(value_range)
        self.geometry = Geometry(side, self._image_shape[0], background, center_crop, resize=resize, ranges=ranges)
        self._cache = None if cache is None else Path(cache)
        self.followed_run: Path | None = None  # the run that goes on or is measured again: its split rules
        self.starts: Sequence[Path] = ()  # `split.csv` of the runs before it, whose labels it has seen
        self.unlogged_folder: Path | None = None  # of a run without a logger
        self.splits: Splits = {}
        self._parts: list[Examples] = []
        self._caches: ImageCaches | None = None
        self._features: Splits = {}
        self._streams: list[Stream] = []

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a network sees."""
        return self._image_shape

    def labeled_counts(self) -> Tensor:
        """Number of training labels of each class, int64 of shape (num_classes,)."""
        return torch.bincount(self.splits["labeled"].labels, minlength=self.num_classes)

    def setup(self, stage: str) -> None:
        """Reads the source and makes the splits, once.

        Args:
            stage: fit, validate, test or predict.
        """
        if not self.splits and not (stage == "predict" and self.predict_source is not None):
            self._make_splits(stage)
        if stage == "predict":
            self.open_predicted()
        folder = self._run_folder()  # a collective call: on every rank
        if folder is not None and stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            if self.followed_run is None:
                self.write_splits(folder / MANIFEST, self.splits)
            self._list_skipped(folder)

    def write_splits(self, path: Path, splits: Splits) -> None:
        """Writes splits of the source's examples, for `split_file`.

        Args:
            path: The file; its folder is made.
            splits: Those of this data module, or others of the same examples.
        """
        about: dict[str, Any] = {"source": self.opened_source.name, "class_names": self.class_names}
        about |= get_split_settings(self.request, self.unlabeled_source)
        write_split_file(path, splits, self._parts, self.class_names, about)

    def on_exception(self, exception: BaseException) -> None:
        """Ends the processes that decode files."""
        close(self._streams)

    def teardown(self, stage: str) -> None:
        """Ends them, too; counts and lists pictures that turned out unreadable on the way.

        Args:
            stage: fit, validate, test or predict.
        """
        close(self._streams)
        folder = self._run_folder()
        if self.bad.num_unreported:
            rank_zero_info(f"Data: {self.bad.summarize()}.")
        if folder is not None:
            self._list_skipped(folder)

    def _run_folder(self) -> Path | None:
        is_logged = self.trainer is not None and bool(self.trainer.loggers)
        folder = self.trainer.log_dir if is_logged else self.unlogged_folder
        is_dry_run = self.trainer is not None and self.trainer.fast_dev_run
        return None if folder is None or is_dry_run else Path(folder)

    def _list_skipped(self, folder: Path) -> None:
        if folder.is_dir():
            self.bad.write(folder, self.trainer.global_rank if self.trainer is not None else 0)

    def _make_splits(self, stage: str) -> None:
        source, second = self.source_for(stage), self.unlabeled_for(stage)
        self.request.messages[:] = source.messages  # those of a refused attempt are gone
        followed = None if self.followed_run is None else self.followed_run / MANIFEST
        run = choose_run_split(followed, stage, self.starts, self.test_on, self.split_file)
        how = self.split_file, self.bad, self._converts, self._measures_values, run, self.starts
        self.splits, self._parts = read_splits(source, second, self.request, *how)
        self._describe_files(source.value_ranges)
        self._caches = None if self._cache is None else ImageCaches(self._cache, self._parts)
        if self._caches is not None and not self._caches:
            rank_zero_info(f"Data: cache {str(self._cache)!r} is not used: no picture is a file of its own.")
        for message in self.request.messages:
            rank_zero_info(f"Data: {message}.")
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        rank_zero_info(f"Data: {source.name}: {sizes}.")

    def as_trained(self, run: Path, class_names: list[str] | None = None) -> "ImageDataModule":
        """The same data in the splits of a run, whatever was chosen or predicted here.

        Args:
            run: Its folder, with `split.csv`.
            class_names: Its classes in the order of their numbers; None for those of this data module.

        Raises:
            InputError: The data is no longer there, or is not that of the run.
        """
        other = copy(self)
        other.split_file, other.request = None, replace(self.request, messages=[])
        other.followed_run, other.starts, other.test_on = run, (), "split"
        other.bad, other._features, other._streams = BadImages(self.bad.policy), {}, []
        other._class_names = class_names or self._class_names
        other._make_splits("calibrate")
        return other

    def _plan(self, name: str, split: Split, train: bool) -> BatchPlan:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(split) < world_size:
            raise InputError(f"there are {len(split)} {name} images for {world_size} processes: use fewer devices")
        size = self.batch_size if train else self.eval_batch_size
        both = train and len(self._request.parts) > 1
        if both and name == "unlabeled":
            size *= self.unlabeled_ratio
        beside = both and name == "labeled"
        balance = split.labels if beside and self.balanced_labels else None
        # Two streams of one run draw differently.
        seed = 2 * self.request.seed + (name == "unlabeled")
        order = choose_pass_order(split, self.shard_window) if train else None
        plan = BatchPlan(len(split), size, seed, train, rank, world_size, beside, balance, order)
        epoch = self._request.balanced_from_epoch if train and name == "labeled" else None
        if epoch is None:
            return plan
        later = BatchPlan(len(split), size, seed, train, rank, world_size, endless=True, balance=split.labels)
        return plan.then(later, epoch * self._taken(self.steps_per_epoch or plan.per_pass))

    @property
    def epoch_steps(self) -> int:
        """Training batches of an epoch of this process, after `limit_train_batches`."""
        return self._taken(self._batches)

    def _taken(self, batches: int) -> int:
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * (limit or 1.0))

    @property
    def _batches(self) -> int:
        first = "unlabeled" if "unlabeled" in self._request.parts else "labeled"
        return self.steps_per_epoch or self._plan(first, self.splits[first], train=True).per_pass

    def _stream(self, name: str, split: Split, train: bool) -> Stream:
        split = self._features.get(name, split)
        plan = self._plan(name, split, train)
        scale = self.weak_view.crop_scale if train and self._crops_once(name) else None
        geometry = replace(self.geometry, scale=None if scale is None else (scale[0], scale[1]))
        split, workers = (split, self.num_workers) if name == "predict" else self._opened(split, geometry)
        made = Stream(
            split,
            plan,
            geometry,
            with_labels=name != "unlabeled",
            workers=workers,
            bad=self.bad,
            device=None if self.trainer is None else self.trainer.strategy.root_device,
        )
        self._streams.append(made)
        return made

    def train_dataloader(self) -> TrainLoader:
        """The parts that the paradigm needs, side by side."""
        needed = self._request.parts
        if "labeled" in needed and not len(self.splits["labeled"]):
            raise InputError(
                f"source {self.source.name!r} gives no label to train on (num_labels is {self.request.num_labels}): "
                "ask for some, or train without labels"
            )
        if "unlabeled" in needed and not len(self.splits["unlabeled"]):
            raise InputError(
                f"source {self.source.name!r} gives no unlabeled image: use fewer labels (num_labels), add a folder "
                "'unlabeled' or lines with a blank label, or name an unlabeled_source"
            )
        if "strong" in (*self._request.views, *self.labeled_views) and not self.strong_view:
            raise InputError(
                "strong_view changes nothing (operations and cutout are 0), but strong views are to be learned from: "
                "set one of them"
            )
        streams = {name: self._stream(name, self.splits[name], train=True) for name in needed}
        everyone = self.batch_size * (1 if self.trainer is None else self.trainer.world_size)
        if len(streams) > 1 and (few := check_unlabeled_batch(len(self.splits["unlabeled"]), everyone)):
            rank_zero_info(f"Data: {few}.")
        module = None if self.trainer is None else self.trainer.lightning_module
        schedule = module.make_schedule(self.epoch_steps) if isinstance(module, RequestsBatches) else None
        repeats = self.trainer is not None and self.trainer.overfit_batches > 0
        return TrainLoader(streams, self._batches, schedule, self.epoch_steps, repeats)

    def _eval(self, name: str, split: Split) -> EvalLoader | list[Any]:
        if not len(split):
            return []
        return EvalLoader(self._stream(name, split, train=False))

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """The validation split, or nothing where none is held out."""
        return self._eval("val", self.splits["val"])

    def test_dataloader(self) -> EvalLoader | list[Any]:
        """The test split."""
        if not len(self.splits["test"]):
            raise InputError(f"source {self.source.name!r} has no test image: set test_size or add a folder 'test'")
        return self._eval("test", self.splits["test"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves the uint8 pictures; on the CPU there is nothing to do."""
        if device.type == "cpu":
            return batch
        if isinstance(batch, dict):
            return {name: moved(raw, device) for name, raw in batch.items()}
        return moved(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes the views on the device."""
        if isinstance(batch, RawBatch):
            return ViewMaker(self._image_shape, self.weak_view, self.strong_view).labeled(batch)
        views: dict[str, Labeled | Unlabeled] = {}
        if "labeled" in batch:
            views["labeled"] = self._maker("labeled").labeled(batch["labeled"])
        if "unlabeled" in batch:
            wanted = self._request.views
            views["unlabeled"] = self._maker("unlabeled").unlabeled(batch["unlabeled"], wanted)
        return views

    @property
    def _request(self) -> BatchRequest:
        """What the paradigm wants in its batches."""
        return batch_request(None if self.trainer is None else self.trainer.lightning_module)

    def _crops_once(self, name: str) -> bool:
        """Whether a worker may crop while it decodes a file: each view has a crop of its own, and there is just one."""
        views = self.labeled_views if name == "labeled" else self._request.views
        return isinstance(self.splits[name].part.images, EncodedImages) and len(views) == 1

    def _maker(self, name: str) -> ViewMaker:
        view = self.weak_view
        if view.crop_scale is not None and self._crops_once(name):
            view = replace(view, crop_scale=None)  # the worker has cropped
        return ViewMaker(self._image_shape, view, self.strong_view, self.labeled_views)

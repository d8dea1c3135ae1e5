"""The labels of a source, the folds that judge candidates, and the `split.csv` of each."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.class_folds import find_unjudged, make_folds
from sft_lightning.data.copies import find_exact_copies, group_copies
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.issues import Finding
from sft_lightning.data.open_data import check_settings, find_data_class, find_modality, list_settings
from sft_lightning.data.set_folds import UNJUDGED, divide_sets, find_unjudged_classes
from sft_lightning.data.source import concatenated
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.image_stats import find_small_shape
from sft_lightning.modalities import Modality, get_modality
from sft_lightning.solver.check_labels import check_labels
from sft_lightning.solver.measure import MEAN_AVERAGE_PRECISION, Measure, measure_of
from sft_lightning.study.folds import write_fold
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.make_task import make_task
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

MAX_SIDE = 64  # pixels: networks from scratch learn from larger images no faster, and take longer
MAX_FOLDS = 5
MAX_REPEATS = 5  # divisions into folds: with one, intervals of the choice hold 90% instead of 95% (crossfit_rates.py)
_REPEATED = 2000  # labels that are judged in all, so that fewer labels have more repeats, which they need
DECODED = "decoded"
_MAX_CACHED = 2_000_000_000  # bytes
_PLACES = ("mask", "boxes")  # targets that lie in places of the examples
_FEW, _MANY = 16, 256  # examples of a batch without gradients, where detectors find objects and else


@dataclass
class LabeledSource:
    """A source whose labels are all for training, with folds to judge by.

    Attributes:
        name: Name of the source, as the user gave it.
        data: Data module: `labeled` has all labels, `unlabeled` the pool, `test` what the source itself holds out.
        settings: Settings of the data module that trainings repeat.
        divisions: Fold of each labeled example in each of R divisions into folds, int64, (R, N); -1 for one that is
            never held out. Trainings use the first division alone.
        groups: Group of each labeled example, such as a patient; None where each stands alone.
        folder: Folder of the split files.
        reopen: Function that opens the same source again with other settings of the data module.
        modality: Kind of the examples.
        given_size: Side of the images that the user asked for, or None.
        origin: Source that this is a view of, or None.
    """

    name: str
    data: FewLabelDataModule
    settings: dict[str, str]
    divisions: np.ndarray
    groups: list[str] | None
    folder: Path
    reopen: Callable[..., FewLabelDataModule] = field(repr=False)
    modality: Modality
    given_size: int | None = None
    origin: "LabeledSource | None" = field(default=None, repr=False)

    @property
    def labels(self) -> Tensor:
        """Classes of the labeled examples, or numbers of their sets of classes, int64, (N,)."""
        return self.data.splits["labeled"].labels

    @cached_property
    def task(self) -> Task:
        """Kind of target."""
        return make_task(self.data.target, self.data.num_classes)

    @cached_property
    def measure(self) -> Measure:
        """What recipes are judged by."""
        return MEAN_AVERAGE_PRECISION if self.data.target == "boxes" else measure_of(self.task)

    @property
    def kind(self) -> str:
        """What the labels are, in the plural."""
        return {"mask": "masks", "boxes": "boxes"}.get(self.data.target, "labels")

    @property
    def counted(self) -> str:
        """What the number of labels counts, in the plural: labels, or annotated examples where each has several."""
        return f"annotated {self.data.input_spec.plural}" if self.data.has_boxes else "labels"

    @cached_property
    def targets(self) -> Tensor:
        """Classes of the labeled examples, int64, (N,), or 1 for each class of theirs and 0 for the others, (N, C)."""
        return self.data.make_targets(self.labels)

    @property
    def folds(self) -> np.ndarray:
        """Fold of each labeled example in the first division, int64, (N,)."""
        first: np.ndarray = self.divisions[0]
        return first

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return int(self.folds.max()) + 1

    @cached_property
    def memberships(self) -> Tensor | None:
        """Return 1 for each class that a labeled example has and 0 for the others, (N, C); None for one each."""
        return self.data.labeled_memberships()

    @cached_property
    def unjudged(self) -> list[str]:
        """Names of the classes whose only label, or group, is never held out."""
        if self.memberships is not None:
            found = find_unjudged_classes(self.memberships.numpy(), self.folds, self.groups)
        else:
            found = find_unjudged(self.labels.numpy(), self.folds[None])
        return [self.data.class_names[label] for label in found]

    @cached_property
    def unlabeled_classes(self) -> list[str]:
        """Names of the classes without any label."""
        counts = self.data.labeled_counts().tolist()
        return [name for name, count in zip(self.data.class_names, counts, strict=True) if not count]

    @property
    def has_test(self) -> bool:
        """Whether the source holds examples out for a test."""
        return len(self.data.splits["test"]) > 0

    @property
    def pool_size(self) -> int:
        """Number of unlabeled examples."""
        return len(self.data.splits["unlabeled"])

    @cached_property
    def key(self) -> str:
        """Hash of the content of all examples, how they are read, the labels and the folds."""
        digest = hashlib.sha256(repr((self.settings, self.data.class_names)).encode())
        if self.origin is not None:  # whose content is the same
            digest.update(repr((self.origin.key, self.data.reading_key)).encode())
            return digest.hexdigest()
        for name in ("labeled", "unlabeled", "test"):
            digest.update(self.data.fingerprint(name).encode())
            split = self.data.splits[name]
            if self.data.target in _PLACES:  # whose annotations are not part of the fingerprints
                digest.update(b"".join(split.part.storage.contents(split.indices)))
        digest.update(repr((self.targets.tolist(), self.divisions.tolist())).encode())
        return digest.hexdigest()

    @cached_property
    def content_key(self) -> str:
        """Hash of the examples to learn from without labels, whichever have some, and of how they are read."""
        settings = {name: value for name, value in self.settings.items() if name != "labels"}
        digest = hashlib.sha256(repr((settings, self.data.reading_key)).encode())
        splits = [self.data.splits[name] for name in ("labeled", "unlabeled")]
        for content in sorted(one for split in splits for one in split.part.storage.fingerprints(split.indices)):
            digest.update(content)
        return digest.hexdigest()

    def view(self, spec: InputSpec) -> "LabeledSource":
        """Return the same examples, labels and folds as inputs of another size or number of channels.

        Args:
            spec: Inputs.

        Raises:
            InputError: The source cannot give them.
        """
        if spec == self.data.input_spec:
            return self
        changed = self.data.settings_for(spec)
        if not changed:
            raise InputError(f"it takes {spec}, and the source gives {self.data.input_spec}: leave it out")
        data = self.reopen(**changed)
        if any(data.splits[name].ids != self.data.splits[name].ids for name in ("labeled", "unlabeled", "test")):
            raise InputError(f"source {self.name!r} has changed since it was opened: start solve again")
        settings = {**self.settings, **{setting: str(value) for setting, value in changed.items()}}
        return replace(self, data=data, settings=settings, origin=self)

    @property
    def is_cached(self) -> bool:
        """Whether trainings share decoded files on the disk: of at most 2 GB, and half of what is free there."""
        size = self.data.decoded_bytes
        if (self.folder / DECODED).is_dir():  # which takes the space already
            return 0 < size <= _MAX_CACHED
        free = shutil.disk_usage(next(path for path in (self.folder, *self.folder.parents) if path.is_dir())).free
        return 0 < size <= min(_MAX_CACHED, free // 2)

    def write_split(self, fold: int | None) -> Path:
        """Write the `split.csv` of a fold, whose examples are those to test on, and return its path.

        Args:
            fold: Number of the fold, or None for all labels and the source's own test split.
        """
        path = self.folder / "splits" / ("all.csv" if fold is None else f"fold_{fold}.csv")
        write_fold(self.data, path, None if fold is None else self.folds == fold)
        return path

    def data_argv(self, fold: int | None) -> list[str]:
        """Return the arguments with which `fit` reads a fold.

        Args:
            fold: Number of the fold, or None for all labels.
        """
        given = {"source": self.name, **self.settings, "split_file": str(self.write_split(fold))}
        if self.is_cached and "cache" in list_settings(type(self.data)):
            given["cache"] = str(self.folder / DECODED)
        return [f"--data={type(self.data).__name__}", *(f"--data.{name}={value}" for name, value in given.items())]


def read_source(
    name: str,
    folder: Path,
    num_labels: int | None,
    image_size: int | None,
    seed: int,
    root: str,
    labels: str | None = None,
    download: bool = False,
    **given: Any,
) -> LabeledSource:
    """Open a source and divide its labels into folds.

    Args:
        name: Source, as `data.init_args.source` takes it.
        folder: Folder of the solution.
        num_labels: Number of labels to use; None for all.
        image_size: Side of the images; None for that of the source, at most 64.
        seed: Seed of the labels, if fewer than all are used, and of the folds.
        root: Folder of torchvision data sets.
        labels: A CSV of further labels, or None.
        download: Whether to fetch a torchvision data set that is not in `root`.
        given: Further settings of the data module; None for its default.

    Raises:
        InputError: The source cannot be opened, or has labels of fewer than two classes.
    """
    modality = get_modality(find_modality(name))
    make: Any = find_data_class(name)
    check_settings(name, make, {"image_size": image_size, "labels": labels, **given})
    given = {setting: value for setting, value in {"labels": labels, **given}.items() if value is not None}
    skipping, has_sides = modality.solve.skipping, modality.solve.has_sides
    own: dict[str, Any] = {"root": root, skipping: "skip"} if skipping else {}
    settings = {**own, "seed": str(seed)}
    if "download" in list_settings(make):
        own["download"] = download
    settings |= {setting: one if isinstance(one, str) else json.dumps(one) for setting, one in given.items()}

    opened: list[FewLabelDataModule] = []  # the first one, whose splits the others share

    def reopen(**changed: Any) -> FewLabelDataModule:
        how = {"num_labels": num_labels, "seed": seed, "val_size": 0, "test_size": 0}
        how["eval_batch_size"] = _FEW if make.has_boxes else _MANY
        data: FewLabelDataModule = make(name, **how, **own, **{**given, **changed})
        with silence_logs():  # what it says is on the first screen
            if opened and data.shares_splits:
                data.share_splits(opened[0])
            else:
                data.setup("fit")
                _join_validation(data, num_labels)
                opened.append(data)
        return data

    data, sizes = _open_at_size(reopen, image_size) if has_sides else _open_as_suggested(reopen)
    settings |= {setting: str(value) for setting, value in sizes.items()}
    labeled = data.splits["labeled"]
    check_labels(name, data, modality)
    groups = group_copies(labeled)
    try:
        repeats = max(1, min(MAX_REPEATS, _REPEATED // max(1, len(labeled))))
        memberships = data.labeled_memberships()
        if memberships is not None:
            divisions = divide_sets(memberships.numpy(), groups, MAX_FOLDS, repeats, seed)
            if data.target == "mask":  # one without a pixel that counts judges nothing
                divisions[:, (memberships.sum(1) == 0).numpy()] = UNJUDGED
        else:
            divisions = make_folds(labeled.labels.numpy(), groups, MAX_FOLDS, repeats, seed, data.class_names)
    except InputError as error:
        copies = find_exact_copies([labeled]).count
        raise InputError(f"{error} ({copies:,} labeled examples copy others)" if copies else str(error)) from error
    return LabeledSource(name, data, settings, divisions, groups, folder, reopen, modality, image_size)


def _join_validation(data: FewLabelDataModule, num_labels: int | None) -> None:
    """Add the labels of a source's own validation split to the others, since folds judge in its place.

    Args:
        data: Data module after its setup.
        num_labels: Number of labels that the user chose, to which none is added, or None.
    """
    labeled, val = data.splits["labeled"], data.splits["val"]
    if not len(val):
        return
    use = "are used like the others"
    if num_labels is None:
        everything = concatenated((labeled.part, labeled.indices), (val.part, val.indices))
        data.splits |= {"labeled": Split(everything, range(len(everything))), "val": Split(val.part, [])}
    else:
        use = f"are not used, since num_labels is {num_labels}"
    data.request.findings.append(Finding("note", f"the {len(val):,} labels of the validation split {use}"))


def _open_at_size(
    reopen: Callable[..., FewLabelDataModule], size: int | None
) -> tuple[FewLabelDataModule, dict[str, int]]:
    """Open data as its examples are if all are squares of one size of at most 64 pixels, else at 64.

    Args:
        reopen: Function that opens the data with further settings.
        size: Side that the user gave, or None.

    Returns:
        The data and these settings.
    """
    if size is not None:
        return reopen(image_size=size), {"image_size": size}
    try:
        data = reopen()
        if max(data.input_spec.shape[1:]) <= MAX_SIDE:
            return data, {}
    except InputError as error:
        if "image_size" not in str(error):
            raise
    data = reopen(image_size=MAX_SIDE)
    if data.target in _PLACES:
        return data, {"image_size": MAX_SIDE}  # larger ones are a decision of the plan
    shape = find_small_shape([data.splits[name] for name in ("labeled", "unlabeled", "test")], MAX_SIDE)
    if shape is None:
        return data, {"image_size": MAX_SIDE}
    given = {"channels": shape[0], "image_size": shape[1]}
    return reopen(**given), given


def _open_as_suggested(reopen: Callable[..., FewLabelDataModule]) -> tuple[FewLabelDataModule, dict[str, Any]]:
    """Open data with the settings that it suggests for its examples.

    Args:
        reopen: Function that opens the data with further settings.

    Returns:
        The data and these settings.
    """
    data = reopen()
    suggested = data.suggest_settings()
    return (reopen(**suggested), suggested) if suggested else (data, {})

"""What there is to say of a trained classifier: its predictions, how far to trust them, and its mistakes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.cli import SFTCLI, Built, run
from sft_lightning.data.datamodule import ImageDataModule
from sft_lightning.data.splits import Split
from sft_lightning.errors import InputError
from sft_lightning.lineage import run_of
from sft_lightning.networks.backbones import Backbone, build_backbone
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.reuse.parts import read_trained
from sft_lightning.runs import find_checkpoint

_FEW = 2000  # unlabeled examples among which some are chosen to be labeled
# What the run was trained on need not be here.
_HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
_HERE += ["--trainer.precision=32-true", "--trainer.logger=false"]


@dataclass
class Judged:
    """A split as the network sees it.

    Attributes:
        name: Of the split.
        ids: Names of the examples.
        features: (N, F).
        logits: (N, C).
        labels: int64, (N,), -1 where unknown.
    """

    name: str
    ids: list[str]
    features: Tensor
    logits: Tensor
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """Classes, int64 of shape (N,)."""
        return self.logits.argmax(1)

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each example, (N,)."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return float((self.predicted == self.labels).double().mean())


class Opened:
    """A run with its network and its data, on the CPU.

    Attributes:
        name: As the user gave it.
        checkpoint: The file.
        folder: Of the run.
        trained: The network apart from its run.
        data: Set up.
    """

    def __init__(self, name: str) -> None:
        """Finds and reads the run.

        Args:
            name: Folder of a run, or a checkpoint.

        Raises:
            InputError: It is none, or is damaged, or its data cannot be read.
        """
        try:
            self.checkpoint = find_checkpoint(name, Path("."))
        except InputError as error:
            raise InputError(str(error).replace("ckpt_path", "run", 1)) from error
        folder = run_of(self.checkpoint)
        if folder is None:
            raise InputError(
                f"run {name!r} has no fit.yaml, which says what its data is: give the folder that fit wrote"
            )
        self.name, self.folder, self.trained = name, folder, read_trained(self.checkpoint)
        self.cli: SFTCLI = run(["test", "--ckpt_path", str(self.checkpoint), *_HERE], Built)
        if not isinstance(self.cli.datamodule, ImageDataModule):
            kind = type(self.cli.datamodule).__name__
            raise InputError(f"run {name!r} has data of {kind}: a report needs an ImageDataModule")
        self.data = self.cli.datamodule
        self.data.setup("test")

    @property
    def held_out(self) -> str:
        """`test`, or `val` where there is no test split.

        Raises:
            InputError: There is neither.
        """
        for name in ("test", "val"):
            if len(self.data.splits[name]):
                return name
        raise InputError(
            f"run {self.name!r} has neither a test nor a validation split: there is nothing to judge it by"
        )


class Facts:
    """A classifier and what it makes of its splits."""

    def __init__(self, opened: Opened) -> None:
        """Computes the features that are not kept yet.

        Args:
            opened: A run.

        Raises:
            InputError: It has nothing to be judged by, or pictures that cannot be read.
        """
        trained = opened.trained
        self.folder, self.data, self.about = opened.folder, opened.data, trained.about
        self.class_names = self.data.class_names
        self.backbone = _filled(self.about, trained.backbone)
        self.head = trained.head
        self.judged = self._seen(opened.held_out)
        apart = len(self.data.splits["val"]) and opened.held_out != "val"
        self.validation = self._seen("val") if apart else None
        self.labeled = self._seen("labeled")

    def _seen(self, name: str) -> Judged:
        split = self.data.splits[name]
        found = features(self.backbone, self.data, name)
        if found is None:
            raise InputError(f"source {self.data.source.name!r} has {name} images that cannot be read: remove them")
        x = found.float()
        return Judged(name, split.ids, x, F.linear(x, self.head["weight"], self.head["bias"]), split.labels)

    def unlabeled(self) -> Judged | None:
        """At most 2,000 unlabeled examples, chosen by the seed of the data."""
        split = self.data.splits["unlabeled"]
        if not len(split):
            return None
        chosen = [split.indices[i] for i in some(len(split), _FEW, self.data.request.seed).tolist()]
        self.data.splits["some unlabeled"] = Split(split.part, chosen)
        return self._seen("some unlabeled")


def _filled(about: dict[str, Any], tensors: dict[str, Tensor]) -> Backbone:
    backbone, _ = build_backbone(about["backbone"], about["image_shape"])
    backbone.load_state_dict(tensors)
    return backbone.eval()


def some(count: int, most: int, seed: int) -> Tensor:
    """Positions of all examples, or of some that a seed draws, in order.

    Args:
        count: Of examples.
        most: So many are enough.
        seed: Draws.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values

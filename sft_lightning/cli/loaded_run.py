"""A run with its network and its data, on the CPU, whichever device it was trained on."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning import FrozenFeatureClassifier
from sft_lightning.cli.lightning_cli import SFTCLI, DryRunCLI, run
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.tasks.make_task import rebuild_head
from sft_lightning.utils.errors import InputError

# This machine may lack the devices that the run was trained on.
_HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
_HERE += ["--trainer.precision=32-true", "--trainer.logger=false"]


class LoadedRun:
    """A run with its network and its data, on the CPU.

    Attributes:
        name: Name as the user gave it.
        checkpoint: File of the checkpoint.
        folder: Folder of the run.
        trained: Network apart from its run.
        data: Data module after its setup.
    """

    def __init__(self, name: str, *words: str, takes_defects: bool = False) -> None:
        """Find and read the run.

        Args:
            name: Folder of a run, or a checkpoint.
            words: Options that replace settings of the run, as on the command line.
            takes_defects: Whether a run may have learned from normal examples alone.

        Raises:
            InputError: The run does not exist or is damaged, or its data cannot be read.
        """
        self.checkpoint = find_run_checkpoint(name)
        folder = find_run(self.checkpoint)
        if folder is None:
            raise InputError(f"run {name!r} has no fit.yaml, which describes its data: give the folder that fit wrote")
        self.name, self.folder, self.trained = name, folder, load_trained_network(self.checkpoint)
        self.cli: SFTCLI = run(["test", "--ckpt_path", str(self.checkpoint), *_HERE, *words], DryRunCLI)
        if not isinstance(self.cli.datamodule, FewLabelDataModule):
            kind = type(self.cli.datamodule).__name__
            raise InputError(f"run {name!r} has data of {kind}: give a run with a FewLabelDataModule")
        self.data = self.cli.datamodule
        if self.data.target == "defect" and not takes_defects:
            self.data.require_classes(f"this command, of run {name!r},")
        self.data.setup("test")

    @cached_property
    def classify(self) -> Callable[[Tensor], Tensor] | None:
        """Function from features (N, F) to logits (N, C), of maps to maps; None for a run without a classifier."""
        if self.trained.head:
            return rebuild_head(self.data.target, self.trained.head)
        if not isinstance(self.cli.model, FrozenFeatureClassifier):
            return None
        self.cli.model.load_state_dict(read_weights(self.checkpoint)[0])
        return self.cli.model.eval().classify

    @property
    def held_out(self) -> str:
        """Name of the split for evaluation: `test`, or `val` where the test split is empty.

        Raises:
            InputError: Both splits are empty.
        """
        for name in ("test", "val"):
            if len(self.data.splits[name]):
                return name
        raise InputError(f"run {self.name!r} has neither a test nor a validation split: it cannot be evaluated")


def describe_checkpoint(checkpoint: Path, step: int | None) -> str:
    """Describe which state of the training a checkpoint holds.

    Args:
        checkpoint: File of the checkpoint.
        step: Global step in the checkpoint, or None if it is not known.
    """
    name = "last iterate" if checkpoint.name == "last.ckpt" else f"checkpoint {checkpoint.name}"
    return f"{name} (step {step:,})" if step is not None else name


def sample_positions(count: int, most: int, seed: int) -> Tensor:
    """Return the positions of all examples, or of a random sample, in ascending order.

    Args:
        count: Number of examples.
        most: Largest size of the sample.
        seed: Seed of the sample.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def add_subset(data: FewLabelDataModule, name: str, most: int) -> str:
    """Add a split that holds a random sample of another one, and return its name.

    Args:
        data: Data module after its setup, whose seed chooses the sample.
        name: Name of the split to sample from.
        most: Largest size of the sample.
    """
    split = data.splits[name]
    chosen = [split.indices[i] for i in sample_positions(len(split), most, data.request.seed).tolist()]
    data.splits[f"some {name}"] = Split(split.part, chosen)
    return f"some {name}"

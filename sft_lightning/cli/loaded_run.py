"""A run with its network and its data, on the CPU, whatever it was trained on."""

from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.cli.lightning_cli import SFTCLI, DryRunCLI, run
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.paths import find_run_checkpoint
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.errors import InputError

# What the run was trained on need not be here.
_HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
_HERE += ["--trainer.precision=32-true", "--trainer.logger=false"]


class LoadedRun:
    """A run with its network and its data, on the CPU.

    Attributes:
        name: As the user gave it.
        checkpoint: The file.
        folder: Of the run.
        trained: The network apart from its run.
        data: Set up.
    """

    def __init__(self, name: str, *words: str) -> None:
        """Finds and reads the run.

        Args:
            name: Folder of a run, or a checkpoint.
            words: Settings in place of those of the run, as on the command line.

        Raises:
            InputError: It is none, or is damaged, or its data cannot be read.
        """
        self.checkpoint = find_run_checkpoint(name)
        folder = find_run(self.checkpoint)
        if folder is None:
            raise InputError(
                f"run {name!r} has no fit.yaml, which says what its data is: give the folder that fit wrote"
            )
        self.name, self.folder, self.trained = name, folder, load_trained_network(self.checkpoint)
        self.cli: SFTCLI = run(["test", "--ckpt_path", str(self.checkpoint), *_HERE, *words], DryRunCLI)
        if not isinstance(self.cli.datamodule, ImageDataModule):
            kind = type(self.cli.datamodule).__name__
            raise InputError(f"run {name!r} has data of {kind}: to look at it takes an ImageDataModule")
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


def describe_checkpoint(checkpoint: Path, step: int | None) -> str:
    """Which state of the training a checkpoint holds, in words.

    Args:
        checkpoint: The file.
        step: What it says of itself.
    """
    name = "last iterate" if checkpoint.name == "last.ckpt" else f"checkpoint {checkpoint.name}"
    return f"{name} (step {step:,})" if step is not None else name


def sample_positions(count: int, most: int, seed: int) -> Tensor:
    """Positions of all examples, or of some that a seed draws, in order.

    Args:
        count: Of examples.
        most: So many are enough.
        seed: Draws.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def add_subset(data: ImageDataModule, name: str, most: int) -> str:
    """The name of a new split that holds some examples of another, drawn by the seed of the data.

    Args:
        data: Set up.
        name: Of a split.
        most: So many are enough.
    """
    split = data.splits[name]
    chosen = [split.indices[i] for i in sample_positions(len(split), most, data.request.seed).tolist()]
    data.splits[f"some {name}"] = Split(split.part, chosen)
    return f"some {name}"

"""How the examples of a modality go into a program: its inputs, and the code of the model card that makes them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.modalities import get_modality, load
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.inputs import Inputs, InputSpec

Given = dict[str, Tensor]  # what a program takes, by the names of its arguments


class ProgramForm(ABC):
    """Inputs of the programs of a modality.

    Attributes:
        program: Class of the module that is written, made from a backbone and a head or None. The arguments of its
            `forward` have the names of the inputs.
    """

    program: ClassVar[Any]

    def __init__(self, metadata: dict[str, Any]) -> None:
        """Keep what the export says of itself.

        Args:
            metadata: Metadata of the export, with `input_spec`.
        """
        self.metadata = metadata
        self.spec = InputSpec.parse(metadata["input_spec"])

    @abstractmethod
    def collect(self, data: FewLabelDataModule, name: str) -> list[Given]:
        """Return the readable examples of a split as a program takes them, in batches.

        Args:
            data: Data module after its setup.
            name: Name of the split.
        """

    @abstractmethod
    def decode(self, given: Given) -> Inputs:
        """Return network inputs from what a program takes.

        Args:
            given: Inputs of a program, (B, ...) each.
        """

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Given:
        """Return random inputs of a program.

        Args:
            count: Number of examples.
            generator: Source of the randomness.
        """

    @property
    @abstractmethod
    def free_sides(self) -> dict[str, dict[int, Dim]]:
        """Sides of each input that may have any length, by their position."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the metadata on the inputs of a program, and on what happens inside of it."""

    @abstractmethod
    def describe_preprocessing(self, data: dict[str, Any]) -> dict[str, Any]:
        """Describe how an example becomes the input of a program, as `predict` does it.

        Args:
            data: Settings of the run's data; empty where they are unknown.
        """

    @abstractmethod
    def explain(self) -> str:
        """Return the sentences of the model card on the inputs of a written program."""

    @abstractmethod
    def format_code(self, file: Path) -> list[str]:
        """Return lines of Python that apply a program to an example, up to its outputs `logits` or `features`.

        Args:
            file: Exported file; the code runs in its folder.
        """

    def explain_limits(self) -> list[str]:
        """Return sentences on what networks of this modality cannot do."""
        return []

    def cut(self, given: Given) -> Given:
        """Return a batch without what is padding in all of its examples.

        Args:
            given: Inputs of a program, (B, ...) each.
        """
        return given


def list_inputs(data: FewLabelDataModule, name: str) -> list[Inputs]:
    """Return the network inputs of a split without random changes, in batches on the CPU.

    Args:
        data: Data module after its setup.
        name: Name of the split.
    """
    return [batch.x for batch in data.batches_of(name, torch.device("cpu"))]


def find_form(metadata: dict[str, Any]) -> ProgramForm | None:
    """Return how examples go into the programs of a network, or None if its modality has none.

    Args:
        metadata: Metadata of the export.
    """
    spec = InputSpec.from_settings(metadata)
    path = "" if spec is None else get_modality(spec.modality).program_form
    found: ProgramForm | None = load(path)({**metadata, "input_spec": spec}) if path else None
    return found


class Program(nn.Module):
    """A backbone with its head, or alone; subclasses take the inputs of a modality."""

    def __init__(self, backbone: Encoder, head: nn.Module | None) -> None:
        """Join backbone and head.

        Args:
            backbone: Backbone with its normalization.
            head: Module from features (N, F) to logits (N, K), or None.
        """
        super().__init__()
        self.backbone, self.head = backbone, head
        self.eval().requires_grad_(False)

    def compute(self, x: Inputs) -> Tensor:
        """Compute logits (N, K) or features (N, F), float32.

        Args:
            x: Network inputs, (N, ...) each.
        """
        features: Tensor = self.backbone(x)
        return features if self.head is None else self.head(features)


def format_imports(metadata: dict[str, Any], *others: str) -> list[str]:
    """Return the imports of the code that runs a program.

    Args:
        metadata: Metadata of the written program.
        others: Further lines.
    """
    runtime = "import onnxruntime" if metadata["format"] == "onnx" else "import torch"
    plain = sorted({*(["import json"] if metadata["part"] == "model" else []), *(o for o in others if o in _STANDARD)})
    return [*plain, *([""] if plain else []), "import numpy as np", runtime, *(o for o in others if o not in _STANDARD)]


_STANDARD = {"import hashlib", "import re"}


def format_call(file: Path, metadata: dict[str, Any], given: dict[str, str]) -> list[str]:
    """Return the lines that run a program on arrays.

    Args:
        file: Exported file.
        metadata: Metadata of the written program.
        given: Names of the arrays by the inputs of the program.
    """
    name = metadata["output"]["name"]
    if metadata["format"] == "onnx":
        inputs = ", ".join(f'"{key}": {value}' for key, value in given.items())
        return [
            f'session = onnxruntime.InferenceSession("{file.name}")',
            f'{name} = session.run(["{name}"], {{{inputs}}})[0]',
        ]
    arrays = ", ".join(f"torch.from_numpy({value}.copy())" for value in given.values())
    return [f'program = torch.export.load("{file.name}").module()', f"{name} = program({arrays}).numpy()"]

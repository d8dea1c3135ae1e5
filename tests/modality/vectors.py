"""A modality of the tests, as a user would add one: vectors in the rows of a CSV, with blanks for missing numbers."""

import csv
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.modality import Views
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.splits import SplitConfig
from sft_lightning.data.storage import TensorStorage
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.inputs import InputSpec

Vectors = dict[str, Tensor]


class VectorSource(Source):
    """Rows `label,split,...numbers` of a CSV; a blank label makes an example unlabeled."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.rows = list(csv.reader(Path(path).read_text().splitlines()))[1:]
        self.class_names = tuple(sorted({row[0] for row in self.rows} - {""}))
        self.width = len(self.rows[0]) - 2

    def load(self) -> dict[str, Examples]:
        parts = {}
        for split in sorted({row[1] for row in self.rows}):
            kept = [(i, row) for i, row in enumerate(self.rows) if row[1] == split]
            numbers = torch.tensor([[float(cell or "nan") for cell in row[2:]] for _, row in kept])
            labels = torch.tensor([self.class_names.index(row[0]) if row[0] else -1 for _, row in kept])
            parts[split] = Examples(TensorStorage(numbers), [f"row {i}" for i, _ in kept], labels)
        return parts


class VectorViews(Views):
    """Numbers and which of them are given; the weak view adds noise, the strong one also hides numbers."""

    def prepare(self, raw: Tensor) -> Vectors:
        return {"values": raw.nan_to_num(0.0), "given": raw.isfinite().float()}

    def weak(self, x: Vectors, seed: int | None, number: int = 0) -> Vectors:
        if seed is None:
            return x
        generator = torch.Generator().manual_seed((seed + 7919 * number) % 2**32)
        values = x["values"]
        return {**x, "values": values + 0.05 * torch.randn(values.shape, generator=generator) * x["given"]}

    def strong(self, x: Vectors, seed: int) -> Vectors:
        generator = torch.Generator().manual_seed((seed + 3) % 2**32)
        kept = (torch.rand(x["given"].shape, generator=generator) > 0.2).float()
        return {name: tensor * kept for name, tensor in self.weak(x, seed, 2).items()}


class Unflatten(nn.Module):
    """Decoder from features to both tensors."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.values, self.given = nn.Linear(num_features, width), nn.Linear(num_features, width)

    def forward(self, features: Tensor) -> Vectors:
        return {"values": self.values(features), "given": self.given(features)}


class VectorEncoder(Encoder):
    """Two hidden layers on the numbers and the mask."""

    modality: ClassVar[str] = "vector"

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        width, self.num_features = spec.shape[0], 16
        self.net = nn.Sequential(nn.Linear(2 * width, 32), nn.ReLU(), nn.Linear(32, self.num_features), nn.ReLU())

    def forward(self, x: Vectors) -> Tensor:
        features: Tensor = self.net(torch.cat([x["values"], x["given"]], 1))
        return features

    def make_example(self) -> Vectors:
        zeros = torch.zeros(1, *self.input_spec.shape, device=self.device)
        return {"values": zeros, "given": zeros}

    def build_decoder(self) -> nn.Module:
        return Unflatten(self.num_features, self.input_spec.shape[0])

    def corrupt(self, x: Vectors, noise: float, hidden: float, patch: int, generator: torch.Generator) -> Vectors:
        kept = (torch.rand(x["given"].shape, generator=generator) >= hidden).float()
        return {name: tensor * kept for name, tensor in x.items()}


class VectorDataModule(FewLabelDataModule):
    """Few labeled and many unlabeled vectors."""

    def __init__(self, source: str, seed: int = 0, num_labels: int | None = None, **settings: Any) -> None:
        super().__init__(source, SplitConfig(seed, num_labels), **settings)
        self.views = VectorViews()

    def open_source(self, name: str) -> VectorSource:
        return VectorSource(name)

    @property
    def input_spec(self) -> InputSpec:
        source = self.opened_source
        assert isinstance(source, VectorSource)
        return InputSpec("vector", (source.width,))

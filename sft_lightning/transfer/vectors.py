"""Vectors of examples for classifiers and graphs: features of a frozen network, or the inputs themselves."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sft_lightning.data.batches import Labeled
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.vision.pixels import shrink_images
from sft_lightning.utils.inputs import Inputs


def choose_device() -> torch.device:
    """Return the device for the features of a frozen network: the accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def make_flattener(data: FewLabelDataModule, backbone: Encoder | None = None) -> Callable[[Inputs], Tensor]:
    """Return a function from network inputs to vectors, float32, (B, D).

    Args:
        data: Data module after `setup`.
        backbone: Frozen network that gives the features; None for the inputs, of which images are shrunk to 32 pixels.
    """

    def flatten(x: Inputs) -> Tensor:
        if backbone is not None:
            features: Tensor = backbone(x)
            return features.float()
        if data.input_spec.modality == "image" and isinstance(x, Tensor):
            x = shrink_images(x)
        return data.views.flatten(x)

    return flatten


def stack_vectors(
    batches: Iterable[Labeled], data: FewLabelDataModule, backbone: Encoder | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vectors of batches, float32, (N, D), their classes and their positions, int64, (N,), on the CPU.

    Args:
        batches: Batches without random changes, on the backbone's device.
        data: Data module after `setup`.
        backbone: Frozen network that gives the features; None for the inputs themselves.
    """
    flatten = make_flattener(data, backbone)
    with torch.no_grad(), eval_mode(backbone or torch.nn.Identity()):
        rows = [(flatten(batch.x).cpu(), batch.y.cpu(), batch.indices.cpu()) for batch in batches]
    x, y, indices = zip(*rows, strict=True)
    return torch.cat(x), torch.cat(y), torch.cat(indices)

"""Test files of networks that have the blocks of the backbone and further ones."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import load_into
from sft_lightning.utils.errors import InputError


@pytest.mark.parametrize(
    ("backbone", "network", "lacks"),
    [
        ("torchvision/resnet18", models.resnet34, r"layer1\.2, layer2\.2, layer2\.3 and 5 more"),
        ("timm/test_vit", lambda: timm.create_model("test_vit", depth=8), r"blocks\.6, blocks\.7;"),
    ],
)
def test_file_of_a_deeper_network_is_refused(
    backbone: str, network: type[nn.Module], lacks: str, tmp_path: Path
) -> None:
    file = tmp_path / "deep.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network().state_dict().items()}}, file)
    with pytest.raises(InputError, match=f"deep.pth' are of a deeper network: the backbone lacks {lacks}"):
        build_backbone(backbone, (3, 32, 32), str(file))


def test_other_modules_of_a_file_do_not_count_as_blocks() -> None:
    network = models.mobilenet_v3_small(num_classes=3)
    network.classifier[3] = nn.Identity()  # the head, which is numbered with layers of the backbone
    whole = models.mobilenet_v3_small(num_classes=3).state_dict() | {"decoder.0.weight": torch.zeros(2, 2)}
    matched = load_into(network, whole, "file.pth", classifier="classifier.3")
    assert matched.classifier == ["classifier.3.weight", "classifier.3.bias"]
    assert matched.unused == ["decoder.0.weight"]

from itertools import chain

import pytest
from torch import nn

from sft_lightning.networks.backbones import build_backbone
from sft_lightning.networks.blocks import blocks


def _network(name: str) -> nn.Module:
    return build_backbone(name, (3, 64, 64))[0].net


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp", 3),
        ("conv", 5),
        ("resnet18", 9),  # stem, 8 residual blocks
        ("resnet50", 17),
        ("efficientnet_b0", 18),  # stem, 16 blocks, last convolution
        ("vit_b_16", 13),  # patches, 12 layers
        ("vit_tiny_patch16_224", 13),
        ("convnext_tiny", 22),  # stem, 18 blocks, 3 between the stages
        ("squeezenet1_1", 9),
    ],
)
def test_number_of_blocks(name: str, count: int) -> None:
    assert len(blocks(_network(name))) == count


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "conv",
        "resnet18",
        "vit_b_16",
        "efficientnet_b0",
        "mobilenet_v3_small",
        "convnext_tiny",
        "densenet121",
        "googlenet",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "timm/resnet10t",
        "timm/efficientnet_b0",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "mixer_s32_224",
        "edgenext_xx_small",
    ],
)
def test_each_parameter_of_a_submodule_is_in_one_block_in_order(name: str) -> None:
    network = _network(name)
    inside = [p for modules in blocks(network) for m in modules for p in m.parameters()]
    places = {id(p): i for i, p in enumerate(network.parameters())}
    order = [places[id(p)] for p in inside]
    assert len(set(order)) == len(order)
    assert order == sorted(order)
    loose = [n for n, p in network.named_parameters() if id(p) not in {id(p) for p in inside}]
    assert all("token" in n or "embed" in n for n in loose)


def test_a_lone_normalization_belongs_to_the_block_before() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4))
    assert [len(modules) for modules in blocks(network)] == [2, 1]


def test_blocks_of_resnet_are_stem_and_residual_blocks() -> None:
    kinds = [type(modules[0]).__name__ for modules in blocks(_network("resnet18"))]
    assert kinds == ["Conv2d", *["BasicBlock"] * 8]


def test_blocks_hold_no_module_twice() -> None:
    modules = list(chain(*blocks(_network("efficientnet_b0"))))
    assert len({id(m) for m in modules}) == len(modules)

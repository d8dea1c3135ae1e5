"""The map of features that a decoder makes of the maps of a backbone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sft_lightning import FineTuneClassifier
from sft_lightning.losses.regularizers import BSS, L2SP
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.tasks.segmentation import PixelHead
from sft_lightning.utils.errors import InputError

SHAPE = (3, 64, 64)


def dense(name: str, side: int = 64) -> Backbone:
    torch.manual_seed(0)
    made, tensors = build_backbone(name, (3, side, side))
    made.add_decoder(tensors)
    return made


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet8", [("2", 4), ("3", 8)]),
        ("resnet18", [("layer1", 4), ("layer2", 8), ("layer3", 16), ("layer4", 32)]),
        ("mobilenet_v2", [("features.3", 4), ("features.6", 8), ("features.13", 16), ("features", 32)]),
        ("timm/resnet18", [(1, 4), (2, 8), (3, 16), (4, 32)]),
        ("timm/vit_tiny_patch16_224", [(2, 16), (5, 16), (8, 16), (11, 16)]),
    ],
)
def test_maps_of_all_kinds_of_networks(name: str, places: list[tuple[str | int, int]]) -> None:
    backbone = dense(name)
    assert backbone.decoder is not None
    assert [(level.place, level.stride) for level in backbone.decoder.levels] == places
    features = backbone(torch.rand(2, *SHAPE))
    assert features.shape == (2, backbone.num_features, 16, 16)
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # DDP waits for each of them
    assert not any(module._forward_hooks for module in backbone.modules())


def test_features_stay_where_the_image_has_them() -> None:
    backbone = dense("resnet8", 128).eval()
    image = torch.zeros(1, 3, 128, 128)
    image[..., 96:112, 16:32] = 1  # rows 24 to 28 and columns 4 to 8 of the map
    changed = (backbone(image) - backbone(torch.zeros_like(image))).abs().sum(1)[0]
    row, column = divmod(int(changed.argmax()), 32)
    assert 23 <= row <= 28
    assert 3 <= column <= 8


@pytest.mark.parametrize("name", ["mlp", "pixels", "vit_b_16"])
def test_networks_without_maps_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"heat maps cannot be made from: choose a convolutional network"):
        dense(name)


def test_sides_that_four_does_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"no map of every 4th pixel: set image_size to a multiple of 4"):
        dense("resnet8", 30)


def test_logits_have_the_size_of_the_image_and_are_linear_in_the_features() -> None:
    head = PixelHead(5, 3)
    x = torch.randn(2, 5, 4, 6)
    assert head(x).shape == (2, 3, 16, 24)
    small = torch.einsum("cf,bfhw->bchw", head.weight, x) + head.bias[None, :, None, None]
    expected = nn.functional.interpolate(small, (16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(x), expected)


def model(**settings: object) -> FineTuneClassifier:
    torch.manual_seed(0)
    fixed = {
        "backbone": "resnet8",
        "num_classes": 3,
        "input_spec": SHAPE,
        "target": "mask",
        "optimizer": torch.optim.SGD,
    }
    return FineTuneClassifier(**{**fixed, **settings})  # type: ignore[arg-type]


def test_decoder_and_head_are_new_parts() -> None:
    made = model(layer_decay=0.5)
    new = {id(p) for part in (made.head, made.backbone.decoder) for p in part.parameters()}  # type: ignore[union-attr]
    groups = made.groups()
    assert groups[0].name == "head"
    assert {id(p) for p in groups[0].parameters} == new
    assert groups[0].scale == 1
    assert [group.scale for group in groups[1:]] == [0.5 ** (k + 1) for k in range(len(groups) - 1)]
    frozen = model(tune="head")
    learning = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in learning if name.startswith("backbone.")} == {"decoder"}
    assert {"head.weight", "head.bias"} <= learning
    waiting = model(head_only_epochs=1)
    assert all(p.requires_grad for p in waiting.backbone.decoder.parameters())  # type: ignore[union-attr]


def test_penalties_leave_the_decoder_free_of_its_start() -> None:
    made = model(regularizer=L2SP(1.0, beta=2.0))
    parts = (made.head, made.backbone.decoder)
    norm = torch.stack([p.square().sum() for part in parts for p in part.parameters()]).sum()  # type: ignore[union-attr]
    assert made.regularizer is not None
    assert made.regularizer(made).item() == pytest.approx(float(norm), rel=1e-5)
    with pytest.raises(InputError, match=r"BSS takes one vector of features for each example"):
        model(regularizer=BSS())
    with pytest.raises(InputError, match=r"head_start is 'ridge', which fits one label for each example"):
        model(head_start="ridge")


def test_weights_of_classifiers_and_of_segmentation_are_taken_over(tmp_path: Path) -> None:
    classifier = FineTuneClassifier("resnet8", 5, SHAPE)
    torch.save({"state_dict": classifier.state_dict(), "hyper_parameters": {}, "global_step": 1}, tmp_path / "c.ckpt")
    started = model(weights=str(tmp_path / "c.ckpt"))
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(started.backbone.state_dict()[name], tensor)
    names = ["sky", "road", "car"]
    named = {"class_names": names}
    torch.save({"state_dict": started.state_dict(), "hyper_parameters": named, "global_step": 1}, tmp_path / "s.ckpt")
    torch.manual_seed(1)
    again = FineTuneClassifier("resnet8", 3, SHAPE, weights=str(tmp_path / "s.ckpt"), class_names=names, target="mask")
    for name, tensor in started.state_dict().items():
        if "class_weight" not in name:
            assert torch.equal(again.state_dict()[name], tensor), name

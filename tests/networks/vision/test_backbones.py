from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.regnet import BlockParams

from sft_lightning.networks.blocks import split_blocks
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.vision.wide_resnet import WideResNet
from sft_lightning.utils.errors import InputError

NAMES = torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 32),
        ("squeezenet1_1", 64),
        ("densenet121", 32),
        ("googlenet", 64),
        ("mobilenet_v3_small", 32),
        ("vit_b_16", 32),
        ("alexnet", 64),
        ("timm/resnet18", 32),
        ("resnet10t", 64),
        ("resnet18.a1_in1k", 32),
        ("timm/efficientnet_b0", 64),
        ("timm/mobilenetv3_small_100", 32),
        ("vit_tiny_patch16_224", 64),
        ("deit_tiny_patch16_224", 32),
        ("convnext_atto", 64),
        ("nf_resnet26", 32),
        ("mixer_s32_224", 64),
    ],
)
def test_num_features_equals_the_width_of_the_output(name: str, side: int) -> None:
    backbone, _ = build_backbone(name, (3, side, side))
    assert all(m.training for m in backbone.modules())
    assert backbone.eval()(torch.rand(2, 3, side, side)).shape == (2, backbone.num_features)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 29, 37)])
@pytest.mark.parametrize(("name", "features"), [("mlp", 32), ("conv", 128), ("resnet8", 128), ("wrn_28_2", 128)])
def test_built_in_networks_accept_any_image_size(name: str, features: int, shape: tuple[int, int, int]) -> None:
    backbone, _ = build_backbone(name, shape)
    assert backbone.num_features == features
    assert backbone(torch.rand(4, *shape)).shape == (4, features)


@pytest.mark.parametrize("name", ["conv", "resnet8", "wrn_28_2", "torchvision/resnet18", "timm/mobilenetv3_small_100"])
def test_convolutions_use_the_channels_last_layout(name: str) -> None:
    """This layout halves the time of a step on a CPU and uses tensor cores on a GPU."""
    backbone, _ = build_backbone(name, (3, 32, 32))
    kernels = [p for p in backbone.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_wide_resnet_has_the_parameter_count_of_the_paper() -> None:
    """1.5 million for WRN-28-2 (Oliver et al. 2018), 36.5 for WRN-28-10 (Zagoruyko & Komodakis 2016); 10 classes."""
    for width, millions in ((2, 1.5), (10, 36.5)):
        net = WideResNet((3, 32, 32), 28, width)
        count = sum(p.numel() for p in net.parameters()) + 10 * (net.num_features + 1)
        assert count / 1e6 == pytest.approx(millions, abs=0.05)
        assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules()) == 25
    assert len(split_blocks(WideResNet((3, 32, 32)))) == 13  # the first convolution and 3 x 4 residual blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_classifier_is_removed_from_every_torchvision_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, widths = torchvision.models.get_model, BlockParams.from_init_params.__func__

    def on_meta(*args: Any, **kwargs: Any) -> Any:
        with torch.device("meta"):
            return make(*args, **kwargs)

    def on_cpu(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return widths(cls, *args, **kwargs)

    monkeypatch.setattr(torchvision.models, "get_model", on_meta)
    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    backbone, _ = build_backbone(f"torchvision/{name}", (3, 224, 224))
    assert backbone.num_features > 0
    assert backbone.num_features != 1000


def test_gray_images_are_repeated_to_three_channels() -> None:
    backbone, _ = build_backbone("timm/resnet10t", (1, 32, 32))
    gray = torch.rand(2, 1, 32, 32)
    backbone.eval()
    torch.testing.assert_close(backbone(gray), backbone(gray.repeat(1, 3, 1, 1)))


def test_images_with_two_channels_are_refused() -> None:
    with pytest.raises(InputError, match="1 or 3 channels, the images have 2"):
        build_backbone("resnet18", (2, 32, 32))


def test_normalization_is_applied_to_the_pixels() -> None:
    plain, _ = build_backbone("mlp", (3, 4, 4))
    scaled, _ = build_backbone("mlp", (3, 4, 4), mean=[0.1, 0.2, 0.3], std=0.5)
    scaled.net.load_state_dict(plain.net.state_dict())
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(scaled(x), plain((x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5))


def test_normalization_is_part_of_the_state_dict() -> None:
    scaled, _ = build_backbone("mlp", (1, 4, 4), mean=0.3, std=0.5)
    other, _ = build_backbone("mlp", (1, 4, 4))
    other.load_state_dict(scaled.state_dict())
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(other(x), scaled(x))


@pytest.mark.parametrize(
    ("mean", "std", "words"), [([0.1, 0.2], None, "one number or 3"), (None, 0.0, "above 0"), (None, -1.0, "above 0")]
)
def test_invalid_normalization_is_refused(mean: Any, std: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_backbone("mlp", (3, 4, 4), mean=mean, std=std)


@pytest.mark.parametrize(
    ("name", "near"), [("reznet18", "resnet18"), ("timm/eficientnet_b0", "timm/efficientnet_b0"), ("mlpp", "mlp")]
)
def test_unknown_backbone_suggests_similar_names(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is unknown.*'{near}'"):
        build_backbone(name, (3, 32, 32))


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 50), ("alexnet", 32), ("timm/levit_128s", 50)])
def test_unsupported_image_size_is_refused(name: str, side: int) -> None:
    with pytest.raises(InputError, match=rf"does not take images of side {side} .*set image_size"):
        build_backbone(name, (3, side, side))


def test_default_weights_of_built_in_networks_are_refused() -> None:
    with pytest.raises(InputError, match="nobody publishes weights of 'conv'"):
        build_backbone("conv", (3, 32, 32), "default")


def test_unreachable_torchvision_weights_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError, match=r"weights of backbone 'resnet18' could not be fetched .*weights: none"):
        build_backbone("resnet18", (3, 32, 32), "default")


def test_unreachable_timm_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"weights of backbone 'timm/resnet10t' could not be fetched .*weights: none"):
        build_backbone("timm/resnet10t", (3, 32, 32), "default")


def test_published_weights_set_their_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    published: dict[str, Tensor] = torchvision.models.resnet18().state_dict()

    def fetched(*_: Any, **__: Any) -> dict[str, Tensor]:
        return published

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetched)
    backbone, _ = build_backbone("resnet18", (3, 32, 32), "default")
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert torch.equal(backbone.net.conv1.weight, published["conv1.weight"])  # type: ignore[union-attr, arg-type]
    own, _ = build_backbone("resnet18", (3, 32, 32), "default", mean=0.5, std=0.5)
    assert own.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("weights", ["default", "file"])
def test_googlenet_outputs_equal_those_of_torchvision(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its published weights undo ImageNet's normalization inside the network, which a checkpoint does not record."""
    torch.manual_seed(0)
    net = torchvision.models.googlenet(init_weights=False, transform_input=True)
    published: dict[str, Tensor] = net.state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: published)
    torch.save(published, tmp_path / "net.pth")
    backbone, _ = build_backbone("googlenet", (3, 64, 64), weights.replace("file", str(tmp_path / "net.pth")))
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = net.eval()((x - mean) / std)
    torch.testing.assert_close(backbone.eval()(x) @ net.fc.weight.T + net.fc.bias, expected, rtol=1e-3, atol=1e-4)


def test_a_transformer_of_timm_takes_smaller_images_when_asked_to() -> None:
    backbone = build_backbone("timm/vit_tiny_patch16_224", (3, 64, 64))[0].eval()
    x, small = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = backbone(x)
        with pytest.raises(AssertionError):
            backbone(small)
        backbone.accept_smaller_inputs()
        torch.testing.assert_close(backbone(x), before)
        assert backbone(small).shape == (2, backbone.num_features)


def test_local_crops_do_not_change_a_network_that_takes_them() -> None:
    backbone = build_backbone("resnet8", (1, 28, 28))[0]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.accept_smaller_inputs()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())

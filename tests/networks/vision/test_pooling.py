from pathlib import Path

import pytest
import torch
from torch import nn

from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.vision.pooling import split_pool
from sft_lightning.networks.weights import write_weights
from sft_lightning.utils.errors import InputError


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("conv", 28),
        ("resnet8", 28),
        ("wrn_28_2", 32),
        ("resnet18", 64),
        ("squeezenet1_1", 64),
        ("efficientnet_b0", 64),  # averages maps inside of its blocks, too
        ("regnet_y_400mf", 64),
        ("timm/resnet18", 64),
        ("timm/efficientnet_b0", 64),
        ("nf_resnet26", 64),
    ],
)
def test_pooling_reads_the_map_that_is_averaged(name: str, side: int) -> None:
    x = torch.rand(2, 3, side, side)
    networks = {}
    for pool in ("average", "flatten", "catavgmax"):
        torch.manual_seed(0)
        networks[pool] = build_backbone(f"{name}:{pool}", (3, side, side))[0]
        assert all(part.training for part in networks[pool].modules())
    with torch.no_grad():
        average, cells, both = (network.eval()(x) for network in networks.values())
    channels = average.shape[1]
    assert [n.num_features for n in networks.values()] == [channels, cells.shape[1], both.shape[1]]
    maps = cells.view(2, channels, -1)
    assert maps.shape[2] > 1
    torch.testing.assert_close(maps.mean(2), average, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both, torch.cat([maps.mean(2), maps.amax(2)], 1), atol=1e-5, rtol=1e-4)


def test_the_average_is_what_a_name_without_pooling_means() -> None:
    torch.manual_seed(0)
    plain = build_backbone("resnet8", (1, 28, 28))[0]
    torch.manual_seed(0)
    named = build_backbone("resnet8:average", (1, 28, 28))[0]
    x = torch.rand(2, 1, 28, 28)
    assert named.name == "resnet8"
    assert torch.equal(plain(x), named(x))


def test_resnet8_has_the_size_of_its_docstring() -> None:
    network = build_backbone("resnet8:flatten", (1, 28, 28))[0]
    assert sum(p.numel() for p in network.parameters()) == 307_296
    assert network.num_features == 4 * 4 * 128
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 7 + 2  # two of them on shortcuts


@pytest.mark.parametrize(("saved", "loaded"), [("resnet8", "resnet8:flatten"), ("resnet8:flatten", "resnet8")])
def test_weights_fit_any_pooling(saved: str, loaded: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = build_backbone(saved, (1, 28, 28))[0].eval()
    path = tmp_path / "encoder.safetensors"
    write_weights(path, start.state_dict(), {"part": "backbone", **start.describe()})
    network = build_backbone(loaded, (1, 28, 28), str(path))[0].eval()
    for mine, theirs in zip(network.parameters(), start.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(rebuild_encoder(path).eval()(x), start(x))
    with pytest.raises(InputError, match=r"are of backbone 'resnet8(:flatten)?', asked for is 'conv'"):
        build_backbone("conv", (1, 28, 28), str(path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet8:flaten", r"has pooling 'flaten' \(did you mean 'flatten'\?\): give average, flatten or catavgmax"),
        ("mlp:flatten", "'mlp:flatten' averages no map at its end: leave out ':flatten'"),
        ("vit_b_16:flatten", "averages no map at its end"),
        ("densenet121:catavgmax", "averages no map at its end"),
        ("mobilenet_v3_small:flatten", "needs the average of its map: leave out ':flatten'"),
        ("resnet9:flatten", r"backbone 'resnet9' is unknown \(did you mean"),
    ],
)
def test_a_pooling_that_does_not_fit_is_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_backbone(name, (3, 64, 64))


def test_a_map_with_too_many_cells_is_refused() -> None:
    with pytest.raises(InputError, match=r"has 401,408 features for images of side 224: lower image_size"):
        build_backbone("conv:flatten", (3, 224, 224))


def test_names_are_split_at_the_colon() -> None:
    assert [split_pool(name) for name in ("resnet8", "timm/resnet18:catavgmax")] == [
        ("resnet8", "average"),
        ("timm/resnet18", "catavgmax"),
    ]

import copy
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sft_lightning.networks.adapters import IA3, Adapter, LoRA, merge_weights
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.utils.errors import InputError

VIT = "timm/vit_tiny_patch16_224"
SIDES = {VIT: 32, "resnet18": 32, "regnet_y_400mf": 32, "timm/dla34": 64, "wrn_28_2": 32}
MAKERS: list[Callable[[], Adapter]] = [lambda: LoRA(rank=3, alpha=5.0), IA3]

every_network = pytest.mark.parametrize("name", SIDES)
every_adapter = pytest.mark.parametrize("make", MAKERS, ids=["lora", "ia3"])


def build(name: str, side: int = 0) -> Backbone:
    torch.manual_seed(1)
    side = side or SIDES[name]
    backbone, _ = build_backbone(name, (3, side, side))
    with torch.no_grad():
        for key, p in backbone.net.named_parameters():
            if key.endswith(".gamma"):  # the scale of a block of ConvNeXt starts near 0
                p.fill_(1.0)
    return backbone


def build_adapted(name: str, adapter: Adapter, moved: bool = False) -> Backbone:
    backbone = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapter.apply(backbone)
    if moved:
        with torch.no_grad():
            for p in adapter.list_parameters(backbone.net):
                p.add_(0.05 * torch.randn_like(p))
    return backbone


@torch.no_grad()
def compute_outputs(backbone: Backbone) -> Tensor:
    x = torch.rand(2, *backbone.image_shape, generator=torch.Generator().manual_seed(0))
    return backbone.eval()(x)  # type: ignore[no-any-return]


def list_adapted_layers(backbone: Backbone, adapter: Adapter) -> set[str]:
    names = (n for n, _ in backbone.net.named_parameters() if f".{adapter.marker}" in n)
    return {n.split(f".{adapter.marker}")[0] for n in names}


@every_adapter
@every_network
def test_new_adapter_does_not_change_the_outputs(name: str, make: Callable[[], Adapter]) -> None:
    assert torch.equal(compute_outputs(build_adapted(name, make())), compute_outputs(build(name)))


@every_adapter
@every_network
def test_only_the_adapter_is_trained(name: str, make: Callable[[], Adapter]) -> None:
    adapter = make()
    backbone = build_adapted(name, adapter)
    net, start = backbone.net, copy.deepcopy(backbone.net.state_dict())
    own = {id(p) for p in adapter.list_parameters(net)}
    assert {id(p) for p in net.parameters() if p.requires_grad} == own
    assert sum(p.numel() for p in adapter.list_parameters(net)) < 0.1 * sum(p.numel() for p in net.parameters())
    backbone.train()
    adapter.set_trainable(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, target = torch.rand(4, *backbone.image_shape), torch.randn(4, backbone.num_features)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (backbone(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {id(p) for p in net.parameters() if p.grad is not None} == own
    moved = {key for key, tensor in net.state_dict().items() if not torch.equal(tensor, start[key])}
    assert moved  # not all: a random regnet's gradients are too small for single precision
    assert all(f".{adapter.marker}" in key for key in moved)  # no running statistics among them


@every_adapter
@every_network
def test_merged_weights_give_the_same_outputs_in_the_plain_network(name: str, make: Callable[[], Adapter]) -> None:
    adapter = make()
    backbone, plain = build_adapted(name, adapter, moved=True), build(name)
    before = copy.deepcopy(backbone.net.state_dict())
    tensors = merge_weights(backbone.net.state_dict())
    plain_names = list(plain.net.state_dict())
    expected = compute_outputs(backbone)
    assert not torch.allclose(expected, compute_outputs(plain), rtol=1e-3)
    plain.net.load_state_dict(tensors)
    assert list(tensors) == plain_names
    torch.testing.assert_close(compute_outputs(plain), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    after = backbone.net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_adapter
@every_network
def test_merged_weights_equal_those_of_peft(name: str, make: Callable[[], Adapter]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapter = make()
    backbone = build_adapted(name, adapter, moved=True)
    tensors = merge_weights(backbone.net.state_dict())
    count = 0
    for key, module in backbone.net.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            base = module.get_base_layer()
            for kind, p in base.named_parameters():
                torch.testing.assert_close(tensors[f"{key}.{kind}"], p.detach(), rtol=0, atol=1e-6)
            count += 1
    assert count == len(list_adapted_layers(backbone, adapter)) > 10


def test_merged_weights_equal_hand_computed_values() -> None:
    a, b, w = torch.randn(2, 3, 5, 5), torch.randn(4, 2, 1, 1), torch.randn(4, 3, 5, 5)
    names = {"x.net.0.base_layer.weight": w, "x.net.0.lora_A.default.weight": a, "x.net.0.lora_B.default.weight": b}
    names["x.net.0.lora_scale"] = torch.tensor(0.5)
    others = {"x.net.0.base_layer.bias": torch.ones(4), "base_layer.1.weight": w, "step": torch.tensor(3)}
    tensors = merge_weights({**names, **others})
    expected = w + 0.5 * torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
    assert set(tensors) == {"x.net.0.weight", "x.net.0.bias", "base_layer.1.weight", "step"}
    torch.testing.assert_close(tensors["x.net.0.weight"], expected, rtol=1e-6, atol=1e-6)
    assert tensors["base_layer.1.weight"] is w


@every_adapter
@every_network
def test_checkpoint_loads_strictly_into_a_new_network(name: str, make: Callable[[], Adapter]) -> None:
    backbone = build_adapted(name, make(), moved=True)
    torch.manual_seed(2)
    other, _ = build_backbone(name, backbone.image_shape)
    make().apply(other)
    checkpoint = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
    nn.ModuleDict({"backbone": other}).load_state_dict(checkpoint)
    assert torch.equal(compute_outputs(other), compute_outputs(backbone))
    plain = build(name)
    plain.load_state_dict({key.removeprefix("backbone."): t for key, t in merge_weights(checkpoint).items()})
    torch.testing.assert_close(compute_outputs(plain), compute_outputs(backbone), rtol=1e-4, atol=1e-4)


def test_adapter_is_scaled_by_alpha_over_rank() -> None:
    one, two = (build_adapted(VIT, LoRA(rank=4, alpha=alpha), moved=True) for alpha in (4.0, 8.0))
    deltas = []
    for backbone in (one, two):
        plain = build(VIT).net.state_dict()["blocks.0.mlp.fc1.weight"]
        deltas.append(merge_weights(backbone.net.state_dict())["blocks.0.mlp.fc1.weight"] - plain)
    torch.testing.assert_close(2 * deltas[0], deltas[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "some", "none", "count"),
    [
        (VIT, 32, "blocks.0.attn.qkv", "patch_embed.proj", 48),
        ("resnet18", 32, "conv1", "fc", 20),
        ("timm/efficientnet_b0", 32, "conv_stem", "blocks.0.0.conv_dw", 65),
        ("convnext_atto", 32, "stages.0.blocks.0.mlp.fc1", "stem.0", 24),
        ("mlp", 8, "1.0", "2", 3),
        # These take the weights of their attention past the layers.
        pytest.param(
            "vit_b_16",
            32,
            "encoder.layers.encoder_layer_0.mlp.0",
            "encoder.layers.encoder_layer_0.self_attention",
            24,
            marks=pytest.mark.slow,  # 3 s
        ),
        pytest.param("swin_t", 32, "features.1.0.mlp.0", "features.1.0.attn.qkv", 27, marks=pytest.mark.slow),
        ("timm/eva02_tiny_patch14_224", 28, "blocks.0.attn.proj", "blocks.0.attn.qkv", 36),
    ],
)
def test_default_targets_are_the_layers_that_can_be_adapted(
    name: str, side: int, some: str, none: str, count: int
) -> None:
    backbone, adapter = build(name, side), LoRA()
    adapter.apply(backbone)
    layers = list_adapted_layers(backbone, adapter)
    assert some in layers
    assert none not in layers
    assert len(layers) == count
    with torch.no_grad():
        for p in adapter.list_parameters(backbone.net):
            p.fill_(0.01)
    backbone.requires_grad_(False)
    changed = compute_outputs(backbone)
    for layer in layers:  # none is ignored
        b: Tensor = backbone.net.get_submodule(layer).lora_B["default"].weight  # type: ignore[index, union-attr]
        b.fill_(-5.0)
        assert not torch.equal(compute_outputs(backbone), changed), layer
        b.fill_(0.01)


def test_dilated_grouped_and_circular_convolutions_are_not_adapted() -> None:
    kinds: list[dict[str, object]] = [{}, {"dilation": 2}, {"groups": 3}, {"padding_mode": "circular"}]
    convs = [nn.Conv2d(3, 3, 3, padding="same", **kind) for kind in kinds]  # type: ignore[arg-type]
    backbone = Backbone("own", nn.Sequential(*convs, nn.Flatten()), 192, (3, 8, 8))
    adapter = LoRA()
    adapter.apply(backbone)
    assert list_adapted_layers(backbone, adapter) == {"0"}


def test_weights_with_another_scale_are_refused() -> None:
    one, two, half = (build_adapted("wrn_28_2", LoRA(rank=4, alpha=alpha)) for alpha in (5.3, 8.0, 5.3))
    with pytest.raises(InputError) as caught:
        two.load_state_dict(one.state_dict())
    assert str(caught.value) == (
        "adapter LoRA has alpha / rank 2, but the checkpoint was trained with 1.325: give the alpha of its run"
    )
    half.bfloat16().load_state_dict(one.state_dict())


def test_targets_match_the_ends_of_layer_names() -> None:
    for targets, count in (
        (["qkv"], 12),
        (["attn.qkv", "fc1"], 24),
        (["blocks.1.attn.qkv"], 1),
        (["patch_embed.proj"], 1),
    ):
        adapter = LoRA(targets=targets)
        assert len(list_adapted_layers(build_adapted(VIT, adapter), adapter)) == count
    adapter = LoRA(targets=["0"])  # of `wrn_28_2` that is one layer, not the first of each block
    assert list_adapted_layers(build_adapted("wrn_28_2", adapter), adapter) == {"0"}


def test_unfreezing_leaves_only_the_adapters_dropout_active() -> None:
    adapter = LoRA(dropout=0.5)
    backbone = build_adapted("resnet18", adapter)
    net = backbone.net
    dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == 20
    for released in (True, False):
        net.train()
        net.requires_grad_(True)
        adapter.set_trainable(net, released)
        assert all(m.p == 0.5 and m.training is released for m in dropouts)
        assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        assert {p.requires_grad for p in adapter.list_parameters(net)} == {released}
        assert sum(p.requires_grad for p in net.parameters()) == 40 * released


def test_adapters_keep_training_mode_and_memory_layout() -> None:
    backbone = build("resnet18")
    backbone.head = nn.Dropout()  # stands for whatever else is there
    LoRA().apply(backbone)
    assert backbone.training
    assert backbone.head.training
    assert int(backbone.net.bn1.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in backbone.net.parameters() if p.ndim == 4)


def test_copy_of_an_adapted_network_is_independent() -> None:
    adapter = LoRA()
    backbone = build_adapted(VIT, adapter, moved=True)
    teacher = copy.deepcopy(backbone)
    expected = compute_outputs(teacher)
    with torch.no_grad():
        for p in adapter.list_parameters(backbone.net):
            p.zero_()
    assert torch.equal(compute_outputs(teacher), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 0}, "rank is 0: give a number of at least 1"),
        ({"alpha": 0.0}, "alpha is 0.0: give a number above 0"),
        ({"dropout": 1.0}, "dropout is 1.0: give a share from 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1: give a share from 0 to below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        LoRA(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("targets", "wrong"), [(["qkv", "query"], "query"), (["kv"], "kv"), ([], "")])
def test_targets_without_a_matching_layer_are_refused(targets: list[str], wrong: str) -> None:
    backbone = build(VIT)
    with pytest.raises(InputError) as caught:
        LoRA(targets=targets).apply(backbone)
    assert str(caught.value) == (
        f"targets is {targets}, but {wrong!r} ends the name of no layer of backbone {VIT!r} that can be adapted: give "
        "null for all, or some of its 49 layers such as patch_embed.proj, blocks.0.attn.qkv, blocks.0.attn.proj, "
        "blocks.0.mlp.fc1"
    )
    assert all(p.requires_grad for p in backbone.parameters())


def test_network_without_adaptable_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"^backbone 'nf_resnet26' has no Linear .*: take another backbone"):
        LoRA().apply(build("nf_resnet26", 32))  # its convolutions normalize their weights


@every_adapter
def test_missing_peft_names_the_extra(make: Callable[[], Adapter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    adapter = make()
    with pytest.raises(InputError) as caught:
        adapter.apply(build("mlp", 8))
    name = type(adapter).__name__
    assert str(caught.value) == f"adapter {name} needs the extra 'lora': pip install 'sft-lightning[lora]'"

"""Test files as they are published: normalization, other image sizes, multiple networks in a file."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sft_lightning.networks.file_networks import choose_network, flatten_networks
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.networks.weights import load_into, read_weights
from sft_lightning.utils.errors import InputError

IMAGENET = pytest.approx([0.485, 0.456, 0.406])
HALVES = [0.5, 0.5, 0.5]
Loaded = tuple[Backbone, str]


@pytest.fixture
def load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that saves tensors, loads them into a backbone, and returns the backbone and the log."""

    def load(name: str, content: Any, shape: tuple[int, int, int] = (3, 64, 64), file: str = "a.pth") -> Loaded:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, tmp_path / file)
        with caplog.at_level(logging.INFO, "sft_lightning"):
            backbone, _ = build_backbone(name, shape, str(tmp_path / file))
        return backbone, caplog.text

    return load


def _resnet(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(torchvision.models.resnet18().state_dict())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# --- normalization


@pytest.mark.parametrize(
    ("name", "file", "mean"),
    [
        ("torchvision/resnet18", "resnet18-f37072fd.pth", IMAGENET),
        ("torchvision/resnet18", "moco_of_a_colleague.pth", IMAGENET),
        ("timm/resnet10t", "a.pth", IMAGENET),
        ("timm/vit_tiny_patch16_224", "a.pth", HALVES),
        ("timm/tf_efficientnet_lite0", "a.pth", HALVES),
        ("timm/tf_efficientnet_b0", "a.pth", IMAGENET),
        ("timm/tf_efficientnet_b0", "models--timm--tf_efficientnet_b0.ap_in1k/model.bin", HALVES),
    ],
)
def test_published_file_sets_the_normalization_of_its_publisher(
    load: Any, name: str, file: str, mean: list[float]
) -> None:
    library, _, model = name.partition("/")
    made = torchvision.models.get_model(model) if library == "torchvision" else timm.create_model(model)
    size = 224 if "vit" in name else 64
    backbone, said = load(name, made.state_dict(), (3, size, size), file)
    assert backbone.mean.flatten().tolist() == mean
    assert "the file states no normalization, so that of" in said


def test_config_next_to_a_file_determines_the_normalization(load: Any, tmp_path: Path) -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": own}))
    backbone, said = load("timm/resnet10t", timm.create_model("resnet10t").state_dict())
    assert backbone.mean.flatten().tolist() == pytest.approx(own["mean"])
    assert backbone.std.flatten().tolist() == pytest.approx(own["std"])
    assert "that of config.json" in said
    other, _ = load("torchvision/resnet18", _resnet(0))
    assert other.mean.flatten().tolist() == IMAGENET


def test_normalization_of_the_user_is_used_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(_resnet(0), tmp_path / "a.pth")
    backbone, _ = build_backbone("torchvision/resnet18", (3, 32, 32), str(tmp_path / "a.pth"), mean=0.2, std=0.3)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.2] * 3)
    assert "states no normalization" not in caplog.text


# --- sizes


def _published(name: str, size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = timm.create_model(name, img_size=size)
    for tensor in [*net.parameters(), *net.buffers()]:  # none that two new networks share by chance
        if tensor.is_floating_point():
            nn.init.normal_(tensor.data, std=0.02)
    return dict(net.state_dict())


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [
        ("test_vit", 160, 96),
        ("deit_tiny_distilled_patch16_224", 64, 96),
        ("swin_tiny_patch4_window7_224", 224, 128),
        ("swinv2_cr_tiny_224", 224, 128),
        pytest.param("beit_base_patch16_224", 64, 96, marks=pytest.mark.slow),  # 4 s
        ("eva02_tiny_patch14_224", 56, 84),
        ("vit_relpos_small_patch16_224", 64, 96),
    ],
)
def test_tensors_that_depend_on_the_image_size_are_resampled_as_in_timm(
    load: Any, name: str, there: int, here: int
) -> None:
    published = _published(name, there)
    backbone, said = load(f"timm/{name}", published, (3, here, here))
    theirs = timm.create_model(
        name, pretrained=True, num_classes=0, img_size=here, pretrained_cfg_overlay={"state_dict": dict(published)}
    ).state_dict()
    for key, tensor in backbone.net.state_dict().items():
        torch.testing.assert_close(tensor, theirs[key], msg=key)
    assert "randomly initialized" not in said


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("cait_xxs24_224", lambda t: t["pos_embed"].unflatten(1, (14, 14))[0].permute(2, 0, 1)),
        ("visformer_tiny", lambda t: t["pos_embed1"][0]),
        ("levit_128s", lambda t: t["stages.0.blocks.0.attn.attention_biases"].unflatten(1, (14, 14))),
    ],
)
def test_position_grids_that_timm_ignores_are_resampled(load: Any, name: str, grid: Any) -> None:
    published = {
        n: t.normal_() if t.is_floating_point() else t for n, t in timm.create_model(name).state_dict().items()
    }
    backbone, said = load(f"timm/{name}", published, (3, 112, 112))
    assert "randomly initialized" not in said
    here = backbone.net.state_dict()
    for key in ("pos_embed", "pos_embed1", "stages.0.blocks.0.attn.attention_biases"):
        if key in here:
            small = here[key].flatten().sort().values
    there = grid(published)
    expected = nn.functional.interpolate(there[None], scale_factor=0.5, mode="bicubic", antialias=True)
    torch.testing.assert_close(small, expected.flatten().sort().values)


def test_tensors_that_cannot_be_resampled_are_listed(load: Any) -> None:
    _, said = load("timm/gmlp_ti16_224", timm.create_model("gmlp_ti16_224").state_dict(), (3, 112, 112))
    assert (
        "of another shape, so randomly initialized: blocks.0.mlp_channels.gate.proj.weight (196 x 196 there, 49" in said
    )


def test_position_embedding_with_other_prefix_tokens_keeps_its_grid(load: Any) -> None:
    published = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64).state_dict()
    backbone, _ = load("timm/deit_tiny_patch16_224", published, (3, 64, 64))
    own = backbone.net.pos_embed
    torch.testing.assert_close(own[:, 1:], published["pos_embed"][:, 2:])
    torch.testing.assert_close(own[:, :1], published["pos_embed"][:, :1])


def test_missing_prefix_tokens_keep_their_initial_values(load: Any) -> None:
    published = timm.create_model("deit_tiny_patch16_224", img_size=64).state_dict()
    backbone, said = load("timm/deit_tiny_distilled_patch16_224", published, (3, 64, 64))
    own = backbone.net.pos_embed
    assert own.shape[1] == 2 + 16
    torch.testing.assert_close(own[:, 2:], published["pos_embed"][:, 1:])
    torch.testing.assert_close(own[:, :1], published["pos_embed"][:, :1])
    assert "pos_embed" not in said


def test_position_embedding_of_torchvision_is_resampled(load: Any) -> None:
    published = torchvision.models.vit_b_32(image_size=64).state_dict()
    backbone, said = load("torchvision/vit_b_32", published, (3, 96, 96))
    own = backbone.net.encoder.pos_embedding
    torch.testing.assert_close(own[:, 0], published["encoder.pos_embedding"][:, 0])
    torch.testing.assert_close(own[0, [1, 3, 7, 9]], published["encoder.pos_embedding"][0, [1, 2, 3, 4]])
    assert "randomly initialized" not in said


@pytest.mark.parametrize(("there", "here"), [(1, 3), (3, 1)])
def test_first_layer_is_adapted_to_another_number_of_channels(there: int, here: int, load: Any) -> None:
    source, _ = build_backbone("conv", (there, 28, 28), mean=0.3, std=0.4)
    backbone, said = load("conv", _under("encoder.", source.state_dict()), (here, 28, 28))
    gray = torch.rand(2, 1, 28, 28)
    expected = source.eval()(gray.expand(-1, there, -1, -1))
    torch.testing.assert_close(backbone.eval()(gray.expand(-1, here, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    assert f"from {there} to {here} color channels" in said
    assert "randomly initialized" not in said


def test_first_layer_that_cannot_be_adapted_is_listed(load: Any) -> None:
    source, _ = build_backbone("mlp", (1, 8, 8))
    _, said = load("mlp", source.state_dict(), (3, 8, 8))
    assert "of another shape, so randomly initialized: 1.0.weight (128 x 64 there, 128 x 192 here)" in said


# --- multiple networks in a file

Q, K = _resnet(1), _resnet(2)


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        ({**_under("encoder_k.", K), **_under("encoder_q.", Q)}, "encoder_q."),
        ({"state_dict": {**_under("module.encoder_k.", K), **_under("module.encoder_q.", Q)}}, "module.encoder_q."),
        (
            {"student": _under("module.backbone.", K), "teacher": _under("backbone.", Q), "epoch": 3},
            "teacher.backbone.",
        ),
        ({"state_dict": K, "state_dict_ema": Q, "optimizer": {"state": {0: {"a": Q}}}}, "state_dict_ema."),
        ({"model": K, "ema_model": Q}, "ema_model."),
        ({**_under("online_network.", Q), **_under("target_network.", K)}, "online_network."),
        ({"encoder": K, "target_encoder": Q}, "target_encoder."),
        ({**_under("momentum_backbone.", K), **_under("backbone.", Q)}, "backbone."),
        ({**_under("base_encoder.", Q), **_under("momentum_encoder.", K)}, "base_encoder."),
        ({**_under("online.", Q), **_under("net.", Q), **_under("target.", K)}, "net."),
        ({"args": Namespace(arch="resnet18"), "net": _under("module.module._orig_mod.", Q)}, "module.module."),
        ({"pytorch-lightning_version": "2.6", "state_dict": _under("model.backbone.", Q), "x": K}, "model.backbone."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_network_that_publishers_evaluate_is_loaded(tmp_path: Path, content: Any, prefix: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    net = torchvision.models.resnet18()
    matched = load_into(net, read_weights(tmp_path / "a.pth")[0], "a.pth")
    assert matched.prefix == prefix
    assert all(torch.equal(tensor, Q[name]) for name, tensor in net.state_dict().items())
    both = any(torch.equal(t, K["conv1.weight"]) for t in read_weights(tmp_path / "a.pth")[0].values())
    assert ("not from" in str(matched)) is both


def test_networks_with_ambiguous_names_are_refused() -> None:
    both = {**_under("left.", Q), **_under("right.", K)}
    with pytest.raises(InputError, match=r"'a\.pth' hold several networks .* under 'left', 'right': save the one"):
        load_into(torchvision.models.resnet18(), both, "a.pth")


@pytest.mark.parametrize(("left_out", "prefix"), [("layer4.1.bn2", "teacher."), ("layer", "student.")])
def test_network_that_nearly_fits_is_chosen_unless_most_of_it_is_missing(left_out: str, prefix: str) -> None:
    teacher = {name: tensor for name, tensor in Q.items() if not name.startswith(left_out)}
    both = {**_under("teacher.", teacher), **_under("student.", K)}
    assert choose_network(Q, both, "a.pth")[0] == prefix


def test_top_level_tensors_are_the_network_despite_a_nested_mapping() -> None:
    assert flatten_networks({**Q, "scores": {"best": torch.ones(1)}}).keys() == {*Q, "scores.best"}


def test_choice_of_network_does_not_depend_on_the_order_of_tensors(tmp_path: Path) -> None:
    both = {**_under("encoder_q.", Q), **_under("encoder_k.", K)}
    for names in (list(both), sorted(both), sorted(both, reverse=True)):
        matched = load_into(torchvision.models.resnet18(), {name: both[name] for name in names}, "a.pth")
        assert matched.prefix == "encoder_q."


# --- values that cannot be weights


def test_file_of_another_architecture_that_matches_by_chance_is_refused(load: Any) -> None:
    with pytest.raises(InputError, match=r"fit only \d of 20 matrices and kernels: the file has"):
        load("torchvision/resnet18", torchvision.models.resnet50().state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.fill_(torch.nan), "not finite in layer1.0.conv1.weight"),
        (lambda t: (t * 100).to(torch.int8), "int8 numbers for layer1.0.conv1.weight"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn numbers for layer1.0.conv1.weight"),
    ],
)
def test_quantized_and_non_finite_values_are_refused(load: Any, change: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(
            "torchvision/resnet18", {n: change(t) if n == "layer1.0.conv1.weight" else t for n, t in _resnet(0).items()}
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_loaded(load: Any, dtype: torch.dtype) -> None:
    raw = {n: t.to(dtype) if t.is_floating_point() else t for n, t in Q.items()}
    backbone, _ = load("torchvision/resnet18", raw)
    assert all(torch.equal(t, raw[n].to(t.dtype)) for n, t in backbone.net.state_dict().items())


def test_unmerged_adapter_of_peft_is_refused(load: Any) -> None:
    adapter = {f"base_model.model.layer1.0.conv1.lora_{part}.weight": torch.rand(4, 4) for part in "AB"}
    with pytest.raises(InputError, match=r"hold an adapter .* merge it"):
        load("torchvision/resnet18", {**_under("base_model.model.", Q), **adapter})


def test_torchvision_weights_load_into_the_timm_network_of_the_same_name(load: Any) -> None:
    backbone, _ = load("timm/resnet18", Q)
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(Q)
    theirs.fc = nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone.eval().net(x), theirs.eval()(x))


def test_head_of_a_run_is_not_listed_as_unused(load: Any) -> None:
    source, _ = build_backbone("mlp", (1, 8, 8))
    head = {"head.weight": torch.rand(3, 32), "head.bias": torch.rand(3)}
    _, said = load("mlp", {"state_dict": {**_under("backbone.", source.state_dict()), **head}}, (1, 8, 8))
    assert "not used" not in said
    assert "classifier in the file: head.weight, head.bias" in said

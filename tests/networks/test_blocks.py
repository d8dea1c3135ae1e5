from itertools import chain, pairwise
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from sft_lightning import FineTuneClassifier
from sft_lightning.networks.blocks import split_blocks
from sft_lightning.networks.vision.backbones import build_backbone

# The smallest network of each family (module) of timm that has one below 30 million parameters.
FAMILIES = (
    "byobnet:mobileone_s0 cait:cait_xxs24_224 coat:coat_lite_tiny convit:convit_tiny convmixer:convmixer_768_32 "
    "convnext:convnext_atto cpubone:cpubone_nano crossvit:crossvit_tiny_240 csatv2:csatv2 cspnet:cs3darknet_focus_s "
    "cspnext:cspnext_s davit:davit_tiny deit:deit_tiny_distilled_patch16_224 densenet:densenet121 dla:dla46_c "
    "dpn:dpn48b edgenext:edgenext_small efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0 "
    "efficientnet:efficientnet_b0 efficientvim:efficientvim_m1 efficientvit_mit:efficientvit_b0 "
    "efficientvit_msra:efficientvit_m0 eva:eva02_tiny_patch14_224 fasternet:fasternet_t0 fastvit:fastvit_t8 "
    "focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny ghostnet:ghostnet_050 hardcorenas:hardcorenas_a hgnet:hgnetv2_b0 "
    "hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny hrnet:hrnet_w18_small iformer:iformer_t "
    "inception_next:inception_next_atto inception_v3:adv_inception_v3 lcnetv2:lcnetv2_base levit:levit_128s "
    "lowformer:lowformer_b0 mambaout:test_mambaout maxxvit:test_coatnet metaformer:poolformerv2_s12 "
    "mlp_mixer:gmlp_ti16_224 mobilenetv3:lcnet_035 mobilevit:mobilevit_s mvitv2:mvitv2_tiny nest:jx_nest_tiny "
    "nfnet:test_nfnet pit:pit_ti_224 pvt_v2:pvt_v2_b0 rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050 "
    "repvit:repvit_m0_9 res2net:res2next50 resnest:resnest14d resnet:resnet10t resnetv2:resnetv2_18 "
    "rexnet:rexnet_100 selecsls:selecsls42 senet:legacy_seresnet18 sequencer:sequencer2d_s shvit:shvit_s1 "
    "sknet:skresnet18 starnet:starnet_s050 swiftformer:swiftformer_s swin_transformer:swin_tiny_patch4_window7_224 "
    "swin_transformer_v2:swinv2_tiny_window16_256 swin_transformer_v2_cr:swinv2_cr_tiny_224 tiny_vit:tiny_vit_5m_224 "
    "tnt:tnt_s_legacy_patch16_224 tresnet:tresnet_m twins:twins_svt_small visformer:visformer_tiny "
    "vision_transformer:test_vit vision_transformer_hybrid:vit_tiny_r_s16_p8_224 "
    "vision_transformer_relpos:test_vit_relpos vitamin:vitamin_small_224 volo:volo_d1_224 vovnet:ese_vovnet19b_dw "
    "xception:legacy_xception xception_aligned:xception41p xcit:xcit_nano_12_p16_224"
)
TIMM = [word.partition(":")[2] for word in FAMILIES.split()]
# timm assigns modules that stages share, or that run in parallel, to one stage.
WOVEN = ("cait_xxs24_224", "coat_lite_tiny", "efficientvim_m1")
SIDES = {"crossvit_tiny_240": 240, "efficientformer_l1": 224, "pit_ti_224": 224}
FEW = [
    "edgenext_small",
    "fastvit_t8",
    "levit_128s",
    "efficientvit_m0",
    "repvit_m0_9",
    "test_vit",
    "test_coatnet",
    "test_nfnet",
    "xcit_nano_12_p16_224",
    "pit_ti_224",
    "hgnetv2_b0",
    "mobileone_s0",
]
OTHERS = [
    "mlp",
    "conv",
    "wrn_28_2",
    "resnet18",
    "vit_b_32",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "convnext_tiny",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "swin_t",
]


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
def test_networks_have_the_expected_number_of_blocks(name: str, count: int) -> None:
    assert len(split_blocks(_network(name))) == count


@torch.no_grad()
def _spans(network: nn.Module, side: int) -> list[tuple[int, int]]:
    """Return when the first and the last module of each block start in a forward pass."""
    begins: dict[nn.Module, int] = {}

    def enter(module: nn.Module, _: Any) -> None:
        begins.setdefault(module, len(begins))

    for module in network.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(enter)
    network.eval()(torch.zeros(1, 3, side, side))
    own = [
        [begins[m] for unit in block.modules for m in unit.modules() if m in begins] for block in split_blocks(network)
    ]
    return [(min(times), max(times)) for times in own if times]


@pytest.mark.parametrize(
    "name",
    [
        *OTHERS,
        *(f"timm/{name}" for name in FEW),
        *(pytest.param(f"timm/{name}", marks=pytest.mark.slow) for name in TIMM if name not in {*FEW, *WOVEN}),
    ],
)
def test_blocks_are_in_the_order_of_the_forward_pass(name: str) -> None:
    side = SIDES.get(name.rpartition("/")[2], 64)
    network = build_backbone(name, (3, side, side))[0].net
    parameters = [p for block in split_blocks(network) for p in block.parameters]
    assert {id(p) for p in parameters} == {id(p) for p in network.parameters()}
    assert len(parameters) == len({id(p) for p in parameters})
    spans = _spans(network, side)
    assert len(spans) > 2
    assert all(before[1] < after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("name", ["edgenext_small", "levit_128s", *WOVEN])
def test_blocks_equal_the_layer_groups_of_timm(name: str) -> None:
    network: Any = timm.create_model(name, num_classes=0)
    theirs = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    ours = {id(p): i for i, block in enumerate(split_blocks(network)) for p in block.parameters}
    for group in range(max(theirs.values()) + 1):
        assert len({ours[id(p)] for n, p in network.named_parameters() if theirs[n] == group}) == 1


@pytest.mark.parametrize("name", ["swiftformer_s", "convnext_atto", "efficientnet_b0"])
def test_layer_decay_below_the_head_equals_that_of_timm(name: str) -> None:
    model = FineTuneClassifier(f"timm/{name}", 3, (3, 64, 64), layer_decay=0.5)
    scales = {id(p): group.scale for group in model.groups() for p in group.parameters}
    ours = {n: scales[id(p)] for n, p in model.backbone.net.named_parameters()}
    whole = timm.create_model(name, num_classes=3)
    names = {id(p): n for n, p in whole.named_parameters()}
    groups = param_groups_layer_decay(whole, layer_decay=0.5)
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    inside = [n for n in ours if not n.startswith(("head", "norm"))]  # what timm counts to its classifier
    assert len({ours[n] for n in inside}) > 4
    assert {n: ours[n] for n in inside} == pytest.approx({n: theirs[n] for n in inside})


def test_single_normalization_belongs_to_the_previous_block() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4))
    assert [len(block.modules) for block in split_blocks(network)] == [2, 1]


def test_resnet_blocks_are_the_stem_and_the_residual_blocks() -> None:
    kinds = [type(block.modules[0]).__name__ for block in split_blocks(_network("resnet18"))]
    assert kinds == ["Conv2d", *["BasicBlock"] * 8]


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/efficientnet_b0"])
def test_each_module_is_in_only_one_block(name: str) -> None:
    modules = list(chain(*(block.modules for block in split_blocks(_network(name)))))
    assert len({id(m) for m in modules}) == len(modules)

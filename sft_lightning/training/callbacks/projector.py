"""Some validation examples for TensorBoard's projector: their features, classes and pictures.

torch's `add_embedding` writes a folder for each step, forgets those of another process, and arranges pictures that are
not square wrongly; here the run has one set of examples, which the next one replaces.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.atomic import write_text

MOST = 256  # examples: what a projector shows at a glance, in a fraction of a validation's time
SIDE = 48  # pixels of a picture's longer side
FOLDER = "projector"

Examples = tuple[Tensor, Tensor, list[str]]


@torch.no_grad()
def collect_examples(trainer: Trainer, module: Any) -> Examples | None:
    """Features, small pictures and classes, on one process.

    Args:
        trainer: With a data module that gives pictures as they are.
        module: Has `features`.

    Returns:
        (N, F), (N, C, h, w) in [0, 1] and N names; None where there is nothing to show, or where the network is
        spread over processes, so that one alone cannot compute.
    """
    data = few_label_data(trainer)
    whole = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not whole or not hasattr(module, "features") or data is None:
        return None
    if not len(data.splits.get("val", ())):
        return None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with eval_mode(module), trainer.precision_plugin.forward_context():
        for x, y, *_ in data.labeled_batches(MOST, module.device, "val"):
            found.append((module.features(x).flatten(1).float().cpu(), shrink(x.float()).cpu(), y.cpu()))
    if not found:
        return None
    features, pictures, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, pictures, [data.class_names[k] if k >= 0 else "unlabeled" for k in labels.tolist()]


def shrink(x: Tensor) -> Tensor:
    """Pictures of at most 48 pixels a side, in their proportions.

    Args:
        x: (N, C, H, W).
    """
    scale = SIDE / max(x.shape[-2:])
    if scale >= 1:
        return x
    size = [max(1, round(side * scale)) for side in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def write_examples(run: Path, name: str, features: Tensor, pictures: Tensor, classes: Sequence[str]) -> None:
    """Writes what the projector reads, in place of what was there.

    Args:
        run: Folder of the run.
        name: What the projector calls them.
        features: (N, F).
        pictures: (N, C, h, w) in [0, 1].
        classes: N names.
    """
    folder = run / FOLDER
    write_text(folder / "tensors.tsv", _lines("\t".join(f"{v:.6g}" for v in row) for row in features.tolist()))
    write_text(folder / "metadata.tsv", _lines(" ".join(one.split()) for one in classes))
    staged = folder / "sprite.png.part"
    _sheet(pictures).save(staged, format="PNG", compress_level=1)  # the slowest part otherwise
    staged.replace(folder / "sprite.png")
    height, width = pictures.shape[-2:]
    config = f"""embeddings {{
  tensor_name: "{name}"
  tensor_path: "{FOLDER}/tensors.tsv"
  metadata_path: "{FOLDER}/metadata.tsv"
  sprite {{
    image_path: "{FOLDER}/sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""
    write_text(run / "projector_config.pbtxt", config)


def _lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)


def _sheet(pictures: Tensor) -> Image.Image:
    """All pictures in a square, row by row."""
    count, _, height, width = pictures.shape
    side = math.ceil(count**0.5)
    cells = torch.zeros(side * side, 3, height, width, dtype=torch.uint8)
    cells[:count] = (pictures * 255).round().to(torch.uint8)  # one channel for all three, where there is one
    rows = cells.view(side, side, 3, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(side * height, side * width, 3).numpy())

"""Validation examples for TensorBoard's projector: features, classes, and thumbnails or texts.

torch's `add_embedding` writes a folder for each step, forgets those of another process, and misplaces images that are
not square. Here a run has one set of examples, which the next one replaces.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.modes import eval_mode
from sft_lightning.training.module_interfaces import ComputesFeatures
from sft_lightning.utils.atomic import write_text

MAX_EXAMPLES = 256  # examples, which take a fraction of a validation's time
SIDE = 48  # pixels of the longer side of an image
FOLDER = "projector"

Examples = tuple[Tensor, Tensor | None, list[str]]


@torch.no_grad()
def collect_examples(trainer: Trainer, module: Any) -> Examples | None:
    """Compute features, thumbnails and classes of some validation examples on one process.

    Args:
        trainer: Trainer with its data module.
        module: Module with a method `features`.

    Returns:
        Features (N, F), thumbnails in [0, 1] (N, C, h, w) or None, and N descriptions: the class, with a text where the
        modality is shown by texts. None if there are no validation examples, or the network is sharded over processes,
        so that one process cannot run it.
    """
    data = few_label_data(trainer)
    is_unsharded = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not is_unsharded or data is None or not isinstance(module, ComputesFeatures):
        return None
    assert isinstance(module, LightningModule)
    if not len(data.splits.get("val", ())):
        return None
    features: list[Tensor] = []
    thumbnails: list[Tensor] = []
    descriptions: list[str] = []
    with eval_mode(module), trainer.precision_plugin.forward_context():
        for batch in data.labeled_batches(MAX_EXAMPLES, module.device, "val"):
            features.append(module.features(batch.x).flatten(1).float().cpu())
            classes = [name or "unlabeled" for name in data.name_targets(batch.y)]
            shown = data.views.show(batch.x)
            if isinstance(shown, Tensor):
                thumbnails.append(shrink(shown.float()).cpu())
                descriptions += classes
            else:
                descriptions += [f"{name}: {text}" for name, text in zip(classes, shown, strict=True)]
    if not features:
        return None
    return torch.cat(features), torch.cat(thumbnails) if thumbnails else None, descriptions


def shrink(x: Tensor) -> Tensor:
    """Shrink images to at most 48 pixels a side, keeping their proportions.

    Args:
        x: Images, (N, C, H, W).
    """
    scale = SIDE / max(x.shape[-2:])
    if scale >= 1:
        return x
    size = [max(1, round(side * scale)) for side in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def write_examples(run: Path, name: str, features: Tensor, images: Tensor | None, descriptions: Sequence[str]) -> None:
    """Write the files that the projector reads, replacing earlier ones.

    Args:
        run: Folder of the run.
        name: Name of the examples in the projector.
        features: Features, (N, F).
        images: Thumbnails in [0, 1], (N, C, h, w); None for none.
        descriptions: Text beside each example, N.
    """
    folder = run / FOLDER
    write_text(folder / "tensors.tsv", _join_lines("\t".join(f"{v:.6g}" for v in row) for row in features.tolist()))
    write_text(folder / "metadata.tsv", _join_lines(" ".join(text.split()) for text in descriptions))
    sprite = "" if images is None else _write_sprite(folder, images)
    config = f"""embeddings {{
  tensor_name: "{name}"
  tensor_path: "{FOLDER}/tensors.tsv"
  metadata_path: "{FOLDER}/metadata.tsv"
{sprite}}}
"""
    write_text(run / "projector_config.pbtxt", config)


def _write_sprite(folder: Path, images: Tensor) -> str:
    """Write all thumbnails as one image, and return the lines of the config that name it."""
    staged = folder / "sprite.png.part"
    _draw_sprite(images).save(staged, format="PNG", compress_level=1)  # the slowest part otherwise
    staged.replace(folder / "sprite.png")
    height, width = images.shape[-2:]
    return f"""  sprite {{
    image_path: "{FOLDER}/sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
"""


def _join_lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)


def _draw_sprite(images: Tensor) -> Image.Image:
    """Arrange all images in a square, row by row."""
    count, _, height, width = images.shape
    side = math.ceil(count**0.5)
    cells = torch.zeros(side * side, 3, height, width, dtype=torch.uint8)
    cells[:count] = (images * 255).round().to(torch.uint8)  # a single channel is broadcast to all three
    rows = cells.view(side, side, 3, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(side * height, side * width, 3).numpy())

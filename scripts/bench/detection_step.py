"""Measure a training step of a detector against a plain PyTorch loop with the same network, in pairs.

    python scripts/bench/detection_step.py --out scripts/bench/results/detection_step.json

As `segmentation_step.py`, on composed scenes with boxes (`detection_scenes.py`) and with FCOS. The plain loop has
copies of backbone and head, reads the same PNG files with Pillow, mirrors images and boxes, and takes the sum of
torchvision's losses. Whether a box stays visible, and which evaluation ignores, it does not ask.
"""

from pathlib import Path
from typing import Any

import torch
from detection_scenes import write
from segmentation_step import compare, list_words, parse, read_images
from step_overhead import EpochStarts
from torch import Tensor, nn

DETECTOR = "fcos"


class Starts(EpochStarts):
    """Record the start of each epoch, and copy the networks before the first step."""


def compute_loss(networks: nn.ModuleList, images: Any, positions: list[int]) -> Tensor:
    """Return the loss of a batch, half of which is mirrored."""
    x = read_images(images, positions)
    backbone: Any = networks[0]
    head: Any = networks[1]
    side, targets = x.shape[-1], []
    for image, position in zip(x, positions, strict=True):
        objects = images.objects[position]
        boxes, classes = torch.from_numpy(objects.boxes).float(), torch.from_numpy(objects.classes).long()
        if torch.rand(()) < 0.5:
            image.copy_(image.flip(2))
            boxes = torch.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1)
        targets.append({"boxes": boxes, "labels": classes + head.first_class})
    losses = head.losses(backbone.forward_maps(x), side, targets)
    return torch.stack([*losses.values()]).sum()


def main() -> None:
    """Compare on composed scenes."""
    args = parse(__doc__)
    source = write(Path("scenes"), {"train": args.count, "test": args.count // 10}, args.size)
    argv = ["fit", "--model=FineTuneDetector", f"--model.detector={DETECTOR}", "--data=DetectionDataModule"]
    compare(args, [*argv, *list_words(source, args), "--trainer.callbacks=detection_step.Starts"], compute_loss)


if __name__ == "__main__":
    main()

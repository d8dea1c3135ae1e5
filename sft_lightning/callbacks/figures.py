"""Pictures of an evaluation in TensorBoard: inputs beside reconstructions, and the confusion matrix."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


class Figures(Callback):
    """Writes what a paradigm's `figures(stage)` gives, after each validation and test."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the pictures of a validation."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes those of the test."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not trainer.is_global_zero or not loggers or not hasattr(module, "figures"):
            return
        figures: Callable[[str], dict[str, Tensor]] = module.figures  # type: ignore[assignment]
        for name, value in figures(stage).items():
            picture = matrix(value, getattr(module, "class_names", None)) if value.ndim == 2 else rows(value)
            for logger in loggers:
                logger.experiment.add_image(f"{stage}/{name}", picture, trainer.global_step)


def rows(pictures: Tensor) -> Tensor:
    """Draws rows of pictures.

    Args:
        pictures: (R, N, C, H, W) in [0, 1].

    Returns:
        uint8, (3, height, width).
    """
    from torchvision.utils import make_grid

    flat = pictures.detach().float().clamp(0, 1).cpu().flatten(0, 1)
    zoom = max(1, 56 // flat.shape[-1])  # small pictures are shown larger
    flat = flat.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid: Tensor = make_grid(flat, nrow=pictures.shape[1], padding=2, pad_value=0.5)
    return (grid * 255).round().to(torch.uint8)


def matrix(counts: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """Draws a confusion matrix: rows are true classes, columns predictions, darker means a larger share of the row.

    Args:
        counts: (K, K) whole numbers.
        names: Of the classes.

    Returns:
        uint8, (3, height, width).
    """
    classes = len(counts)
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    cell = 44 if classes <= 20 else max(4, 880 // classes)
    written = cell >= 24
    font = ImageFont.load_default(12)
    labels = [str(n) for n in (names or range(classes))]
    margin = int(max(font.getlength(n) for n in labels)) + 14 if written else 4
    side = margin + classes * cell + 4
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for i in range(classes):
        for j in range(classes):
            box = (margin + j * cell, margin + i * cell, margin + (j + 1) * cell - 1, margin + (i + 1) * cell - 1)
            strength = float(share[i, j])
            fill = tuple(int(255 - strength * (255 - c)) for c in (8, 48, 107))
            draw.rectangle(box, fill=fill)
            if written and counts[i, j]:
                ink = "white" if strength > 0.5 else "black"
                draw.text((box[0] + cell / 2, box[1] + cell / 2), str(int(counts[i, j])), ink, font, anchor="mm")
    if written:
        upright = Image.new("RGB", (classes * cell, margin), "white")
        for k, name in enumerate(labels):
            draw.text((margin - 6, margin + (k + 0.5) * cell), name, "black", font, anchor="rm")
            strip = Image.new("RGB", (margin, cell), "white")
            ImageDraw.Draw(strip).text((6, cell / 2), name, "black", font, anchor="lm")
            upright.paste(strip.rotate(90, expand=True), (k * cell, 0))
        image.paste(upright, (margin, 0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

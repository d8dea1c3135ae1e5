"""Evaluations in TensorBoard: figures, precision-recall curves, and examples in the projector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sft_lightning.data.contract import few_label_data
from sft_lightning.training.callbacks.pr_curves import write_curves
from sft_lightning.training.callbacks.projector import collect_examples, write_examples
from sft_lightning.training.callbacks.validation_log import VALIDATE
from sft_lightning.training.figures import ConfusionMatrix, ExampleRows, Figure
from sft_lightning.training.module_interfaces import CountsScores, HasFigures, NamesClasses
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.lightning_patches import get_logged_step


class TensorBoardFigures(Callback):
    """Writes the figures of a paradigm after each validation and test.

    Precision-recall curves and the examples of the projector take longer, so they are written once, at the end of a
    training, of `validate` and (the curves) of `test`. The curves use the counts of the last evaluation, the examples
    some hundred inputs.
    """

    def __init__(self) -> None:
        """Start without an evaluation."""
        self._validated: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures of a validation."""
        if trainer.sanity_checking:
            return
        self._validated = get_logged_step(trainer)
        self._write(trainer, pl_module, "val")
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_once(trainer, pl_module, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write curves and examples of the last validation; later hooks find the network moved off its device."""
        if self._validated is not None:
            self._write_once(trainer, pl_module, "val", self._validated)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures and curves of the test."""
        self._write(trainer, pl_module, "test")
        self._write_once(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        writers = _list_writers(trainer)
        for name, figure in module.figures(stage).items() if isinstance(module, HasFigures) and writers else ():
            drawn = _draw(figure, name, trainer, module)
            for writer in writers:
                tag, step = f"{_get_prefix(trainer, stage)}/{name}", get_logged_step(trainer)
                if isinstance(drawn, Tensor):
                    writer.add_image(tag, drawn, step)
                elif drawn is not None:
                    writer.add_text(tag, drawn, step)

    def _write_once(self, trainer: Trainer, module: LightningModule, stage: str, step: int | None = None) -> None:
        step = get_logged_step(trainer) if step is None else step
        counts = module.score_counts(stage) if isinstance(module, CountsScores) else None
        writers = _list_writers(trainer)
        examples = collect_examples(trainer, module) if stage == "val" and writers else None
        for writer in writers:
            if counts is not None and isinstance(module, CountsScores):
                write_curves(writer, f"{_get_prefix(trainer, stage)}/pr", counts, module.class_names, step)
            if examples is not None:
                write_examples(Path(writer.log_dir), f"{_get_prefix(trainer, stage)} at step {step}", *examples)


def _draw(figure: Figure, name: str, trainer: Trainer, module: LightningModule) -> Tensor | str | None:
    """Draw a figure as an image, or as the text of a table; None for examples that cannot be shown."""
    if isinstance(figure, ConfusionMatrix):
        return draw_confusion_matrix(figure.counts, module.class_names if isinstance(module, NamesClasses) else None)
    if not isinstance(figure, ExampleRows):
        raise InputError(
            f"{type(module).__name__}.figures returned a {type(figure).__name__} as {name!r}: return a ConfusionMatrix "
            "or ExampleRows of sft_lightning.training.figures"
        )
    data = few_label_data(trainer)
    if data is not None:
        shown = [data.views.show(row) for row in figure.rows]
    else:  # plain loaders: what looks like images is drawn
        shown = [row for row in figure.rows if isinstance(row, Tensor) and row.ndim == 4 and row.shape[1] in (1, 3)]
    images = [row for row in shown if isinstance(row, Tensor)]
    if images:
        return draw_image_rows(torch.stack(images))
    texts = [[text.replace("|", "\\|") for text in row] for row in shown if not isinstance(row, Tensor)]
    if not texts:
        return None
    header = ["|" + " |" * len(texts), "|" + "---|" * len(texts)]
    return "\n".join([*header, *map(_join_cells, zip(*texts, strict=True))])


def _join_cells(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _list_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Return the writers of TensorBoard; none except on the first process."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in loggers] if trainer.is_global_zero else []


def _get_prefix(trainer: Trainer, stage: str) -> str:
    return VALIDATE if trainer.state.fn == TrainerFn.VALIDATING else stage


def draw_image_rows(images: Tensor) -> Tensor:
    """Draw rows of images.

    Args:
        images: Rows of images in [0, 1], (R, N, C, H, W).

    Returns:
        Image, uint8, (3, height, width).
    """
    from torchvision.utils import make_grid

    flat = images.detach().float().clamp(0, 1).cpu().flatten(0, 1)
    zoom = max(1, 56 // flat.shape[-1])  # small images are enlarged
    flat = flat.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid: Tensor = make_grid(flat, nrow=images.shape[1], padding=2, pad_value=0.5)
    return (grid * 255).round().to(torch.uint8)


def draw_confusion_matrix(counts: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """Draw a confusion matrix: rows are true classes, columns predictions, darker cells larger shares of a row.

    Args:
        counts: Number of examples, integers, (K, K).
        names: Names of the classes; None for their numbers.

    Returns:
        Image, uint8, (3, height, width).
    """
    classes = len(counts)
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    cell = 44 if classes <= 20 else max(4, 880 // classes)
    has_text = cell >= 24
    font = ImageFont.load_default(12)
    labels = [str(n) for n in (names or range(classes))]
    margin = int(max(font.getlength(n) for n in labels)) + 14 if has_text else 4
    side = margin + classes * cell + 4
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for i in range(classes):
        for j in range(classes):
            box = (margin + j * cell, margin + i * cell, margin + (j + 1) * cell - 1, margin + (i + 1) * cell - 1)
            strength = float(share[i, j])
            fill = tuple(int(255 - strength * (255 - c)) for c in (8, 48, 107))
            draw.rectangle(box, fill=fill)
            if has_text and counts[i, j]:
                ink = "white" if strength > 0.5 else "black"
                draw.text((box[0] + cell / 2, box[1] + cell / 2), str(int(counts[i, j])), ink, font, anchor="mm")
    if has_text:
        upright = Image.new("RGB", (classes * cell, margin), "white")
        for k, name in enumerate(labels):
            draw.text((margin - 6, margin + (k + 0.5) * cell), name, "black", font, anchor="rm")
            strip = Image.new("RGB", (margin, cell), "white")
            ImageDraw.Draw(strip).text((6, cell / 2), name, "black", font, anchor="lm")
            upright.paste(strip.rotate(90, expand=True), (k * cell, 0))
        image.paste(upright, (margin, 0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

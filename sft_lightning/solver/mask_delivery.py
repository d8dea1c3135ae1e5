"""The model trained on all masks, predicted masks of the unlabeled examples, and which masks to draw next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule
from sft_lightning.report.figures import embed_image
from sft_lightning.report.metrics import choose_to_label
from sft_lightning.report.pixels import cover
from sft_lightning.solver.deliver import NEXT, Delivery, export_all, train_on_all
from sft_lightning.solver.scored import ScoredRecipe
from sft_lightning.study.folds import score_examples
from sft_lightning.training.callbacks.vision.mask_predictions import classify_pixels, format_shares, write_mask
from sft_lightning.training.callbacks.vision.pixel_predictions import name_files, open_original
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.html import render_examples
from sft_lightning.utils.spreadsheet import format_csv

FOLDER = "predicted_masks"
_DOUBTFUL, _MOST = 0.5, 8  # share of the mean score below which a mask is looked at, and how many of them


@dataclass
class _Pool:
    """What is known of the predicted masks of the unlabeled examples.

    Attributes:
        rows: Row of the table of each example; empty cells where one cannot be read.
        uncertainty: Mean entropy of the pixels, 0 to 1, (M,); -1 where one cannot be read.
        features: Mean features, (M, F).
    """

    rows: list[list[object]]
    uncertainty: Tensor
    features: Tensor


def deliver_masks(best: ScoredRecipe, judged: np.ndarray, name: str, folder: Path) -> Delivery:
    """Train a recipe on all masks, predict those of the unlabeled examples, and export the model.

    Args:
        best: Chosen recipe.
        judged: Whether each labeled example was judged, bool, (N,).
        name: Name of the run below `lightning_logs`.
        folder: Folder of the solution.
    """
    data, task = best.source.data, best.source.task
    assert isinstance(data, SegmentationDataModule)
    model, delivery = train_on_all(best.recipe, best.source, name, folder, writes="masks")
    if best.source.has_test:
        delivery.test_scores = score_examples(model, data, task, "test")
    if best.source.pool_size:
        pool = _predict_pool(model, data, folder)
        columns = ["id", "mask", "overlay", "confidence", "doubt", *(f"share({one})" for one in data.class_names)]
        write_text(folder / "predictions.csv", format_csv([columns, *pool.rows]))
        chosen = choose_to_label(pool.uncertainty, pool.features, _pool_features(model, data, "labeled"), NEXT)
        delivery.next_labels = [i for i in chosen if float(pool.uncertainty[i]) >= 0]
        ids = data.splits["unlabeled"].ids
        rows = [[order, ids[i], *pool.rows[i][4:5], pool.rows[i][1]] for order, i in enumerate(delivery.next_labels, 1)]
        write_text(folder / "label_next.csv", format_csv([["order", "id", "doubt", "predicted_mask"], *rows]))
        delivery.next_shown = [_show(model, data, i) for i in delivery.next_labels]
        delivery.advice.append(
            f"Draw masks of the {len(delivery.next_labels)} examples of label_next.csv first (their predicted masks "
            "may serve as a start), put them beside the others, and call solve again."
        )
    doubt_masks(data, best, judged, delivery)
    delivery.not_exported = export_all(delivery.run, folder)
    return delivery


def doubt_masks(data: SegmentationDataModule, best: ScoredRecipe, judged: np.ndarray, delivery: Delivery) -> None:
    """Keep the masks that held-out predictions contradict most.

    Args:
        data: Data module of the source.
        best: Chosen recipe.
        judged: Whether each labeled example was judged, bool, (N,).
        delivery: What was made of the recipe, which gets these masks.
    """
    scores, positions = best.scores.mean(0), np.flatnonzero(judged)
    worst = [i for i in np.argsort(scores, kind="stable") if scores[i] < _DOUBTFUL * scores.mean()][:_MOST]
    delivery.doubtful = [int(positions[i]) for i in worst]
    delivery.doubtful_shown = [_show_mask(data, i) for i in delivery.doubtful]
    delivery.doubts = [f"{best.source.task.example_metric[1]} {scores[i]:.2f} when held out" for i in worst]
    if worst:
        delivery.advice.append(
            f"Check {len(worst)} mask(s) of which held-out predictions share least; the report shows them."
        )


def _show_mask(data: SegmentationDataModule, position: int) -> Markup:
    """Return a labeled example, and the same under its mask."""
    x = data.annotated_inputs_of("labeled", [position])
    assert isinstance(x, dict)
    shown, name = data.show_annotated(x)[0], data.splits["labeled"].ids[position]
    return render_examples([embed_image(x["image"][0], name), embed_image(shown, "mask to check")], "pair")


@torch.no_grad()
def _predict_pool(model: Any, data: SegmentationDataModule, folder: Path) -> _Pool:
    """Write the mask of each unlabeled example, at its own size, and an overlay."""
    split, geometry, palette = data.splits["unlabeled"], data.geometry, data.palette
    files = name_files(split.ids)
    rows: list[list[object]] = [[one, *[""] * (4 + data.num_classes)] for one in split.ids]
    uncertainty, features = torch.full((len(split),), -1.0, dtype=torch.float64), torch.empty(0)
    for batch in data.batches_of("unlabeled", model.device):
        maps = model.features(batch.x)
        logits = model.classify(maps).float().cpu()
        pooled, indices = maps.float().mean((2, 3)).cpu(), batch.indices.cpu()
        features = features if len(features) else torch.zeros(len(split), pooled.shape[1])
        features[indices], uncertainty[indices] = pooled, model.task.uncertainty(logits).double()
        for i, own in zip(indices.tolist(), logits, strict=True):
            original = open_original(split.part.storage, split.indices[i], geometry)
            mask, confidence = classify_pixels(own, original.size, geometry.box(*original.size, None))
            file = folder / FOLDER / files[i]
            file.parent.mkdir(parents=True, exist_ok=True)
            overlay = write_mask(file, original, mask, palette)
            named = [one.relative_to(folder).as_posix() for one in (file, overlay)]
            measured = [f"{confidence:.6f}", f"{float(uncertainty[i]):.6f}"]
            rows[i] = [split.ids[i], *named, *measured, *format_shares(mask, data.class_names)]
    return _Pool(rows, uncertainty, features)


@torch.no_grad()
def _pool_features(model: Any, data: SegmentationDataModule, name: str) -> Tensor:
    """Return the mean features of the examples of a split, (N, F)."""
    batches = data.batches_of(name, model.device)
    return torch.cat([model.features(batch.x).float().mean((2, 3)).cpu() for batch in batches])


@torch.no_grad()
def _show(model: Any, data: SegmentationDataModule, position: int) -> Markup:
    """Return an unlabeled example, and the same under its predicted mask."""
    x = data.inputs_of("unlabeled", [position])
    assert isinstance(x, Tensor)
    decided = model(x.to(model.device))[0].argmax(0).cpu()
    name = data.splits["unlabeled"].ids[position]
    return render_examples(
        [embed_image(x[0], name), embed_image(cover(x[0], decided, data.palette), "predicted mask")], "pair"
    )

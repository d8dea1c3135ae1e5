"""The detector trained on all boxes, found boxes of the unlabeled examples, and which images to annotate next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_lightning.data.vision.box_sources import BoxSource
from sft_lightning.data.vision.detection_datamodule import DetectionDataModule
from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import MatchRecords
from sft_lightning.detection.held_out_precision import match_examples
from sft_lightning.detection.matching import choose_threshold, count_matches, match_objects
from sft_lightning.report.boxes import render_found, render_pair
from sft_lightning.report.metrics import choose_to_label
from sft_lightning.solver.box_recipes import find_objects
from sft_lightning.solver.box_trials import BoxResult
from sft_lightning.solver.deliver import NEXT, Delivery, export_all, train_on_all
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.training.callbacks.vision.box_predictions import (
    COCO_RESULTS,
    COLUMNS,
    draw_found,
    drop_padding,
    list_rows,
    write_results,
)
from sft_lightning.training.callbacks.vision.pixel_predictions import explain_write_errors, name_files, open_original
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.spreadsheet import format_csv

FOLDER = "predicted_boxes"
_NOTHING = 0.01  # mean average precision below which detections mean nothing
_TRUSTED = 0.5  # mean F1 of held-out images from which detections say something about annotations
_DOUBTFUL, _MOST = 0.5, 8  # share of the mean F1 below which an annotation is looked at, and how many of them


@dataclass
class Pool:
    """What is known of the unlabeled examples.

    Attributes:
        found: Detections of each, (M, 100, 6), as `find_objects` gives them.
        doubt: Mean doubt of the detections of each, 0 to 1, (M,).
        features: Mean features, (M, F).
    """

    found: Tensor
    doubt: Tensor
    features: Tensor


def match_test(model: Any, source: LabeledSource) -> MatchRecords:
    """Return the matched detections of the source's own test split.

    Args:
        model: Detector.
        source: Source.
    """
    data = source.data
    assert isinstance(data, DetectionDataModule)
    return match_examples(find_objects(model, data, "test"), data.objects_of("test"), data.num_classes)


def deliver_boxes(best: BoxResult, judged: np.ndarray, name: str, folder: Path) -> Delivery:
    """Train a recipe on all boxes, find the objects of the unlabeled examples, and export the model.

    Args:
        best: Chosen recipe.
        judged: Whether each labeled example was judged, bool, (N,).
        name: Name of the run below `lightning_logs`.
        folder: Folder of the solution.
    """
    data = best.source.data
    assert isinstance(data, DetectionDataModule)
    model, delivery = train_on_all(best.recipe, best.source, name, folder, writes="boxes")
    delivery.score_threshold = judge_images(best, judged, delivery)
    if best.source.has_test:
        delivery.test_scores = match_test(model, best.source)
    if best.source.pool_size:
        pool = find_in_pool(model, data, delivery.score_threshold)
        write_pool(pool, data, delivery.score_threshold, folder)
        choose_next(pool, model, data, delivery, folder)
    if best.estimate.mean < _NOTHING:
        delivery.advice.insert(
            0,
            "Next to nothing was found in held-out images, so its boxes mean nothing yet: give more minutes, name a "
            "start with --candidates, or annotate more images.",
        )
    delivery.not_exported = export_all(delivery.run, folder)
    return delivery


def judge_images(best: BoxResult, judged: np.ndarray, delivery: Delivery) -> float:
    """Return the score from which the F1 of held-out detections is largest, and keep the images of the lowest F1.

    Args:
        best: Result of the recipe.
        judged: Whether each labeled example was judged, bool, (N,).
        delivery: What was made of the recipe, which gets these images.
    """
    data, positions = best.source.data, np.flatnonzero(judged).tolist()
    assert isinstance(data, DetectionDataModule)
    true, found = data.objects_of("labeled"), best.found
    every = [_split(found[i]) for i in positions]
    matches = [match_objects(*one, true[i]) for i, one in zip(positions, every, strict=True)]
    threshold = choose_threshold(matches)
    f1 = np.array([count_matches([one], threshold).f1 for one in matches])
    limit = _DOUBTFUL * f1.mean() if f1.mean() >= _TRUSTED else 0.0
    worst = [k for k in np.argsort(f1, kind="stable").tolist() if f1[k] < limit][:_MOST]
    for k in worst:
        x = data.inputs_of("labeled", [positions[k]])
        shown = every[k].scores >= threshold
        kept = Detections(*(part[shown] for part in every[k]))
        delivery.doubtful_shown.append(render_pair(x[0], true[positions[k]], kept, data.class_names))
    delivery.doubtful = [positions[k] for k in worst]
    delivery.doubts = [f"F1 {f1[k]:.2f} when held out" for k in worst]
    if worst:
        delivery.advice.append(
            f"Check the boxes of {len(worst)} annotated image(s) that held-out detections share least; the report "
            "shows them."
        )
    return threshold


def _split(rows: Tensor) -> Detections:
    """Return the detections of an image, from rows of class, corners and score, (K, 6)."""
    rows = rows[rows[:, 0] >= 0]
    return Detections(rows[:, 1:5], rows[:, 5], rows[:, 0].long())


def find_in_pool(model: Any, data: DetectionDataModule, threshold: float) -> Pool:
    """Find the objects of the unlabeled examples.

    Args:
        model: Detector.
        data: Data module of the source.
        threshold: Score from which detections count as objects.
    """
    found = find_objects(model, data, "unlabeled")
    return Pool(found, measure_doubt(found, threshold), _compute_features(model, data, "unlabeled"))


def measure_doubt(found: Tensor, threshold: float) -> Tensor:
    """Return the mean doubt of the detections of each image, 0 to 1, (N,).

    The doubt of a detection is 1 at the score that decides, and falls to 0 at the scores 0 and 1. Its mean over an
    image is one of the aggregations of Brust, Kaeding & Denzler 2019, "Active Learning for Deep Object Detection".
    Scores below half of the threshold count where an image has no higher one, by the highest of them alone.

    Args:
        found: Detections, (N, K, 6), as `find_objects` gives them.
        threshold: Score from which detections count as objects, between 0 and 1.
    """
    scores = found[..., 5] * (found[..., 0] >= 0)
    each = torch.minimum(scores / threshold, (1 - scores) / max(1 - threshold, 1e-6)).clamp(0, 1)
    likely = scores >= threshold / 2
    mean = (each * likely).sum(1) / likely.sum(1).clamp_min(1)
    highest = (scores * ~likely).amax(1) / threshold
    return torch.where(likely.any(1), mean, highest).double()


@torch.no_grad()
def _compute_features(model: Any, data: DetectionDataModule, name: str) -> Tensor:
    """Return the mean features of the examples of a split, (N, F)."""
    found = torch.empty(0)
    for batch in data.batches_of(name, model.device):
        features = model.features(batch.x).float().cpu()
        found = found if len(found) else torch.zeros(len(data.splits[name]), features.shape[1])
        found[batch.indices.cpu()] = features
    return found


def write_pool(pool: Pool, data: DetectionDataModule, threshold: float, folder: Path) -> None:
    """Write the detections from the threshold on as a table and into the images, and all of them as COCO's results.

    Args:
        pool: What was found.
        data: Data module of the source.
        threshold: Score from which detections count as objects.
        folder: Folder of the solution.
    """
    split, geometry, names = data.splits["unlabeled"], data.geometry, data.class_names
    rows, every = [], []
    for i, (name, file) in enumerate(zip(split.ids, name_files(split.ids), strict=True)):
        own = pool.found[i]
        (placed,) = data.original_boxes("unlabeled", [i], own[None, :, 1:5].double())
        boxes, numbers, scores = drop_padding(placed, own[:, 0].long(), own[:, 5])
        every += list_rows(name, boxes, numbers, scores, names)
        shown = scores >= threshold
        boxes, numbers, scores = boxes[shown], numbers[shown], scores[shown]
        rows += list_rows(name, boxes, numbers, scores, names)
        original = open_original(split.part.storage, split.indices[i], geometry)
        path = (folder / FOLDER / file).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        with explain_write_errors(path):
            draw_found(original, boxes, numbers, scores, names).save(path, quality=90)
    write_text(folder / "predictions.csv", format_csv([COLUMNS, *rows]))
    categories, ids = {name: k + 1 for k, name in enumerate(names)}, {}
    if isinstance(source := data.opened_source, BoxSource):
        categories |= source.category_ids
        listed = source.image_ids
        ids = listed if all(one in listed for one in split.ids) else {}  # else two could have one number
    write_results(every, folder / COCO_RESULTS, categories, ids)


def choose_next(pool: Pool, model: Any, data: DetectionDataModule, delivery: Delivery, folder: Path) -> None:
    """Choose which images to annotate next: doubtful ones that differ from the annotated ones and each other.

    Args:
        pool: What was found.
        model: Detector.
        data: Data module of the source.
        delivery: What was made of the recipe, which gets these images.
        folder: Folder of the solution.
    """
    threshold, ids = delivery.score_threshold, data.splits["unlabeled"].ids
    annotated = _compute_features(model, data, "labeled")
    delivery.next_labels = choose_to_label(pool.doubt, pool.features, annotated, NEXT)
    rows: list[list[object]] = [["order", "id", "doubt", "objects"]]
    for order, i in enumerate(delivery.next_labels, 1):
        found = _split(pool.found[i])
        shown = found.scores >= threshold
        rows.append([order, ids[i], f"{float(pool.doubt[i]):.6f}", int(shown.sum())])
        x = data.inputs_of("unlabeled", [i])
        kept = Detections(*(part[shown] for part in found))
        delivery.next_shown.append(render_found(x[0], kept, data.class_names))
    write_text(folder / "label_next.csv", format_csv(rows))
    delivery.advice.append(
        f"Annotate the {len(delivery.next_labels)} images of label_next.csv first (their rows of predictions.csv may "
        "serve as a start), put the annotations beside the others, and call solve again."
    )

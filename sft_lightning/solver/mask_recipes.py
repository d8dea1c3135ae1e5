"""Recipes for examples with masks: logistic regression of pixels on frozen maps, and trainings with a decoder."""

import torch
from torch import Tensor

from sft_lightning.classifiers import LogisticRegression
from sft_lightning.cli.logging import silence_logs
from sft_lightning.solver.cross_fits import list_folds
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.map_starts import MapStart
from sft_lightning.solver.recipes import Recipe
from sft_lightning.tasks.pixel_samples import sample_pixels
from sft_lightning.transfer.vectors import choose_device

MAX_PIXELS = 4_000  # of all masks, to which logistic regression is fitted
BATCH, _RATIO = 8, 2  # masks of a step, and unlabeled examples for each of them
_OPTIMIZER = ("--model.optimizer=torch.optim.AdamW", "--model.lr_scheduler=WarmupCosine")
_START_RATE, _RANDOM_RATE = 0.001, 0.002  # learning rates from a start, and from random weights
_VIEW = ("--data.weak_view.flip=true", "--data.weak_view.crop_scale=[0.5,1.0]")
_LOSS = "--model.segmentation_loss=cross_entropy_and_dice"  # since each class of an example counts for its score
# Of the strategies that docs/segmentation.md measures, the one with the smallest loss against masks alone.
_TEACHER = (
    "--model=SemiSupervisedModule", "--model.strategy=MeanTeacher", "--model.lambda_u=10", "--model.ema_decay=0.99",
    f"--data.unlabeled_ratio={_RATIO}", "--data.strong_view.cutmix=0.5",
)  # fmt: skip


def make_pixel_classifier(start: MapStart) -> Recipe:
    """Return logistic regression of pixels on the frozen maps of a start.

    Args:
        start: Start.
    """
    argv = ("--model=FrozenFeatureClassifier", *start.argv, "--model.classifier=LogisticRegression")
    return Recipe(
        f"logistic regression on {start.name}", start.saw_pool, (*argv, f"--model.max_examples={MAX_PIXELS}"),
        cross_fit=lambda source: _cross_fit_pixels(start, source),
    )  # fmt: skip


def make_trainings(start: MapStart, source: LabeledSource, steps: int) -> list[Recipe]:
    """Return fine-tuning of encoder and decoder, and mean teacher, which also learns from unlabeled examples, if any.

    Args:
        start: Start.
        source: Source.
        steps: Number of optimizer steps of each training.
    """
    rate = _RANDOM_RATE if start.candidate is None else _START_RATE
    shared = (*start.argv, _LOSS, *_OPTIMIZER, f"--model.optimizer.lr={rate}", *_VIEW)
    shared += (f"--data.batch_size={BATCH}", f"--data.steps_per_epoch={steps}", "--trainer.max_epochs=1")
    shared += ("--model.layer_decay=0.8",) if start.is_large else ()
    end = f"from {start.name} ({steps} steps)"
    argv = ("--model=FineTuneClassifier", *shared)
    recipes = [Recipe(f"fine-tuning {end}", start.saw_pool, argv, steps, BATCH)]
    if source.pool_size:
        recipes.append(Recipe(f"mean teacher {end}", True, (*_TEACHER, *shared), steps, BATCH * (1 + _RATIO)))
    return recipes


@torch.no_grad()
def _cross_fit_pixels(start: MapStart, source: LabeledSource) -> Tensor:
    """Return the score of each labeled example in each division, (R, N), by a classifier of pixels of other folds.

    The first pass over the examples draws the pixels, the second one scores, so that no map has to be kept.
    """
    data, device, count = source.data, choose_device(), len(source.labels)
    network = start.load(source).to(device).eval()
    with silence_logs():
        network.stack_maps()
    sample = sample_pixels(network, data.batches_of("labeled", device), max(1, MAX_PIXELS // count), data.request.seed)
    classifiers: dict[tuple[int, int], LogisticRegression] = {}
    for number, held in list_folds(source):
        own = held[sample.examples]
        fitted = LogisticRegression().fit(sample.x[~own], sample.y[~own], num_classes=data.num_classes)
        classifiers[number, int(source.divisions[number][held][0])] = fitted
    scores = torch.full((len(source.divisions), count), float("nan"))
    for batch in data.batches_of("labeled", device):
        maps, targets, rows = network(batch.x).float().cpu(), batch.y.cpu(), batch.indices.cpu()
        for number, division in enumerate(source.divisions):
            folds = torch.from_numpy(division)[rows]
            for fold in folds[folds >= 0].unique().tolist():
                own = folds == fold
                outputs = source.task.apply_classifier(classifiers[number, fold], maps[own])
                scores[number, rows[own]] = source.task.example_scores(outputs, targets[own]).float()
    return scores

"""The model trained on all labels, its calibrated predictions of the pool, and what to label next."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.logging import silence_logs
from sft_lightning.export.export import ExportFormat, export
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.paradigms.frozen_features import FrozenFeatureClassifier
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.temperature import CrossFittedTemperature, write_temperature
from sft_lightning.selection import kmeans_centers
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.recipes import Recipe, Space, get_run, train
from sft_lightning.study.folds import predict_split
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.solution_folder import SUMMARY
from sft_lightning.utils.spreadsheet import format_csv

NEXT = 20  # examples to label next
ONNX = "model.onnx"
EXPORTS: dict[str, ExportFormat] = {"model.safetensors": "safetensors", ONNX: "onnx"}
_WRONG, _SURE = 0.1, 0.8  # probability of its label below, and of another class above which a label is doubtful
_LEAST = 1e-6


@dataclass
class Delivery:
    """What was made of the chosen recipe.

    Attributes:
        run: Folder of the run.
        temperature: Temperature of the probabilities, fitted to held-out predictions of the labels; 1 where all are
            right, which no temperature fits best.
        test_correct: Whether each example of the source's own test split is classified correctly, (T,), or None.
        next_labels: Positions of the unlabeled examples to label next.
        doubtful: Positions of the labeled examples whose label is doubtful.
        predicted: Class that the held-out prediction gives each doubtful label.
        advice: Sentences about what would help most.
        not_exported: Reason for the lack of an exported file, by its name.
    """

    run: Path
    temperature: float
    test_correct: Tensor | None = None
    next_labels: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    not_exported: dict[str, str] = field(default_factory=dict)


def deliver(recipe: Recipe, repeated: Tensor, source: LabeledSource, space: Space, name: str, folder: Path) -> Delivery:
    """Train a recipe on all labels and write predictions, next labels and the exported model.

    Args:
        recipe: Chosen recipe.
        repeated: Probabilities of the labeled examples without their fold in R divisions, (R, N, C); NaN for those
            in no fold.
        source: Source.
        space: Vectors by which the next labels are spread.
        name: Name of the run below `lightning_logs`.
        folder: Folder of the solution.
    """
    data = source.data
    cli = train(recipe, source, None, name)
    model = cli.model
    _remove_earlier(folder)
    held_out = repeated.mean(0)
    judged = ~held_out.isnan().any(1)
    delivery = Delivery(get_run(cli), _calibrate(repeated[:, judged], source.labels[judged], get_run(cli)))
    if source.has_test:
        delivery.test_correct = test(model, source)
    if source.pool_size:
        probabilities = _predict_pool(model, source, space, delivery.temperature)
        _write_predictions(folder / "predictions.csv", source, probabilities)
        delivery.next_labels = choose_next(probabilities, space)
        ids = data.splits["unlabeled"].ids
        rows: list[list[object]] = [
            [ids[i], data.class_names[int(probabilities[i].argmax())]] for i in delivery.next_labels
        ]
        head = ["order", "id", "suggestion"]
        if any(isinstance(one, str) for one in data.show_examples("unlabeled", delivery.next_labels[:1])):
            head.append(data.input_spec.noun)  # a column with the examples themselves
            shown = data.show_examples("unlabeled", delivery.next_labels)
            rows = [[*row, cell] for row, cell in zip(rows, shown, strict=True)]
        numbered = [[order, *row] for order, row in enumerate(rows, 1)]
        write_text(folder / "label_next.csv", format_csv([head, *numbered]))
    confident, other = held_out.nan_to_num(0).max(1)
    own = held_out.gather(1, source.labels[:, None])[:, 0]
    wrong = judged & (own < _WRONG) & (confident > _SURE) & (other != source.labels)
    delivery.doubtful = wrong.nonzero()[:, 0].tolist()
    delivery.predicted = other[wrong].tolist()
    delivery.advice = _advise(held_out, judged, source, delivery)
    for name, language in EXPORTS.items():
        try:
            with silence_logs():
                export(str(delivery.run), format=language, out=str(folder / name))
        except InputError as error:
            delivery.not_exported[name] = str(error).partition(": ")[0]
    return delivery


def _predict_pool(model: nn.Module, source: LabeledSource, space: Space, temperature: float) -> Tensor:
    """Return the class probabilities of the unlabeled examples, (M, C), from their features where those are known."""
    if not isinstance(model, FrozenFeatureClassifier) or not space.is_network or len(space.pool) < source.pool_size:
        return predict_split(model, source.data, "unlabeled", temperature)
    probabilities = torch.empty(source.pool_size, source.data.num_classes)
    with torch.no_grad():
        logits = torch.cat([model.classify(x.to(model.device)).cpu() for x in space.pool.split(4096)])
    probabilities[space.pool_positions] = (logits.float() / temperature).softmax(1)
    return probabilities


def _remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier call, which may have had another source or no pool, the summary of them first."""
    names = (SUMMARY, "report.html", "predictions.csv", "label_next.csv")
    for path in (*(folder / name for name in names), *folder.glob("model*.*")):
        path.unlink(missing_ok=True)


def test(model: nn.Module, source: LabeledSource) -> Tensor:
    """Return whether a model classifies each example of the source's own test split correctly, (T,).

    Args:
        model: Trained classifier.
        source: Source.
    """
    predicted = predict_split(model, source.data, "test").argmax(1)
    return predicted == source.data.splits["test"].labels


def _calibrate(held_out: Tensor, labels: Tensor, run: Path) -> float:
    """Fit the temperature to held-out predictions and write it into the run, so that every command uses it.

    Predictions of each division count by themselves: their mean would be more certain than those of one model.
    """
    if bool((held_out.argmax(2) == labels).all()):
        return 1.0
    temperature = fit_temperature(held_out.flatten(0, 1).clamp_min(_LEAST).log(), labels.repeat(len(held_out)))
    write_temperature(run, find_run_checkpoint(str(run)), CrossFittedTemperature(temperature, len(labels)))
    return temperature


def _write_predictions(path: Path, source: LabeledSource, probabilities: Tensor) -> None:
    names = source.data.class_names
    confident, classes = probabilities.max(1)
    doubt = -torch.special.xlogy(probabilities, probabilities).sum(1) / torch.tensor(len(names)).log()
    head = ["id", "predicted", "confidence", "doubt", *(f"p({name})" for name in names)]
    rows = (
        [i, names[c] if p == p else "", f"{p:.4f}", f"{d:.4f}", *(f"{q:.4f}" for q in every)]
        for i, c, p, d, every in zip(
            source.data.splits["unlabeled"].ids, classes.tolist(), confident.tolist(), doubt.tolist(),
            probabilities.tolist(), strict=True,
        )
    )  # fmt: skip
    write_text(path, format_csv([head, *rows]))


def choose_next(probabilities: Tensor, space: Space) -> list[int]:
    """Return the positions of the unlabeled examples to label next: typical ones of the more doubtful half.

    They are nearest to the centers of k-means with one cluster for each, among the half of the examples with the
    smaller margin between the two most probable classes. With few labels, choosing among the most doubtful ones alone
    is below random choice (`scripts/bench/next_labels.py`).

    Args:
        probabilities: Probabilities of the unlabeled examples, (M, C); NaN for unreadable ones.
        space: Vectors of unlabeled examples.
    """
    top = probabilities[space.pool_positions].topk(2, 1).values
    margin = (top[:, 0] - top[:, 1]).nan_to_num(torch.inf)
    doubtful = margin.argsort(stable=True)[: max(NEXT, len(margin) // 2)]
    if len(doubtful) > NEXT:
        whitening = WhitenedPCA(space.components).fit([space.pool])
        z = F.normalize(whitening.transform(space.pool[doubtful]), dim=1)
        doubtful = doubtful[kmeans_centers(z, NEXT, 0)]
    positions: list[int] = space.pool_positions[doubtful].tolist()
    return positions


def _advise(held_out: Tensor, judged: Tensor, source: LabeledSource, delivery: Delivery) -> list[str]:
    names, labels = source.data.class_names, source.labels[judged]
    right = (held_out[judged].argmax(1) == labels).double()
    counts = labels.bincount(minlength=len(names))
    recall = torch.zeros(len(names), dtype=torch.float64).index_add_(0, labels, right) / counts.clamp_min(1)
    recall[counts < 2] = 2  # too few to say
    sentences = []
    if float(recall.min()) < 1:
        worst = int(recall.argmin())
        sentences.append(
            f"More labels of {names[worst]} would help most: {recall[worst]:.0%} of its {int(counts[worst])} held-out "
            "labels are recognized."
        )
    if delivery.next_labels:
        sentences.append(
            f"Label the {len(delivery.next_labels)} examples of label_next.csv first, then call solve again."
        )
    if delivery.doubtful:
        sentences.append(f"Check {len(delivery.doubtful)} label(s) that look wrong; the report shows them.")
    return sentences

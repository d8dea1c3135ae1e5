"""Export of a trained model's backbone, head or both to a file.

safetensors serves further training, ONNX and PyTorch's `.pt2` run elsewhere. The JSON beside the file (and inside it)
holds what is needed to use it: architecture, input size, normalization, classes, and origin. The model card says the
same to people.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.classifiers import Classifier
from sft_lightning.cli.loaded_run import LoadedRun, describe_checkpoint
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.data.open_data import get_data_class
from sft_lightning.export.detector import DETECTORS, export_detector
from sft_lightning.export.evaluate import NUM_COMPARED, NUM_MAPS, evaluate_export
from sft_lightning.export.int8 import describe_int8, get_int8_path, write_int8
from sft_lightning.export.model_card import CardData, format_model_card
from sft_lightning.export.program_form import find_form
from sft_lightning.export.programs import check_format, describe_parity, write_program
from sft_lightning.export.usage_snippet import metadata_path
from sft_lightning.networks.heads import extract_linear_head
from sft_lightning.networks.weights import Tensors, find_weights, read_weights, select_evaluated_weights, write_weights
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.temperature import read_temperature
from sft_lightning.runs.trained_classes import read_recorded_classes
from sft_lightning.runs.trained_network import TrainedNetwork, load_trained_network
from sft_lightning.tasks.make_task import make_task
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, check_fraction, check_min
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.yaml_files import read_yaml

ExportPart = Literal["backbone", "head", "model"]
ExportFormat = Literal["safetensors", "onnx", "pt2"]
CARD = "model_card.md"
_DEFECT_DETECTORS = ("AnomalyDetector", "StudentTeacherDetector")


def export(
    run: str,
    part: ExportPart = "model",
    format: ExportFormat = "safetensors",
    out: str | None = None,
    wise: float = 1.0,
    measure_on: int = 2000,
    int8: bool = False,
) -> Path:
    """Write a part of a trained model, with a JSON of the same name and a model card beside it.

    A program (`onnx`, `pt2`) takes uint8 images, tokens of texts or waveforms and returns logits, or features for a
    backbone. It is read back and compared with PyTorch on examples of the run; a program that differs is not written.

    Args:
        run: Folder of a run (its last checkpoint), or a checkpoint.
        part: Part to export: `backbone`, `head` or `model`, which is both.
        format: Format of the file; `onnx` needs the extra `export`.
        out: Path of the file; null for PART.FORMAT in the run's folder.
        wise: alpha of WiSE-FT: weights (1 - alpha) * start + alpha * tuned, where the start is what the run started
            from.
        measure_on: Number of examples of the test split (else of validation) for the card's metrics, sampled with the
            data's seed; 0 for a card without metrics.
        int8: Whether to write an ONNX program in 8-bit integers, too, with the ending `.int8.onnx`: a quarter of the
            size, and faster on most CPUs. Its accuracy and speed are measured beside those of the other.

    Returns:
        Path of the file.

    Raises:
        InputError: The run or part does not exist, or cannot be written in this format.
    """
    checkpoint = find_run_checkpoint(run)
    trained = load_trained_network(checkpoint)
    folder = find_run(checkpoint)
    config = {} if folder is None else _read_config(folder / "fit.yaml")
    if trained.metadata["made_by"] in DETECTORS:
        if wise < 1 or int8:
            raise InputError(f"{'int8' if int8 else 'wise'} is set, which is not written for detectors: leave it out")
        path = Path(out) if out is not None else (folder or checkpoint.parent) / f"{part}.{format}"
        return export_detector(run, trained, checkpoint, part, format, path, config.get("data") or {})
    if trained.metadata["made_by"] in _DEFECT_DETECTORS:
        raise InputError(
            f"run {run!r} ({trained.metadata['made_by']}) finds defects by what it knows of normal examples, which no "
            "exported file holds: use predict with the run"
        )
    classifier = None
    if part != "backbone" and not trained.head:
        made_by = trained.metadata["made_by"]
        if made_by != "FrozenFeatureClassifier":
            raise InputError(f"run {run!r} ({made_by}) has no head: give --part backbone")
        classifier = _load_classifier(run) if part == "model" and format != "safetensors" else None
        if classifier is None:
            raise InputError(
                f"run {run!r} classifies by its examples, which {format} does not hold: give --format onnx if it "
                "spreads labels, a run whose classifier is LogisticRegression, Ridge or NearestClassMean, or --part "
                "backbone"
            )
    check_fraction(wise=wise)
    check_min(0, measure_on=measure_on)
    if int8 and (format != "onnx" or part != "model" or folder is None):
        raise InputError("int8 is true, which is for a model of a run as ONNX: give --format onnx and --part model")
    file = Path(out) if out is not None else (folder or checkpoint.parent) / f"{part}.{format}"
    if file.suffix != f".{format}":
        raise InputError(f"out {str(file)!r} does not end in .{format}: give a name that does")
    spec = InputSpec.parse(trained.metadata["input_spec"])
    if format != "safetensors":
        check_format(part, format, spec)
    if wise < 1:
        _interpolate(trained, wise, run)
    data = config.get("data") or {}
    metadata: dict[str, Any] = {"part": part, **trained.metadata}
    if (form := find_form(metadata)) is not None:
        known_classes = get_data_class(spec.modality).__name__, "SegmentationDataModule"
        ours = str(data.get("class_path")).rpartition(".")[2] in known_classes
        metadata["preprocessing"] = form.describe_preprocessing((data.get("init_args") or {}) if ours else {})
    most = measure_on if trained.head and folder is not None else 0
    if most:
        rank_zero_info(f"Measuring on at most {most:,} examples (--measure_on 0 leaves it out).")
    compared = 0 if format == "safetensors" else NUM_MAPS if trained.is_dense else NUM_COMPARED
    evaluation = evaluate_export(run, trained, folder, most, compared) if most or compared else None
    if evaluation is not None and evaluation.metrics:
        metadata["metrics"] = {"split": evaluation.kind, spec.plural: evaluation.count, **evaluation.metrics}
    known = read_temperature(checkpoint) if wise == 1 else None
    if evaluation is not None and evaluation.calibrated_on:
        metadata["temperature"] = {
            "value": evaluation.temperature,
            f"validation_{spec.plural}": evaluation.calibrated_on,
        }
    elif known is not None and part != "backbone":
        metadata["temperature"] = {"value": known.value, "held_out_labels": known.labels}
    target = trained.metadata.get("target", "class")
    if part != "backbone" and make_task(target, len(metadata["class_names"]) or 2).has_thresholds:
        limits = [] if evaluation is None else evaluation.thresholds.tolist()
        limits = limits or ([] if known is None else [*known.thresholds])
        metadata["thresholds"] = limits or [0.5] * len(metadata["class_names"])
    if format == "safetensors" or evaluation is None:
        write_weights(file, _select_tensors(trained, part), metadata)
    else:
        metadata = write_program(file, format, trained, evaluation, metadata, classifier)
        rank_zero_info(f"Parity: {file.name} {describe_parity(metadata['parity'], spec.plural)}.")
        if int8:
            metadata["int8"] = write_int8(run, file, metadata, measure_on)
            rank_zero_info(f"8 bits: {get_int8_path(file).name}, {describe_int8(metadata['int8'], spec.plural)}.")
    write_json(metadata_path(file), metadata)
    trained.network().keep_files(file.parent)
    state = describe_checkpoint(checkpoint, metadata["step"]) + (
        f", {wise:.0%} of the way from its start" if wise < 1 else ""
    )
    write_text(
        file.with_name(CARD), format_model_card(CardData(file, metadata, checkpoint, folder, state, config, evaluation))
    )
    return file


def _load_classifier(run: str) -> Classifier | None:
    """Return the classifier of a run that has no head, or None if it cannot be written as a program."""
    with silence_logs():
        opened = LoadedRun(run)
    if opened.classify is None:
        return None
    head: Classifier = opened.cli.model.head
    return None if head.make_layer() is None else head


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    return config if isinstance(config, dict) else {}


def _select_tensors(trained: TrainedNetwork, part: ExportPart) -> Tensors:
    head = {f"head.{n}": t for n, t in trained.head.items()}
    if part == "head":
        return head
    if part == "backbone":
        return trained.backbone
    return {**{f"backbone.{n}": t for n, t in trained.backbone.items()}, **head}


def _interpolate(trained: TrainedNetwork, alpha: float, run: str) -> None:
    """Interpolate between the weights of the start and the tuned ones (WiSE-FT, Wortsman et al. 2022)."""
    chain = trained.metadata.get("chain") or [{}]
    source = chain[-1].get("weights")
    if source in (None, "none", "default") or not Path(source).exists():
        raise InputError(
            f"wise is {alpha}, but run {run!r} has no start on disk (its weights are {source!r}): give wise: 1, or a "
            "run that started from a file"
        )
    start, _ = read_weights(find_weights(Path(source)))
    start = select_evaluated_weights(start)
    prefix = max(
        {"", *(n[: n.index("net.")] for n in start if "net." in n)},
        key=lambda p: sum(p + n in start for n in trained.backbone),
    )
    mixed = 0
    for name, tuned in trained.backbone.items():
        before = start.get(prefix + name)
        if before is not None and before.shape == tuned.shape and tuned.is_floating_point():
            trained.backbone[name] = torch.lerp(before.to(tuned), tuned, alpha)
            mixed += 1
    if not mixed:
        raise InputError(f"wise is {alpha}, but the start {source!r} has no tensor of the run: it changed since")
    _interpolate_head(trained, alpha, find_weights(Path(chain[-1].get("head_weights", source)), "head"))
    trained.metadata["wise"] = alpha


def _interpolate_head(trained: TrainedNetwork, alpha: float, source: Path) -> None:
    """Interpolate the rows of classes that the start knew by name; rows of new classes are kept."""
    tensors, metadata = read_weights(source)
    start, names, class_names = (
        extract_linear_head(select_evaluated_weights(tensors)),
        read_recorded_classes(metadata, source),
        trained.metadata["class_names"],
    )
    if not start or not trained.head or start["weight"].shape[1] != trained.head["weight"].shape[1]:
        return
    rows = torch.tensor(match_classes(class_names, names or []), dtype=torch.long)
    if names is None or len(names) != len(start["weight"]) or len(rows) != len(trained.head["weight"]):
        rank_zero_info(f"The head is kept as it is: the classes of the run or of {source} are not named.")
        return
    shared = rows >= 0
    for name, tuned in trained.head.items():
        tuned[shared] = torch.lerp(start[name][rows[shared]].to(tuned), tuned[shared], alpha)
    if not bool(shared.all()):
        rank_zero_info(
            f"Rows of classes that are new since {source} are kept: "
            f"{format_class_names(find_missing_classes(class_names, names))}."
        )

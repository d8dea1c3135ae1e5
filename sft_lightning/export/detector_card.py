"""Model card of an exported detector: its use, data, metrics, training and limits, as `model_card` has them."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sft_lightning._version import __version__
from sft_lightning.cli.loaded_run import describe_checkpoint
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.data.split_files import read_split_counts
from sft_lightning.export.model_card import BLANK, LICENSE, describe_training, escape_markdown, format_front_matter
from sft_lightning.export.program_form import find_form
from sft_lightning.export.usage_snippet import metadata_path
from sft_lightning.runs.lineage import find_run
from sft_lightning.training.callbacks.metrics_csv import read_curves
from sft_lightning.utils.errors import InputError

_TITLES = {
    "map": "mean average precision, IoU 0.5 to 0.95",
    "map50": "mean average precision, IoU 0.5",
    "map75": "mean average precision, IoU 0.75",
    "recall": "recall of 100 detections",
}


def format_detector_card(file: Path, metadata: dict[str, Any], checkpoint: Path, data: Mapping[str, Any]) -> str:
    """Format the model card of a detector as Markdown.

    Args:
        file: Exported file.
        metadata: Metadata of the export.
        checkpoint: Checkpoint that was exported.
        data: Settings of the data module of the run; empty where they are unknown.
    """
    folder = find_run(checkpoint)
    name = checkpoint.name if folder is None else "/".join(folder.resolve().parts[-2:])
    counts: dict[str, Counter[str]] = {}
    if folder is not None:
        with suppress(InputError):  # the card says that they are unknown
            counts = read_split_counts(folder / MANIFEST)
    what = "Detector" if metadata["part"] == "model" else "Backbone of the detector"
    state = describe_checkpoint(checkpoint, metadata["step"])
    first = (
        f"{what} of the run `{name}`: {metadata['made_by']} on `{metadata['backbone']}`, {state}. Written as "
        f"`{file.name}` by `sft-lightning export` {__version__}."
    )
    task = "object-detection" if metadata["part"] == "model" else "image-feature-extraction"
    sections = {
        "Use": _write_use(file, metadata),
        "Intended use": _write_intended(metadata, data),
        "Data": _write_data(metadata, data, counts),
        "Metrics": _write_metrics(metadata, folder, counts),
        "Training": describe_training(metadata, folder),
        "Limits": _write_limits(metadata, data, counts),
        "License": LICENSE,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{format_front_matter(metadata, task)}\n# {escape_markdown(name)}\n\n{first}\n\n{body}\n"


def _write_use(file: Path, metadata: dict[str, Any]) -> str:
    text = "```python\n" + "\n".join(_format_code(file, metadata)) + "\n```"
    if parity := metadata.get("parity"):
        text += (
            f"\n\nThe written file, read back, differs from PyTorch by {parity['largest_difference']:.2g} at most in "
            f"scores, and in corners as shares of the side, on {parity['images']} images with "
            f"{parity['detections']:,} detections ({parity['runtime']})."
        )
    return text


def _write_intended(metadata: dict[str, Any], data: Mapping[str, Any]) -> str:
    like = f"images like those of {escape_markdown(data.get('source') or 'the training data')}"
    names = ", ".join(map(escape_markdown, metadata["class_names"])) or "unknown classes"
    is_whole = metadata["part"] == "model"
    what = f"To find objects in {like}" if is_whole else f"Features of {like}; they were learned to find objects"
    return f"{what}: {names}.\n\n{BLANK} who is to use it for what, and what must not depend on it."


def _write_data(metadata: dict[str, Any], data: Mapping[str, Any], counts: Mapping[str, Counter[str]]) -> str:
    lines = [f"- source: {escape_markdown(data.get('source') or 'unknown')}"]
    if other := data.get("unlabeled_source"):
        lines.append(f"- source of the unlabeled images: {escape_markdown(other)}")
    lines.append(f"- SHA-256: {metadata.get('data_sha256') or 'unknown'}")
    if not counts:
        return "\n".join([*lines, "- counts: unknown, since there is no `split.csv` that can be read"])
    sizes = ", ".join(f"{own.total():,} {split}" for split, own in counts.items())
    learned = metadata["made_by"] == "SemiSupervisedDetector"
    unlabeled = "unlabeled images were learned from, too" if learned else "unlabeled images were not looked at"
    return "\n".join([*lines, f"- splits: {sizes} (`split.csv`); {unlabeled}"])


def _write_metrics(metadata: dict[str, Any], folder: Path | None, counts: Mapping[str, Counter[str]]) -> str:
    """Report what the run logged of the test or else the validation split, for exactly this state of its training."""
    curves = (None if folder is None else read_curves(folder)) or {}
    for split, title in (("test", "test"), ("val", "validation")):
        logged = {
            name.removeprefix(f"{split}/"): value
            for name, values in curves.items()
            for step, value in values
            if name.startswith(f"{split}/") and step + 1 == metadata["step"]
        }
        if "map" not in logged:
            continue
        rows = [f"| {words} | {logged[name]:.4f} |" for name, words in _TITLES.items() if name in logged]
        rows += [
            f"| average precision of {escape_markdown(name)} | {logged[f'ap_{name}']:.4f} |"
            for name in metadata["class_names"]
            if f"ap_{name}" in logged
        ]
        images = counts[split].total() if counts else 0
        which = f"the {images:,} images of the {title} split" if images else f"the {title} split"
        text = f"By the run's own record, on {which}:\n\n| metric | value |\n| --- | --- |\n" + "\n".join(rows)
        if split == "val":
            text += "\n\nThe validation split chose among checkpoints, so that these values are a little too good."
        return text
    return "Not measured: `sft-lightning test RUN` measures the run, and another export then writes it here."


def _write_limits(metadata: dict[str, Any], data: Mapping[str, Any], counts: Mapping[str, Counter[str]]) -> str:
    limits = [
        f"It knows {len(metadata['class_names'])} classes and no other. A score is not a probability: choose a "
        "threshold on images like those it will see (`sft-lightning report` proposes one)."
    ]
    if counts:
        limits.append(
            f"It learned from {counts['labeled'].total():,} annotated images: with few of them, another choice gives "
            "another network, and rare kinds of an object are not in them."
        )
    limits.append(
        f"It was not evaluated on images from elsewhere than {escape_markdown(data.get('source') or 'its data')}, such "
        "as other devices, places or times. On what is unlike the training data it can be wrong and sure of it."
    )
    return "\n".join(f"- {limit}" for limit in limits)


def _format_code(file: Path, metadata: dict[str, Any]) -> list[str]:
    """Return code that starts another training, or finds objects in `image.png`."""
    if "format" not in metadata:
        return [
            "# A start for another training, with the same classes or others:",
            f"# sft-lightning fit --config ... --model.init_args.weights {file.name}",
        ]
    form = find_form({**metadata, "output": {"name": "boxes"}})
    assert form is not None  # as `check_format` found
    return [
        *form.format_code(file)[:-1],
        'boxes, scores, classes = session.run(None, {"images": pixels})  # corners in pixels of what the program sees',
        f'names = json.load(open("{metadata_path(file).name}", encoding="utf-8"))["class_names"]',
        "for box, score, number in zip(boxes, scores, classes):",
        "    print(names[number], score, box)",
    ]

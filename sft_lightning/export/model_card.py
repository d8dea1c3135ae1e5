"""Model card of an exported file: its origin, data, metrics, intended use and limits.

Plain Markdown after Mitchell et al. 2019 ("Model Cards for Model Reporting"), with front matter that hubs read.
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from sft_lightning._version import __version__
from sft_lightning.data.class_names import list_classes
from sft_lightning.data.label_columns import SEPARATOR
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.data.split_files import read_split_counts
from sft_lightning.export.evaluate import ExportEvaluation
from sft_lightning.export.int8 import describe_int8
from sft_lightning.export.program_form import find_form
from sft_lightning.export.programs import describe_parity
from sft_lightning.export.usage_snippet import format_snippet, metadata_path
from sft_lightning.modalities import get_modality
from sft_lightning.runs.lineage import format_lineage as chain_in_words
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.classification_metrics import wilson
from sft_lightning.tasks.make_task import make_task
from sft_lightning.tasks.segmentation_metrics import IOU
from sft_lightning.training.callbacks.metrics_csv import read_curves
from sft_lightning.utils.environment import format_machine as machine_in_words
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

BLANK = "**To be filled in by you:** ____"
LICENSE = f"{BLANK} the license of these weights. The data and the weights that it started from have theirs."
_MAX_CLASSES = 100  # classes that a table can hold
_SPLIT_TITLES = {"labeled": "labeled", "val": "validation", "test": "test"}


@dataclass
class CardData:
    """Content of a model card.

    Attributes:
        file: Exported file.
        metadata: Metadata of the export.
        checkpoint: Checkpoint that was exported.
        folder: Folder of the run, or None.
        iterate: Description of the exported training state.
        config: Config of `fit`; empty where it is unknown.
        evaluation: Evaluation at export; None if there was none.
        name: Name of the run.
        spec: Inputs of the network.
        counts: Number of examples by split and label; empty where they are unknown.
        task: Kind of target.
    """

    file: Path
    metadata: dict[str, Any]
    checkpoint: Path
    folder: Path | None
    iterate: str
    config: dict[str, Any]
    evaluation: ExportEvaluation | None
    name: str = field(init=False)
    spec: InputSpec = field(init=False)
    counts: dict[str, Counter[str]] = field(init=False)
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        """Read how the data was split."""
        self.name = self.checkpoint.name if self.folder is None else "/".join(self.folder.resolve().parts[-2:])
        self.spec = InputSpec.from_settings(self.metadata) or InputSpec("unknown", ())
        self.task = make_task(self.metadata.get("target", "class"), len(self.metadata["class_names"]) or 2)
        self.counts = {}
        if self.folder is not None:
            with suppress(InputError):  # the card says that they are unknown
                self.counts = read_split_counts(self.folder / MANIFEST)

    def get_setting(self, part: str, name: str) -> Any:
        """Return a setting of the run's `model` or `data`, of a class its name; None if unset.

        Args:
            part: Section of the config: `model` or `data`.
            name: Name of the setting.
        """
        value = ((self.config.get(part) or {}).get("init_args") or {}).get(name)
        given = value.get("class_path", value) if isinstance(value, dict) else value
        return given.rpartition(".")[2] if isinstance(value, dict) and isinstance(given, str) else given

    def count_examples(self, split: str) -> int:
        """Count the examples of a split.

        Args:
            split: Name of the split.
        """
        return sum(self.counts.get(split, Counter()).values())

    def count_class(self, split: str, name: str) -> int:
        """Count the examples of a split that have a class.

        Args:
            split: Name of the split.
            name: Name of the class.
        """
        counts, separator = self.counts[split], self.get_setting("data", "label_separator")
        if self.task.target == "class":
            return counts[name]
        return sum(n for label, n in counts.items() if name in list_classes(label, separator or SEPARATOR))


def format_model_card(card: CardData) -> str:
    """Format a model card as Markdown.

    Args:
        card: Content of the card.
    """
    sections = {
        "Use": _write_use(card),
        "Intended use": _write_intended(card),
        "Data": _write_data(card),
        "How labels were used": _write_labels(card),
        "Metrics": _write_metrics(card),
        "Training": describe_training(card.metadata, card.folder),
        "Limits": _write_limits(card),
        "License": LICENSE,
    }
    metadata = card.metadata
    kind = {"backbone": "The backbone", "head": "The classifier", "model": "Backbone and classifier"}[metadata["part"]]
    made_by = metadata["made_by"] or "a network"
    first = f"{kind} of the run `{card.name}`: {made_by} on `{metadata['backbone']}`, {card.iterate}. "
    first += f"Written as `{card.file.name}` by `sft-lightning export` {__version__}."
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_format_front_matter(card)}\n# {escape_markdown(card.name)}\n\n{first}\n\n{body}\n"


def escape_markdown(value: object) -> str:
    """Escape a user's text for Markdown and HTML, also inside a table.

    Args:
        value: Value to format.
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(str(value).split()))


def _format_front_matter(card: CardData) -> str:
    metadata, evaluation = card.metadata, card.evaluation
    name = card.spec.modality
    classifier, network = get_modality(name).hub_tasks or (f"{name}-classification", "feature-extraction")
    task = card.task.hub_task or classifier if metadata["part"] == "model" else network
    front: dict[str, Any] = {}
    if evaluation is not None and evaluation.metrics and evaluation.kind == "test" and metadata["part"] == "model":
        source = {"name": str(card.get_setting("data", "source")), "type": str(card.get_setting("data", "source"))}
        values = [
            {"type": kind, "name": words, "value": round(evaluation.metrics[name], 4)}
            for kind, name, words in card.task.hub_metrics
        ]
        result = {"task": {"type": task}, "dataset": {**source, "split": "test"}, "metrics": values}
        front["model-index"] = [{"name": card.name, "results": [result]}]
    return format_front_matter(metadata, task, **front)


def format_front_matter(metadata: dict[str, Any], task: str, **more: Any) -> str:
    """Format the front matter that hubs read.

    Args:
        metadata: Metadata of the export.
        task: Name of the task as hubs have it.
        more: Further entries.
    """
    front: dict[str, Any] = {
        "library_name": {"onnx": "onnx", "pt2": "pytorch"}.get(metadata.get("format", ""), "sft-lightning"),
        "pipeline_tag": task,
        "tags": ["sft-lightning", metadata["backbone"]],
        **more,
    }
    blank = "# license: to be filled in by you\n"
    return f"---\n{blank}{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _write_use(card: CardData) -> str:
    metadata = card.metadata
    sentences = [f"```python\n{format_snippet(card.file, metadata)}\n```"]
    if "format" in metadata:
        form, size = find_form(metadata), ", ".join(map(str, metadata["output"]["shape"]))
        assert form is not None  # of a program
        inside = f" Inside the program: {', '.join(metadata['inside'])}." if metadata["inside"] else ""
        sentences.insert(
            0,
            f"{form.explain()} Output `{metadata['output']['name']}`: float32, ({size}).{inside} Before it, as below: "
            f"what `{metadata_path(card.file).name}` lists under `preprocessing`.",
        )
        parity = escape_markdown(describe_parity(metadata["parity"], card.spec.plural))
        sentences.append(f"The written file, read back, {parity}.")
        if metadata["format"] == "pt2":
            sentences.append("PyTorch reads `.pt2` files of its own version; of another one it may refuse them.")
    if measured := metadata.get("int8"):
        what = escape_markdown(describe_int8(measured, card.spec.plural))
        sentences.append(f"`{measured['file']}` is the same in 8-bit integers: {what}.")
    return "\n\n".join(sentences)


def _write_intended(card: CardData) -> str:
    metadata, source = card.metadata, escape_markdown(card.get_setting("data", "source") or "the training data")
    names, like = metadata["class_names"], f"{card.spec.plural} like those of {source}"
    if not names:
        what = f"Features of {like}, for another network to learn from."
    elif metadata["part"] == "backbone":
        what = f"Features of {like}; they were learned to {card.task.describe_aim()}."
    else:
        what = f"To {card.task.describe_aim()} in {like}."
    return f"{what}\n\n{BLANK} who is to use it for what, and what must not depend on it."


def _write_data(card: CardData) -> str:
    source = card.get_setting("data", "source")
    lines = [f"- source: {escape_markdown(source) if source else 'unknown'}"]
    if card.get_setting("data", "unlabeled_source"):
        lines.append(
            f"- source of the unlabeled {card.spec.plural}: "
            f"{escape_markdown(card.get_setting('data', 'unlabeled_source'))}"
        )
    if card.get_setting("data", "labels"):
        lines.append(f"- labels beside the source: {escape_markdown(card.get_setting('data', 'labels'))}")
    lines.append(f"- SHA-256: {card.metadata.get('data_sha256') or 'unknown'}")
    if not card.counts:
        return "\n".join([*lines, "- counts: unknown, since there is no `split.csv` that can be read"])
    sizes = ", ".join(f"{card.count_examples(n):,} {n}" for n in card.counts)
    lines.append(f"- splits: {sizes} (chosen by seed, in `split.csv`)")
    if card.task.is_dense:  # whose labels in `split.csv` only say which examples have a mask
        return "\n".join([*lines, f"- classes: {', '.join(map(escape_markdown, card.metadata['class_names']))}"])
    names = card.metadata["class_names"] or sorted({c for n in _SPLIT_TITLES for c in card.counts[n] if c})
    if len(names) > _MAX_CLASSES:
        few = [card.count_class("labeled", c) for c in names]
        return "\n".join([*lines, f"- classes: {len(names)}, with {min(few)} to {max(few)} labels each (`split.csv`)"])
    rows = [[escape_markdown(c), *(f"{card.count_class(n, c):,}" for n in _SPLIT_TITLES)] for c in names]
    head = [["class", *_SPLIT_TITLES.values()], ["---", *["---:"] * len(_SPLIT_TITLES)]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])
    return "\n".join(lines) + (f"\n\n{table}" if names else "")


def _write_labels(card: CardData) -> str:
    made_by, labeled, others = (
        card.metadata["made_by"],
        card.count_examples("labeled"),
        card.count_examples("unlabeled"),
    )
    if not card.counts:
        return "Unknown, since there is no `split.csv` that can be read."
    if made_by == "AutoencoderModule":
        return f"None was used: it learned to reconstruct {card.spec.count(others)}."
    if made_by == "SelfSupervisedModule":
        objective = card.get_setting("model", "objective")
        return f"None was used: it learned from random views of {card.spec.count(others)} by {objective}."
    plural = card.spec.plural
    budget = [f"{n}: {v}" for n in ("num_labels", "labels_per_class") if (v := card.get_setting("data", n)) is not None]
    sentences = [f"{labeled:,} labels were used ({budget[0] if budget else 'all that there were'})."]
    if made_by == "SemiSupervisedModule":
        weight = f"`{card.get_setting('model', 'schedule')}`, lambda {card.get_setting('model', 'lambda_u')}"
        sentences.append(
            f"From {others:,} unlabeled {plural} it learned by {card.get_setting('model', 'strategy')} ({weight})."
        )
    elif made_by == "FrozenFeatureClassifier":
        classifier = card.get_setting("model", "classifier") or "LogisticRegression"
        sentences.append(f"{classifier} was fitted to their features without gradient steps.")
        if components := card.get_setting("model", "whiten"):
            sentences.append(
                f"It takes at most {components} whitened principal components of all training {plural}, of which "
                f"{others:,} have no label."
            )
    else:
        sentences.append(
            f"The {others:,} unlabeled {plural} were not looked at." if others else f"There were no other {plural}."
        )
    if made_by == "DecoupledFeatureClassifier":
        head = f"the classifier is `{card.get_setting('model', 'head')}`"
        sentences.append(f"The features were learned by {card.get_setting('model', 'feature_loss')}, {head}.")
    if card.count_examples("val"):
        sentences.append(f"The labels of {card.count_examples('val'):,} validation {plural} were measured against.")
    return " ".join([*sentences, "What it started from may have learned from others: see the lineage below."])


def _write_metrics(card: CardData) -> str:
    evaluation = card.evaluation
    if evaluation is not None and evaluation.metrics:
        m, count = evaluation.metrics, evaluation.count
        which = f"all {count:,}" if count == evaluation.total else f"{count:,} of the {evaluation.total:,}"
        sentences = [
            f"Measured at export, with PyTorch, on {which} {card.spec.plural} of the {evaluation.kind} split: "
            f"{card.iterate}."
        ]
        titles = card.task.metric_titles
        rows = [f"| {words} | {m[name]:.4f} |" for name, words in titles.items() if name in m]
        share, words = next(iter(titles.items()))
        low, high = evaluation.interval or wilson(m[share], count)
        rows[0] = f"| {words} | {m[share]:.4f} (95% interval {low:.3f} to {high:.3f}) |"
        sentences.append("\n".join(["| metric | value |", "| --- | --- |", *rows]))
        sentences += [*_write_class_metrics(card, m), *_write_temperature(card)]
        if evaluation.kind != "test":
            sentences.append("There is no test split: where the validation split chose anything, this is too good.")
        return "\n\n".join(sentences)
    recorded = _write_recorded(card)
    why = (
        f": {escape_markdown(evaluation.random_reason)}" if evaluation is not None and evaluation.random_reason else ""
    )
    parts = [f"Not measured at export{why}.", *([recorded] if recorded else []), *_write_temperature(card)]
    return "\n\n".join(parts)


def _write_class_metrics(card: CardData, metrics: dict[str, float]) -> list[str]:
    """Return a table of the classes where the task measures each of them."""
    rows = [
        f"| {escape_markdown(name)} | {metrics[f'{IOU}{k}']:.4f} |"
        for k, name in enumerate(card.metadata["class_names"])
        if f"{IOU}{k}" in metrics
    ]
    return ["\n".join(["| class | intersection over union |", "| --- | --- |", *rows])] if rows else []


def _write_temperature(card: CardData) -> list[str]:
    temperature = card.metadata.get("temperature")
    if temperature is None or card.metadata["part"] == "backbone":
        return []
    labels = (
        f"{temperature['held_out_labels']:,} labels, held out in turn,"
        if "held_out_labels" in temperature
        else (f"the labels of {temperature[f'validation_{card.spec.plural}']:,} validation {card.spec.plural}")
    )
    value = f"{temperature['value']:.3f}"
    sentences = [f"`predict` divides the logits by the temperature {value}, under which {labels} are likeliest."]
    if "thresholds" in card.metadata:
        best = "the best F1 of an example" if "held_out_labels" in temperature else "the best F1"
        sentences[0] += f" It names the classes whose probability is at least their threshold, which has {best} there."
    return sentences


def _write_recorded(card: CardData) -> str:
    """Report the metrics that the run logged for exactly this state of its training."""
    step, curves = card.metadata["step"], read_curves(card.folder) if card.folder is not None else None
    if curves is None or step is None or "wise" in card.metadata:
        return ""
    titles = card.task.metric_titles
    values = {n: v for n in titles for at, v in curves.get(f"val/{n}", []) if at == step - 1}
    listed = ", ".join(f"{titles[n]} {v:.4f}" for n, v in values.items())
    count = f"{card.spec.count(card.count_examples('val'))} of the " if card.count_examples("val") else ""
    return f"By the run's own record, on {count}validation split: {listed} ({card.iterate})." if values else ""


def describe_training(metadata: dict[str, Any], folder: Path | None) -> str:
    """Describe when, on what and from what an exported network was trained.

    Args:
        metadata: Metadata of the export.
        folder: Folder of the run, or None.
    """
    chain = metadata.get("chain") or [{}]
    link = chain[-1]
    hardware = machine_in_words(link["machine"]) if "machine" in link else "unknown"
    lines = [
        f"- when: {link.get('date', 'unknown')}, by sft-lightning {link.get('version', 'of an unknown version')}",
        f"- hardware: {hardware}",
        f"- steps: {metadata['step'] if metadata['step'] is not None else 'unknown'}",
        f"- repeated by: `sft-lightning repeat {folder}`" if folder is not None else "",
    ]
    tree = chain_in_words(chain) if folder is not None else "unknown"
    return "\n".join(line for line in lines if line) + f"\n\nLineage, the source first:\n\n```text\n{tree}\n```"


def _write_limits(card: CardData) -> str:
    metadata = card.metadata
    form = find_form(metadata)
    limits = [] if form is None else form.explain_limits()
    if metadata["class_names"] and metadata["part"] != "backbone":
        limits.append(card.task.explain_limit())
        has_counts = bool(card.counts) and not card.task.is_dense
        by_class = {c: card.count_class("labeled", c) for c in metadata["class_names"]} if has_counts else {}
        if by_class:
            fewest = min(by_class, key=lambda c: by_class[c])
            smallest = f"{by_class[fewest]:,} of class {escape_markdown(fewest)}"
            limits.append(
                f"It learned from {card.count_examples('labeled'):,} labels, {smallest}: with few labels, another "
                "choice of them gives another network, and rare kinds of a class are not in them."
            )
        if card.task.is_dense and card.counts:
            limits.append(
                f"It learned from {card.count_examples('labeled'):,} masks: with few of them, another choice gives "
                "another network, and rare kinds of a class are not in them."
            )
        unseen = [c for c in by_class if not card.count_class("test", c)]
        if unseen and card.count_examples("test"):
            limits.append(f"Without an example in the test split: {', '.join(map(escape_markdown, unseen))}.")
    source = escape_markdown(card.get_setting("data", "source") or "its data")
    limits.append(
        f"It was not evaluated on {card.spec.plural} from elsewhere than {source}, such as other devices, places or "
        f"times, nor by groups of people or things in them, nor on {card.spec.plural} made to mislead it. On what is "
        "unlike the training data it can be wrong and sure of it."
    )
    return "\n".join(f"- {limit}" for limit in limits)

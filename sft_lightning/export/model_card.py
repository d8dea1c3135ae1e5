"""The model card beside an exported file: what it is, learned from, reaches, and is not for.

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
from sft_lightning.data.split_files import read_split_counts
from sft_lightning.data.vision.datamodule import MANIFEST
from sft_lightning.export.evaluate import Evaluated
from sft_lightning.export.programs import describe_tolerance
from sft_lightning.export.usage_snippet import format_snippet, metadata_path
from sft_lightning.paradigms.metrics import wilson
from sft_lightning.runs.lineage import format_lineage as chain_in_words
from sft_lightning.training.callbacks.csv_log import read_curves
from sft_lightning.utils.environment import format_machine as machine_in_words
from sft_lightning.utils.errors import InputError

BLANK = "**To be filled in by you:** ____"
_MOST = 100  # classes that a table can hold
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "expected calibration error (15 bins)",
    "calibrated_error": "the same with the temperature",
    "loss": "cross-entropy",
}
_TABLED = {"labeled": "labeled", "val": "validation", "test": "test"}


@dataclass
class Told:
    """What a card is made of.

    Attributes:
        file: What was exported.
        about: What its JSON says.
        checkpoint: What it was made of.
        folder: Of the run, or None.
        iterate: Which state of the training it is.
        config: What `fit` was asked for; empty where that is unknown.
        measured: What the network makes of images; None where none were looked at.
        name: Of the run.
        counts: Examples by split and class; empty where they are unknown.
    """

    file: Path
    about: dict[str, Any]
    checkpoint: Path
    folder: Path | None
    iterate: str
    config: dict[str, Any]
    measured: Evaluated | None
    name: str = field(init=False)
    counts: dict[str, Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Reads how the data was split."""
        self.name = self.checkpoint.name if self.folder is None else "/".join(self.folder.resolve().parts[-2:])
        self.counts = {}
        if self.folder is not None:
            with suppress(InputError):  # the card says that they are unknown
                self.counts = read_split_counts(self.folder / MANIFEST)

    def setting(self, part: str, name: str) -> Any:
        """A setting of the run's `model` or `data`, or None; of a class its name.

        Args:
            part: `model` or `data`.
            name: Of the setting.
        """
        value = ((self.config.get(part) or {}).get("init_args") or {}).get(name)
        given = value.get("class_path", value) if isinstance(value, dict) else value
        return given.rpartition(".")[2] if isinstance(value, dict) and isinstance(given, str) else given

    def size(self, split: str) -> int:
        """Examples of a split.

        Args:
            split: Its name.
        """
        return sum(self.counts.get(split, Counter()).values())


def format_model_card(told: Told) -> str:
    """The whole page.

    Args:
        told: What there is to say.
    """
    sections = {
        "Use": _use(told),
        "Intended use": _intended(told),
        "Data": _data(told),
        "How labels were used": _labels(told),
        "Metrics": _metrics(told),
        "Training": _training(told),
        "Limits": _limits(told),
        "License": f"{BLANK} the license of these weights. The data and the weights that it started from have theirs.",
    }
    about = told.about
    kind = {"backbone": "The backbone", "head": "The classifier", "model": "Backbone and classifier"}[about["part"]]
    first = (
        f"{kind} of the run `{told.name}`: {about['made_by'] or 'a network'} on `{about['backbone']}`, {told.iterate}. "
    )
    first += f"Written as `{told.file.name}` by `sft-lightning export` {__version__}."
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_front(told)}\n# {text(told.name)}\n\n{first}\n\n{body}\n"


def text(value: object) -> str:
    """What a user wrote, such that Markdown and HTML take it as text, also in a table.

    Args:
        value: Anything.
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(str(value).split()))


def _front(told: Told) -> str:
    about, measured = told.about, told.measured
    task = "image-classification" if about["part"] == "model" else "image-feature-extraction"
    front: dict[str, Any] = {
        "library_name": {"onnx": "onnx", "pt2": "pytorch"}.get(about.get("format", ""), "sft-lightning"),
        "pipeline_tag": task,
        "tags": ["sft-lightning", about["backbone"]],
    }
    if measured is not None and measured.metrics and measured.kind == "test" and about["part"] == "model":
        source = {"name": str(told.setting("data", "source")), "type": str(told.setting("data", "source"))}
        values = [
            {"type": kind, "name": words, "value": round(measured.metrics[name], 4)}
            for kind, name, words in (("accuracy", "accuracy", "accuracy"), ("f1", "macro_f1", "macro F1"))
        ]
        result = {"task": {"type": task}, "dataset": {**source, "split": "test"}, "metrics": values}
        front["model-index"] = [{"name": told.name, "results": [result]}]
    blank = "# license: to be filled in by you\n"
    return f"---\n{blank}{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _use(told: Told) -> str:
    about = told.about
    said = [f"```python\n{format_snippet(told.file, about)}\n```"]
    if "format" in about:
        shape, size = (", ".join(map(str, about[end]["shape"])) for end in ("input", "output"))
        said.insert(
            0,
            f"Input `images`: uint8, 0 to 255, ({shape}). Output `{about['output']['name']}`: float32, ({size}). "
            f"Inside the program: {', '.join(about['inside'])}. Before it, as below: what "
            f"`{metadata_path(told.file).name}` "
            "lists under `preprocessing`. Another way to resize or crop gives other outputs.",
        )
        if not about["preprocessing"]["known"]:
            said.append("The data of the run is unknown: crop and background below are guesses.")
        said.append(f"The written file, read back, {text(describe_tolerance(about['parity']))}.")
        if about["format"] == "pt2":
            said.append("PyTorch reads `.pt2` files of its own version; of another one it may refuse them.")
    return "\n\n".join(said)


def _intended(told: Told) -> str:
    about, source = told.about, text(told.setting("data", "source") or "the training data")
    names = about["class_names"]
    if not names:
        what = f"Features of images like those of {source}, for another network to learn from."
    elif about["part"] == "backbone":
        what = f"Features of images like those of {source}; they were learned to tell {len(names)} classes apart."
    else:
        what = f"To tell {len(names)} classes apart in images like those of {source}."
    return f"{what}\n\n{BLANK} who is to use it for what, and what must not depend on it."


def _data(told: Told) -> str:
    source = told.setting("data", "source")
    lines = [f"- source: {text(source) if source else 'unknown'}"]
    if told.setting("data", "unlabeled_source"):
        lines.append(f"- source of the unlabeled images: {text(told.setting('data', 'unlabeled_source'))}")
    lines.append(f"- SHA-256: {told.about.get('data_sha256') or 'unknown'}")
    if not told.counts:
        return "\n".join([*lines, "- counts: unknown, since there is no `split.csv` that can be read"])
    lines.append(
        f"- splits: {', '.join(f'{told.size(n):,} {n}' for n in told.counts)} (chosen by seed, in `split.csv`)"
    )
    names = told.about["class_names"] or sorted({c for n in _TABLED for c in told.counts[n] if c})
    if len(names) > _MOST:
        few = [told.counts["labeled"][c] for c in names]
        return "\n".join([*lines, f"- classes: {len(names)}, with {min(few)} to {max(few)} labels each (`split.csv`)"])
    rows = [[text(c), *(f"{told.counts[n][c]:,}" for n in _TABLED)] for c in names]
    head = [["class", *_TABLED.values()], ["---", *["---:"] * len(_TABLED)]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])
    return "\n".join(lines) + (f"\n\n{table}" if names else "")


def _labels(told: Told) -> str:
    made_by, labeled, others = told.about["made_by"], told.size("labeled"), told.size("unlabeled")
    if not told.counts:
        return "Unknown, since there is no `split.csv` that can be read."
    if made_by == "AutoencoderModule":
        return f"None was used: it learned to redraw {others:,} images."
    budget = [f"{n}: {v}" for n in ("num_labels", "labels_per_class") if (v := told.setting("data", n)) is not None]
    said = [f"{labeled:,} labels were used ({budget[0] if budget else 'all that there were'})."]
    if made_by == "SemiSupervisedModule":
        weight = f"`{told.setting('model', 'schedule')}`, lambda {told.setting('model', 'lambda_u')}"
        said.append(f"From {others:,} unlabeled images it learned by {told.setting('model', 'strategy')} ({weight}).")
    else:
        said.append(f"The {others:,} unlabeled images were not looked at." if others else "There were no other images.")
    if made_by == "DecoupledFeatureClassifier":
        head = f"the classifier is `{told.setting('model', 'head')}`"
        said.append(f"The features were learned by {told.setting('model', 'feature_loss')}, {head}.")
    if told.size("val"):
        said.append(f"The labels of {told.size('val'):,} validation images were measured against.")
    return " ".join([*said, "What it started from may have learned from others: see the lineage below."])


def _metrics(told: Told) -> str:
    measured = told.measured
    if measured is not None and measured.metrics:
        m, count = measured.metrics, measured.count
        which = f"all {count:,}" if count == measured.total else f"{count:,} of the {measured.total:,}"
        said = [f"Measured at export, with PyTorch, on {which} images of the {measured.kind} split: {told.iterate}."]
        low, high = wilson(m["accuracy"], count)
        rows = [f"| {words} | {m[name]:.4f} |" for name, words in _METRICS.items() if name in m]
        rows[0] = f"| accuracy | {m['accuracy']:.4f} (95 % interval {low:.3f} to {high:.3f}) |"
        said.append("\n".join(["| metric | value |", "| --- | --- |", *rows]))
        if measured.calibrated_on:
            said.append(
                f"`predict` divides the logits by the temperature {measured.temperature:.3f}, under which the labels "
                f"of {measured.calibrated_on:,} validation images are likeliest."
            )
        if measured.kind != "test":
            said.append("There is no test split: where the validation split chose anything, this is too good.")
        return "\n\n".join(said)
    recorded = _recorded(told)
    why = f": {text(measured.why_not)}" if measured is not None and measured.why_not else ""
    return f"Not measured at export{why}." + (f"\n\n{recorded}" if recorded else "")


def _recorded(told: Told) -> str:
    """What the run wrote of just this state of its training."""
    step, found = told.about["step"], read_curves(told.folder) if told.folder is not None else None
    if found is None or step is None or "wise" in told.about:
        return ""
    values = {n: v for n in _METRICS for at, v in found.get(f"val/{n}", []) if at == step - 1}
    listed = ", ".join(f"{_METRICS[n]} {v:.4f}" for n, v in values.items())
    count = f"{told.size('val'):,} images of the " if told.size("val") else ""
    return f"By the run's own record, on {count}validation split: {listed} ({told.iterate})." if values else ""


def _training(told: Told) -> str:
    chain = told.about.get("chain") or [{}]
    link = chain[-1]
    hardware = machine_in_words(link["machine"]) if "machine" in link else "unknown"
    lines = [
        f"- when: {link.get('date', 'unknown')}, by sft-lightning {link.get('version', 'of an unknown version')}",
        f"- hardware: {hardware}",
        f"- steps: {told.about['step'] if told.about['step'] is not None else 'unknown'}",
        f"- repeated by: `sft-lightning repeat {told.folder}`" if told.folder is not None else "",
    ]
    tree = chain_in_words(chain) if told.folder is not None else "unknown"
    return "\n".join(line for line in lines if line) + f"\n\nLineage, the source first:\n\n```text\n{tree}\n```"


def _limits(told: Told) -> str:
    about = told.about
    channels, height, width = about["image_shape"]
    color = "gray" if channels == 1 else "color"
    limits = [f"It sees {width} x {height} {color} pixels of the central square: nothing smaller, nothing outside it."]
    if about["class_names"] and about["part"] != "backbone":
        limits.append(
            f"It knows {len(about['class_names'])} classes and no other: an image of none of them is given one all the "
            "same, and its probability can be high. It does not say that something is unknown."
        )
        by_class = {c: told.counts["labeled"][c] for c in about["class_names"]} if told.counts else {}
        if by_class:
            fewest = min(by_class, key=lambda c: by_class[c])
            limits.append(
                f"It learned from {told.size('labeled'):,} labels, {by_class[fewest]:,} of class {text(fewest)}: with "
                "few labels, another choice of them gives another network, and rare kinds of a class are not in them."
            )
        unseen = [c for c in by_class if not told.counts["test"][c]]
        if unseen and told.size("test"):
            limits.append(f"Without an image in the test split: {', '.join(map(text, unseen))}.")
    source = text(told.setting("data", "source") or "its data")
    limits.append(
        f"It was not evaluated on images from elsewhere than {source}, such as other cameras, places or times, nor by "
        "groups of people or things in them, nor on images made to mislead it. On what is unlike the training data it "
        "can be wrong and sure of it."
    )
    return "\n".join(f"- {limit}" for limit in limits)

"""Render the sections of a report from what the run logged: curves, pseudo-labels, and provenance."""

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from sft_lightning._version import __version__
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.report import figures
from sft_lightning.runs.lineage import format_lineage
from sft_lightning.runs.provenance import format_command, shorten
from sft_lightning.runs.record import RunRecord
from sft_lightning.training.callbacks.metrics_csv import Curves, MetricsCSV
from sft_lightning.utils.environment import describe_machine, format_machine
from sft_lightning.utils.html import render_collapsible, render_note, render_table

# Metrics of all kinds of classifiers; each run has some of them.
_VALIDATION = [
    "accuracy", "mean_average_precision", "exact_match", "micro_f1", "balanced_accuracy", "macro_f1",
    "calibration_error", "knn_accuracy", "mean_iou", "mean_dice", "boundary_f1", "pixel_accuracy",
]  # fmt: skip
# Meaning of each metric of the pseudo-labels.
_MEANINGS = {
    "accepted": "share of the pseudo-labels that training uses",
    "accuracy": "share of these that is right (hidden labels serve only to measure it)",
    "classes": "effective number of predicted classes; far below the number of classes, the predictions have collapsed",
    "distance": "distance between the distributions of pseudo-labels and labels, 0 to 1",
}


def render_training(curves: Curves | None) -> Markup:
    """Return the section with the training and validation curves.

    Args:
        curves: Metrics from `read_curves`.
    """
    if curves is None:
        return render_note(f"The run's folder has no {MetricsCSV.FILE}, or one that cannot be read.")
    losses = [n for n in curves if n.startswith("train/") and "threshold" not in n and n != "train/ratio"]
    groups: list[tuple[str, Sequence[str]]] = [
        ("training loss", losses[:6]),
        ("validation", [f"val/{name}" for name in _VALIDATION]),
        ("validation loss", ["val/loss"]),
    ]
    return figures.draw_curves(curves, groups) or render_note("The run was too short for a curve.")


def render_health(curves: Curves | None) -> Markup:
    """Return the section about the pseudo-labels; empty for a run without any.

    Args:
        curves: Metrics from `read_curves`.
    """
    curves = curves or {}
    logged = {n: sorted(curves[f"pseudo_labels/{n}"]) for n in _MEANINGS if f"pseudo_labels/{n}" in curves}
    if not logged:
        return Markup()
    rows = [(n, f"{values[0][1]:.3g}", f"{values[-1][1]:.3g}", _MEANINGS[n]) for n, values in logged.items()]
    shares = [f"pseudo_labels/{name}" for name in logged if name != "classes"]
    groups = [("pseudo-labels", shares), ("unlabeled loss over labeled loss", ["train/ratio"])]
    return render_table(("metric", "first", "last", "meaning"), rows, "explained") + figures.draw_curves(curves, groups)


def measure_duration(folder: Path) -> float | None:
    """Measure the seconds of training by the log, without the break before a resume; None without a log.

    Args:
        folder: Folder of the run.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    total = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        events = list(EventFileLoader(str(path)).Load())
        tags = {value.tag for event in events for value in event.summary.value}
        if "train/loss" in tags:  # `test` writes event files of its own
            total += events[-1].wall_time - events[0].wall_time
    return total or None


def render_origin(opened: LoadedRun) -> Markup:
    """Return the section about data, config, versions, hardware, duration and lineage.

    Args:
        opened: Run of the report.
    """
    folder, metadata = opened.folder, opened.trained.metadata
    chain = RunRecord(folder).chain
    counts = ", ".join(f"{len(s):,} {n}" for n, s in opened.data.splits.items() if " " not in n)
    link, duration, record = chain[-1], measure_duration(folder), RunRecord(folder).provenance
    trained_on = format_machine(link["machine"]) if "machine" in link else "unknown"
    rows = [
        ("run", folder),
        ("checkpoint", f"{opened.checkpoint.name}, step {metadata['step']:,}"),
        ("data", f"{opened.data.source.name}: {counts}"),
        ("manifest", f"{folder / 'split.csv'}, SHA-256 of the data {link.get('data_sha256') or 'unknown'}"),
        (
            "trained",
            f"{link.get('date', 'at an unknown date')} with sft-lightning {link.get('version', '(version unknown)')}",
        ),
        (
            "duration",
            "unknown" if duration is None else f"{duration:,.0f} s between the first and the last log entry",
        ),
        ("hardware", trained_on),
        *((("command", format_command(record["command"])), ("code", shorten(record["code"]))) if record else ()),
        ("report", f"by sft-lightning {__version__} on {format_machine(describe_machine())}"),
    ]
    weights = json.dumps({k: v for k, v in metadata.items() if k != "chain"}, indent=1)
    return Markup().join(
        [
            render_table(("", ""), rows, "facts"),
            render_collapsible("Lineage, from the first run to this one", format_lineage(chain)),
            render_collapsible("Config", (folder / "fit.yaml").read_text(encoding="utf-8")),
            render_collapsible("Metadata of the weights", weights),
        ]
    )

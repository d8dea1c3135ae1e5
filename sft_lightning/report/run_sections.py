"""What a run wrote about itself, without a look at its network: curves, health, and where it comes from."""

import json
from collections.abc import Sequence
from pathlib import Path

from sft_lightning._version import __version__
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.report import figures
from sft_lightning.runs.lineage import format_lineage as chain_in_words
from sft_lightning.runs.provenance import format_command, shorten
from sft_lightning.runs.record import RunRecord
from sft_lightning.training.callbacks.csv_log import Curves, MetricsCSV
from sft_lightning.utils.environment import describe_machine, format_machine
from sft_lightning.utils.html import render_collapsible, render_table

# Of the pseudo-labels (`PseudoLabelHealth`): what each measure says.
_HEALTH = {
    "accepted": "share of the guesses that are learned from",
    "accuracy": "share of these that is right (hidden labels are only measured against)",
    "classes": "over how many classes the guesses are spread; far below the number of classes is collapse",
    "distance": "of the guesses' distribution from that of the labels, 0 to 1",
}


def render_training(found: Curves | None) -> str:
    """The section with the curves.

    Args:
        found: From `read_curves`.
    """
    if found is None:
        return f"<p>There is no {MetricsCSV.FILE} in the run's folder, or none that can be read.</p>"
    losses = [name for name in found if name.startswith("train/") and "threshold" not in name and name != "train/ratio"]
    groups: list[tuple[str, Sequence[str]]] = [
        ("training loss", losses[:6]),
        ("validation", ["val/accuracy", "val/macro_f1", "val/calibration_error", "val/knn_accuracy"]),
        ("validation loss", ["val/loss"]),
    ]
    return figures.draw_curves(found, groups) or "<p>It was too short for a curve.</p>"


def render_health(found: Curves | None) -> str:
    """The section with the health of the pseudo-labels; empty for a run that made none.

    Args:
        found: From `read_curves`.
    """
    found = found or {}
    known = {name: sorted(found[f"pseudo_labels/{name}"]) for name in _HEALTH if f"pseudo_labels/{name}" in found}
    if not known:
        return ""
    rows = [(name, f"{of[0][1]:.3g}", f"{of[-1][1]:.3g}", _HEALTH[name]) for name, of in known.items()]
    shares = [f"pseudo_labels/{name}" for name in known if name != "classes"]
    drawn = figures.draw_curves(
        found, [("pseudo-labels", shares), ("loss of the unlabeled images over that of the labeled", ["train/ratio"])]
    )
    return render_table(("measure", "first", "last", "meaning"), rows, "told") + drawn


def measure_duration(folder: Path) -> float | None:
    """How long the run was trained, by its log; a resumed one without the break. None where there is no log.

    Args:
        folder: Of the run.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    total = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        events = list(EventFileLoader(str(path)).Load())
        tags = {value.tag for event in events for value in event.summary.value}
        if "train/loss" in tags:  # `test` writes files of its own
            total += events[-1].wall_time - events[0].wall_time
    return total or None


def render_origin(opened: LoadedRun) -> str:
    """The section with data, config, versions, hardware, duration and lineage.

    Args:
        opened: A run.
    """
    folder, about = opened.folder, opened.trained.metadata
    chain = RunRecord(folder).chain
    counts = ", ".join(f"{len(s):,} {n}" for n, s in opened.data.splits.items() if " " not in n)
    link, took, record = chain[-1], measure_duration(folder), RunRecord(folder).provenance
    trained_on = format_machine(link["machine"]) if "machine" in link else "unknown"
    rows = [
        ("run", folder),
        ("checkpoint", f"{opened.checkpoint.name}, step {about['step']:,}"),
        ("data", f"{opened.data.source.name}: {counts}"),
        ("manifest", f"{folder / 'split.csv'}, SHA-256 of the data {link.get('data_sha256') or 'unknown'}"),
        (
            "trained",
            f"{link.get('date', 'unknown when')} with sft-lightning {link.get('version', 'of unknown version')}",
        ),
        ("duration", "unknown" if took is None else f"{took:,.0f} s, by the log, from its first entry to its last"),
        ("hardware", trained_on),
        *((("command", format_command(record["command"])), ("code", shorten(record["code"]))) if record else ()),
        ("report", f"by sft-lightning {__version__} on {format_machine(describe_machine())}"),
    ]
    parts = [
        render_table(("", ""), rows, "facts"),
        render_collapsible("Lineage, the source first", chain_in_words(chain)),
    ]
    parts.append(render_collapsible("Config", (folder / "fit.yaml").read_text(encoding="utf-8")))
    weights = json.dumps({k: v for k, v in about.items() if k != "chain"}, indent=1)
    return "".join([*parts, render_collapsible("What the weights say", weights)])

"""Render the page of a study: the verdict beside the figure first, then the details."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.study.figures import Results, render_label_efficiency
from sft_lightning.utils.html import Section, render_page, render_paragraphs, render_table

_TITLES = {
    "method": "method",
    "budget": "labels",
    "seed": "seed",
    "test_last": "last iterate",
    "test_best": "chosen by validation",
    "val_best": "validation",
    "run": "run",
}


def render_study(
    folder: Path,
    verdict: Sequence[str],
    details: Sequence[str],
    notes: Sequence[str],
    table: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    results: Results,
    names: Mapping[str, str],
    baseline: str,
    metric: str = "accuracy",
) -> str:
    """Return the page of a study.

    Args:
        folder: Folder of the study.
        verdict: Sentences with the verdicts, by budget.
        details: Sentences about each method.
        notes: Sentences about what limits the comparison, and about failed runs.
        table: Cells of the table of methods, the titles first, with the number of labels before the method.
        rows: Results of each run.
        results: Test accuracies of the seeds by name of the method and number of labels.
        names: Names of the methods for readers by identifier.
        baseline: Identifier of the method that learns from the labels alone.
        metric: Title of the metric that stands in place of the accuracy.
    """
    head, *methods = [[method, labels, *cells] for labels, method, *cells in table]
    runs = [
        [
            names[row["method"]],
            *(_format_cell(row[name]) for name in list(_TITLES)[1:-1]),
            _format_run(row["run"], folder),
        ]
        for row in rows
        if row["run"]
    ]
    hint = f"Runs are below {folder}; sft-lightning report RUN describes one of them."
    sections = [
        Section("Methods", render_table(head, methods) + render_paragraphs(details)),
        Section("Caveats", render_paragraphs(notes)),
        Section("Runs", render_table([*_TITLES.values()], runs) + render_paragraphs([hint])),
    ]
    count = len({row["seed"] for row in rows})
    subtitle = f"{count} seed{'s' * (count != 1)}; {folder}"
    figure = render_label_efficiency(results, names[baseline], metric)
    return render_page(f"Study {folder.name}", subtitle, verdict, sections, figure)


def _format_cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _format_run(run: str, folder: Path) -> str:
    """Return the name of a run below the study's folder, or its path where it lies elsewhere."""
    path = Path(run)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()

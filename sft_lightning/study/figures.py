"""Draw the figure of a study: accuracy against the number of labels."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

from markupsafe import Markup

from sft_lightning.report.figures import INK, make_axes, render_svg
from sft_lightning.study.judge import Estimate
from sft_lightning.study.statistics import MIN_SEEDS, confidence_interval
from sft_lightning.utils.atomic import open_atomic

# Test accuracies of the seeds, or the accuracy over folds, by method and number of labels
Results = Mapping[str, Mapping[int, Sequence[float] | Estimate]]

# M. Okabe, K. Ito, "Color Universal Design"; without black, and without the yellow that is pale on white
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "sD^vPo"  # one for each color
_LINES = ("-", "-.", ":")  # for methods that take a color a second and third time
_BASELINE = "#666666"


def save_label_efficiency(path: Path, results: Results, baseline: str, metric: str = "accuracy") -> None:
    """Save the mean test accuracy of each method with its 95% interval over the seeds as a PNG file.

    Args:
        path: Path of the file, written atomically.
        results: Test accuracies of the seeds by name of the method and number of labels.
        baseline: Name of the method that learns from the labels alone, drawn in gray.
        metric: Title of the metric that stands in place of the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(4.5, 1 + 0.4 * len(results))), layout="constrained", dpi=120)
    axes: Any = figure.subplots()
    handles = _draw(axes, results, baseline, _BASELINE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("labels")
    axes.set_ylabel(f"test {metric}")
    axes.set_title(_format_title(results), fontsize=10, loc="left")
    figure.legend(
        [*handles.values()],
        [fill(method, 30) for method in handles],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    with open_atomic(path) as staged:
        figure.savefig(staged, format="png")


def render_label_efficiency(results: Results, baseline: str, metric: str = "accuracy") -> Markup:
    """Return the same figure as an element of a page, narrow enough to stand beside the verdict.

    Args:
        results: Test accuracies of the seeds by name of the method and number of labels.
        baseline: Name of the method that learns from the labels alone.
        metric: Title of the metric that stands in place of the accuracy.
    """
    figure, axes = make_axes(3.4 + 0.22 * len(results))
    handles = _draw(axes, results, baseline, INK)
    axes.set_xlabel("labels", color=INK)
    axes.set_ylabel(f"test {metric}", color=INK)
    legend = figure.legend(
        [*handles.values()],
        [fill(method, 50) for method in handles],
        loc="outside lower left",
        frameon=False,
        labelcolor=INK,
        fontsize=10,
    )
    legend.set_in_layout(True)
    return render_svg(figure, f"Test {metric} against the number of labels", [], _format_title(results))


def _draw(axes: Any, results: Results, baseline: str, ink: str) -> dict[str, Any]:
    """Draw the lines with their intervals, and return their handles by method, in the order in which lines end."""
    from matplotlib.ticker import NullLocator

    budgets = sorted({budget for by_budget in results.values() for budget in by_budget})
    spacing = min((math.log(b / a) for a, b in pairwise(budgets)), default=1.0)
    width = math.log(budgets[-1] / budgets[0]) + spacing
    step = min(0.5 * spacing / len(results), 0.04 * width)  # methods stand side by side, so that no interval hides
    others = [method for method in results if method != baseline]
    handles = {}
    for position, (method, by_budget) in enumerate(results.items()):
        shift = math.exp(step * (position - (len(results) - 1) / 2))
        means, below, above = zip(*(_bar(by_budget[budget]) for budget in sorted(by_budget)), strict=True)
        if method == baseline:
            style: dict[str, str] = {"color": ink, "linestyle": "--", "marker": "o"}
        else:
            repeat, color = divmod(others.index(method), len(_COLORS))
            style = {"color": _COLORS[color], "linestyle": _LINES[repeat % len(_LINES)], "marker": _MARKERS[color]}
        handles[method] = axes.errorbar(
            [budget * shift for budget in sorted(by_budget)],
            means,
            yerr=(below, above),
            capsize=3,
            markersize=5,
            elinewidth=1,
            linewidth=1.5,
            **style,
        )
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # an interval may reach beyond 0 or 1, an accuracy cannot
    axes.set_xscale("log")
    axes.set_xlim(budgets[0] / math.exp(spacing / 2), budgets[-1] * math.exp(spacing / 2))
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")
    axes.grid(axis="y", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    ranked = sorted(results, key=lambda method: -_mean(results[method][max(results[method])]))
    return {method: handles[method] for method in ranked}


def _mean(values: Sequence[float] | Estimate) -> float:
    return _bar(values)[0]


def _bar(values: Sequence[float] | Estimate) -> tuple[float, float, float]:
    """Return the mean and how far the interval reaches below and above it, 0 without an interval."""
    if isinstance(values, Estimate):
        return values.mean, values.mean - values.low, values.high - values.mean
    mean, low, high = confidence_interval(values)
    return mean, mean - (mean if low is None else low), (mean if high is None else high) - mean


def _format_title(results: Results) -> str:
    every = [values for by_budget in results.values() for values in by_budget.values()]
    counts = sorted({len(values) for values in every if not isinstance(values, Estimate)})
    if any(isinstance(values, Estimate) for values in every):
        return "Accuracy on held-out labels with its 95% interval; baselines without"
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    if counts[-1] < MIN_SEEDS:
        return f"Mean over {seeds}; an interval needs {MIN_SEEDS}"
    return f"Mean and 95% interval over {seeds}"

"""The figure of a study: accuracy against the number of labels."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

from sft_lightning.study.statistics import MIN_SEEDS, confidence_interval
from sft_lightning.utils.atomic import open_atomic

# M. Okabe, K. Ito, "Color Universal Design"; without black and the yellow that is pale on white
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "sD^vPo"  # one for each color
_LINES = ("-", "-.", ":")  # for methods that take a color a second and third time
_BASELINE = "#666666"


def save_label_efficiency(path: Path, results: Mapping[str, Mapping[int, Sequence[float]]], baseline: str) -> None:
    """Draws the mean test accuracy of each method with its 95 % interval over the seeds.

    Args:
        path: Of the PNG, written whole or not at all; its folder is made.
        results: Test accuracies of the seeds, by method and number of labels.
        baseline: The labels alone, drawn in gray.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    budgets = sorted({budget for of in results.values() for budget in of})
    apart = min((math.log(b / a) for a, b in pairwise(budgets)), default=1.0)
    wide = math.log(budgets[-1] / budgets[0]) + apart
    step = min(0.5 * apart / len(results), 0.04 * wide)  # side by side, as intervals would hide each other
    figure = Figure(figsize=(8, max(4.5, 1 + 0.4 * len(results))), layout="constrained", dpi=120)
    axes: Any = figure.subplots()
    others = [method for method in results if method != baseline]
    bars = {}
    for place, (method, of) in enumerate(results.items()):
        shift = math.exp(step * (place - (len(results) - 1) / 2))
        own = sorted(of)
        means, below, above = zip(*(_bar(of[budget]) for budget in own), strict=True)
        if method == baseline:
            style: dict[str, str] = {"color": _BASELINE, "linestyle": "--", "marker": "o"}
        else:
            k = others.index(method)
            again, color = divmod(k, len(_COLORS))
            style = {"color": _COLORS[color], "linestyle": _LINES[again % len(_LINES)], "marker": _MARKERS[color]}
        bars[method] = axes.errorbar(
            [budget * shift for budget in own],
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
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # no accuracy is beyond 0 or 1, wide as an interval may be
    axes.set_xscale("log")
    axes.set_xlim(budgets[0] / math.exp(apart / 2), budgets[-1] * math.exp(apart / 2))
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g} %")
    axes.set_xlabel("labels")
    axes.set_ylabel("test accuracy")
    axes.set_title(_title(results), fontsize=10, loc="left")
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    ranked = sorted(results, key=lambda method: -_mean(results[method][max(results[method])]))  # as the lines end
    figure.legend(
        [bars[method] for method in ranked],
        [fill(method, 30) for method in ranked],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    with open_atomic(path) as staged:
        figure.savefig(staged, format="png")


def _mean(values: Sequence[float]) -> float:
    return confidence_interval(values)[0]


def _bar(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and how far the interval reaches below and above; not at all where there is none."""
    mean, low, high = confidence_interval(values)
    return mean, mean - (mean if low is None else low), (mean if high is None else high) - mean


def _title(results: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    counts = sorted({len(values) for of in results.values() for values in of.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    if counts[-1] < MIN_SEEDS:
        return f"Mean over {seeds}; an interval needs {MIN_SEEDS}"
    return f"Mean and 95 % interval over {seeds}"

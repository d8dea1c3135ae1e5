"""Draw test accuracy against the number of labels, for every strategy: the figure at the top of the README.

    python scripts/bench/plot_label_budget.py [--result scripts/bench/results/label_budget.json] [--out docs/images]

Reads a result of `label_budget.py` and writes `label_budget-light.svg` and `label_budget-dark.svg`. The files follow
from the result alone, so that a test can compare them with it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "labels_only"
# What the axis calls a method; other names keep their spelling.
TITLES = {
    "adamatch": "AdaMatch",
    "debiasmatch": "DebiasMatch",
    "dst": "DST",
    "entropy_minimization": "Entropy minimization",
    "fixmatch": "FixMatch",
    "flexmatch": "FlexMatch",
    "freematch": "FreeMatch",
    "labels_only": "Labels only",
    "logistic regression, pixels": "Logistic regression",
    "mean_teacher": "Mean Teacher",
    "mixmatch": "MixMatch",
    "pi_model": "Pi model",
    "pseudo_label": "Pseudo-Label",
    "reconstruction": "Reconstruction",
    "softmatch": "SoftMatch",
    "uda": "UDA",
    "virtual_adversarial": "Virtual adversarial",
}
LABEL_WIDTH, PANEL, GAP, ROW, TOP = 150, 165, 32, 21, 62
LOW, HIGH, TICKS = 0.5, 0.82, (0.5, 0.6, 0.7, 0.8)


class Theme(NamedTuple):
    """Colors of one version of the figure.

    Attributes:
        text: Names and headings.
        muted: Ticks and the spread over the seeds.
        grid: Lines of the grid.
        above: Methods above the labels alone.
        below: Methods below them.
    """

    text: str
    muted: str
    grid: str
    above: str
    below: str


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#d8dee4", "#0969da", "#8c959f"),
    "dark": Theme("#e6edf3", "#9198a1", "#3d444d", "#58a6ff", "#768390"),
}


def draw(result: dict[str, Any], theme: Theme) -> str:
    """Draw one panel per number of labels, one row per method, as SVG.

    Args:
        result: Result of `label_budget.py`.
        theme: Colors.

    Returns:
        The text of the SVG file.
    """
    scores: dict[tuple[int, str], list[float]] = {}
    for name, values in result["mean_deviation_seeds"].items():
        budget, method = name.split(" ", 1)
        scores[int(budget), method] = values
    budgets = sorted({budget for budget, _ in scores})
    # Best with the fewest labels first, where methods differ most.
    methods = sorted({method for _, method in scores}, key=lambda method: -scores[budgets[0], method][0])
    width = LABEL_WIDTH + len(budgets) * (PANEL + GAP)
    height = TOP + ROW * len(methods) + 34
    seeds = scores[budgets[0], BASELINE][2]
    caption = (
        f"Test accuracy, mean and standard deviation over {seeds:.0f} seeds; the line is training on the labels alone."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{theme.text}">',
        f"<title>{escape(caption)}</title>",
        f'<text x="0" y="16" fill="{theme.muted}">{escape(caption)}</text>',
    ]
    for row, method in enumerate(methods):
        weight = ' font-weight="600"' if method == BASELINE else ""
        parts.append(f'<text x="0" y="{_center(row) + 4:.1f}"{weight}>{escape(TITLES.get(method, method))}</text>')
    for column, budget in enumerate(budgets):
        left = LABEL_WIDTH + column * (PANEL + GAP)
        of_budget = {method: scores[budget, method] for method in methods}
        parts += _panel(left, budget, of_budget, theme)
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, budget: int, scores: dict[str, list[float]], theme: Theme) -> Iterator[str]:
    bottom = TOP + ROW * len(scores)
    baseline = scores[BASELINE][0]
    yield f'<text x="{left + PANEL / 2}" y="42" text-anchor="middle" font-weight="600">{budget:,} labels</text>'
    for tick in TICKS:
        x = _x(left, tick)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="{theme.grid}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="{theme.muted}">{tick:.1f}</text>'
    x = _x(left, baseline)
    yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="{theme.muted}" stroke-width="1.5"/>'
    for row, (mean, deviation, _) in enumerate(scores.values()):
        y, color = _center(row), theme.above if mean > baseline else theme.below
        yield (
            f'<line x1="{_x(left, mean - deviation):.1f}" x2="{_x(left, mean + deviation):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" stroke-width="2" stroke-opacity="0.5"/>'
        )
        yield f'<circle cx="{_x(left, mean):.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


def _center(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _x(left: float, accuracy: float) -> float:
    return left + PANEL * (accuracy - LOW) / (HIGH - LOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "scripts/bench/results/label_budget.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    for name, theme in THEMES.items():
        (args.out / f"label_budget-{name}.svg").write_text(draw(result, theme), encoding="utf-8")


if __name__ == "__main__":
    main()

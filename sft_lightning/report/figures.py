"""The figures of a report as text for the page: SVG that is legible on light and dark, and pictures as PNG."""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

# Okabe and Ito's colors, which the color-blind can tell apart, without black.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7a00", "#7f7f7f", "#5a3fa0", "#a0522d")
_INK = "#808080"  # has contrast on white and on black


def _axes(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        for spine in one.spines.values():
            spine.set_color(_INK)
        one.tick_params(colors=_INK, labelsize=8)
        one.set_facecolor("none")
    return figure, axes


def _svg(figure: Any, told: str, kind: str = "") -> str:
    """The figure as an element of a page, named for those who cannot see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Sizes by the page; links to definitions of its own only.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    return f'<figure class="{kind}" role="img" aria-label="{html.escape(told)}">{text}</figure>'


def reliability(before: Sequence[tuple[float, float, int]], after: Sequence[tuple[float, float, int]] | None) -> str:
    """Accuracy against confidence; the diagonal is perfect.

    Args:
        before: Mean confidence, accuracy and count of each bin.
        after: The same after temperature scaling, or None.
    """
    figure, (axes,) = _axes(4.6, 3.6)
    axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1)
    for name, bins, color in (("as it is", before, COLORS[0]), ("after temperature", after or [], COLORS[1])):
        if bins:
            size = [10 + 60 * math.sqrt(n / max(b[2] for b in bins)) for _, _, n in bins]
            axes.plot([b[0] for b in bins], [b[1] for b in bins], color=color, linewidth=1.2)
            axes.scatter([b[0] for b in bins], [b[1] for b in bins], s=size, color=color, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("confidence", color=_INK)
    axes.set_ylabel("accuracy", color=_INK)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left")
    return _svg(figure, "Reliability diagram")


def curves(found: dict[str, list[tuple[int, float]]], groups: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Metrics over the steps, a panel for each group that has any.

    Args:
        found: Steps and values by metric.
        groups: Title and metrics of each panel.
    """
    shown = [(title, [n for n in names if len(found.get(n, ())) > 1]) for title, names in groups]  # a point is no curve
    shown = [(title, names) for title, names in shown if names]
    if not shown:
        return ""
    parts = []
    for title, names in shown:
        figure, (axes,) = _axes(4.6, 2.8)
        for name, color in zip(names, COLORS, strict=False):
            steps, values = zip(*sorted(found[name]), strict=True)
            axes.plot(steps, values, color=color, linewidth=1.5, marker="o" if len(steps) < 15 else "", markersize=3)
            axes.plot([], [], color=color, label=name)
        axes.set_xlabel("step", color=_INK)
        axes.set_title(title, color=_INK, fontsize=9, loc="left")
        axes.legend(frameon=False, labelcolor=_INK, fontsize=7)
        parts.append(_svg(figure, f"{title} over the steps"))
    return f'<div class="row">{"".join(parts)}</div>'


def feature_map(
    labeled: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, names: Sequence[str], share: Tensor
) -> str:
    """Two directions of the features, colored by class; labeled examples are large and ringed.

    Args:
        labeled: (M, 2).
        labels: int64, (M,).
        others: (N, 2).
        other_labels: int64, (N,), -1 where unknown.
        names: Of the classes.
        share: Of the variance in each direction, (2,).
    """
    figure, (axes,) = _axes(6.4, 4.6)
    hidden = other_labels < 0
    if hidden.any():
        axes.scatter(*others[hidden].T.numpy(), s=5, color=_INK, alpha=0.4, linewidths=0, label="unlabeled")
    for k, name in enumerate(names[: 2 * len(COLORS)]):
        color, marker = COLORS[k % len(COLORS)], "o" if k < len(COLORS) else "s"
        own, known = other_labels == k, labels == k
        axes.scatter(*others[own].T.numpy(), s=6, color=color, alpha=0.5, linewidths=0, marker=marker)
        axes.scatter(*labeled[known].T.numpy(), s=26, color=color, marker=marker, linewidths=0.7, edgecolors=_INK)
        axes.scatter([], [], s=26, color=color, marker=marker, label=name[:24])
    axes.set_xlabel(f"first direction ({float(share[0]):.0%} of the variance)", color=_INK, fontsize=8)
    axes.set_ylabel(f"second ({float(share[1]):.0%})", color=_INK, fontsize=8)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, "Map of the features", "wide")


def drawn(png: bytes, told: str) -> str:
    """A figure that was drawn before.

    Args:
        png: The file's content.
        told: For those who cannot see it.
    """
    data = base64.b64encode(png).decode()
    return f'<figure class="wide"><img alt="{html.escape(told)}" src="data:image/png;base64,{data}"></figure>'


def picture(x: Tensor, side: int = 96) -> str:
    """One picture as an `img`.

    Args:
        x: (C, H, W) in [0, 1].
        side: Of the longest side, at most; small pictures are enlarged without smoothing by the page.
    """
    data = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(data.squeeze(-1) if data.shape[-1] == 1 else data)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def heated(x: Tensor, heat: Tensor) -> str:
    """A picture in gray below what speaks for a class, in red.

    Args:
        x: (C, H, W) in [0, 1].
        heat: (H, W), 0 to 1.
    """
    gray = 0.7 * x.mean(0)
    red = torch.stack([gray + 0.9 * heat, gray * (1 - 0.6 * heat), gray * (1 - 0.8 * heat)])
    return picture(red.clamp(0, 1))

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
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7a00", "#7f7f7f", "#8a6fd8", "#a0522d")
INK = "#808080"  # stands for the color of the page's text


def make_axes(height: float) -> tuple[Any, Any]:
    """Of one width: letters are as large in all figures, and legible where a phone shows them at 340 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes: Any = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=10)
    axes.set_facecolor("none")
    return figure, axes


def render_svg(figure: Any, told: str, legend: Sequence[tuple[str, str, str]], title: str = "") -> str:
    """The figure as an element of a page, named for those who cannot see it; the legend is text of the page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": told}):  # letters stay letters; the same file each time
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue().replace(INK, "currentColor")
    text = text[text.index("<svg") :]
    # Sizes by the page; links to definitions of its own only.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", text)  # names that nothing refers to, alike in all figures
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(told)}"', 1)
    marks = "".join(
        f'<span><i class="{shape}" style="background:{color}"></i>{html.escape(name)}</span>'
        for name, color, shape in legend
    )
    above = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f'<figure>{above}{text}<figcaption class="legend">{marks}</figcaption></figure>'


def draw_reliability(
    before: Sequence[tuple[float, float, int]], after: Sequence[tuple[float, float, int]] | None
) -> str:
    """Accuracy against confidence; the diagonal is perfect.

    Args:
        before: Mean confidence, accuracy and count of each bin.
        after: The same after temperature scaling, or None.
    """
    figure, axes = make_axes(3.8)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    lines = [("as it is", before, COLORS[0])]
    lines += [("after temperature scaling", after, COLORS[1])] if after is not None else []
    for _, bins, color in lines:
        confidence, accuracy, counts = zip(*bins, strict=True)
        axes.plot(confidence, accuracy, color=color, linewidth=1.2)
        axes.scatter(confidence, accuracy, [10 + 60 * math.sqrt(n / max(counts)) for n in counts], color=color)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_xlabel("confidence", color=INK)
    axes.set_ylabel("share that is right", color=INK)
    legend = [(name, color, "") for name, _, color in lines]
    return render_svg(figure, "Reliability diagram: larger dots are more examples", legend)


def draw_curves(found: dict[str, list[tuple[int, float]]], groups: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Metrics over the steps, a panel for each group that has any.

    Args:
        found: Steps and values by metric.
        groups: Title and metrics of each panel.
    """
    parts = []
    for title, names in groups:
        shown = [name for name in names if len(found.get(name, ())) > 1]  # a point is no curve
        if not shown:
            continue
        figure, axes = make_axes(3.0)
        for name, color in zip(shown, COLORS, strict=False):
            steps, values = zip(*sorted(found[name]), strict=True)
            axes.plot(steps, values, color=color, linewidth=1.5, marker="o" if len(steps) < 15 else "", markersize=3)
        axes.set_xlabel("step", color=INK)
        named = [(n.split("/")[-1].replace("_", " "), color, "") for n, color in zip(shown, COLORS, strict=False)]
        parts.append(render_svg(figure, f"{title} over the steps", named, title))
    return f'<div class="row">{"".join(parts)}</div>' if parts else ""


def draw_feature_map(
    labeled: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, names: Sequence[str], title: str
) -> str:
    """Features in the plane, colored by class; labeled examples are large and ringed.

    Args:
        labeled: (M, 2).
        labels: int64, (M,).
        others: (N, 2).
        other_labels: int64, (N,).
        names: Of the classes.
        title: Above it.
    """
    figure, axes = make_axes(4.0)
    legend = []
    for k, name in enumerate(names):
        color, square = COLORS[k % len(COLORS)], (k // len(COLORS)) % 2 == 1
        style: dict[str, Any] = {"color": color, "marker": "s" if square else "o", "linewidths": 0}
        for places, own, more in (
            (others, other_labels == k, {"s": 7, "alpha": 0.5}),
            (labeled, labels == k, {"s": 28, "edgecolors": INK, "linewidths": 0.8}),
        ):
            if own.any():
                axes.scatter(*places[own].T.numpy(), **{**style, **more})
        legend.append((name, color, "square" if square else ""))
    axes.set(xticks=[], yticks=[])
    return render_svg(figure, title, legend if len(names) <= 2 * len(COLORS) else [], title)


def embed_png(png: bytes, told: str) -> str:
    """A figure that was drawn before.

    Args:
        png: The file's content.
        told: For those who cannot see it.
    """
    data = base64.b64encode(png).decode()
    return f'<figure class="wide"><img alt="{html.escape(told)}" src="data:image/png;base64,{data}"></figure>'


def embed_image(x: Tensor, told: str, side: int = 96) -> str:
    """One picture as an `img`.

    Args:
        x: (C, H, W) in [0, 1].
        told: What it is, as plain text: for those who cannot see it, and under the pointer.
        side: Of the longest side, at most; small pictures are enlarged without smoothing by the page.
    """
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    told = html.escape(told)
    return f'<img alt="{told}" title="{told}" src="data:image/png;base64,{data}">'


def overlay_heat(x: Tensor, heat: Tensor) -> Tensor:
    """A picture in gray, and over it what speaks for a class, from red to yellow.

    Args:
        x: (C, H, W) in [0, 1].
        heat: (H, W), 0 to 1.

    Returns:
        (3, H, W).
    """
    color = torch.stack([torch.ones_like(heat), 0.9 * heat.square(), torch.zeros_like(heat)])
    return torch.lerp(x.mean(0).expand_as(color), color, 0.65 * heat)

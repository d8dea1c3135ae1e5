"""Draw the figures of a page: SVG that is legible on light and dark backgrounds, and images as PNG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.utils.html import render_columns, render_excerpt, render_figure, render_image, render_player

# Okabe and Ito's palette, which color-blind readers can distinguish, without black.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7a00", "#7f7f7f", "#8a6fd8", "#a0522d")
INK = "#808080"  # becomes the text color of the page
_STAGES = {"train": "training", "val": "validation"}


def make_axes(height: float) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes in the style of a page.

    All figures have one width, so that their text has one size, legible where a phone shows them 340 pixels wide.

    Args:
        height: Height in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes: Any = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=10)
    axes.set_facecolor("none")
    return figure, axes


def render_svg(figure: Any, description: str, legend: Sequence[tuple[str, str, str]], title: str = "") -> Markup:
    """Return a matplotlib figure as an element of a page.

    Args:
        figure: Figure from `make_axes`.
        description: Plain text for readers who cannot see the figure.
        legend: Name, color and shape of each entry, as in `render_figure`.
        title: Plain text above the figure.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    # Text stays text, and the same figure gives the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue().replace(INK, "currentColor")
    svg = svg[svg.index("<svg") :]
    # The page sets the size; only links within the figure stay.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", svg)  # unused, and the same in all figures
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    return render_figure(Markup(svg), title, legend)  # matplotlib has escaped the text


def draw_reliability(
    before: Sequence[tuple[float, float, int]],
    after: Sequence[tuple[float, float, int]] | None,
    sides: tuple[str, str] = ("confidence", "accuracy"),
) -> Markup:
    """Return a reliability diagram: accuracy against confidence, perfect on the diagonal.

    Args:
        before: Mean confidence, accuracy and number of examples of each bin.
        after: Mean confidence, accuracy and number of examples of each bin after temperature scaling, or None.
        sides: Labels of the horizontal and the vertical axis.
    """
    figure, axes = make_axes(3.8)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    lines = [("as trained", before, COLORS[0])]
    lines += [("after temperature scaling", after, COLORS[1])] if after is not None else []
    for _, bins, color in lines:
        confidence, accuracy, counts = zip(*bins, strict=True)
        axes.plot(confidence, accuracy, color=color, linewidth=1.2)
        axes.scatter(confidence, accuracy, [10 + 60 * math.sqrt(n / max(counts)) for n in counts], color=color)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_xlabel(sides[0], color=INK)
    axes.set_ylabel(sides[1], color=INK)
    legend = [(name, color, "") for name, _, color in lines]
    return render_svg(figure, "Reliability diagram: larger dots are more examples", legend)


def draw_curves(
    values: Mapping[str, Sequence[tuple[int, float]]], groups: Sequence[tuple[str, Sequence[str]]]
) -> Markup:
    """Return metrics over the steps, with a panel for each group that has any.

    Args:
        values: Steps and values by metric.
        groups: Title and metrics of each panel.
    """
    panels = []
    for title, names in groups:
        shown = [name for name in names if len(values.get(name, ())) > 1]  # one point is not a curve
        if not shown:
            continue
        figure, axes = make_axes(3.0)
        for name, color in zip(shown, COLORS, strict=False):
            x, y = zip(*sorted(values[name]), strict=True)
            axes.plot(x, y, color=color, linewidth=1.5, marker="o" if len(x) < 15 else "", markersize=3)
        axes.set_xlabel("step", color=INK)
        labels = [_label_metric(name, shown) for name in shown]
        legend = [(label, color, "") for label, color in zip(labels, COLORS, strict=False)]
        panels.append(render_svg(figure, f"{title} over the steps", legend, title))
    return render_columns(panels, "row") if panels else Markup()


def _label_metric(name: str, shown: Sequence[str]) -> str:
    """Return the metric without its stage, unless another one of the panel would have the same label."""
    stage, _, metric = name.rpartition("/")
    is_unique = sum(other.rpartition("/")[2] == metric for other in shown) == 1
    if not is_unique:
        metric = f"{_STAGES.get(stage, stage)} {metric}"
    return metric.replace("_", " ")


def draw_sorted_recall(
    recall: Sequence[float], accuracy: float, title: str, measures: tuple[str, str] = ("recall", "accuracy")
) -> Markup:
    """Return the recall of the classes from the lowest to the highest, beside the accuracy over all examples.

    Args:
        recall: Recall of each class that has examples, or another measure of it, 0 to 1.
        accuracy: Share of right predictions, or another measure of all classes, 0 to 1.
        title: Plain text above the figure.
        measures: Names of both.
    """
    figure, axes = make_axes(3.4)
    axes.plot(range(1, len(recall) + 1), sorted(recall), color=COLORS[0], linewidth=1.5, drawstyle="steps-mid")
    axes.axhline(accuracy, color=COLORS[1], linestyle="--", linewidth=1.5)
    axes.set(ylim=(0, 1.02), xlim=(0.5, len(recall) + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True)  # ticks at whole classes
    axes.set_xlabel(f"classes, lowest {measures[0]} first", color=INK)
    axes.set_ylabel(measures[0], color=INK)
    return render_svg(figure, title, [(measures[0], COLORS[0], ""), (measures[1], COLORS[1], "")], title)


def draw_feature_map(
    labeled: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, names: Sequence[str], title: str
) -> Markup:
    """Return features in the plane, colored by class; labeled examples are large and ringed.

    Args:
        labeled: Coordinates of the labeled examples, (M, 2).
        labels: Classes of the labeled examples, int64, (M,).
        others: Coordinates of the other examples, (N, 2).
        other_labels: Classes of the other examples, int64, (N,).
        names: Names of the classes.
        title: Plain text above the figure.
    """
    figure, axes = make_axes(4.0)
    legend = []
    for k, name in enumerate(names):
        color, is_square = COLORS[k % len(COLORS)], (k // len(COLORS)) % 2 == 1
        style: dict[str, Any] = {"color": color, "marker": "s" if is_square else "o", "linewidths": 0}
        for coordinates, mask, emphasis in (
            (others, other_labels == k, {"s": 7, "alpha": 0.5}),
            (labeled, labels == k, {"s": 28, "edgecolors": INK, "linewidths": 0.8}),
        ):
            if mask.any():
                axes.scatter(*coordinates[mask].T.numpy(), **{**style, **emphasis})
        legend.append((name, color, "square" if is_square else ""))
    axes.set(xticks=[], yticks=[])
    return render_svg(figure, title, legend if len(names) <= 2 * len(COLORS) else [], title)


def embed_image(x: Tensor, description: str, max_side: int = 96) -> Markup:
    """Return an image as an `img` element.

    Args:
        x: Image, (C, H, W) in [0, 1].
        description: Plain text for readers who cannot see the image; also shown under the pointer.
        max_side: Length of the longest side in pixels, at most; the page enlarges small images without smoothing.
    """
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return render_image(file.getvalue(), description)


def embed_example(shown: Tensor | str, description: str, max_side: int = 96) -> Markup:
    """Return an example as `Views.show` gives it: an image or a text.

    Args:
        shown: Image, (C, H, W) in [0, 1], or a text.
        description: Plain text for readers who cannot see the image; also shown under the pointer.
        max_side: Length of the longest side of an image in pixels, at most.
    """
    if isinstance(shown, str):
        return render_excerpt(shown, description)
    return embed_image(shown, description, max_side)


def embed_examples(
    data: FewLabelDataModule, name: str, positions: list[int], descriptions: Sequence[str], max_side: int = 96
) -> list[Markup]:
    """Return some examples of a split without random changes, with a player of each that can be played.

    Args:
        data: Data module after its setup.
        name: Name of the split.
        positions: Positions of the examples in the split.
        descriptions: Plain text about each example.
        max_side: Length of the longest side of an image in pixels, at most.
    """
    if not positions:
        return []
    shown, clips = data.views.show(data.inputs_of(name, positions)), data.clips_of(name, positions)
    return [
        embed_example(one, text, max_side) + (Markup() if clip is None else render_player(*clip, text))
        for one, clip, text in zip(shown, clips, descriptions, strict=True)
    ]


def overlay_heat(x: Tensor, heat: Tensor) -> Tensor:
    """Return an image in gray under a heatmap from red to yellow.

    Args:
        x: Image, (C, H, W) in [0, 1].
        heat: Evidence for a class, (H, W), 0 to 1.

    Returns:
        Image, (3, H, W).
    """
    color = torch.stack([torch.ones_like(heat), 0.9 * heat.square(), torch.zeros_like(heat)])
    return torch.lerp(x.mean(0).expand_as(color), color, 0.65 * heat)

"""Results of a learning rate range test: the losses at rising rates, the suggested rate, a table and a plot."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sft_lightning.utils.atomic import write_text

# Width of the smoothing in log rate: 0.7 decades, however many the steps.
_SMOOTHING_WIDTH = math.log(10) * 0.7
_DIVERGENCE = 3.0  # the loss has diverged once it exceeds its best value by this multiple of it
_USABLE_FROM = 0.1  # share of the total fall from which on a rate counts as usable
# Multiple of the noise that the fall must exceed: without learning, 1 of 100 tests with 30 to 100 steps gets there.
_MIN_SIGNAL = 4.0
_MIN_FALL = 0.01  # share of the loss that the fall must be: without noise, the least of rates lowers the loss a little
NAME = "find_lr"


class LRCurve:
    """Losses at exponentially rising learning rates.

    Attributes:
        rates: All rates of the range.
        losses: Losses of the rates tried so far.
        end: Why the test ended early: "diverged", "not finite", or "" if it did not.
    """

    def __init__(self, min_lr: float, max_lr: float, steps: int) -> None:
        """Compute the rates.

        Args:
            min_lr: First rate.
            max_lr: Last rate.
            steps: Number of rates, at least 2.
        """
        step = math.log(max_lr / min_lr) / (steps - 1)
        self.rates = [min_lr * math.exp(k * step) for k in range(steps)]
        self.width = max(5, round(_SMOOTHING_WIDTH / step))  # in steps, 10 by default
        self.keep = 1 - 1 / self.width
        self.losses: list[float] = []
        self.end = ""

    def add(self, loss: float) -> bool:
        """Add the loss of the next rate.

        Args:
            loss: Mean loss over the batches at this rate.

        Returns:
            Whether the test is over.
        """
        if not math.isfinite(loss):
            self.end = "not finite"
            return True
        self.losses.append(loss)
        so_far = smooth(self.losses, self.keep)
        best = min(so_far)
        # All that was won must be lost, too, or the noise of a loss near 0 would end the test.
        if so_far[-1] - best > max(_DIVERGENCE * abs(best), so_far[0] - best):
            self.end = "diverged"
        return bool(self.end) or len(self.losses) == len(self.rates)

    @property
    def smoothed(self) -> list[float]:
        """Losses averaged forward and then backward, since a forward average alone would lag behind the rates.

        First, each loss is replaced by the median of five (a batch of a few left-over examples may have an unusual
        loss) and capped at the level of the first ones, so that the end, where training diverges, does not hide what
        came before.
        """
        medians = self.medians
        most = max(medians[: self.width], default=0.0)
        return smooth(smooth([min(x, most) for x in medians], self.keep)[::-1], self.keep)[::-1]

    @property
    def medians(self) -> list[float]:
        """Median of each loss and two on each side."""
        return [median(self.losses[max(0, k - 2) : k + 3]) for k in range(len(self.losses))]


class SuggestedRate(NamedTuple):
    """Learning rates read off a curve.

    Attributes:
        rate: Suggested rate.
        usable: First and last rate at which training makes progress.
        fall: Smoothed loss at the first rate, and the lowest one.
    """

    rate: float
    usable: tuple[float, float]
    fall: tuple[float, float]


def smooth(values: Sequence[float], keep: float) -> list[float]:
    """Compute bias-corrected moving averages (Kingma & Ba 2015); the first one is the first value.

    Args:
        values: Values in order.
        keep: Share of the old average that each step keeps.
    """
    smoothed, average = [], 0.0
    for k, value in enumerate(values, 1):
        average = keep * average + (1 - keep) * value
        smoothed.append(average / (1 - keep**k))
    return smoothed


def suggest_rate(curve: LRCurve) -> SuggestedRate | None:
    """Suggest the rate at which the smoothed loss falls fastest per logarithm of the rate, up to its lowest point.

    There each step gains the most. The lowest point itself is too late: it is low because of what smaller rates have
    gained, and at that rate gain and damage are in balance. A tenth of it, another common rule, uses an arbitrary
    factor, and where the loss rises slowly the lowest point is anywhere.

    Args:
        curve: Curve with losses.

    Returns:
        The suggestion, or None where the loss falls no more than it may by chance.
    """
    smoothed = curve.smoothed
    if len(smoothed) < 3:
        return None
    lowest = smoothed.index(min(smoothed))
    fall = smoothed[0] - smoothed[lowest]
    noise = median(abs(loss - near) for loss, near in zip(curve.losses, curve.medians, strict=True))
    if fall <= max(_MIN_SIGNAL * noise, _MIN_FALL * abs(smoothed[0])) or lowest == 0:
        return None
    # The rates are equally far apart in the logarithm: differences are slopes.
    slopes = [smoothed[min(k + 1, lowest)] - smoothed[max(k - 1, 0)] for k in range(lowest + 1)]
    slopes[0], slopes[-1] = 2 * slopes[0], 2 * slopes[-1]  # over one step, not two
    steepest = slopes.index(min(slopes))
    first = next(k for k, value in enumerate(smoothed) if smoothed[0] - value >= _USABLE_FROM * fall)
    return SuggestedRate(
        round_rate(curve.rates[steepest]),
        (round_rate(curve.rates[min(first, steepest)]), round_rate(curve.rates[lowest])),
        (smoothed[0], smoothed[lowest]),
    )


def round_rate(rate: float) -> float:
    """Round to two digits, since a range test is no more precise.

    Args:
        rate: Learning rate above 0.
    """
    return float(f"{rate:.1e}")


def format_curve(curve: LRCurve, option: str) -> str:
    """Format the result as text.

    Args:
        curve: Curve with losses.
        option: Command-line option that sets the rate.
    """
    suggestion = suggest_rate(curve)
    tried, first, last = len(curve.losses), curve.rates[0], curve.rates[max(0, len(curve.losses) - 1)]
    ends = {"diverged": ", where it diverged", "not finite": ", after which it was not finite", "": ""}[curve.end]
    if suggestion is None:
        lower = "lower --min_lr" if curve.end else "raise --max_lr or --steps"
        if not tried:
            return f"The loss is not finite at the first rate, {first:g}: {lower}, or look at the data and precision."
        return (
            f"No rate from {first:g} to {last:.2g} lowered the loss, which began at {curve.losses[0]:.4g}{ends}: "
            f"there is nothing to suggest; {lower}, or look at the data (`sft-lightning preview`) and the config."
        )
    lines = [
        f"The smoothed loss fell from {suggestion.fall[0]:.4g} to {suggestion.fall[1]:.4g} in {tried} rates from "
        f"{first:g} to {last:.2g}{ends}.",
        f"usable     {suggestion.usable[0]:g} to {suggestion.usable[1]:g}: from a tenth of the fall to the lowest loss",
        f"suggested  {suggestion.rate:g}: where the loss falls fastest",
        f"for fit    {option} {suggestion.rate:g}",
    ]
    if suggestion.rate <= round_rate(curve.rates[1]):
        lines.append("The loss fell fastest at the first rate: a lower --min_lr may find a better one.")
    if suggestion.usable[1] >= round_rate(curve.rates[-1]):
        lines.append("The loss was still falling at the last rate: a higher --max_lr may find a better one.")
    return "\n".join(lines)


def write_curve(folder: Path, curve: LRCurve) -> None:
    """Write `find_lr.csv` and `find_lr.png`.

    Args:
        folder: Folder of both files; created if missing.
        curve: Curve with at least one loss.
    """
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["lr", "loss", "smoothed_loss"])
    rows.writerows(zip(curve.rates, curve.losses, curve.smoothed, strict=False))
    write_text(folder / f"{NAME}.csv", text.getvalue())
    _plot(folder / f"{NAME}.png", curve)


def _plot(path: Path, curve: LRCurve) -> None:
    """Plot each loss as a dot, the smoothed ones as a line, and the usable range shaded."""
    from matplotlib.figure import Figure

    suggestion, smoothed = suggest_rate(curve), curve.smoothed
    rates = curve.rates[: len(smoothed)]
    figure = Figure(figsize=(7, 4), layout="constrained", dpi=120)
    axes: Any = figure.subplots()
    axes.plot(rates, curve.losses, ".", color="#9db8d2", markersize=4, label="loss of a step")
    axes.plot(rates, smoothed, color="#2f5f8f", label="smoothed")
    if suggestion is not None:
        axes.axvspan(*suggestion.usable, color="#2f5f8f", alpha=0.1, linewidth=0, label="usable")
        axes.axvline(suggestion.rate, color="#b3541e", label=f"suggested: {suggestion.rate:g}")
    top = smoothed[0] + 0.5 * max(smoothed[0] - min(smoothed), 0.1 * abs(smoothed[0]))
    low = min(curve.losses)
    axes.set(xscale="log", ylim=(low - 0.05 * (top - low), top), xlabel="learning rate", ylabel="training loss")
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    staged = path.with_name(path.name + ".part")
    figure.savefig(staged, format="png")
    staged.replace(path)

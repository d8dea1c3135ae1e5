"""Render the section of a report about calibration: reliability, its error, and the temperature that fits best."""

from typing import Any, Protocol

from markupsafe import Markup
from torch import Tensor

from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.report import figures
from sft_lightning.report.examples import format_split
from sft_lightning.report.metrics import bin_reliability, compute_calibration_error
from sft_lightning.runs.temperature import CrossFittedTemperature
from sft_lightning.utils.html import render_note


class Judged(Protocol):
    """Logits of a split with their labels.

    Attributes:
        name: Name of the split.
        logits: Logits of the classes, (N, C).
        labels: True classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).
    """

    name: str
    logits: Tensor
    labels: Tensor


def render_calibration(
    judged: Judged, validation: Judged | None, known: CrossFittedTemperature | None, parts: Any
) -> tuple[str, Markup]:
    """Return a sentence for the verdict, and the section.

    Args:
        judged: Predictions of the split that the page is about.
        validation: Predictions of a validation split beside it, or None.
        known: Temperature of labels that were held out in turn, or None.
        parts: Module with the words for this kind of target: `describe_confidence` and `RELIABILITY_SIDES`.
    """
    error = compute_calibration_error(judged.logits, judged.labels)
    said = parts.describe_confidence(judged.logits, judged.labels)
    sentence = f"{said}; the calibration error is {error:.3f}"
    before = bin_reliability(judged.logits, judged.labels)
    if validation is not None:
        t, fitted = fit_temperature(validation.logits, validation.labels), "the validation split"
    elif known is not None:
        t, fitted = known.value, f"{known.labels:,} labels that were held out in turn"
    else:
        note = render_note("A temperature was not fitted: it needs a validation split of its own.")
        return f"{sentence}.", note + figures.draw_reliability(before, None, parts.RELIABILITY_SIDES)
    scaled = compute_calibration_error(judged.logits / t, judged.labels)
    note = render_note(
        f"Expected calibration error on the {format_split(judged.name)} split: {error:.3f} as trained, {scaled:.3f} "
        f"with all logits divided by the temperature {t:.2f}, which fits {fitted} best. Dots below the "
        "dotted line are overconfident; larger dots are more examples."
    )
    after = bin_reliability(judged.logits / t, judged.labels)
    figure = figures.draw_reliability(before, after, parts.RELIABILITY_SIDES)
    return f"{sentence}, or {scaled:.3f} at temperature {t:.2f} (fitted on {fitted}).", note + figure

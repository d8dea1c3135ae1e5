"""The parts of a report on a detector of defects, which learned from normal examples alone."""

from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning.anomaly.metrics import measure_examples
from sft_lightning.anomaly.threshold import Promise
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.networks.weights import read_weights
from sft_lightning.report import figures
from sft_lightning.report.examples import format_split
from sft_lightning.training.callbacks.vision.heat_maps import color_scores
from sft_lightning.utils.html import Section, render_note, render_table, render_tiles

_NUM_SHOWN = 6  # examples of each section
_SIDE = 160  # pixels of an example
_BINS = 40


class DetectorReport:
    """What a page shows of a detector: its scores on held-out examples, their threshold, and where they are high.

    Attributes:
        opened: Run of the report.
        name: Name of the split that is shown.
        scores: Score of each example of the split, (N,).
        labels: 0 for normal examples, and the kind of defect for others, int64, (N,).
        promise: Threshold, and what is known of its false alarms.
    """

    def __init__(self, opened: LoadedRun) -> None:
        """Score the held-out examples.

        Args:
            opened: Run with a `DefectDetector`.

        Raises:
            InputError: There are none, or the checkpoint has no threshold.
        """
        self.opened, self.name = opened, opened.held_out
        self._model: Any = opened.cli.model
        self._model.load_state_dict(read_weights(opened.checkpoint)[0])
        self._model.eval()
        self.promise: Promise = self._model.alarm.promise
        scored = [(batch.indices, batch.y, self._score(batch.x)[0]) for batch in self._read_batches()]
        self._places, self.labels, self.scores = (torch.cat(pieces) for pieces in zip(*scored, strict=True))

    def _read_batches(self) -> Any:
        return self.opened.data.batches_of(self.name, torch.device("cpu"))

    @torch.no_grad()
    def _score(self, x: Any) -> tuple[Tensor, Tensor]:
        scores = self._model(x)
        return scores.example.double(), scores.map

    @property
    def kinds(self) -> list[str]:
        """Names of the labels, the first for normal examples."""
        return self.opened.data.class_names

    def format_verdict(self, iterate: str) -> list[str]:
        """Return the sentences that a page begins with.

        Args:
            iterate: State of the training that is shown.
        """
        values = measure_examples(self.scores, self.labels, self.promise.threshold, self.kinds)
        plural, split = self.opened.data.input_spec.plural, format_split(self.name)
        found, alarms = values.get("detection_rate"), values.get("false_alarm_rate")
        sentences = []
        if found is not None and alarms is not None:
            sentences.append(
                f"Of the {split} split, {float(found):.1%} of {int((self.labels > 0).sum()):,} defective {plural} are "
                f"found, with an alarm for {float(alarms):.1%} of {int((self.labels == 0).sum()):,} normal ones; the "
                f"AUROC is {float(values['auroc']):.3f}."
            )
        else:
            lacking = "normal" if alarms is None else "defective"
            sentences.append(f"The {split} split has no {lacking} {plural}, which an AUROC needs.")
        said = str(self.promise)
        return [*sentences, f"{said[:1].upper()}{said[1:]}.", f"This is the {iterate}."]

    def draw_scores(self) -> Markup:
        """Return histograms of the scores of normal and defective examples, with the threshold."""
        figure, axes = figures.make_axes(3.4)
        held_out = self._model.alarm.normal_scores
        groups = [
            ("held out for the threshold", held_out),
            (f"normal, {format_split(self.name)}", self.scores[self.labels == 0]),
            *((name, self.scores[self.labels == k]) for k, name in enumerate(self.kinds) if k),
        ]
        shown = [(name, own) for name, own in groups if len(own)]
        last = len(figures.COLORS) - 1
        if len(shown) > last + 1:  # more kinds than there are colors
            shown = [*shown[:last], ("other kinds", torch.cat([own for _, own in shown[last:]]))]
        every = torch.cat([own for _, own in shown])
        edges = torch.linspace(float(every.min()), float(every.max()) + 1e-9, _BINS + 1).tolist()
        for (_, own), color in zip(shown, figures.COLORS, strict=False):
            heights = torch.histc(own.double(), _BINS, edges[0], edges[-1]) / len(own)
            axes.stairs(heights.tolist(), edges, color=color, linewidth=1.5)
        axes.axvline(self.promise.threshold, color=figures.INK, linestyle=":", linewidth=1.2)
        axes.set_xlabel("score (dotted: threshold)", color=figures.INK)
        axes.set_ylabel("share", color=figures.INK)
        legend = [(name, color, "") for (name, _), color in zip(shown, figures.COLORS, strict=False)]
        return figures.render_svg(figure, "Histograms of the scores with the threshold", legend, "Scores")

    def render_sections(self, logged: Sequence[tuple[str, float]]) -> list[Section]:
        """Return the sections of the page.

        Args:
            logged: Names and values of metrics of places that `test` has logged.
        """
        normal, defective = (at.nonzero()[:, 0] for at in (self.labels == 0, self.labels > 0))
        is_alarm = self.scores > self.promise.threshold
        found, missed = defective[is_alarm[defective]], defective[~is_alarm[defective]]
        alarms = normal[is_alarm[normal]]
        return [
            Section("Results by kind", self._render_kinds(logged)),
            Section("Highest scores", self._render_tiles(found, descending=True)),
            Section("Missed defects", self._render_tiles(missed, descending=False)),
            Section("False alarms", self._render_tiles(alarms, descending=True)),
        ]

    def _render_kinds(self, logged: Sequence[tuple[str, float]]) -> Markup:
        rows, normal = [], self.labels == 0
        for k, name in enumerate(self.kinds):
            own = self.labels == k
            if not bool(own.any()):
                continue
            values = measure_examples(self.scores[own | normal], self.labels[own | normal], self.promise.threshold, [])
            auroc = f"{float(values['auroc']):.3f}" if k and "auroc" in values else "-"
            alarms = int((self.scores[own] > self.promise.threshold).sum())
            rows.append((name, int(own.sum()), f"{alarms / int(own.sum()):.1%}", auroc))
        table = render_table(("kind", self.opened.data.input_spec.plural, "above the threshold", "AUROC"), rows)
        if not logged:
            return table
        return table + render_note(", ".join(f"{name} {value:.3f}" for name, value in logged) + ", by the last test.")

    def _render_tiles(self, chosen: Tensor, descending: bool) -> Markup:
        """Return the examples with the highest or lowest scores of some, with their maps of scores."""
        if not len(chosen):
            return render_note("None.")
        order = chosen[self.scores[chosen].argsort(descending=descending, stable=True)][:_NUM_SHOWN]
        data, places = self.opened.data, self._places[order].tolist()
        x = data.inputs_of(self.name, places)
        maps = self._score(x)[1]
        peak, ids = float(self._model.alarm.normal_peaks.median()), data.splits[self.name].ids
        relative = maps / max(peak, 1e-12)
        tiles = []
        for own, hot, position, place in zip(data.views.show(x), relative, order.tolist(), places, strict=True):
            assert isinstance(own, Tensor)
            pixels = color_scores(255 * own.expand(3, -1, -1).permute(1, 2, 0).numpy(), hot)
            drawn = figures.embed_example(torch.from_numpy(pixels / 255).permute(2, 0, 1), ids[place], _SIDE)
            tiles.append((drawn, [self.kinds[int(self.labels[position])], f"score {float(self.scores[position]):.4g}"]))
        note = (
            "Colors begin (yellow) at the highest place of a typical held-out normal example, and end (red) at one and "
            "a half of it."
        )
        return render_note(note) + render_tiles(tiles)

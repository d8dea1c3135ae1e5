"""Checks of recordings: sample rates, channels, silence, clipping and lengths."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.modality_checks import ModalityChecks
from sft_lightning.data.audio.datamodule import AudioDataModule
from sft_lightning.data.audio.decoding import SoundFacts
from sft_lightning.data.audio.findings import CLIPPED, SHORT, SILENT
from sft_lightning.data.audio.storage import Recordings
from sft_lightning.data.issues import FindingKind
from sft_lightning.data.split_stats import SplitStats


class RecordingChecks(ModalityChecks):
    """Checks by the facts that the data module has measured when it decoded each file."""

    action: ClassVar[str] = "decoding"
    data: AudioDataModule

    def find_odd(self, stats: Sequence[SplitStats[Any]]) -> list[CheckResult]:
        """Find recordings that are silent, clipped, short, or of a lower sample rate than the one they are read at."""
        rate = self.data.sound.rate

        def of(kind: FindingKind, test: Callable[[SoundFacts], str | None], name: str, advice: str) -> CheckResult:
            rows = [
                CheckRow(split.name, split.id(i), said) for split, i, one in _list_facts(stats) if (said := test(one))
            ]
            return CheckResult(kind, name, advice, rows)

        return [
            of(
                "constant",
                lambda one: "silent" if one.peak is not None and one.peak < SILENT else None,
                "silent recordings (60 dB below full scale)",
                "They say nothing of their class: remove them, or record them again",
            ),
            of(
                "value_range",
                lambda one: f"{one.clipped:.1%} of the samples" if (one.clipped or 0) > CLIPPED else None,
                "clipped recordings (0.1% of the samples or more)",
                "Record them with less gain, if all of a class are",
            ),
            of(
                "truncated",
                lambda one: f"{one.samples / rate:.3f} s" if one.samples < SHORT * rate else None,
                f"recordings that are shorter than {SHORT} s",
                "Most of their window is silence: remove them if they were cut by mistake",
            ),
            of(
                "file_format",
                lambda one: f"{one.rate:,} Hz" if one.rate < rate else None,
                f"recordings with a sample rate below {rate:,} Hz",
                "Classes may differ by the missing high frequencies: set sample_rate to the lowest one if they do",
            ),
        ]

    def summarize(self, stats: Sequence[SplitStats[Any]]) -> dict[str, object]:
        """Summarize sample rates, channels and lengths."""
        facts = [one for _, _, one in _list_facts(stats)]
        if not facts:
            return {}
        seconds = np.array([one.samples for one in facts]) / self.data.sound.rate
        return {
            "recordings": len(facts),
            "sample_rates": dict(Counter(str(one.rate) for one in facts).most_common()),
            "channels": dict(Counter(str(one.channels) for one in facts).most_common()),
            "seconds": [round(float(value), 3) for value in np.quantile(seconds, [0, 0.5, 1])],
            "window": self.data.sound.samples / self.data.sound.rate,
        }

    def format_summary(self, facts: dict[str, Any]) -> list[str]:
        """Format sample rates, channels and lengths."""
        if not facts:
            return []
        low, middle, high = facts["seconds"]
        rates = ", ".join(f"{int(rate):,} Hz ({count:,})" for rate, count in facts["sample_rates"].items())
        channels = ", ".join(f"{number} ({count:,})" for number, count in facts["channels"].items())
        return [
            f"rates    {rates}; channels {channels}",
            f"seconds  {middle:g} (median), {low:g} to {high:g}, in windows of {facts['window']:g}",
        ]


def _list_facts(stats: Sequence[SplitStats[Any]]) -> Iterator[tuple[SplitStats[Any], int, SoundFacts]]:
    """Yield the facts about the readable recordings with their split and position."""
    for split in stats:
        storage = split.split.part.storage
        if isinstance(storage, Recordings) and storage.facts is not None:
            for i, _ in split.readable:
                yield split, i, storage.facts[split.split.indices[i]]

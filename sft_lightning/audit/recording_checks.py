"""Checks of recordings: copies, sample rates, channels, silence, clipping and lengths."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.modality_checks import ModalityChecks, Places
from sft_lightning.data.audio.datamodule import AudioDataModule
from sft_lightning.data.audio.decoding import SoundFacts
from sft_lightning.data.audio.findings import CLIPPED, SHORT, SILENT
from sft_lightning.data.audio.near_duplicates import (
    DIFFERENCE,
    LENGTHS,
    RecordingSplitStats,
    RecordingStats,
    find_copies,
    find_near_duplicates,
    make_thumbnail,
)
from sft_lightning.data.audio.storage import Recordings
from sft_lightning.data.bad_examples import UNREADABLE, describe_read_error
from sft_lightning.data.copies import Copies
from sft_lightning.data.issues import Fault, FindingKind, as_finding
from sft_lightning.data.split_stats import Pair
from sft_lightning.utils.progress_lines import LoggedProgress


class RecordingChecks(ModalityChecks):
    """Checks of decoded recordings, and of the facts that the data module has measured of each file."""

    action: ClassVar[str] = "decoding"
    bounds: ClassVar[dict[str, float]] = {"difference": DIFFERENCE, "difference_of_lengths": LENGTHS}
    data: AudioDataModule

    def measure(self, name: str) -> RecordingSplitStats:
        """Decode each recording, for a digest of its samples and a thumbnail of its sound."""
        split, rate = self.data.splits[name], self.data.sound.rate
        storage, found = split.part.storage, list[RecordingStats | str]()
        assert isinstance(storage, Recordings)
        with LoggedProgress(len(split), f"Decoding ({name})", "recording") as bar:
            for index in split.indices:
                try:
                    samples, facts = storage.read_samples(index), (storage.facts or [])[index]
                    digest = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
                    found.append(RecordingStats(facts, digest, *make_thumbnail(samples, rate)))
                except UNREADABLE as error:
                    found.append(describe_read_error(error))
                bar.update()
        return RecordingSplitStats(name, split, found)

    def find_duplicates(self, stats: Sequence[RecordingSplitStats]) -> tuple[list[Pair], list[Pair]]:
        """Compare samples, and spectrograms for near-duplicates."""
        return find_near_duplicates(stats)

    def find_copies(self, places: Places) -> Copies:
        """Find equal and nearly equal recordings."""
        return find_copies([one.examples[i] for one, i in places])

    def find_odd(self, stats: Sequence[RecordingSplitStats]) -> list[CheckResult]:
        """Find recordings that are silent, clipped, short, stereo, or of a lower sample rate than they are read at."""
        rate = self.data.sound.rate

        def of(kind: FindingKind, test: Callable[[SoundFacts], str | None], name: str, advice: str) -> CheckResult:
            rows = [
                CheckRow(split.name, split.id(i), said)
                for split in stats
                for i, one in split.readable
                if (said := test(one.facts))
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
            of(
                "file_format",
                lambda one: f"{one.channels} channels" if one.channels > 1 else None,
                "recordings with more than one channel",
                "The mean of the channels is read: keep the one with the sound in the file if the others have none",
            ),
        ]

    def find_strays(self, faults: Sequence[Fault]) -> list[CheckResult]:
        """Find files and folders of the source that are not read."""
        findings = [as_finding(message) for message in self.data.opened_source.messages]
        rows = [CheckRow("", name, one.message) for one in findings if one.kind == "ignored" for name in one.examples]
        advice = "Rename them as recordings of a class if they should be read"
        return [CheckResult("ignored", "files and folders that are not read", advice, rows)]

    def summarize(self, stats: Sequence[RecordingSplitStats]) -> dict[str, object]:
        """Summarize sample rates, channels and lengths."""
        facts = [one.facts for split in stats for _, one in split.readable]
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

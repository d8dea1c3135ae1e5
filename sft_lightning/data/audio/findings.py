"""What a user should know about the recordings of a source: sample rates, channels, silence, clipping and lengths."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sft_lightning.data.audio.decoding import SoundFacts
from sft_lightning.data.audio.storage import Windows
from sft_lightning.data.issues import Finding

SILENT = 1e-3  # peak below which a recording is called silent, 60 dB below full scale
CLIPPED = 1e-3  # share of samples at full scale above which a recording is called clipped
SHORT = 0.05  # seconds below which a recording is hardly one
_FEW = 5  # rates that a message lists


def describe_recordings(
    names: Sequence[str], facts: Sequence[SoundFacts], rate: int, windows: Windows
) -> list[Finding]:
    """Return findings about recordings.

    Args:
        names: Names of the recordings.
        facts: Facts about each of them.
        rate: Sample rate in Hz to which they are converted.
        windows: Settings by which they are cut into windows.
    """
    if not facts:
        return []
    findings = [*_describe_rates(facts, rate), *_describe_lengths(facts, rate, windows)]
    stereo = sum(one.channels > 1 for one in facts)
    if stereo:
        message = f"{_count(stereo, 'has', 'have')} more than one channel; their mean is taken"
        findings.append(Finding("note", message))
    silent = [name for name, one in zip(names, facts, strict=True) if one.peak is not None and one.peak < SILENT]
    if silent:
        message = f"{_count(len(silent), 'is', 'are')} silent (60 dB below full scale): {_list(silent)}"
        findings.append(Finding("constant", message, silent))
    clipped = [name for name, one in zip(names, facts, strict=True) if (one.clipped or 0) > CLIPPED]
    if clipped:
        message = f"{_count(len(clipped), 'is', 'are')} clipped (0.1% of the samples or more): {_list(clipped)}"
        findings.append(Finding("value_range", message, clipped))
    short = [name for name, one in zip(names, facts, strict=True) if one.samples < SHORT * rate]
    if short:
        message = f"{_count(len(short), 'is', 'are')} shorter than {SHORT} s: {_list(short)}"
        findings.append(Finding("note", message, short))
    return findings


def _describe_rates(facts: Sequence[SoundFacts], rate: int) -> list[Finding]:
    rates = Counter(one.rate for one in facts)
    if {*rates} == {rate}:
        return []
    listed = ", ".join(f"{count:,} at {one:,} Hz" for one, count in rates.most_common(_FEW))
    more = ", ..." if len(rates) > _FEW else ""
    low = sum(count for one, count in rates.items() if one < rate)
    note = f"; {_count(low, 'has', 'have')} nothing above half their own rate" if low else ""
    return [Finding("note", f"recordings are converted to {rate:,} Hz: {listed}{more}{note}")]


def _describe_lengths(facts: Sequence[SoundFacts], rate: int, windows: Windows) -> list[Finding]:
    seconds = np.array([one.samples for one in facts]) / rate
    low, middle, high = np.quantile(seconds, [0, 0.5, 1])
    window = windows.samples / rate
    message = f"recordings last {low:.2f} to {high:.2f} s, {middle:.2f} s in the middle, in windows of {window:g} s"
    long = int((seconds * rate > windows.samples).sum())
    if long:
        evaluated = f"{windows.count} windows of each are" if windows.count > 1 else "only the first window is"
        message += f"; of {long:,} longer ones, training takes a random window, and {evaluated} evaluated"
    share = float((seconds < window / 2).mean())
    if share > 0.5:
        message += f"; {share:.0%} are shorter than half a window: a lower `seconds` would waste less time on silence"
    return [Finding("note", message)]


def _count(count: int, one: str, several: str) -> str:
    return f"1 recording {one}" if count == 1 else f"{count:,} recordings {several}"


def _list(names: Sequence[str]) -> str:
    return ", ".join([*names[:_FEW], *(["..."] if len(names) > _FEW else [])])

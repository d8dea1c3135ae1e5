"""Decode recordings to one channel of one sample rate: any defect is an OSError with a reason."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_lightning.data.audio.truncation import is_cut_off
from sft_lightning.data.bad_examples import check_file
from sft_lightning.data.modality import Clip
from sft_lightning.utils.errors import InputError

_FULL_SCALE = 0.9995  # of the largest sample: half a step of 10 bits below it
_UNKNOWN = 2**62  # samples: what libsndfile says where the header does not tell
_MOST_RATIO = 100  # between the sample rate of a file and the one to which it is converted
_AT_ONCE = 2**22  # samples of each channel that are decoded at once
Samples = NDArray[np.float32]


class SoundFacts(NamedTuple):
    """Facts about a recording.

    Attributes:
        rate: Sample rate of the file in Hz.
        channels: Number of channels of the file.
        samples: Number of samples at the rate to which it is converted.
        peak: Largest absolute value of all channels, 1 for full scale; None where it was not decoded.
        clipped: Share of the samples at full scale; None where it was not decoded.
    """

    rate: int
    channels: int
    samples: int
    peak: float | None = None
    clipped: float | None = None


def import_soundfile() -> Any:
    """Return the module that reads files of sound.

    Raises:
        InputError: It is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise InputError(f"recordings need the extra 'audio': pip install 'sft-lightning[audio]' ({error})") from error
    return soundfile


def get_versions() -> tuple[str, ...]:
    """Return the versions of what decides the numbers of a decoded recording."""
    import scipy

    soundfile = import_soundfile()
    return "1", soundfile.__libsndfile_version__, scipy.__version__


def count_resampled(count: int, rate: int, wanted: int) -> int:
    """Return the number of samples of a recording at another rate.

    Args:
        count: Number of samples of the recording.
        rate: Its sample rate in Hz.
        wanted: The other rate in Hz.
    """
    return math.ceil(count * wanted / rate)


def inspect_header(path: Path, wanted: int) -> SoundFacts:
    """Return what the header of a recording says.

    Args:
        path: Path of the file.
        wanted: Sample rate in Hz to which it is converted.

    Raises:
        OSError: It is not a recording, or an empty one, or its header is impossible.
    """
    soundfile = import_soundfile()
    check_file(path)
    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise OSError(_explain(error)) from error
    _check_header(info.frames, info.samplerate, wanted)
    return SoundFacts(info.samplerate, info.channels, count_resampled(info.frames, info.samplerate, wanted))


def decode(path: Path, wanted: int) -> tuple[Samples, SoundFacts]:
    """Decode a recording, and return the mean of its channels at one sample rate.

    Args:
        path: Path of the file.
        wanted: Sample rate in Hz.

    Returns:
        Samples, float32 of shape (N,), 1 for full scale, and facts about the file.

    Raises:
        OSError: It cannot be decoded, is empty, is cut off, holds NaN or infinite samples, or has an impossible header.
    """
    soundfile = import_soundfile()
    check_file(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            count, rate = file.frames, file.samplerate
            _check_header(count, rate, wanted)
            channels = _read(file)
            log = file.extra_info
    except soundfile.SoundFileError as error:
        raise OSError(_explain(error)) from error
    if not len(channels):
        raise OSError("it holds no sample")
    if is_cut_off(path, log, count, len(channels)):
        raise OSError(f"it is cut off after {len(channels) / rate:.2f} seconds")
    size = np.abs(channels)
    peak = float(size.max())
    if not math.isfinite(peak):
        raise OSError("some of its samples are NaN or infinite")
    facts = SoundFacts(
        rate,
        channels.shape[1],
        count_resampled(len(channels), rate, wanted),
        peak,
        float((size >= _FULL_SCALE).mean()),
    )
    return resample(channels.mean(1), rate, wanted), facts


def _check_header(count: int, rate: int, wanted: int) -> None:
    """Refuse what only a damaged or hostile header says, before memory is reserved for it."""
    if not count:
        raise OSError("it holds no sample")
    if count >= _UNKNOWN:
        raise OSError("its header does not tell its length, as that of a stream")
    if not wanted / _MOST_RATIO <= rate <= wanted * _MOST_RATIO:
        raise OSError(f"its sample rate of {rate:,} Hz is too far from {wanted:,} Hz")


def _read(file: Any) -> Samples:
    """Return all samples of an open file, (N, C), in memory for those that are there, not for those of its header."""
    pieces: list[Samples] = [file.read(_AT_ONCE, dtype="float32", always_2d=True)]
    while len(pieces[-1]) == _AT_ONCE:
        pieces.append(file.read(_AT_ONCE, dtype="float32", always_2d=True))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def resample(x: Samples, rate: int, wanted: int) -> Samples:
    """Return a signal at another sample rate, without the frequencies that it could not hold.

    Args:
        x: Samples, (N,).
        rate: Sample rate in Hz.
        wanted: Other sample rate in Hz.
    """
    if rate == wanted:
        return x
    from scipy.signal import resample_poly  # takes 0.3 s to import

    common = math.gcd(rate, wanted)
    made: Samples = resample_poly(x, wanted // common, rate // common).astype(np.float32, copy=False)
    return made


def encode_clip(x: Samples, rate: int) -> Clip:
    """Return samples as a FLAC file of 16 bits, which browsers play.

    Args:
        x: Samples, (N,).
        rate: Sample rate in Hz.

    Raises:
        OSError: They cannot be encoded.
    """
    soundfile, file = import_soundfile(), BytesIO()
    try:
        soundfile.write(file, np.clip(x, -1, 1), rate, format="FLAC")
    except soundfile.SoundFileError as error:
        raise OSError(_explain(error)) from error
    return Clip(file.getvalue(), "audio/flac")


def _explain(error: Exception) -> str:
    """Return the reason of libsndfile in a few words, without the path, which a message names anyway."""
    reason = str(getattr(error, "error_string", "") or error).strip().rstrip(".")
    if "Format not recognised" in reason or "unimplemented format" in reason:
        return "it is not a recording of a known format"
    return f"its content cannot be decoded ({reason})"

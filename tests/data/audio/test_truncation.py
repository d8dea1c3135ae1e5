"""Recordings that were cut off, or have an impossible header, are refused; whole ones are read by any extension."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from sft_lightning.data.audio import decoding
from sft_lightning.data.audio.decoding import decode, inspect_header

RATE = 8000
NOISE = (0.1 * np.random.default_rng(0).normal(size=3 * RATE)).astype(np.float32)
FORMATS = {name: dict[str, str]() for name in ("wav", "aiff", "au", "w64", "flac", "ogg", "mp3")}
FORMATS |= {"rf64": {"format": "RF64"}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def write(path: Path, samples: npt.NDArray[np.float32] = NOISE, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, **FORMATS[path.suffix[1:]])
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_cut_off_is_refused(name: str, share: float, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{name}")
    assert abs(len(decode(path, RATE)[0]) - len(NOISE)) < 3000  # encoders pad the ends
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    with pytest.raises(OSError, match=r"it is cut off after \d\.\d\d seconds|cannot be decoded|it holds no sample"):
        decode(path, RATE)


def test_extensions_decide_nothing(tmp_path: Path) -> None:
    for is_format, is_named in (("mp3", "wav"), ("wav", "mp3"), ("flac", "ogg"), ("ogg", "flac")):
        path = write(tmp_path / f"a.{is_format}")
        samples = decode(path, RATE)[0]
        renamed = path.rename(tmp_path / f"b.{is_named}")
        assert np.array_equal(decode(renamed, RATE)[0], samples)
        if is_named == "mp3":
            renamed.write_bytes(renamed.read_bytes()[:20_000])
            with pytest.raises(OSError, match="it is cut off"):
                decode(renamed, RATE)


def test_a_wav_whose_size_was_unknown_when_it_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    at = content.find(b"data")
    content[at + 4 : at + 8] = content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(decode(path, RATE)[0]) == len(NOISE)


def test_impossible_headers_are_refused_before_memory_is_reserved(tmp_path: Path) -> None:
    for rate in (1, 2_000_000_000):
        path = write(tmp_path / "a.wav", NOISE, rate)
        for read in (decode, inspect_header):
            with pytest.raises(OSError, match=f"its sample rate of {rate:,} Hz is too far from 8,000 Hz"):
                read(path, RATE)
    path = write(tmp_path / "a.flac")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xf0"  # 2**36 samples
    path.write_bytes(content)
    with pytest.raises(OSError, match="its content cannot be decoded"):
        decode(path, RATE)
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # unknown
    path.write_bytes(content)
    for read in (decode, inspect_header):
        with pytest.raises(OSError, match="its header does not tell its length"):
            read(path, RATE)


def test_pieces_of_a_long_recording_are_those_of_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / f"a.{name}") for name in ("wav", "flac", "ogg")]
    whole = [decode(path, RATE)[0] for path in paths]
    monkeypatch.setattr(decoding, "_AT_ONCE", 8000)  # of which 24,000 is a multiple
    for path, samples in zip(paths, whole, strict=True):
        assert np.array_equal(decode(path, RATE)[0], samples)

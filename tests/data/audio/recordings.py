"""Recordings for tests: three kinds of sound that differ in how their pitch moves."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

KINDS = ("falling", "rising", "warble")
RATE = 8000


def make_sound(kind: str, seconds: float, seed: int, rate: int = RATE) -> npt.NDArray[np.float32]:
    """Return a sound of one kind, at a random pitch and loudness, in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(300, 900)
    bend = {"falling": -0.5 * time / seconds, "rising": time / seconds, "warble": 0.3 * np.sin(40 * time)}[kind]
    phase = 2 * np.pi * np.cumsum(pitch * (1 + bend)) / rate
    sound = rng.uniform(0.1, 0.5) * (np.sin(phase) + 0.5 * np.sin(2 * phase))
    return (sound + 0.02 * rng.normal(size=len(time))).astype(np.float32)


def write_folder(folder: Path, each: int, seconds: float = 0.5, suffix: str = ".wav") -> Path:
    """Write class folders with `each` recordings of every kind."""
    for k, kind in enumerate(KINDS):
        (folder / kind).mkdir(parents=True)
        for i in range(each):
            soundfile.write(folder / kind / f"{i:03}{suffix}", make_sound(kind, seconds, 1000 * k + i), RATE)
    return folder

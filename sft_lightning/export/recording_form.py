"""Programs of recordings: waveforms, and the code from a file to them.

A program computes the log-mel spectrograms itself and averages the windows of a recording, so that only reading a file
and cutting it remain outside. The number of recordings and of windows is free, the length of a window is not.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from sft_lightning.data.audio.storage import MOST_WINDOWS, Recordings, Windows
from sft_lightning.data.bad_examples import UNREADABLE
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.export.program_form import Given, Program, ProgramForm, format_call, format_imports
from sft_lightning.networks.audio.log_mel import Sound, make_mel_filters, prepare_windows
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.inputs import Inputs


class RecordingProgram(Program):
    """Module from waveforms to logits, or to features if it has no head."""

    def __init__(self, backbone: Encoder, head: nn.Module | None) -> None:
        """Join backbone and head.

        Args:
            backbone: Backbone of recordings.
            head: Module from features (N, F) to logits (N, K), or None.
        """
        super().__init__(backbone, head)
        self.sound = Sound.parse(backbone.input_spec)
        if self.sound.mels:  # which are kept: the first call must not be one of the exporter, whose tensors are empty
            make_mel_filters(self.sound.rate, self.sound.fft, self.sound.mels)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Compute logits or features.

        Args:
            waveforms: Windows of recordings, float32, (N, W, S).

        Returns:
            Logits (N, K) or features (N, F), float32.
        """
        return self.compute(prepare_windows(waveforms, self.sound))


class RecordingForm(ProgramForm):
    """Windows of waveforms, float32, (N, W, S)."""

    program = RecordingProgram

    @property
    def _sound(self) -> Sound:
        return Sound.parse(self.spec)

    def collect(self, data: FewLabelDataModule, name: str) -> list[Given]:
        """Return the windows that an evaluation sees."""
        split, windows = data.splits[name], []
        storage, settings = split.part.storage, data.read_settings
        assert isinstance(storage, Recordings)
        assert isinstance(settings, Windows)
        for index in split.indices:
            try:
                windows.append(storage.read(index, settings, None))
            except UNREADABLE:  # as an evaluation leaves it out
                continue
        return [{"waveforms": torch.stack(windows)}] if windows else []

    def decode(self, given: Given) -> Inputs:
        """Return spectrograms, or the waveforms for networks that read them."""
        return prepare_windows(given["waveforms"], self._sound)

    def draw(self, count: int, generator: torch.Generator) -> Given:
        """Return noise, two windows of each recording: exporters take a side of 1 for a constant."""
        return {"waveforms": 0.1 * torch.randn(count, 2, self._sound.samples, generator=generator)}

    @property
    def free_sides(self) -> dict[str, dict[int, Dim]]:
        """The number of recordings, and of windows."""
        return {"waveforms": {0: Dim("batch"), 1: Dim("windows")}}

    def describe(self) -> dict[str, Any]:
        """Return the metadata on the waveforms."""
        sound = self._sound
        frames = f"{sound.mels} mel bands, frames of {sound.fft} samples every {sound.hop}"
        return {
            "input": {
                "name": "waveforms", "type": "float32", "range": [-1, 1],
                "shape": ["batch", "windows", sound.samples],
            },
            "inside": [*([f"log-mel spectrograms ({frames})"] if sound.mels else []), "the mean over windows"],
        }  # fmt: skip

    def describe_preprocessing(self, data: dict[str, Any]) -> dict[str, Any]:
        """Describe, in order, how a file becomes windows."""
        sound, count = self._sound, data.get("eval_windows")
        covering = f"as many as cover the recording, at most {MOST_WINDOWS}"
        return {
            "channels": "mean",
            "sample_rate": {"hertz": sound.rate, "filter": "polyphase, as scipy.signal.resample_poly has it"},
            "windows": {"samples": sound.samples, "count": count or covering, "places": "at equal distances"},
            "padding": "zeros at the end",
            "layout": "N, windows, samples",
            "known": bool(data),
        }

    def explain(self) -> str:
        """Return the sentences on the waveforms."""
        sound = self._sound
        return (
            f"Input `waveforms`: float32, -1 to 1, (batch, windows, {sound.samples}), which is "
            f"{sound.samples / sound.rate:g} s at {sound.rate} Hz. Windows of one recording are averaged; another "
            "sample rate gives other outputs."
        )

    def explain_limits(self) -> list[str]:
        """Return a sentence on what the network hears."""
        sound = self._sound
        return [
            f"It hears windows of {sound.samples / sound.rate:g} s and frequencies up to {sound.rate / 2:g} Hz: "
            "nothing between the windows of a long recording, nothing above."
        ]

    def format_code(self, file: Path) -> list[str]:
        """Return code for `recording.wav`."""
        rate, samples = self._sound.rate, self._sound.samples
        count = self.metadata["preprocessing"]["windows"]["count"]
        if not isinstance(count, int):
            count = f"min({MOST_WINDOWS}, max(1, -(-len(sound) // {samples})))"
        return [
            *format_imports(self.metadata, "import soundfile", "from scipy.signal import resample_poly"),
            "",
            'sound, rate = soundfile.read("recording.wav", dtype="float32", always_2d=True)',
            f"sound = sound.mean(1) if rate == {rate} else resample_poly(sound.mean(1), {rate}, rate)",
            f"last, count = max(0, len(sound) - {samples}), {count}",
            f"waveforms = np.zeros((1, count, {samples}), np.float32)",
            "for k in range(count):",
            "    start = round(last * k / max(1, count - 1))",
            f"    piece = sound[start : start + {samples}]",
            "    waveforms[0, k, : len(piece)] = piece",
            *format_call(file, self.metadata, {"waveforms": "waveforms"}),
        ]

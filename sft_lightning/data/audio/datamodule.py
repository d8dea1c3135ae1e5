"""`AudioDataModule`: labeled, unlabeled, validation and test batches of the recordings of a source."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.audio.decoding import encode_clip, get_versions
from sft_lightning.data.audio.findings import describe_recordings
from sft_lightning.data.audio.sources import list_predicted, open_recordings
from sft_lightning.data.audio.storage import MOST_WINDOWS, Recordings, Windows
from sft_lightning.data.audio.views import AudioView, AudioViews, make_views
from sft_lightning.data.bad_examples import UNREADABLE
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.modality import Clip
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples, Source, take_unlabeled
from sft_lightning.data.splits import LeakPolicy, Split, SplitConfig
from sft_lightning.networks.audio.log_mel import Sound
from sft_lightning.utils.errors import InputError, check_min, check_positive
from sft_lightning.utils.inputs import Inputs, InputSpec

_WEAK = AudioView(gain=6.0, noise=0.05, shift=0.1)
_STRONG = AudioView(gain=6.0, noise=0.3, shift=0.2, time_masks=2, frequency_masks=2)
_RATE, _LONGEST = 16_000, 5.0  # what suggested settings do not exceed, in Hz and seconds
_MOST_SAMPLES = 2**28  # of a window, 1 GiB
_PLAYED = 3.0  # seconds of a recording that a page plays, of some 80 kB


class AudioDataModule(FewLabelDataModule):
    """Labeled and unlabeled recordings, in batches of the parts that the paradigm requests, as in `FewLabelDataModule`.

    An example is a recording, which stays in one split. Training sees a random window of it in each epoch, and
    evaluation several windows, whose features the encoders average.
    """

    views: AudioViews
    bad_setting: ClassVar[str] = "on_bad_recording"
    bad_listing: ClassVar[str] = "skipped_recordings.txt"

    def __init__(
        self,
        source: str,
        root: str = "data",
        num_labels: int | None = None,
        labels_per_class: int | None = None,
        unlabeled_source: str | None = None,
        seed: int = 0,
        val_size: int | float = 0.1,
        test_size: int | float = 0.2,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_leak: LeakPolicy = "drop",
        on_bad_recording: Literal["raise", "skip"] = "raise",
        sample_rate: int = 16_000,
        seconds: float = 2.0,
        eval_windows: int | None = None,
        encoding: Literal["log_mel", "waveform"] | None = None,
        mels: int = 64,
        frame_ms: float = 32.0,
        hop_ms: float = 16.0,
        weak_view: AudioView = _WEAK,
        strong_view: AudioView = _STRONG,
        labeled_view: Literal["weak", "strong", "both"] = "weak",
        batch_size: int = 64,
        unlabeled_ratio: int = 7,
        balanced_labels: bool = False,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        cache: str | None = None,
        predict_source: str | None = None,
        class_names: list[str] | None = None,
        labels: str | None = None,
        label_separator: str | None = None,
        label_columns: str | list[str] | None = None,
    ) -> None:
        """Keep the settings; the source is opened when it is first needed.

        Args:
            source: Folder with a folder of recordings (.wav, .flac, .ogg, .mp3, ...) for each class, which may lie in
                `train`, `val` and `test`, and further ones in `unlabeled`; or a table (`.csv`, `.tsv`, `.jsonl` or
                `.parquet`) with the columns path,label[,split][,group][,id], whose blank labels mean unlabeled.
            root: Second folder that the files of a table may be in.
            num_labels: Total number of labels to use; null for all.
            labels_per_class: Number of labels of each class to use; null for all.
            unlabeled_source: Another source, whose training recordings are the unlabeled ones.
            seed: Seed of the splits and of the batches.
            val_size: Share (below 1) or number of training recordings held out if the source has no validation split.
            test_size: Share or number of training recordings held out if the source has no test split.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: `split` to test on the held-out part, `all` to test on all labels the run has not learned.
            on_leak: `drop` to remove a training recording that equals a held-out one, `raise` to stop.
            on_bad_recording: `raise` to stop at an unreadable recording, or `skip` to leave it out, count and list it.
            sample_rate: Sample rate in Hz to which all recordings are converted.
            seconds: Length of a window. A shorter recording is followed by silence; of a longer one, training takes a
                random window each time.
            eval_windows: Number of windows of a recording in evaluation, at equal distances, whose features are
                averaged; null for as many as cover the longest recording, at most 4.
            encoding: `log_mel` for spectrograms, or `waveform`. Null for what the backbone takes: waveforms for
                `hf/...`, spectrograms for all others.
            mels: Number of mel bands of a spectrogram.
            frame_ms: Length in ms of a frame of a spectrogram.
            hop_ms: Time in ms from one frame to the next.
            weak_view: Random changes of training recordings.
            strong_view: Random changes of strong views, for paradigms that use one.
            labeled_view: View of labeled training recordings; `both` doubles their batches (as in AdaMatch).
            batch_size: Training recordings of each batch and process.
            unlabeled_ratio: Unlabeled recordings for each labeled one if a paradigm trains on both (mu in FixMatch).
            balanced_labels: Whether classes take turns in labeled batches if unlabeled ones are trained on, too.
            eval_batch_size: Recordings per batch in validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches of an epoch; null for one pass over the unlabeled recordings if the paradigm uses
                them, else over the labeled ones.
            num_workers: Number of processes that decode files; null for one per available core, at most 8.
            cache: Folder that keeps decoded recordings for later epochs and runs, or null for none; a second takes 4
                times `sample_rate` bytes. Batches are the same, bit for bit. All files of a split are decoded again if
                one is added or changes. The folder may be removed when no run uses it.
            predict_source: Recording, table or folder of recordings that `predict` reads; null for the test split.
            class_names: Names of the classes in the order of their numbers, matched with the source by name.
            labels: A CSV with the columns id,label, whose labels are added to those of the source and replace them.
            label_separator: Separator of several classes in a label of a table, such as `;` in `dog;outdoors`; the
                separator alone labels an example of no class. null where each example has one class.
            label_columns: Columns of a table that are 1 where an example has a class and 0 where it lacks it, in place
                of one column of labels: a list of columns, each a class, or a pattern such as `tag_*`, in which the
                star stands for the class. Rows in which all are blank are unlabeled.

        Raises:
            InputError: A setting has an invalid value, or the extra `audio` is missing.
        """
        check_min(1, sample_rate=sample_rate, eval_windows=eval_windows, mels=mels)
        check_positive(seconds=seconds, frame_ms=frame_ms, hop_ms=hop_ms)
        get_versions()  # names the extra before anything else
        self.sound = make_sound(sample_rate, seconds, mels if encoding != "waveform" else 0, frame_ms, hop_ms)
        self.root, self.predict_source, self._cache = root, predict_source, None if cache is None else Path(cache)
        super().__init__(
            source,
            SplitConfig(seed, num_labels, labels_per_class, float(val_size), float(test_size), on_leak),
            unlabeled_source,
            split_file,
            test_on,
            on_bad_recording,
            class_names,
            ("weak", "strong") if labeled_view == "both" else (labeled_view,),
            batch_size,
            unlabeled_ratio,
            balanced_labels,
            eval_batch_size,
            steps_per_epoch,
            num_workers,
            labels=labels,
            label_separator=label_separator,
            label_columns=label_columns,
        )
        self.weak_view, self.strong_view = weak_view, strong_view
        self.views = make_views(self.sound, weak_view, strong_view)
        self._given_windows, self._windows = eval_windows, Windows(self.sound.samples, eval_windows or 1)

    # --- sources

    @property
    def input_spec(self) -> InputSpec:
        """Scaled log-mel spectrograms, (1, mels, frames), or waveforms, (1, samples)."""
        return self.sound.spec

    @classmethod
    def settings_for(cls, input_spec: InputSpec) -> dict[str, Any]:
        """Return the settings of windows and spectrograms of networks that take recordings."""
        if input_spec.modality != "audio":
            return {}
        sound = Sound.parse(input_spec)
        settings = {"sample_rate": sound.rate, "seconds": sound.samples / sound.rate}
        if not sound.mels:
            return {**settings, "encoding": "waveform"}
        frames = {"frame_ms": 1000 * sound.fft / sound.rate, "hop_ms": 1000 * sound.hop / sound.rate}
        return {**settings, "encoding": "log_mel", "mels": sound.mels, **frames}

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, the second folder included."""
        return repr((super().source_key, self.root))

    def open_source(self, name: str, needs_labels: bool = True) -> Source:
        """Open the source of labeled and unlabeled recordings."""
        skip, listed = self.bad.policy == "skip", self._class_names or ()
        needed = needs_labels and self.labels is None
        how = self.root, skip, listed, needed, "source", self.label_separator, self.label_columns
        return open_recordings(name, self.sound.rate, self._cache, *how)

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training recordings, without labels."""
        source = self.open_source(name, needs_labels=False)
        for message in source.messages:
            rank_zero_info(f"Data: {message}.")
        return take_unlabeled(source)

    # --- how files are read

    @property
    def read_settings(self) -> Windows:
        """Length and number of windows."""
        return self._windows

    @property
    def reading_key(self) -> str:
        """Text of the versions of the decoders, of the windows and of the spectrograms."""
        return repr((get_versions(), self._windows, self.sound))

    @property
    def size_settings(self) -> dict[str, Any]:
        """Length of the windows."""
        return {"seconds": self.sound.samples / self.sound.rate}

    def describe_inputs(self) -> str:
        """Return the windows, and what networks get of one."""
        sound = self.sound
        windows = f"windows of {sound.samples / sound.rate:g} s at {sound.rate:,} Hz"
        return f"{windows}, read as {super().describe_inputs()}"

    def suggest_settings(self) -> dict[str, Any]:
        """Return a sample rate and a window for the recordings: what most of them have, up to 16 kHz and 5 s."""
        stored = [part.storage for part in self._parts if isinstance(part.storage, Recordings)]
        facts = [one for storage in stored for one in storage.facts or ()]
        rates, lengths = [one.rate for one in facts], sorted(one.samples / self.sound.rate for one in facts)
        common = lengths[int(0.9 * (len(lengths) - 1))]
        seconds = max(0.5, min(_LONGEST, math.ceil(common / 0.25) * 0.25))
        return {"sample_rate": min(_RATE, max(rates)), "seconds": seconds}

    @property
    def measures_values(self) -> bool:
        """True: damage, silence and clipping show only when a file is decoded."""
        return True

    @property
    def fixed_views(self) -> bool:
        """Whether labeled training recordings are the same in every epoch."""
        if self.weak_view or self.labeled_views != ("weak",) or "labeled" not in self.splits:
            return False
        split = self.splits["labeled"]
        assert isinstance(split.part.storage, Recordings)
        return max(split.part.storage.count_samples(split.indices), default=0) <= self.sound.samples

    def on_splits_read(self, source: Source) -> None:
        """Choose the number of windows, and say what the user should know about the recordings."""
        stored = [(part, part.storage) for part in self._parts if isinstance(part.storage, Recordings)]
        facts = [one for _, storage in stored for one in storage.facts or ()]
        names = [name for part, _ in stored for name in part.ids]
        self._choose_windows([one.samples for one in facts])
        self.request.findings += describe_recordings(names, facts, self.sound.rate, self._windows)

    def _choose_windows(self, samples: list[int]) -> None:
        if self._given_windows is None:
            count = math.ceil(max(samples, default=1) / self.sound.samples)
            self._windows = Windows(self.sound.samples, max(1, min(count, MOST_WINDOWS)))

    def prepare_reading(self, name: str, split: Split, train: bool) -> tuple[Split, Windows, int]:
        """Return the split, how it is read, and the number of workers: none where nothing is decoded."""
        storage = split.part.storage  # or features in place of the recordings
        decodes = isinstance(storage, Recordings) and not storage.is_cached(split.indices)
        windows = self._windows
        views = self._request.views
        if train and name == "unlabeled" and set(views) <= {"pretrain", "pretrain_local"}:
            windows = replace(windows, drawn=len(views))
        return split, windows, self.num_workers if decodes else 0

    def inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return one window of some recordings, for people to look at, (N, 1, ...)."""
        return super().inputs_of(name, positions)[:, :1]

    def clips_of(self, name: str, positions: list[int]) -> list[Clip | None]:
        """Return the beginnings of some recordings, at most 3 s, as FLAC."""
        split = self.splits[name]
        storage = split.part.storage
        assert isinstance(storage, Recordings)
        most = min(self.sound.samples, round(_PLAYED * self.sound.rate))
        clips: list[Clip | None] = []
        for i in positions:
            try:
                clips.append(encode_clip(storage.read_samples(split.indices[i])[:most], self.sound.rate))
            except UNREADABLE:  # the page goes without it
                clips.append(None)
        return clips

    # --- training and prediction

    def train_dataloader(self) -> Any:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part has no recording, or strong views are requested that change nothing.
        """
        if {"strong", "strong_2", "pretrain"} & {*self._request.views, *self.labeled_views} and not self.strong_view:
            raise InputError(
                "strong_view changes nothing (all of its changes are 0), but strong views are to be learned from: set "
                "one of them"
            )
        return super().train_dataloader()

    def read_predicted(self, name: str) -> Split:
        """Return the recordings to predict, with as many windows as cover the longest one.

        Raises:
            InputError: There are none, or one cannot be read.
        """
        part, messages = list_predicted(name, self.sound.rate, self.root, self.bad.policy == "skip")
        for message in messages:
            rank_zero_info(f"Data: {message}.")
        part = readable(part, self.bad)
        assert isinstance(part.storage, Recordings)
        self._choose_windows([one.samples for one in part.storage.facts or ()])
        return Split(part, list(range(len(part))))


def make_sound(rate: int, seconds: float, mels: int, frame_ms: float, hop_ms: float) -> Sound:
    """Return the network inputs of settings.

    Args:
        rate: Sample rate in Hz.
        seconds: Length of a window.
        mels: Number of mel bands; 0 for waveforms.
        frame_ms: Length in ms of a frame of a spectrogram.
        hop_ms: Time in ms from one frame to the next.

    Raises:
        InputError: A window is too long, or a frame is too short, longer than a window, or has fewer frequencies than
            there are bands.
    """
    if seconds * rate >= _MOST_SAMPLES:
        raise InputError(f"seconds is {seconds:g}, which is {seconds * rate:.0f} samples of {rate:,} Hz: give less")
    samples, fft, hop = round(seconds * rate), round(frame_ms * rate / 1000), round(hop_ms * rate / 1000)
    if mels and (fft < 4 or hop < 1):
        raise InputError(f"frame_ms is {frame_ms:g} and hop_ms {hop_ms:g}: give at least 4 samples of {rate} Hz, and 1")
    if mels and mels > fft // 2:
        raise InputError(f"mels is {mels}, and a frame of {frame_ms:g} ms has {fft // 2} frequencies: lower it")
    if samples < max(fft if mels else 1, 1):
        raise InputError(f"seconds is {seconds:g}, which is shorter than a frame of {frame_ms:g} ms: give more")
    return Sound(rate, samples, fft, hop, mels) if mels else Sound(rate, samples, mels=0)

"""Recordings: where they come from, how they are decoded, cached and cut, and what is said about them."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import SGD

from sft_lightning import AudioDataModule, SelfSupervisedModule
from sft_lightning.data.audio import recording_cache, storage
from sft_lightning.data.audio.decoding import decode
from sft_lightning.data.audio.storage import Recordings, Windows
from sft_lightning.data.audio.views import AudioView
from sft_lightning.data.source import Examples
from sft_lightning.losses.pretraining.simclr import SimCLR
from sft_lightning.utils.errors import InputError
from tests.data.audio.recordings import KINDS, RATE, make_sound, write_folder


def make_tone(frequency: float, rate: int, seconds: float = 1.0) -> npt.NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def open_data(source: Path, **settings: object) -> AudioDataModule:
    data = AudioDataModule(str(source), **{"sample_rate": RATE, "seconds": 0.5, "mels": 32, **settings})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def describe(data: AudioDataModule) -> str:
    return "\n".join(str(finding) for finding in data.request.findings)


# --- sources


def test_folders_of_classes_and_splits_are_read(workdir: Path) -> None:
    for split, each, seconds in (("train", 3, 0.5), ("val", 1, 0.4), ("test", 1, 0.3)):
        write_folder(Path("sounds", split), each, seconds)
    Path("sounds/unlabeled").mkdir()
    soundfile.write("sounds/unlabeled/a.flac", make_sound("rising", 0.5, 7), RATE)
    Path("sounds/train/notes.txt").write_text("")
    data = open_data(Path("sounds"))
    assert data.class_names == [*KINDS]
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 9, "unlabeled": 1, "val": 3, "test": 3
    }  # fmt: skip
    assert data.splits["unlabeled"].ids == ["unlabeled/a.flac"]
    assert "ignored 1 file in 'sounds' that is not a recording: 1 .txt" in describe(data)
    Path("empty").mkdir()
    with pytest.raises(InputError, match=r"holds no recording: expected CLASS/recording\.wav"):
        open_data(Path("empty"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_name_files_groups_and_ids(suffix: str, workdir: Path) -> None:
    write_folder(Path("sounds"), 4)
    rows = [
        {
            "path": f"sounds/{kind}/{i:03}.wav",
            "label": "" if i == 3 else kind,
            "group": f"g{i // 2}",
            "id": f"{kind} {i}",
        }
        for kind in KINDS
        for i in range(4)
    ]
    path = Path(f"table{suffix}")
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({k: v or None for k, v in row.items()}) for row in rows))
    elif suffix == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if suffix == ".tsv" else ","
        path.write_text("\n".join(mark.join(row) for row in ([*rows[0]], *(row.values() for row in rows))))
    data = open_data(path, val_size=0, test_size=0)
    assert sorted(data.splits["labeled"].ids) == sorted(row["id"] for row in rows if row["label"])
    assert sorted(data.splits["unlabeled"].ids) == sorted(row["id"] for row in rows if not row["label"])
    groups = data.splits["labeled"].part.groups
    assert groups is not None
    assert {*groups} == {"g0", "g1"}


def test_two_lines_with_one_id_and_what_is_no_json_are_refused(workdir: Path) -> None:
    write_folder(Path("sounds"), 2)
    Path("t.csv").write_text("path,label,id\nsounds/rising/000.wav,a,x\nsounds/rising/001.wav,a,x\n")
    with pytest.raises(InputError, match="line 3: the id 'x' is on line 2, too: give each line its own"):
        open_data(Path("t.csv"))
    Path("t.jsonl").write_text('{"path": "sounds/rising/000.wav", "label": "a"}\n{oops\n')
    with pytest.raises(InputError, match=r"line 2: it is not JSON \(.*\): correct it"):
        open_data(Path("t.jsonl"))
    with pytest.raises(InputError, match="does not exist: give a folder of recordings, or a table of them"):
        open_data(Path("sound"))


def test_a_missing_extra_is_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InputError, match=r"recordings need the extra 'audio': pip install 'sft-lightning\[audio\]'"):
        AudioDataModule("anything")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.01}, "seconds is 0.01, which is shorter than a frame of 32 ms"),
        ({"mels": 300}, "mels is 300, and a frame of 32 ms has 128 frequencies"),
        ({"hop_ms": 0.01}, "hop_ms 0.01: give at least 4 samples"),
        ({"eval_windows": 0}, "eval_windows is 0"),
        ({"seconds": float("inf")}, "seconds is inf: give a number above 0"),
        ({"seconds": 1e9}, "which is 8000000000000 samples of 8,000 Hz: give less"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, float], message: str, workdir: Path) -> None:
    with pytest.raises(InputError, match=message):
        AudioDataModule("anything", **{"sample_rate": RATE, **settings})  # type: ignore[arg-type]


# --- decoding


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_formats_rates_and_channels_become_one_signal(suffix: str, tmp_path: Path) -> None:
    both = np.stack([2 * make_tone(1000, 44_100), make_tone(6000, 44_100)], 1)
    soundfile.write(path := tmp_path / f"a{suffix}", 0.5 * both, 44_100)
    samples, facts = decode(path, RATE)
    assert (facts.rate, facts.channels) == (44_100, 2)
    assert samples.dtype == np.float32
    assert len(samples) == facts.samples
    lossy = suffix in (".ogg", ".mp3")
    middle = slice(2000, 6000)  # away from the ends, where filters see silence; 6 kHz does not fit into 8 kHz
    if suffix == ".mp3":  # whose encoder may delay the signal
        assert abs(np.abs(samples[middle]).max() - 0.25) < 0.03
        assert np.abs(np.fft.rfft(samples[middle])).argmax() == 500
    else:
        assert abs(len(samples) - RATE) <= 1
        assert np.abs(samples - 0.5 * make_tone(1000, RATE))[middle].max() < (0.03 if lossy else 3e-3)


def break_files(folder: Path) -> dict[str, str]:
    """Write recordings that cannot be read, and return why by name."""
    folder.mkdir()
    sound = make_sound("rising", 1.0, 0)
    (folder / "words.wav").write_text("no sound at all, but long enough to be looked at")
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "short.flac", sound, RATE)
    (folder / "short.flac").write_bytes((folder / "short.flac").read_bytes()[:4000])
    soundfile.write(folder / "empty.wav", sound[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(np.arange(len(sound)) == 9, np.nan, sound), RATE, "FLOAT")
    return {
        "words.wav": "it is not a recording of a known format",
        "nothing.wav": "it has zero bytes",
        "short.flac": "",
        "empty.wav": "it holds no sample",
        "nan.wav": "some of its samples are NaN or infinite",
    }


@pytest.mark.parametrize("cache", [None, "cache"])
def test_broken_recordings_are_named_or_left_out(cache: str | None, workdir: Path) -> None:
    write_folder(Path("sounds"), 6)
    reasons = break_files(Path("sounds/broken"))
    for path in Path("sounds/broken").iterdir():
        path.rename(Path("sounds/rising", path.name))
    Path("sounds/broken").rmdir()
    with pytest.raises(InputError, match=r"file 'sounds/rising/.*' cannot be read: .*set on_bad_recording: skip"):
        open_data(Path("sounds"), cache=cache)
    data = open_data(Path("sounds"), cache=cache, on_bad_recording="skip")
    found = {Path(name).name: reason for name, reason in data.bad.reasons.items()}
    assert {*found} == {*reasons}
    assert all(reason in found[name] for name, reason in reasons.items())
    assert sum(map(len, data.splits.values())) == 18
    data.bad.write(Path(), 0)
    assert len(Path("skipped_recordings.txt").read_text().splitlines()) == 5


# --- windows


def test_windows_are_padded_random_or_at_equal_distances() -> None:
    x = np.arange(1, 101, dtype=np.float32)
    windows = Windows(30, 3)
    assert windows.cut(x, None)[:, 0].tolist() == [1, 36, 71]
    assert windows.cut(x, None).shape == windows.shape
    starts = {float(windows.cut(x, seed)[0, 0]) for seed in range(300)}
    assert min(starts) == 1
    assert max(starts) == 71
    assert torch.equal(windows.cut(x, 5), windows.cut(x, 5))
    short = windows.cut(x[:10], None)
    assert short[2].tolist() == [*range(1, 11), *[0] * 20]


def test_long_recordings_are_seen_whole_in_evaluation(workdir: Path) -> None:
    write_folder(Path("sounds"), 3, seconds=1.2)
    data = open_data(Path("sounds"), val_size=0, test_size=3, eval_batch_size=2)
    batch = next(iter(data.batches_of("test", torch.device("cpu"))))
    assert batch.x.shape == (2, 3, 32, 32)
    assert "of 9 longer ones, training takes a random window, and 3 windows of each are evaluated" in describe(data)
    assert data.inputs_of("test", [0, 1]).shape == (2, 1, 32, 32)
    assert not data.fixed_views
    few = open_data(Path("sounds"), val_size=0, test_size=3, eval_windows=1)
    assert next(iter(few.batches_of("test", torch.device("cpu")))).x.shape[1] == 1


@pytest.mark.parametrize(("seconds", "differ"), [(1.2, True), (0.4, False)])
def test_each_view_of_pre_training_has_its_own_window(seconds: float, differ: bool, workdir: Path) -> None:
    write_folder(Path("sounds"), 3, seconds=seconds)
    same = AudioView(gain=0.0, noise=1e-6)
    data = open_data(
        Path("sounds"), val_size=0, test_size=3, num_labels=0, batch_size=6, weak_view=same, strong_view=same
    )
    crops: list[tuple[torch.Tensor, ...]] = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer: Trainer, model: LightningModule, batch: Any, batch_idx: int) -> None:
            crops.append(batch["unlabeled"].crops)

    model = SelfSupervisedModule(
        SimCLR(hidden=8, projection=4), backbone="resnet8", input_spec=data.input_spec, optimizer=SGD
    )
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    Trainer(accelerator="cpu", max_epochs=1, callbacks=[Seen()], **quiet).fit(model, datamodule=data)
    first, second = crops[0]
    assert first.shape == second.shape == (6, 1, 32, 32)
    distance = (first - second).abs().mean((1, 2, 3))
    assert (distance > 0.01).all() if differ else (distance < 0.01).all()
    spectrograms = next(iter(data.batches_of("unlabeled", torch.device("cpu")))).x  # as evaluation sees them
    assert spectrograms.shape[1] == (3 if differ else 1)


# --- cache


def read_all(data: AudioDataModule) -> torch.Tensor:
    part = data.splits["labeled"].part
    assert isinstance(part.storage, Recordings)
    return torch.stack(
        [part.storage.read(i, Windows(900, 2), seed) for seed in (None, 3) for i in range(len(part))][:9]
    )


def test_a_cache_changes_no_bit_and_decodes_once(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("sounds"), 5, suffix=".ogg")
    plain = read_all(open_data(Path("sounds")))
    assert torch.equal(read_all(open_data(Path("sounds"), cache="kept")), plain)

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(recording_cache, "decode", refuse)
        patch.setattr(storage, "decode", refuse)
        again = open_data(Path("sounds"), cache="kept")
        assert torch.equal(read_all(again), plain)
        assert again.prepare_reading("labeled", again.splits["labeled"], True)[2] == 0
    soundfile.write("sounds/rising/000.ogg", make_sound("rising", 0.4, 99), RATE)
    assert not torch.equal(read_all(open_data(Path("sounds"), cache="kept")), plain)


def test_a_damaged_cache_is_not_believed(workdir: Path) -> None:
    write_folder(Path("sounds"), 5)
    plain = read_all(open_data(Path("sounds"), cache="kept"))
    (file,) = Path("kept").glob("*.f32")
    content = bytearray(file.read_bytes())
    content[100] ^= 64
    file.write_bytes(content)
    data = open_data(Path("sounds"), cache="kept")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(read_all(data), plain)
    assert any("is damaged: its files are decoded again" in str(one.message) for one in caught)
    file.write_bytes(content[:-8])
    assert torch.equal(read_all(open_data(Path("sounds"), cache="kept")), plain)


def test_a_cache_without_room_or_permission_is_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("sounds"), 2)
    free: Callable[[object], object] = lambda folder: type("Usage", (), {"free": 1000})  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", free)
    with pytest.raises(InputError, match=r"needs 0\.000 GB for 6 recordings, and 0\.000 GB are free there"):
        open_data(Path("sounds"), cache="kept")
    Path("file").write_text("")
    with pytest.raises(InputError, match="cache 'file' cannot be written"):
        open_data(Path("sounds"), cache="file")


# --- findings


def test_silence_clipping_channels_rates_and_lengths_are_described(workdir: Path) -> None:
    write_folder(Path("sounds"), 4)
    folder = Path("sounds/rising")
    soundfile.write(folder / "still.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "loud.wav", np.clip(4 * make_tone(440, RATE), -1, 1), RATE)
    soundfile.write(folder / "stereo.wav", np.stack([make_tone(440, 16_000)] * 2, 1), 16_000)
    soundfile.write(folder / "tick.wav", make_tone(440, RATE, 0.01), RATE)
    described = describe(open_data(Path("sounds")))
    assert "recordings are converted to 8,000 Hz: 15 at 8,000 Hz, 1 at 16,000 Hz" in described
    assert "recordings last 0.01 to 1.00 s, 0.50 s in the middle, in windows of 0.5 s" in described
    assert "1 recording has more than one channel; their mean is taken" in described
    assert "1 recording is silent (60 dB below full scale): rising/still.wav" in described
    assert "1 recording is clipped (0.1% of the samples or more): rising/loud.wav" in described
    assert "1 recording is shorter than 0.05 s: rising/tick.wav" in described
    low = describe(open_data(Path("sounds"), sample_rate=16_000))
    assert "15 recordings have nothing above half their own rate" in low


def test_a_second_source_gives_the_unlabeled_recordings(workdir: Path) -> None:
    write_folder(Path("sounds"), 4)
    write_folder(Path("others"), 2, seconds=0.4)
    data = open_data(Path("sounds"), unlabeled_source="others")
    assert len(data.splits["unlabeled"]) == 6
    assert isinstance(data.splits["unlabeled"].part, Examples)
    assert {name.split(":")[0] for name in data.splits["unlabeled"].ids} == {"others"}

"""An audit of recordings lists what is odd about how they sound, and copies by content."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sft_lightning.__main__ import main
from sft_lightning.data.audio.decoding import resample
from tests.data.audio.recordings import KINDS, RATE, make_sound, write_folder
from tests.solver.test_solve_recordings import write_source


def test_odd_recordings_are_listed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(workdir / "sounds", 4, 18)
    first, *_ = sorted((workdir / "sounds" / "train").iterdir())
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4000)
    soundfile.write(first / "silent.wav", np.zeros(4000), 8000)
    soundfile.write(first / "clipped.wav", np.clip(noise * 9, -1, 1), 8000)
    soundfile.write(first / "short.wav", noise[:200], 8000)
    soundfile.write(first / "low.wav", np.stack([noise, noise], 1), 4000)
    shutil.copy(first / "low.wav", workdir / "sounds" / "unlabeled" / "copy.wav")
    (first / "notes.txt").write_text("no sound")
    argv = ["--model=FrozenFeatureClassifier", "--model.backbone=log_mel", "--data=AudioDataModule"]
    argv += ["--data.source=sounds", "--data.sample_rate=8000", "--data.val_size=0", "--data.test_size=0"]
    main(["audit", *argv])
    shown = capsys.readouterr().out
    assert "8,000 Hz (21), 4,000 Hz (2); channels 1 (21), 2 (2)" in shown
    (report,) = Path("lightning_logs").rglob("audit.json")
    checks = {check["finding"]: check for check in json.loads(report.read_text())["findings"]}
    odd = {
        name.split(" (")[0]: [example["name"].rpartition("/")[2] for example in check["examples"]]
        for name, check in checks.items()
        if "recordings" in name
    }
    assert odd["silent recordings"] == ["silent.wav"]
    assert odd["clipped recordings"] == ["clipped.wav"]
    assert odd["recordings that are shorter than 0.05 s"] == ["short.wav"]
    assert odd["recordings with a sample rate below 8,000 Hz"] == ["low.wav", "copy.wav"]
    assert odd["recordings with more than one channel"] == ["low.wav", "copy.wav"]
    assert any("copy.wav" in json.dumps(check) for check in checks.values() if check["kind"] == "duplicate"), checks
    (strays,) = (check for name, check in checks.items() if name == "files and folders that are not read")
    assert [row["name"] for row in strays["examples"]] == [".txt"]


def test_recordings_that_were_encoded_again_are_found(workdir: Path) -> None:
    for split in ("train", "test"):
        write_folder(Path("sounds") / split, 5, seconds=0.7)
    rng = np.random.default_rng(0)
    for k, kind in enumerate(KINDS):
        for i in range(5):  # other sounds than in train
            soundfile.write(f"sounds/test/{kind}/{i:03}.wav", make_sound(kind, 0.7, 7000 + 100 * k + i), RATE)
    sound = np.concatenate([make_sound("rising", 0.4, 1), make_sound("warble", 0.3, 2)])
    soundfile.write("sounds/train/rising/original.wav", sound, RATE)
    same = soundfile.read("sounds/train/rising/original.wav", dtype="int16")[0]
    changed = {
        "same.flac": same, "encoded.wav": sound, "quiet.wav": sound / 8, "late.wav": np.pad(sound, (3000, 0)),
        "noisy.wav": sound + 0.005 * rng.normal(size=len(sound)), "resampled.wav": resample(sound, RATE, 12_000),
    }  # fmt: skip
    for name, x in changed.items():
        rate, subtype = 12_000 if name == "resampled.wav" else RATE, "ULAW" if name == "encoded.wav" else None
        soundfile.write(f"sounds/test/falling/{name}", x, rate, subtype)
    argv = ["--model=FrozenFeatureClassifier", "--model.backbone=log_mel", "--data=AudioDataModule"]
    argv += ["--data.source=sounds", "--data.sample_rate=8000", "--data.val_size=0", "--run_name=sounds"]
    assert main(["audit", *argv, "--strict"]) == 1
    report = json.loads(Path("lightning_logs/sounds_audit/audit.json").read_text())
    assert report["near_duplicates"] == {"difference": 0.2, "difference_of_lengths": 0.1}
    with Path("lightning_logs/sounds_audit/findings.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "original.wav" in row["detail"]]
    leaks = {(Path(row["id"]).name, row["detail"].split(" ")[0]) for row in rows if row["finding"].startswith("test")}
    assert leaks == {("same.flac", "equals"), *((name, "nearly") for name in changed if name != "same.flac")}
    conflicts = [check for check in report["findings"] if check["kind"] == "label_conflict"]
    assert len(conflicts) == 2  # equal and nearly equal ones of another class

"""An audit of recordings lists what is odd about how they sound, and copies by content."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sft_lightning.__main__ import main
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
    assert any("copy.wav" in json.dumps(check) for check in checks.values() if check["kind"] == "duplicate"), checks

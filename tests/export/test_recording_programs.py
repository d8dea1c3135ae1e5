"""Programs of recordings: what the code of the card says is what `predict` says."""

import csv
import json
from pathlib import Path

import onnxruntime
import pytest
import soundfile
import torch
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.networks.audio.log_mel import Sound, prepare_windows
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.inputs import InputSpec
from tests.data.audio.recordings import RATE, make_sound, write_folder

COMMON = [
    "--data=AudioDataModule", "--data.source=sounds", "--data.sample_rate=8000", "--data.seconds=0.5",
    "--data.mels=16", "--data.batch_size=15", "--data.steps_per_epoch=3", "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
RUNS = {
    "conv": [
        "--model=FineTuneClassifier",
        "--model.backbone=conv",
        "--model.optimizer=Adam",
        "--model.optimizer.lr=0.01",
    ],
    "log_mel": ["--model=FrozenFeatureClassifier", "--model.backbone=log_mel"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings, one of them of 1.3 s, and a run of each kind of network."""
    folder = tmp_path_factory.mktemp("recordings")
    write_folder(folder / "sounds", 12)
    soundfile.write(folder / "sounds" / "rising" / "long.flac", make_sound("rising", 1.3, 99), RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in RUNS.items():
            assert main(["fit", f"--run_name={name}", *words, *COMMON]) == 0
    return folder


def export_once(place: Path, name: str, language: str) -> Path:
    """Export a run, unless another test has, and return the folder of the files."""
    out = place / f"{name}_{language}"
    words = ["export", f"lightning_logs/{name}/version_0", f"--format={language}", f"--out={out}/model.{language}"]
    assert (out / "model_card.md").is_file() or main(words) == 0
    return out


@pytest.mark.parametrize(
    ("name", "language"), [pytest.param("conv", "onnx", marks=pytest.mark.slow), ("log_mel", "pt2")]
)
def test_the_code_of_the_card_says_what_predict_says(
    name: str, language: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    folder, out = Path(f"lightning_logs/{name}/version_0"), export_once(place, name, language)
    metadata = json.loads((out / f"model.{language}.json").read_text())
    assert metadata["parity"]["equal_classes"] == 1
    assert metadata["parity"]["of"] != "random"
    card = (out / "model_card.md").read_text(encoding="utf-8")
    assert "float32, -1 to 1, (batch, windows, 4000), which is 0.5 s at 8000 Hz" in card
    assert "image" not in card
    code = card.split("```python\n")[1].split("```")[0]
    for seconds, rate in ((1.3, RATE), (0.3, 11_025)):  # three windows, and one with silence at its end
        stereo = torch.from_numpy(make_sound("falling", seconds, 7))[:, None] * torch.tensor([1.0, 0.5])
        soundfile.write("recording.wav", stereo.numpy(), rate)
        assert main(["predict", str(folder), "recording.wav"]) == 0
        with (folder / "predictions.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        (out / "recording.wav").write_bytes(Path("recording.wav").read_bytes())
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(out)
            exec(compile(code, "card", "exec"), {})
        said, chance = capsys.readouterr().out.split()
        assert said == row["predicted"]
        assert float(chance) == pytest.approx(max(float(v) for k, v in row.items() if k.startswith("p(")), abs=1e-5)


def test_a_program_averages_any_number_of_windows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    trained = load_trained_network(Path("lightning_logs/conv/version_0/checkpoints/last.ckpt"))
    file = export_once(place, "conv", "onnx") / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    sound = Sound.parse(InputSpec.parse(trained.metadata["input_spec"]))
    for count, windows in ((1, 1), (3, 1), (2, 5)):
        x = 0.2 * torch.randn(count, windows, 4000, generator=torch.Generator().manual_seed(windows))
        with torch.no_grad():
            features = trained.network()(prepare_windows(x, sound))
            expected = F.linear(features, trained.head["weight"], trained.head["bias"])
        found = session.run(None, {"waveforms": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)

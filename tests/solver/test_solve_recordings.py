"""`solve` on recordings: a folder with few labels becomes a model, predictions and recordings to label next."""

import csv
import json
from pathlib import Path

import pytest
import soundfile

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.data.open_data import find_modality, open_data
from sft_lightning.solver import trainings
from sft_lightning.solver.deliver import deliver
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.trials import Trials
from sft_lightning.utils.errors import InputError
from tests.data.audio.recordings import KINDS, RATE, make_sound
from tests.networks.audio.test_audio_backbones import write_model


def write_source(folder: Path, each: int, count: int = 150) -> dict[str, str]:
    """Write recordings, of which `each` of each class have a label, and return the classes of the others."""
    (folder / "unlabeled").mkdir(parents=True)
    truth = {}
    for i in range(count):
        kind = KINDS[i % 3]
        is_labeled = i // 3 < each
        inner = Path("train", kind) if is_labeled else Path("unlabeled")
        (folder / inner).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / inner / f"{i:03}.wav", make_sound(kind, 0.4, i), RATE)
        if not is_labeled:
            truth[f"unlabeled/{i:03}.wav"] = kind
    return truth


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_recordings_is_solved(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_source(workdir / "sounds", 6)
    (workdir / "sounds" / "unlabeled" / "broken.wav").write_text("no sound")
    assert main(["solve", "sounds", "--minutes=0.3", "--name=mine"]) == 0
    shown = capsys.readouterr()
    assert "sounds: recordings, windows of 0.5 s at 8,000 Hz, read as 1 x 64 x 32" in shown.err
    assert "checked:  1 unreadable" in shown.err
    assert "name one with --candidates, such as hf/ and the folder of a wav2vec 2.0" in shown.err
    assert "sft-lightning label SOURCE --ids" in shown.out
    folder = Path("lightning_logs/solve/mine")
    summary = json.loads((folder / "summary.json").read_text())
    assert {"logistic regression on log-mel statistics"} <= {*summary["recipes"]}
    predictions = read_rows(folder / "predictions.csv")
    assert {row["id"] for row in predictions} == {*truth}
    assert sum(row["predicted"] == truth[row["id"]] for row in predictions) > 0.7 * len(predictions)
    assert (folder / "report.html").read_text().count("<audio controls") >= 20
    soundfile.write("new.flac", make_sound("warble", 0.4, 999), RATE)
    assert main(["predict", str(folder), "new.flac"]) == 0
    assert [row["predicted"] for row in read_rows(Path(summary["run"]) / "predictions.csv")] == ["warble"]
    assert summary["not_exported"] == {}
    assert (folder / "model.onnx").is_file()


@pytest.mark.slow
def test_a_published_encoder_is_a_start(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(workdir / "sounds", 5, 45)
    write_model(workdir / "wav", "wav2vec2")
    result = solve("sounds", minutes=0.3, name="mine", candidates=["hf/wav"])
    assert "logistic regression on hf/wav (published)" in result.summary["recipes"]
    assert "features of 45 recordings at 8000 frames from hf/wav" in capsys.readouterr().err


@pytest.mark.slow
def test_trainings_from_random_weights_are_compared(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the pool, so that the verdict compares like with like; either can be delivered."""
    truth = write_source(workdir / "sounds", 2, 40)
    monkeypatch.setattr(trainings, "plan_halving", lambda *rest: (2, 6))
    monkeypatch.setattr(trainings, "PATIENCE", 1000.0)  # on a busy machine, too
    source = read_source("sounds", workdir / "out", None, None, 0, "data")
    tried = Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "random", Path("out"), lambda line: None)
    tried.judge_pixels()
    before = len(tried.results)
    trainings.judge_trainings(tried)
    names = [result.recipe.name for result in tried.results[before:]]
    both = [f"{kind} from random weights (2 steps)" for kind in ("fine-tuning", "SoftMatch")]
    assert names[:2] == both
    assert names[2] in {name.replace("(2", "(6") for name in both}
    softmatch = tried.results[before + 1]
    assert softmatch.recipe.uses_unlabeled
    assert not tried.results[before].recipe.uses_unlabeled
    assert not softmatch.probabilities.isnan().any()
    assert any("SoftMatch" in path.read_text() for path in Path("lightning_logs/solve/random").rglob("fit.yaml"))
    space = softmatch.space
    made = deliver(
        softmatch.recipe, softmatch.probabilities, softmatch.source, space, "solve/random/model", Path("out")
    )
    assert {row["id"] for row in read_rows(Path("out/predictions.csv"))} == {*truth}
    assert len(made.next_labels) == 20
    assert made.not_exported == {}


def test_what_a_source_holds_decides_how_it_is_read(tmp_path: Path) -> None:
    for name, path in (("a.csv", "x.wav"), ("a.tsv", "x.MP3"), ("b.csv", "x.png")):
        mark = "\t" if name.endswith("tsv") else ","
        (tmp_path / name).write_text(f"path{mark}label\n{path}{mark}a\n")
    (tmp_path / "a.jsonl").write_text('{"path": "x.flac", "label": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x.flac", "label": "a"}\n')
    tables = sorted(path.name for path in tmp_path.iterdir())
    kinds = {name: find_modality(str(tmp_path / name)) for name in tables}
    assert kinds == {"a.csv": "audio", "a.tsv": "audio", "b.csv": "image", "a.jsonl": "audio", "b.jsonl": "text"}
    (tmp_path / "folder").mkdir()
    for name in ("a.wav", "b.ogg", "c.txt"):
        (tmp_path / "folder" / name).write_text("")
    assert find_modality(str(tmp_path / "folder")) == "audio"
    with pytest.raises(InputError, match=r"image_size is 32, and source .* holds recordings: leave it out"):
        open_data(str(tmp_path / "folder"), {"image_size": 32})

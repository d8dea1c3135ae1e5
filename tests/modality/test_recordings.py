"""Recordings through the real command line: all paradigms, exact resume, prediction and pages."""

import base64
import csv
import io
import re
from pathlib import Path

import pytest
import soundfile
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.__main__ import main
from tests.data.audio.recordings import RATE, make_sound, write_folder
from tests.forks import both_ranks
from tests.networks.audio.test_audio_backbones import write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 180 recordings, of which some are longer than a window."""
    folder = write_folder(tmp_path_factory.mktemp("recordings") / "sounds", 50)
    for k, kind in enumerate(("falling", "rising", "warble")):
        for i in range(10):
            soundfile.write(folder / kind / f"long {i}.flac", make_sound(kind, 0.9, 9000 + 10 * k + i), RATE)
    return folder


def arguments(source: Path, model: str, *others: str, backbone: str = "conv") -> list[str]:
    return [
        f"--model={model}", f"--model.{'network' if model == 'AutoencoderModule' else 'backbone'}={backbone}",
        "--model.optimizer=Adam", "--model.optimizer.lr=0.001", "--data=AudioDataModule", f"--data.source={source}",
        "--data.sample_rate=8000", "--data.seconds=0.5", "--data.mels=16", "--data.hop_ms=32", "--data.frame_ms=32",
        "--data.num_labels=30", "--data.batch_size=15", "--data.unlabeled_ratio=2", "--data.steps_per_epoch=15",
        "--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *others,
    ]  # fmt: skip


def run(*words: str) -> None:
    assert main([*words]) in (0, None)


def read_rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(folder: str) -> dict[str, float]:
    return {row["metric"]: float(row["value"]) for row in read_rows(f"{folder}/metrics.csv") if row["value"]}


PARADIGMS = {
    "fine_tune": ("FineTuneClassifier",),
    "fixmatch": ("SemiSupervisedModule", "--model.strategy=FixMatch"),
    "mixmatch": ("SemiSupervisedModule", "--model.strategy=MixMatch", "--model.warmup_steps=0"),
    "softmatch": ("SemiSupervisedModule", "--model.strategy=SoftMatch", "--data.labeled_view=both"),
    "decoupled": ("DecoupledFeatureClassifier", "--model.feature_loss=SupCon"),
}


# The ordinary suite runs two of them.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("mixmatch", "decoupled") else [pytest.mark.slow]) for name in PARADIGMS],
)
def test_a_paradigm_trains_tests_predicts_and_reports(
    name: str, source: Path, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fit", f"--run_name={name}", *arguments(source, *PARADIGMS[name]))
    folder = f"lightning_logs/{name}/version_0"
    run("test", "--ckpt_path", folder)
    assert read_metrics(folder)["test/accuracy"] > 0.6
    assert "of 30 longer ones, training takes a random window, and 2 windows of each are evaluated" in caplog.text
    if name != "fine_tune":
        return
    Path("new/deep").mkdir(parents=True)
    soundfile.write("new/a.wav", make_sound("falling", 1.7, 1), RATE)
    soundfile.write("new/deep/b.ogg", make_sound("warble", 0.3, 2), RATE)
    Path("new/c.wav").write_text("no sound")
    predict = ["predict", "--ckpt_path", folder, "--data.predict_source=new"]
    assert main(predict) == 2
    run(*predict, "--data.on_bad_recording=skip")
    rows = {row["path"]: row["predicted"] for row in read_rows(f"{folder}/predictions.csv")}
    assert {*rows} == {"a.wav", "deep/b.ogg"}
    run("report", folder)
    page = Path(folder, "report.html").read_text()
    assert "Grad-CAM" in page
    clips = re.findall(
        '<audio controls preload="none" title="([^"]*)" src="data:audio/flac;base64,([^"]*)"></audio>', page
    )
    assert len(clips) >= 20  # those to label next, and the mistakes
    for name, content in clips[:3]:
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        stored = soundfile.read(source / name)[0][: len(heard)]
        assert (rate, len(heard)) == (RATE, 4000)
        assert abs(heard - stored).max() < 1e-4
    assert "image" not in page.split("</style>")[-1].replace("data:image", "").lower()


class StopAfterAnEpoch(Callback):
    """Ends a training as a signal would, in the middle of what it was planned for."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(source: Path, workdir: Path) -> None:
    words = arguments(source, *PARADIGMS["fixmatch"])
    run("fit", "--run_name=whole", *words)
    run("fit", "--run_name=part", *words, "--data.cache=kept", f"--trainer.callbacks+={__name__}.StopAfterAnEpoch")
    run("fit", "--run_name=part", *words, "--data.cache=kept", "--ckpt_path=last")
    whole, part = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "part")
    )
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_pretraining_and_classifiers_without_training(source: Path, workdir: Path) -> None:
    denoising = ["--model.noise=0.05", "--model.hidden=0.2", "--data.weak_view.noise=0"]
    run("fit", "--run_name=denoising", *arguments(source, "AutoencoderModule", *denoising))
    run("report", "lightning_logs/denoising/version_0")
    assert "beside their reconstructions" in Path("lightning_logs/denoising/version_0/report.html").read_text()
    run("test", "--ckpt_path", "lightning_logs/denoising/version_0")
    simclr = ["--model.objective=SimCLR", "--model.objective.hidden=32", "--model.objective.projection=16"]
    run("fit", "--run_name=simclr", *arguments(source, "SelfSupervisedModule", *simclr, backbone="resnet8"))
    mae = ["--model.objective=MAE", "--model.objective.patch=4"]
    run("fit", "--run_name=mae", *arguments(source, "SelfSupervisedModule", *mae))
    start = "--model.weights=lightning_logs/denoising/version_0"
    run("fit", "--run_name=tuned", *arguments(source, "FineTuneClassifier", start))
    frozen = [word for word in arguments(source, "FrozenFeatureClassifier") if "optimizer" not in word]
    run("fit", "--run_name=linear", *frozen, "--model.backbone=log_mel")
    graph = ["--model.classifier=LabelSpreading", "--model.whiten=16", "--model.backbone=resnet8"]
    run("fit", "--run_name=graph", *frozen, *graph, "--model.weights=lightning_logs/simclr/version_0")
    for name in ("tuned", "linear", "graph"):
        assert read_metrics(f"lightning_logs/{name}/version_0")["val/accuracy"] > 0.5


def test_published_encoders_take_waveforms_and_are_ranked(source: Path, workdir: Path) -> None:
    write_model(Path("small"), "wav2vec2")
    (Path("small") / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    words = arguments(source, "FineTuneClassifier", "--model.weights=default", "--model.tune=last_k_blocks")
    run("fit", "--run_name=tuned", *words, "--model.backbone=hf/small", "--data.weak_view.time_masks=1")
    run("test", "--ckpt_path", "lightning_logs/tuned/version_0")
    run("predict", "--ckpt_path", "lightning_logs/tuned/version_0", f"--data.predict_source={source}/rising")
    assert len(read_rows("lightning_logs/tuned/version_0/predictions.csv")) == 60
    settings = {"source": str(source), "sample_rate": 8000, "seconds": 0.5, "mels": 16, "num_labels": 60}
    candidates = [{"backbone": "log_mel", "weights": "none"}, {"backbone": "hf/small", "weights": "default"}]
    data = {"class_path": "AudioDataModule", "init_args": settings}
    Path("rank.yaml").write_text(yaml.safe_dump({"data": data, "candidates": candidates}))
    run("rank", "--config=rank.yaml")
    scores = {row["start"]: float(row["linear"]) for row in read_rows("lightning_logs/rank/rank.csv")}
    assert len(scores) == 2
    assert max(scores.values()) > 0.5


def test_what_does_not_fit_is_one_sentence(source: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*words: str) -> str:
        assert main(["fit", *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    unchanged = ["gain", "noise", "shift", "time_masks", "frequency_masks"]
    words = arguments(source, *PARADIGMS["fixmatch"], *(f"--data.strong_view.{name}=0" for name in unchanged))
    assert "strong_view changes nothing" in refuse(*words)
    waveform = arguments(source, "FineTuneClassifier", "--data.encoding=waveform")
    assert "reads spectrograms, and the data has waveforms: set data.encoding to log_mel" in refuse(*waveform)
    assert "has no decoder" in refuse(*arguments(source, "AutoencoderModule", backbone="log_mel"))


def test_two_processes_decode_once_and_predict_as_one(
    source: Path, workdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=0"]
    words = [*arguments(source, *PARADIGMS["softmatch"]), *two, "--data.cache=kept", "--data.steps_per_epoch=2"]
    done = both_ranks(main, ["fit", "--run_name=two", *words], folder=Path.cwd(), files=tmp_path_factory.mktemp("fit"))
    assert [rank.code for rank in done] == [0, 0], done[0].stderr[-3000:]
    (index,) = Path("kept").glob("*.json")
    assert index.with_suffix(".f32").is_file()
    predict = ["predict", "--ckpt_path", "lightning_logs/two/version_0", f"--data.predict_source={source}/rising"]
    files = tmp_path_factory.mktemp("predict")
    done = both_ranks(main, [*predict, *two], folder=Path.cwd(), files=files)
    assert [rank.code for rank in done] == [0, 0], done[0].stderr[-3000:]
    both = {row["path"]: row for row in read_rows("lightning_logs/two/version_0/predictions.csv")}
    run(*predict, "--trainer.devices=1", "--trainer.strategy=auto")  # in place of those of the run
    alone = {row["path"]: row for row in read_rows("lightning_logs/two/version_0/predictions.csv")}
    assert len(both) == 60
    assert {name: row["predicted"] for name, row in both.items()} == {n: row["predicted"] for n, row in alone.items()}

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from sft_lightning.__main__ import main
from sft_lightning.training.callbacks.external_loggers import (
    LOGGERS,
    read_external_runs,
    record_external_runs,
    resume_external_runs,
)
from sft_lightning.training.callbacks.metrics_csv import MetricsCSV
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.paradigms.helpers import cli

RUN = Path("lightning_logs", "a", "version_0")
ANOTHER = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.init_args.save_dir=elsewhere"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("several", [False, True])
def test_run_keeps_its_folder_with_any_other_logger(several: bool) -> None:
    given = ANOTHER
    if several:
        one = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: elsewhere, name: %s}}"
        given = [f"--trainer.logger=[{one % 'lightning_logs'}, {one % 'second'}]"]
    run = cli("fit", "fine_tune", "--run_name=a", *given)
    assert Path(run.trainer.log_dir or "") == RUN
    assert len(run.trainer.loggers) == (4 if several else 3)
    names = {p.name for p in RUN.iterdir()}
    assert {"fit.yaml", "metrics.csv", "split.csv", "lineage.json", "hparams.yaml", "checkpoints"} <= names
    assert any(name.startswith("events.out") for name in names)
    assert LOGGERS not in names
    assert {p.name for p in Path().iterdir()} == {"lightning_logs", "elsewhere"}
    last = [float(row["value"]) for row in _rows(RUN / "metrics.csv") if row["metric"] == "val/accuracy"][-1]
    for folder in Path("elsewhere").iterdir():
        own = _rows(folder / "version_0" / "metrics.csv")
        assert [float(r["val/accuracy"]) for r in own if r["val/accuracy"]][-1] == pytest.approx(last)
        settings = (folder / "version_0" / "hparams.yaml").read_text()
        assert f"run_folder: {RUN}" in settings
        assert "model.optimizer.lr: 0.001" in settings
    assert len([*Path("elsewhere").iterdir()]) == (2 if several else 1)


def test_run_with_another_logger_resumes_and_tests_in_its_folder() -> None:
    cli("fit", "fine_tune", "--run_name=a", *ANOTHER)
    cli("fit", "fine_tune", "--run_name=a", *ANOTHER, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert main(["test", "--ckpt_path", str(RUN)]) == 0
    assert main(["report", str(RUN)]) == 0
    assert [p.name for p in RUN.parent.iterdir()] == ["version_0"]
    steps = [int(row["step"]) for row in _rows(RUN / "metrics.csv") if row["metric"] == "val/accuracy"]
    assert steps == [5, 11, 17]
    assert "class_path: lightning.pytorch.loggers.CSVLogger" in (RUN / "test.yaml").read_text()


def test_runs_without_a_logger_have_separate_folders() -> None:
    run = cli("fit", "fine_tune", "--run_name=a", "--trainer.logger=false")
    assert run.trainer.loggers == []
    first = (RUN / "checkpoints" / "last.ckpt").read_bytes()
    cli("fit", "fine_tune", "--run_name=a", "--trainer.logger=false", "--seed_everything=1")
    assert (RUN / "checkpoints" / "last.ckpt").read_bytes() == first
    for folder in (RUN, RUN.with_name("version_1")):
        names = {path.name for path in folder.iterdir()}
        assert names == {"checkpoints", "fit.yaml", "lineage.json", "run.json", "split.csv"}
    assert main(["test", str(RUN), "--trainer.logger=false"]) == 0
    kept = ["--trainer.logger=false", f"--trainer.default_root_dir={RUN}"]
    with pytest.raises(InputError, match="holds the checkpoints of another run"):
        cli("fit", "fine_tune", "--run_name=a", *kept)


# --- runs of external loggers


def _config(*names: str) -> Any:
    configs = [
        Namespace(class_path=f"lightning.pytorch.loggers.{name}", init_args=Namespace(run_id=None, id=None))
        for name in names
    ]
    return configs if len(configs) > 1 else configs[0]


def test_resumed_loggers_continue_their_external_run() -> None:
    write_json(RUN / LOGGERS, {"MLFlowLogger": "abc", "WandbLogger": "xyz"})
    one, two = _config("MLFlowLogger"), _config("CSVLogger", "WandbLogger")
    resume_external_runs(one, RUN)
    resume_external_runs(two, RUN)
    assert (one.init_args.run_id, one.init_args.id) == ("abc", None)
    assert (two[0].init_args.id, two[1].init_args.id, two[1].init_args.run_id) == (None, "xyz", None)


def test_external_run_named_by_the_user_is_kept() -> None:
    write_json(RUN / LOGGERS, {"MLFlowLogger": "abc"})
    config = _config("MLFlowLogger")
    config.init_args.run_id = "mine"
    resume_external_runs(config, RUN)
    assert config.init_args.run_id == "mine"


@pytest.mark.parametrize("config", [None, True, False, []])
def test_resume_without_an_external_logger_changes_nothing(config: Any) -> None:
    write_json(RUN / LOGGERS, {"MLFlowLogger": "abc"})
    resume_external_runs(config, RUN)
    resume_external_runs(_config("MLFlowLogger"), None)
    resume_external_runs(_config("MLFlowLogger"), Path("nowhere"))


def test_local_loggers_are_not_recorded() -> None:
    RUN.mkdir(parents=True)
    record_external_runs([CSVLogger("elsewhere"), MetricsCSV(str(RUN))], RUN)
    assert read_external_runs(RUN) == {}
    assert not (RUN / LOGGERS).exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_extra_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is there")
    words = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml")]
    assert main(["fit", *words, "--config", str(CONFIGS / "loggers" / f"{name}.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"sft-lightning: trainer.logger needs {name}: pip install 'sft-lightning[{name}]'\n"
    )


def test_resumed_and_tested_training_is_one_mlflow_run() -> None:
    mlflow = pytest.importorskip("mlflow")
    words = ["--config", str(CONFIGS / "loggers" / "mlflow.yaml"), "--run_name=a"]
    cli("fit", "fine_tune", *words)
    cli("fit", "fine_tune", *words, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert main(["test", "--ckpt_path", str(RUN)]) == 0
    client = mlflow.MlflowClient("sqlite:///lightning_logs/mlflow.db")
    experiment = client.get_experiment_by_name("sft-lightning")
    (run,) = client.search_runs([experiment.experiment_id])
    assert {"train/loss", "val/accuracy", "test/accuracy"} <= set(run.data.metrics)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/accuracy")] == [5, 11, 17]
    assert run.data.params["run_folder"] == str(RUN)
    assert run.info.run_id == read_external_runs(RUN)["MLFlowLogger"]


def test_resumed_training_continues_its_wandb_run() -> None:
    wandb = pytest.importorskip("wandb")
    words = ["--config", str(CONFIGS / "loggers" / "wandb.yaml"), "--run_name=a"]
    cli("fit", "fine_tune", *words)
    first = read_external_runs(RUN)["WandbLogger"]
    wandb.finish()  # or its one run of the process would be taken again
    cli("fit", "fine_tune", *words, "--ckpt_path=last", "--trainer.max_epochs=3")
    wandb.finish()
    assert read_external_runs(RUN) == {"WandbLogger": first}
    folders = [*Path("lightning_logs", "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(p.name.endswith(first) for p in folders)

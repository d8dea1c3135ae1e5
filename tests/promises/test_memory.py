"""Memory that runs out ends a command with one sentence: where, with which sizes, and what to lower."""

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.paradigms.base import StepResult
from sft_lightning.training.oom import is_out_of_memory
from sft_lightning.utils.errors import InputError, describe_failure
from tests.conftest import CONFIGS
from tests.paradigms.helpers import SHAPE, sample, trainer

ME = "tests.promises.test_memory"
FINE_TUNE = f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}"
FIXMATCH = [f"--config={CONFIGS / 'semi_supervised' / name}.yaml" for name in ("shared", "fixmatch")]
SMALL = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2", "--run_name=run",
    "--data.init_args.num_labels=40", "--data.init_args.batch_size=8", "--data.init_args.eval_batch_size=100",
    "--data.init_args.steps_per_epoch=2", "--model.init_args.backbone=mlp",
]  # fmt: skip
LAST = Path("lightning_logs/run/version_0/checkpoints/last.ckpt")
CUDA = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 23.68 GiB of which 1.2 GiB is"


class Greedy(Regularizer):
    """Allocates four petabytes in a step."""

    def __init__(self, step: int) -> None:
        super().__init__(1.0)
        self.step = step

    def penalty(self, network: nn.Module) -> Tensor:
        assert isinstance(network, LightningModule)
        if network.trainer.global_step == self.step:
            torch.empty(10**15)
        return torch.zeros(())


class Limited(FineTuneClassifier):
    """Raises in a stage."""

    stage = ""
    error: Exception

    def features(self, x: Tensor) -> Tensor:
        if self.trainer.state.stage == self.stage:
            raise self.error
        return super().features(x)


def greedy(step: int) -> str:
    return json.dumps({"class_path": f"{ME}.Greedy", "init_args": {"step": step}})


def test_of_the_machine_in_a_step_that_learns_from_both(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "fit",
        *FIXMATCH,
        *SMALL,
        f"--model.init_args.regularizer={greedy(3)}",
        "--data.init_args.unlabeled_ratio=7",
    ]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sft-lightning: Memory ran out in training at step 3, for 3,725,290.30 GiB more (batch_size 8 with "
        "unlabeled_ratio 7: 8 labeled and 56 unlabeled examples, image_size 28, precision 32-true): lower batch_size, "
        "unlabeled_ratio or image_size, or set trainer.precision: bf16-mixed; with half the batch_size "
        f"trainer.accumulate_grad_batches: 2 keeps the examples of an update; {LAST} is kept"
    )
    assert torch.load(LAST, weights_only=True)["global_step"] == 2
    smaller = ["--ckpt_path=last", "--data.init_args.batch_size=4", "--trainer.precision=bf16-mixed"]
    assert main([*words, *smaller, "--model.init_args.regularizer=null"]) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 4


def test_before_the_first_checkpoint(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", FINE_TUNE, *SMALL, f"--model.init_args.regularizer={greedy(0)}", "--trainer.precision=bf16-mixed"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sft-lightning: Memory ran out in training at step 0, for 3,725,290.30 GiB more (batch_size 8, image_size 28, "
        "precision bf16-mixed): lower batch_size or image_size; with half the batch_size "
        "trainer.accumulate_grad_batches: 2 keeps the examples of an update; no checkpoint was saved yet"
    )
    assert main(["find-lr", *words[1:]]) == 2
    assert "Memory ran out in training at step 0, " in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def run(workdir: Path) -> Path:
    """One of `Limited`, which was not limited."""
    assert main(["fit", FINE_TUNE, *SMALL, f"--model.class_path={ME}.Limited"]) == 0
    return LAST.parents[1]


@pytest.mark.slow
def test_in_other_stages(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", FINE_TUNE, *SMALL, f"--model.class_path={ME}.Limited"]
    sizes = "eval_batch_size 100, image_size 28, precision 32-true"
    advice = "lower eval_batch_size or image_size, or set trainer.precision: bf16-mixed"
    cases: list[tuple[str, list[str], Exception, str]] = [
        ("validate", fit, torch.OutOfMemoryError(CUDA),
         f"GPU memory ran out in validation after step 2, for 20.50 GiB more ({sizes}): {advice}; no checkpoint was "
         "saved yet"),
        ("train", fit, torch.OutOfMemoryError(CUDA),
         "GPU memory ran out in training at step 0, for 20.50 GiB more (batch_size 8, image_size 28, precision "
         "32-true): lower batch_size or image_size, or set trainer.precision: bf16-mixed; with half the batch_size "
         "trainer.accumulate_grad_batches: 2 keeps the examples of an update; no checkpoint was saved yet"),
        ("validate", ["validate", str(run)], RuntimeError("CUDA error: out of memory"),
         f"GPU memory ran out in validation ({sizes}): {advice}"),
        ("test", ["test", str(run)], MemoryError(), f"Memory ran out in testing ({sizes}): {advice}"),
        ("test", ["test", str(run)], RuntimeError("not enough memory: you tried to allocate 9633792 bytes."),
         f"Memory ran out in testing, for 9.2 MiB more ({sizes}): {advice}"),
        ("predict", ["predict", str(run)], OSError(errno.ENOMEM, "Cannot allocate memory"),
         f"Memory ran out in prediction ({sizes}): {advice}"),
    ]  # fmt: skip
    for stage, words, error, sentence in cases:
        monkeypatch.setattr(Limited, "stage", stage)
        monkeypatch.setattr(Limited, "error", error, raising=False)
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"sft-lightning: {sentence}"
    assert not (run / "predictions.csv").exists()
    monkeypatch.setattr(Limited, "error", RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["predict", str(run)])


class Backward(FineTuneClassifier):
    """Has no memory for the gradients, and when it has, no gradients."""

    full = True

    def step(self, batch: Any) -> StepResult:
        loss = super().step(batch).loss
        if not self.full:
            return StepResult(loss * torch.nan, {})
        loss.register_hook(lambda _: torch.empty(10**15))
        return StepResult(loss, {})


def test_a_step_that_memory_ran_out_in_is_no_part_of_the_next(workdir: Path) -> None:
    model = Backward("mlp", 10, SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        trainer().fit(model, sample(steps_per_epoch=2))
    model.full = False
    with pytest.raises(InputError, match="loss is nan at step 0"):
        trainer(logger=CSVLogger(".")).fit(model, sample(steps_per_epoch=2))
    (told,) = workdir.rglob("nonfinite.json")
    assert len(json.loads(told.read_text())["terms"]) == 1


def hungry_array() -> None:
    np.empty(10**15)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: bytearray(10**18), hungry_array])
def test_what_python_and_torch_raise_is_known(allocate: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert is_out_of_memory(raised.value)
    assert describe_failure(raised.value)


def test_what_is_something_else() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


def test_a_study_reports_the_run_and_goes_on(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "greedy.yaml").write_text(f"model: {{init_args: {{regularizer: {greedy(1)}}}}}")
    labels = str(CONFIGS / "quickstart" / "fine_tune.yaml")
    data = {"source": "sample", "batch_size": 20, "eval_batch_size": 500, "steps_per_epoch": 2, "val_size": 8000}
    study = {
        "name": "small",
        "budgets": [20],
        "seeds": [0],
        "data": {"class_path": "ImageDataModule", "init_args": data},
        "options": {"trainer.max_epochs": 1, "trainer.accelerator": "cpu", "model.init_args.backbone": "mlp"},
        "methods": {"greedy": [{"config": [labels, "greedy.yaml"]}], "labels_only": [{"config": [labels]}]},
    }
    (workdir / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["study", "--config=study.yaml"]) == 0
    sentence = "Memory ran out in training at step 1, for 3,725,290.30 GiB more (batch_size 20, image_size 28, "
    assert f"greedy, tune, 20 labels, seed 0: failed: {sentence}" in capsys.readouterr().err
    with (workdir / "lightning_logs" / "study" / "small" / "results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["greedy"]["failed"].startswith(sentence)
    assert rows["labels_only"]["test_last"]
    assert not rows["labels_only"]["failed"]

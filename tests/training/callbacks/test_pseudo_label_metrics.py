"""Test the pseudo-label metrics on synthetic pseudo-labels and on a real run."""

import csv
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from sft_lightning import SemiSupervisedModule
from sft_lightning.losses import unlabeled as strategies
from sft_lightning.training.callbacks.pseudo_label_metrics import PseudoLabelHealth
from sft_lightning.training.module_interfaces import PseudoLabels
from tests.doubles import FakeData
from tests.paradigms.helpers import SHAPE, sample, trainer


class Recorder:
    """Replace a module and record what it logs."""

    num_classes = 4

    def __init__(self, has_trained_head: bool = False) -> None:
        self.has_trained_head = has_trained_head
        self.pseudo_labels: PseudoLabels | None = None
        self.logs: list[dict[str, float]] = []
        self.trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda t, reduce_op: t))

    def log_dict(self, values: dict[str, Tensor]) -> None:
        self.logs.append({name.removeprefix("pseudo_labels/"): float(value) for name, value in values.items()})


HIDDEN = torch.tensor([0, 1, 2, 3, -1, 0])


def run_steps(
    steps: int, every: int, guess: Any, first: int = 1, has_trained_head: bool = False, ends: bool = False
) -> Recorder:
    """Run `steps` steps, of which the first is `first`, where `guess(step)` gives indices, classes and weights."""
    splits = {"unlabeled": SimpleNamespace(labels=HIDDEN)}
    data = FakeData(splits=splits, labeled_counts=lambda: torch.tensor([5, 5, 5, 5]))
    run: Any = SimpleNamespace(datamodule=data, global_step=0, log_every_n_steps=every)
    module: Any = Recorder(has_trained_head)
    health = PseudoLabelHealth()
    health.on_fit_start(run, module)
    for step in range(first, first + steps):
        module.pseudo_labels, run.global_step = PseudoLabels(*guess(step)), step
        health.on_train_batch_end(run, module, None, None, 0)
    run.should_stop, run.max_steps = ends, -1
    run.current_epoch, run.max_epochs = 0, 2
    health.on_train_epoch_end(run, module)
    recorder: Recorder = module
    return recorder


def test_shares_equal_hand_computed_values() -> None:
    indices, classes = torch.arange(6), torch.tensor([0, 1, 3, 3, 0, 1])
    weight = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, 0.0])
    module = run_steps(2, 2, lambda step: (indices, classes, weight))
    (logs,) = module.logs
    assert logs["accepted"] == pytest.approx(3.5 / 6)
    assert logs["accuracy"] == pytest.approx(1.5 / 2.5)  # accepted with a hidden label: 1, 0.5 and 1; the last is wrong
    assert logs["accepted_class_0"] == 1
    assert logs["accepted_class_1"] == pytest.approx(0.25)
    assert logs["accepted_class_2"] == 0
    assert logs["accepted_class_3"] == pytest.approx(0.5)
    assert [logs[f"share_class_{c}"] for c in range(4)] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert logs["classes"] == pytest.approx(3)
    assert logs["distance"] == pytest.approx(0.25)  # thirds on three of four classes


def test_each_entry_covers_the_steps_since_the_previous_one() -> None:
    module = run_steps(4, 2, lambda step: (torch.tensor([0]), torch.tensor([0 if step <= 2 else 1]), None))
    assert [logs["share_class_0"] for logs in module.logs] == [1, 0]
    assert [logs["accuracy"] for logs in module.logs] == [1, 0]


def read_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("Warning:")]


def test_warning_when_nothing_is_accepted_for_long(caplog: pytest.LogCaptureFixture) -> None:
    even = torch.arange(4)
    with caplog.at_level("INFO"):
        run_steps(450, 50, lambda step: (even, even, torch.zeros(4)))
        assert not read_warnings(caplog)
        run_steps(1200, 50, lambda step: (even, even, torch.zeros(4)))
    (said,) = read_warnings(caplog)  # once
    assert "no pseudo-label was accepted in 500 steps: lower the strategy's threshold" in said


def test_no_warning_when_examples_are_accepted_occasionally(caplog: pytest.LogCaptureFixture) -> None:
    even = torch.arange(4)
    with caplog.at_level("INFO"):
        run_steps(1200, 50, lambda step: (even, even, torch.full((4,), float(step % 400 == 0))))
    assert not read_warnings(caplog)


def test_warning_when_predictions_collapse(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run_steps(450, 50, lambda step: (torch.arange(4), torch.full((4,), 2), None))
        assert not read_warnings(caplog)
        run_steps(600, 50, lambda step: (torch.arange(4), torch.full((4,), 2), None))
    (said,) = read_warnings(caplog)
    assert "collapsed for 500 steps: 100% are class 2, where the labels are spread over 4.0 classes" in said


def test_no_warning_when_a_collapse_is_temporary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run_steps(
            1200, 50, lambda step: (torch.arange(4), torch.arange(4) if step % 400 < 50 else torch.full((4,), 2), None)
        )
    assert not read_warnings(caplog)


def make_guess(*shares: float) -> Any:
    """Give four pseudo-labels, of which a share is accepted that depends on the step."""
    even = torch.arange(4)
    return lambda step: (even, even, torch.full((4,), shares[min(step, len(shares)) - 1]))


@pytest.mark.parametrize("every", [1, 5, 20, 50])
@pytest.mark.parametrize(("share", "warns"), [(1.0, True), (0.96, True), (0.94, False), (0.5, False)])
def test_warning_when_a_new_head_has_nearly_all_answers_accepted(
    caplog: pytest.LogCaptureFixture, every: int, share: float, warns: bool
) -> None:
    with caplog.at_level("INFO"):
        run_steps(100, every, make_guess(*[share] * max(20, every), 0.0))
    said = read_warnings(caplog)
    assert len(said) == warns
    if warns:
        assert (
            f"{share:.0%} of the pseudo-labels of the first {max(20, every)} steps were accepted, although" in said[0]
        )
        assert "set warmup_steps, let lambda_u rise (lambda_ramp, ramp_steps), or raise the strategy's " in said[0]


def test_no_warning_about_later_steps_trained_heads_and_strategies_without_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        run_steps(60, 10, make_guess(*[0.5] * 20, 1.0))
        run_steps(60, 10, make_guess(1.0), first=100)  # after a warm-up, or resumed
        run_steps(60, 10, make_guess(1.0), has_trained_head=True)
        run_steps(60, 10, lambda step: (torch.arange(4), torch.arange(4), None))
    assert not read_warnings(caplog)


def test_a_run_shorter_than_the_interval_of_the_log_is_logged_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        module = run_steps(10, 50, make_guess(1.0), ends=True)
    assert [logs["accepted"] for logs in module.logs] == [1]
    assert "100% of the pseudo-labels of the first 10 steps were accepted" in read_warnings(caplog)[0]
    assert [logs["accepted"] for logs in run_steps(7, 5, make_guess(*[1.0] * 5, 0.5), ends=True).logs] == [1, 0.5]
    assert len(run_steps(10, 5, make_guess(1.0), ends=True).logs) == 2  # nothing is left
    assert not run_steps(10, 50, make_guess(1.0)).logs  # another epoch follows


def test_a_short_training_logs_pseudo_label_metrics(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = SemiSupervisedModule(
        strategies.FreeMatch(unbiased_means=True), backbone="mlp", num_classes=10, input_spec=SHAPE,
        optimizer=lambda p: torch.optim.SGD(p, 0.05), warmup_steps=0, ramp_steps=0,
    )  # fmt: skip
    run = trainer([PseudoLabelHealth()], logger=CSVLogger(tmp_path, "csv", version=0), log_every_n_steps=50)
    run.fit(model, sample(batch_size=4, unlabeled_ratio=2, steps_per_epoch=4))
    assert 0 < run.callback_metrics["pseudo_labels/accepted"] < 1
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    assert sum(bool(row["pseudo_labels/accepted"]) for row in rows) == 1


def test_pseudo_label_metrics_are_logged_to_tensorboard_and_csv(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = SemiSupervisedModule(
        strategies.FreeMatch(), backbone="mlp", num_classes=10, input_spec=SHAPE,
        optimizer=lambda p: torch.optim.SGD(p, 0.05), warmup_steps=0, ramp_steps=0,
    )  # fmt: skip
    loggers: Any = [TensorBoardLogger(tmp_path, "tb", version=0), CSVLogger(tmp_path, "csv", version=0)]
    run = trainer([PseudoLabelHealth()], logger=loggers, log_every_n_steps=2, limit_val_batches=0)
    run.fit(model, sample(batch_size=4, unlabeled_ratio=2, steps_per_epoch=4))
    events = EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    names = {
        "accepted",
        "accuracy",
        "classes",
        *(f"{kind}_class_{c}" for kind in ("accepted", "share") for c in range(10)),
    }
    expected = {f"pseudo_labels/{name}" for name in names}
    expected |= {f"train/{name}" for name in ("threshold_min", "threshold_max", "supervised", "unsupervised", "ratio")}
    tags = set(events.Tags()["scalars"])
    assert expected <= tags
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    assert expected <= set(rows[0])
    for name in expected:
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([float(row[name]) for row in rows if row[name]], rel=1e-4)
        assert len(logged) == 2
    ratios = [event.value for event in events.Scalars("train/ratio")]
    losses = [[e.value for e in events.Scalars(f"train/{part}supervised")] for part in ("un", "")]
    assert ratios == pytest.approx([u / s for u, s in zip(*losses, strict=True)], rel=1e-4)

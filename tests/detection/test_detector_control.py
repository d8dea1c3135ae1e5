"""A detector's control learns what the annotations alone teach, and the better network of a run is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from sft_lightning import DetectionDataModule, FineTuneDetector, SemiSupervisedDetector
from sft_lightning.detection.base import Detections
from sft_lightning.paradigms.detector_control import DetectionJudge
from sft_lightning.runs.checkpoints import check_checkpoint, read_checkpoint
from sft_lightning.training.callbacks.roll_back import RollBack
from tests.boxes import CLASSES, write_boxes_folder
from tests.detection.test_bootstrap import split
from tests.detection.test_metrics import draw
from tests.paradigms.helpers import Recorder, moved, state, trainer

NETWORK: dict[str, Any] = {"backbone": "resnet8", "num_classes": 2, "input_spec": (3, 64, 64), "detector": "ssdlite"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and `start.ckpt`, a detector that finds most of their objects."""
    made = tmp_path_factory.mktemp("control")
    write_boxes_folder(made / "d", {"train": 16, "val": 12}, unlabeled=8, size=32)
    torch.manual_seed(0)
    model = FineTuneDetector(**NETWORK, class_names=CLASSES, optimizer=lambda p: torch.optim.AdamW(p, 3e-3))
    run = trainer(limit_val_batches=0)
    run.fit(model, data(made, batch_size=8, steps_per_epoch=30))
    run.save_checkpoint(made / "start.ckpt")
    return made


def data(folder: Path, **settings: Any) -> DetectionDataModule:
    fixed: dict[str, Any] = {"image_size": 64, "batch_size": 4, "num_workers": 0, "steps_per_epoch": 4, "test_size": 0}
    return DetectionDataModule(str(folder / "d"), **{**fixed, **settings})


def module(start: Path | None = None, lr: float = 0.01, **settings: Any) -> SemiSupervisedDetector:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"ema_decay": 0.5, "threshold": 0.01, "burn_in_steps": 0, "control": True}
    fixed |= {"optimizer": lambda p: torch.optim.SGD(p, lr, momentum=0.5), "class_names": CLASSES}
    fixed |= {"weights": "none" if start is None else str(start / "start.ckpt")}
    return SemiSupervisedDetector(**{**NETWORK, **fixed, **settings})


def mislead(model: SemiSupervisedDetector) -> SemiSupervisedDetector:
    """Let the teacher call all of each image a square."""

    def find(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.0, 0, 0, 64, 64, 0]).repeat(len(x), 1, 1), torch.tensor(1.0)

    model.find_pseudo_boxes = find  # type: ignore[method-assign]
    return model


def part(module: nn.Module, name: str) -> dict[str, Tensor]:
    found = {n.removeprefix(name): t for n, t in state(module).items() if n.startswith(name)}
    return {n: t for n, t in found.items() if n.startswith(("backbone.", "head.", "average."))}


def test_it_takes_the_steps_of_a_plain_loop_over_the_annotated_batches(folder: Path) -> None:
    model, seen = module(), Recorder()
    trainer([seen], limit_val_batches=0).fit(model, data(folder))
    torch.manual_seed(0)
    plain = FineTuneDetector(**NETWORK).train()
    sgd = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.5)
    for batch in seen.batches:
        assert sorted(batch) == ["labeled", "unlabeled"]
        sgd.zero_grad()
        torch.stack([*plain.compute_losses(batch["labeled"].x, batch["labeled"].y).values()]).sum().backward()
        sgd.step()
    for name, tensor in part(plain, "").items():
        torch.testing.assert_close(part(model, "control.")[name], tensor, msg=name)
    assert moved(part(model, "control."), part(model, ""))


@pytest.mark.slow
def test_the_network_beside_it_learns_and_logs_the_same(folder: Path) -> None:
    runs = []
    for control in (True, False):
        model = module(control=control)
        run = trainer(log_every_n_steps=2)
        run.fit(model, data(folder))
        runs.append((part(model, ""), {name: float(value) for name, value in run.callback_metrics.items()}))
    (with_it, logs), (without, others) = runs
    assert not moved(with_it, without)
    assert logs.pop("train/control_loss") > 0
    assert 0 <= logs.pop("val/control_map") <= 1
    assert logs == others


def test_it_leaves_the_random_numbers_of_the_other_as_they_are() -> None:
    """Faster R-CNN draws proposals at random."""
    model = module(detector="faster_rcnn", width=32)
    twin = model.copy_network(0.0)
    x, y = torch.rand(1, 3, 64, 64), torch.tensor([[[0.0, 10, 10, 40, 40, 0]]])
    before = torch.get_rng_state()
    twin.compute_losses(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    model.compute_losses(x, y)
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_better_one_on_validation_examples_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = mislead(module(folder, lr=0.001, lambda_u=300.0))
    assert model.has_trained_head
    run = trainer([RollBack()])
    with caplog.at_level("INFO"):
        run.fit(model, data(folder))
    assert not moved(part(model, ""), part(model, "control."))
    (said,) = [r.message for r in caplog.records if "the run keeps" in r.message]
    kept = float(run.callback_metrics["val/map"])
    assert kept > 0.3
    assert said.startswith("Warning: with the unlabeled examples the mean average precision on 12 validation examples ")
    assert f"on the labels alone {kept:.3f}: the run keeps the network of the labels alone." in said
    # What was kept starts other runs and is evaluated, without the control.
    run.save_checkpoint(tmp_path / "a.ckpt")
    started = FineTuneDetector(**NETWORK, class_names=CLASSES, weights=str(tmp_path / "a.ckpt"))
    assert "changed the mean average precision from " in caplog.text  # of the control, within noise of the start
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(started.eval()(x).scores, model.eval()(x).scores)
    plain = module(control=False)
    (metrics,) = trainer().validate(
        plain, data(folder), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True, verbose=False
    )
    assert metrics["val/map"] == pytest.approx(kept)
    assert "val/control_map" not in metrics


def test_a_run_returns_to_the_detector_that_it_started_from(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mislead(module(folder, control=False, lambda_u=30.0))
    start = part(model, "")
    run = trainer([RollBack()])
    with caplog.at_level("INFO"):
        run.fit(model, data(folder))
    for name in ("backbone.", "head."):
        wanted = {n: t for n, t in start.items() if n.startswith(name)}
        assert not moved({n: part(model, "")[n] for n in wanted}, wanted)
        assert not moved({n: part(model, "average.")[n] for n in wanted}, wanted)
    (said,) = [r.message for r in caplog.records if "returned to the network of step 0" in r.message]
    assert said.startswith("Warning: semi-supervised training lowered the mean average precision from ")
    assert f"from {float(run.callback_metrics['val/map']):.3f} at step 0 to " in said
    assert "(95% interval of the change -" in said


def test_a_new_detector_has_no_start_to_return_to(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer([RollBack()]).fit(mislead(module(control=False)), data(folder))
    assert "at step 0" not in caplog.text


def test_a_resumed_run_decides_what_a_whole_one_does(folder: Path, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    whole, resumed = (mislead(module(folder, lambda_u=30.0, burn_in_steps=1)) for _ in range(2))
    trainer([RollBack(), keep], enable_checkpointing=True).fit(whole, data(folder))
    path = tmp_path / "step=2.ckpt"
    kept = torch.load(path, weights_only=True)["callbacks"]["RollBack"]
    assert kept["step"] == 1
    assert len(kept["objects"]) == 12
    check_checkpoint(path, read_checkpoint(path)[0], resumed)
    trainer([RollBack()]).fit(resumed, data(folder), ckpt_path=str(path), weights_only=True)
    assert part(resumed, "control.")
    assert not moved(state(whole), state(resumed))


def test_the_judge_of_detectors_compares_on_the_same_examples() -> None:
    judge = DetectionJudge()
    found, y = draw(60)
    exact, sides = split(found, y)
    worse = [one._replace(boxes=one.boxes + 2) for one in exact]

    def collect(every: list[Detections], targets: list[Tensor]) -> dict[str, Tensor]:
        given = iter(every)
        batches = [(torch.zeros(1), one[None]) for one in targets]
        return judge.collect(lambda x: Detections(*(part[None] for part in next(given))), batches)

    good, bad = collect(exact, sides), collect(worse, sides)
    assert judge.count(good) == 59
    assert judge.measure(good) > judge.measure(bad)
    fallen, risen = judge.compare(good, bad), judge.compare(bad, good)
    assert fallen is not None
    assert risen is not None
    assert fallen.p_value < 0.05 < 0.5 < risen.p_value
    assert fallen.details.startswith("95% interval of the change -")
    assert judge.compare(good, collect(exact[:5], sides[:5])) is None

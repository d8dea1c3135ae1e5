"""Unbiased Teacher: which boxes teach what, the burn-in, and a resumed run that ends the same to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import DetectionDataModule, SemiSupervisedDetector
from sft_lightning.__main__ import main
from sft_lightning.data.batches import Labeled, Unlabeled
from sft_lightning.detection.base import Detections
from tests.boxes import write_boxes_folder
from tests.detection.test_detection_commands import DATA, NETWORK, read_metrics
from tests.paradigms.helpers import Recorder, moved, trainer

Y = torch.tensor([[[0, 10, 10, 30, 31, 0], [1, 20.5, 5, 50, 40, 0]], [[1, 4, 40, 20, 60, 0], [-1, 0, 0, 0, 0, 0]]])
WORDS = ["--model=SemiSupervisedDetector", *DATA, *NETWORK, "--model.ema_decay=0.9", "--model.threshold=0.1"]
WORDS += ["--data.batch_size=4", "--data.steps_per_epoch=4", "--data.num_labels=8", "--model.burn_in_steps=2"]


def make(detector: str = "fcos", **settings: Any) -> SemiSupervisedDetector:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"detector": detector, "norm_stats": "weights", "ema_decay": 0.9}
    return SemiSupervisedDetector(backbone="resnet8", num_classes=2, input_spec=(3, 64, 64), **{**fixed, **settings})


def batch() -> dict[str, Any]:
    made = torch.Generator().manual_seed(3)
    x, weak, strong = (torch.rand(2, 3, 64, 64, generator=made) for _ in range(3))
    return {"labeled": Labeled(x, Y, torch.arange(2)), "unlabeled": Unlabeled(weak, torch.arange(2), strong=strong)}


@pytest.mark.parametrize("learns_corners", [False, True])
def test_a_step_by_hand(learns_corners: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(threshold=0.5, lambda_u=3.0, learn_pseudo_corners=learns_corners)
    boxes = torch.tensor(
        [[[5.0, 5, 30, 30], [20, 30, 50, 60], [1, 1, 9, 9]], [[8, 8, 8.5, 40], [7, 7, 20, 20], [0] * 4]]
    )
    found = Detections(boxes, torch.tensor([[0.9, 0.5, 0.4], [0.8, 0.6, 0.0]]), torch.tensor([[1, 0, 0], [1, 1, -1]]))
    seen: list[Tensor] = []

    def detect(maps: Any, side: int) -> Detections:
        seen.append(maps[-1])
        return found

    monkeypatch.setattr(model.average.get_submodule("head"), "detect", detect)
    given = batch()
    model.train()
    result = model.step(given)
    teacher: Any = model.average.get_submodule("backbone")
    with torch.no_grad():
        torch.testing.assert_close(seen[0], teacher.forward_maps(given["unlabeled"].weak)[-1])
    # 0.4 is unsure, and the box of 8 to 8.5 is thinner than a pixel.
    pseudo = torch.tensor([[[1.0, 5, 5, 30, 30, 0], [0, 20, 30, 50, 60, 0]], [[1, 7, 7, 20, 20, 0], [-1.0] + [0] * 5]])
    labels = model.compute_losses(given["labeled"].x, Y)
    taught = model.compute_losses(given["unlabeled"].strong, pseudo)
    used = [taught["class_loss"]] if not learns_corners else [*taught.values()]
    expected = sum(float(one) for one in labels.values()) + 3 * sum(float(one) for one in used)
    assert float(result.loss) == pytest.approx(expected, rel=1e-4)
    assert float(result.logs["pseudo_boxes"]) == 1.5
    assert float(result.logs["pseudo_confidence"]) == pytest.approx((0.9 + 0.5 + 0.6) / 3)
    result.loss.backward()
    assert all(p.grad is not None for p in (*model.backbone.parameters(), *model.head.parameters()))
    assert not any(p.requires_grad for p in model.average.parameters())
    before = model.compute_losses(given["labeled"].x, Y)
    assert float(model.step({"labeled": given["labeled"]}).loss) == pytest.approx(
        sum(float(one) for one in before.values()), rel=1e-5
    )


def test_the_average_is_evaluated() -> None:
    model = make("ssdlite").eval()
    x = batch()["labeled"].x
    with torch.no_grad():
        before = model(x)
        for p in model.head.parameters():
            p.add_(1)
        assert torch.equal(model(x).scores, before.scores)
        assert not torch.equal(
            model.head.detect(model.backbone.forward_maps(x), 64).scores[:, :5], before.scores[:, :5]
        )


def test_labels_alone_come_first(tmp_path: Path) -> None:
    data = DetectionDataModule(str(write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2}, unlabeled=8)),
                               image_size=64, batch_size=2, num_workers=0, steps_per_epoch=5)  # fmt: skip
    model, seen = make("ssdlite", burn_in_steps=2, optimizer=lambda p: torch.optim.SGD(p, 0.001)), Recorder()
    trainer([seen], max_epochs=1, limit_val_batches=0).fit(model, data)
    assert [sorted(one) for one in seen.batches] == [["labeled"]] * 2 + [["labeled", "unlabeled"]] * 3
    assert model.average.steps == 5
    chosen = make("ssdlite", optimizer=lambda p: torch.optim.SGD(p, 0.001))
    trainer(max_epochs=2, limit_val_batches=0).fit(chosen, data)
    assert chosen.burn_in_steps == chosen.hparams["burn_in_steps"] == 2  # a fifth of ten


def test_a_resumed_run_ends_the_same_to_the_bit(workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 12, "val": 3}, unlabeled=6)
    words = ["fit", *WORDS, "--model.control=true", "--model.threshold=null"]
    assert main([*words, "--trainer.max_epochs=1", "--run_name=half"]) == 0
    assert main([*words, "--trainer.max_epochs=2", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main([*words, "--trainer.max_epochs=2", "--run_name=whole"]) == 0
    runs = [Path(f"lightning_logs/{name}/version_0") for name in ("half", "whole")]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs]
    assert not moved(*states)
    logged = read_metrics(runs[1])
    assert {"train/unsupervised", "train/pseudo_boxes", "train/pseudo_confidence", "val/map"} <= set(logged)
    assert {"train/control_loss", "val/control_map"} <= set(logged)
    assert any(name.startswith("control.average.") for name in states[0])
    assert float(states[0]["label_match.scores"][-1]) > 0  # part of what is resumed
    assert main(["test", str(runs[1])]) == 0  # without the control


@pytest.mark.slow
def test_a_two_stage_run_resumes_to_the_bit(workdir: Path) -> None:
    """Its losses are of places that are drawn at random."""
    write_boxes_folder(Path("d"), {"train": 6, "val": 1}, unlabeled=2)
    words = ["fit", "--model=FineTuneDetector", *DATA, *NETWORK, "--model.detector=faster_rcnn", "--model.width=32"]
    words += ["--data.batch_size=2", "--data.steps_per_epoch=2"]
    assert main([*words, "--trainer.max_epochs=1", "--run_name=half"]) == 0
    assert main([*words, "--trainer.max_epochs=2", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main([*words, "--trainer.max_epochs=2", "--run_name=whole"]) == 0
    states = [
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("half", "whole")
    ]
    assert not moved(*states)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.ema_decay=0"], "ema_decay is 0, and the teacher is the averaged network"),
        (["--model.burn_in_steps=8", "--trainer.max_epochs=2"], "burn_in_steps is 8, and training ends after 8 steps"),
        (["--model.score_threshold=0.3"], "score_threshold is 0.3, and the teacher's boxes count from threshold 0.1"),
        (["--model.threshold=7"], "threshold is 7.0: give a share from 0 to 1"),
        (["--data.unlabeled_ratio=0"], "unlabeled_ratio is 0"),
        (["--model.lambda_u=-1"], "lambda_u is -1.0: give a number of at least 0"),
    ],
)
def test_bad_settings(words: list[str], expected: str, workdir: Path, cli_error: Callable[..., str]) -> None:
    write_boxes_folder(Path("d"), {"train": 12, "val": 2}, unlabeled=2)
    assert expected in cli_error("fit", *WORDS, *words)

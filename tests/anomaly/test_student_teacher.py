"""The student learns the teacher's maps on normal examples: loss, scores, commands and exact resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sft_lightning import AnomalyDataModule, StudentTeacherDetector
from sft_lightning.__main__ import main
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from tests.anomaly.test_anomaly_commands import load, read_metrics, read_rows
from tests.defects import write_textures
from tests.paradigms.helpers import Recorder, moved, trainer

FIT = ["--model=StudentTeacherDetector", "--model.backbone=resnet8", "--model.weights=teacher.safetensors"]
FIT += ["--model.strides=[4,8]", "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"]
FIT += ["--data=AnomalyDataModule", "--data.source=d", "--data.image_size=32", "--data.batch_size=8"]
FIT += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


def write_teacher(path: Path) -> Path:
    """Weights of a network, random ones: enough to be learned."""
    torch.manual_seed(5)
    backbone, _ = build_backbone("resnet8", (3, 32, 32), mean=0.4, std=0.2)
    write_weights(path, backbone.state_dict(), backbone.describe())
    return path


def test_loss_and_scores_equal_a_plain_implementation(tmp_path: Path) -> None:
    data = AnomalyDataModule(
        str(write_textures(tmp_path / "d", {"good": 24})), image_size=32, batch_size=8, num_workers=0
    )
    model = StudentTeacherDetector(
        "resnet8", data.input_spec, str(write_teacher(tmp_path / "t.safetensors")), strides=[4, 8],
        optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    )  # fmt: skip
    assert torch.equal(model.student.mean, model.backbone.mean)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    seen = Recorder()
    trainer([seen], max_epochs=6, check_val_every_n_epoch=4).fit(model, data)
    assert not moved(before, model.backbone.state_dict())
    assert seen.losses[-1] < 0.8 * seen.losses[0]
    model.eval()
    with torch.no_grad():  # the threshold is that of the last student, though two epochs had no validation
        held_out = torch.cat([model(batch.x).example for batch in data.batches_of("val", torch.device("cpu"))])
    torch.testing.assert_close(model.alarm.normal_scores, held_out.double().sort().values, rtol=1e-4, atol=1e-9)
    x = seen.batches[0]["labeled"].x
    with torch.no_grad():
        scores, product = model(x), torch.ones(len(x), 32, 32)
        for student, teacher in zip(model.student.forward_maps(x), model.backbone.forward_maps(x), strict=True):
            distance = 1 - F.cosine_similarity(student, teacher, dim=1)  # half of the squared one of unit vectors
            product *= F.interpolate(distance[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scores.map, product, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(scores.example, scores.map.flatten(1).max(1).values)
    loss = model.step({"labeled": seen.batches[0]["labeled"]}).loss.item()
    with torch.no_grad():
        pairs = zip(model.student.forward_maps(x), model.backbone.forward_maps(x), strict=True)
        expected = sum((1 - F.cosine_similarity(a, b, dim=1)).mean().item() for a, b in pairs)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_four_commands_and_an_exact_resume(workdir: Path, cli_error: Callable[..., str]) -> None:
    write_teacher(Path("teacher.safetensors"))
    write_textures(Path("d"), {"train/good": 30, "test/good": 6, "test/spot": 5}, masks=True)
    assert main(["fit", *FIT, "--trainer.max_epochs=4", "--run_name=half"]) == 0
    assert main(["fit", *FIT, "--trainer.max_epochs=8", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main(["fit", *FIT, "--trainer.max_epochs=8", "--run_name=whole"]) == 0
    half, whole = (Path(f"lightning_logs/{name}/version_0") for name in ("half", "whole"))
    assert not moved(load(half), load(whole))
    Path("teacher.safetensors").unlink()  # the checkpoint holds it
    for command in ("validate", "test", "predict", "report"):
        assert main([command, str(whole)]) == 0
    values = read_metrics(whole)
    assert values["test/auroc"] > 0.8
    assert values["test/pixel_auroc"] > 0.7
    assert values["val/threshold"] == values["test/threshold"]
    assert len(read_rows(whole / "predictions.csv")) == 11
    plain = [word for word in FIT if "weights" not in word]
    assert "a teacher with random weights teaches nothing" in cli_error("fit", *plain)
    write_teacher(Path("teacher.safetensors"))
    asked = cli_error("fit", *FIT, "--data.unlabeled_as_normal=true")
    assert "learns from labeled normal examples alone" in asked

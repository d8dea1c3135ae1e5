"""Segmentation: losses, metrics, training, strategies, prediction at the size of the image, resuming and refusals."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from sft_lightning import ColorView, FineTuneClassifier, SegmentationDataModule, SemiSupervisedModule
from sft_lightning.__main__ import main
from sft_lightning.data.batches import Cut, Unlabeled
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.vision.images import Geometry, place_box
from sft_lightning.data.vision.segmentation_views import SegmentationViews
from sft_lightning.data.vision.views import WeakView
from sft_lightning.losses.unlabeled import FixMatch, FreeMatch, MeanTeacher, UniMatch, UniMatchV2
from sft_lightning.losses.unlabeled.base import Outputs, StrategyContext, StrategyInputs
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.vision.pyramid import collect_maps
from sft_lightning.tasks.make_task import make_task
from sft_lightning.tasks.segmentation import Segmentation
from sft_lightning.training.callbacks.vision import pixel_predictions
from sft_lightning.training.callbacks.vision.mask_predictions import classify_pixels
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import Recorder, moved, trainer
from tests.scenes import make_scene, write_scenes

DATA = ["--data=SegmentationDataModule", "--data.source=d", "--data.image_size=32", "--data.batch_size=4"]
DATA += ["--data.val_size=4", "--data.test_size=4", "--data.weak_view.flip=true", "--data.weak_view.crop_padding=4"]
FIT = [*DATA, "--model.backbone=resnet8", "--model.optimizer=AdamW", "--model.optimizer.lr=0.003"]
FIT += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def draw(count: int = 6, classes: int = 4, side: int = 8) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, side, side, generator=made)
    return logits, torch.randint(-1, classes, (count, side, side), generator=made)


def test_losses_count_no_ignored_pixel() -> None:
    logits, y = draw()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    flat, classes = logits.double().permute(0, 2, 3, 1).reshape(-1, 4), y.flatten()
    known = classes >= 0
    each = -flat.log_softmax(1)[known].gather(1, classes[known, None])[:, 0]
    assert Segmentation(4).loss(logits, y).item() == pytest.approx(each.mean().item(), rel=1e-5)
    w = weight.double()[classes[known]]
    weighted = (each * w).sum() / w.sum()
    assert Segmentation(4).loss(logits, y, weight).item() == pytest.approx(weighted.item(), rel=1e-5)
    smooth = 0.9 * each + 0.1 * -flat.log_softmax(1)[known].mean(1)
    assert Segmentation(4, 0.1).loss(logits, y).item() == pytest.approx(smooth.mean().item(), rel=1e-5)
    p, dice = logits.double().softmax(1), []
    for i in range(len(y)):
        own = [c for c in range(4) if (y[i] == c).any()]
        seen = y[i] >= 0
        parts = [(p[i, c][y[i] == c].sum(), p[i, c][seen].sum() + (y[i] == c).sum()) for c in own]
        dice.append(np.mean([1 - float((2 * a + 1) / (b + 1)) for a, b in parts]))
    assert Segmentation(4, loss="dice").loss(logits, y).item() == pytest.approx(np.mean(dice), rel=1e-5)
    both = Segmentation(4, loss="cross_entropy_and_dice").loss(logits, y).item()
    assert both == pytest.approx(each.mean().item() + np.mean(dice), rel=1e-5)
    nothing = torch.full_like(y, -1)
    for loss in ("cross_entropy", "dice"):
        leaf = logits.clone().requires_grad_()
        value = Segmentation(4, loss=loss).loss(leaf, nothing)
        value.backward()
        assert value.item() == 0
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_metrics_equal_a_plain_implementation() -> None:
    logits, y = draw(20, 5, 16)
    y[y == 3] = 0  # a class without a pixel, but predicted
    logits[:, 4] = -100  # a class that is never predicted
    metrics = Segmentation(5).build_metrics()
    for rows in torch.arange(20).split(6):
        metrics.update(logits[rows], y[rows])
    found = {name: float(value) for name, value in metrics.compute().items()}
    truth, guess = y.numpy(), logits.numpy().argmax(1)
    ious, dices = [], []
    for c in range(5):
        t, g = (truth == c) & (truth >= 0), (guess == c) & (truth >= 0)
        ious.append((t & g).sum() / (t | g).sum())
        dices.append(2 * (t & g).sum() / (t.sum() + g.sum()))
        assert found[f"iou_{c}"] == pytest.approx(ious[c], abs=1e-6)
    assert found["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert found["mean_dice"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert 0 <= found["boundary_f1"] <= 1
    known = torch.from_numpy(truth.ravel() >= 0)
    flat = logits.permute(0, 2, 3, 1).reshape(-1, 5).softmax(1)[known]
    error = multiclass_calibration_error(flat, torch.from_numpy(truth.ravel())[known], 5, n_bins=15)
    assert found["calibration_error"] == pytest.approx(error.item(), abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx((truth == guess)[truth >= 0].mean(), abs=1e-6)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, y, ignore_index=-1).item(), rel=1e-5)
    y[:], logits[:, 1] = 1, 100.0
    metrics.update(logits, y)  # starts anew, and classes without a pixel have no value
    again = metrics.compute()
    assert {name for name in again if name.startswith("iou_")} == {"iou_1"}
    assert float(again["mean_iou"]) == 1
    named = Segmentation(2).name_metrics({"iou_1": torch.tensor(0.5), "loss": torch.tensor(1.0)}, ["sky", "road"])
    assert {*named} == {"iou_road", "loss"}


def module(folder: Path, **settings: Any) -> SegmentationDataModule:
    fixed: dict[str, Any] = {"image_size": 32, "batch_size": 4, "num_workers": 0, "val_size": 4, "test_size": 4}
    return SegmentationDataModule(str(folder), **{**fixed, **settings})


def test_what_is_said_of_an_image_counts_its_known_pixels(tmp_path: Path) -> None:
    logits, y = draw()
    task, names = Segmentation(4), ["sky", "road", "tree", "car"]
    decided = task.decide(logits)
    for i in range(len(y)):
        known = y[i] >= 0
        p, guess = logits[i].double().softmax(0), decided[i].where(known, -1)
        pairs = [(guess == c, y[i] == c) for c in range(4)]
        ious = [float((a & b).sum() / (a | b).sum()) for a, b in pairs if (a | b).any()]
        loss = -p.log().gather(0, y[i].clamp_min(0)[None])[0][known].mean()
        assert task.example_losses(logits, y)[i].item() == pytest.approx(loss.item(), rel=1e-5)
        assert task.example_scores(logits, y)[i].item() == pytest.approx(np.mean(ious))
        entropy = -(p * p.log()).sum(0).mean() / np.log(4)
        assert task.uncertainty(logits)[i].item() == pytest.approx(entropy.item(), rel=1e-5)
        assert task.confidence(logits)[i].item() == pytest.approx(p.max(0).values.mean().item(), rel=1e-5)
    target = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 2]])
    said = task.describe_mistake(torch.empty(0), torch.tensor([[0, 3, 1, 2], [3, 1, 0, 2]]), target, names)
    assert said == "43% of the pixels wrong, mostly sky as car"
    assert task.describe_mistake(torch.empty(0), target.clamp_min(0), target, names) == "all pixels right"
    assert task.agrees(logits, logits + 1, torch.zeros(())).all()
    assert not task.agrees(logits, -logits, torch.zeros(())).any()
    near = torch.tensor([1.0, 1.01, 0.0, 0.0]).view(1, 4, 1, 1)  # a tie but for rounding
    swapped = near[:, [1, 0, 2, 3]]
    assert task.agrees(swapped, near, torch.full_like(near, 0.02)).all()
    assert not task.agrees(swapped, near, torch.full_like(near, 0.005)).any()
    shares: dict[int, float] = {}
    code = (
        "\n".join(task.format_code(None))
        .replace("print(", "shares.update(")
        .replace("mask.png", str(tmp_path / "m.png"))
    )
    exec(code, {"np": np, "Image": Image, "logits": logits.numpy(), "shares": shares})  # noqa: S102 # our own lines
    with Image.open(tmp_path / "m.png") as mask:
        assert np.array_equal(np.asarray(mask), decided[0].numpy())
    assert shares == {k: pytest.approx((decided[0] == k).double().mean().item()) for k in range(4)}


def test_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    data = module(write_scenes(tmp_path / "d", 24), weak_view={"flip": True, "crop_padding": 4})
    torch.manual_seed(0)
    model = FineTuneClassifier(
        "resnet8", 3, data.input_spec, target=data.target, tune="head", optimizer=lambda p: torch.optim.SGD(p, 0.1)
    )
    decoder = model.backbone.decoder
    assert isinstance(decoder, torch.nn.Module)
    for p in decoder.parameters():
        p.requires_grad_(False)
    weight, bias = (p.detach().clone().requires_grad_() for p in model.head.parameters())
    seen = Recorder()
    trainer([seen], max_epochs=2).fit(model, data)
    losses = []
    model.eval()
    for batch in seen.batches:
        x, y = batch["labeled"].x, batch["labeled"].y
        small = torch.einsum("cf,bfhw->bchw", weight, model.backbone(x)) + bias[None, :, None, None]
        logits = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, y, ignore_index=-1)
        losses.append(loss.item())
        for parameter, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            parameter.data -= 0.1 * gradient
    assert len(losses) == 8
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(model.head.weight, weight, rtol=1e-3, atol=1e-5)


class _Network:
    """A network whose logits are its inputs; the teacher's are twice as large."""

    def outputs(self, x: Tensor) -> Outputs:
        return Outputs(x, x)

    def teacher_logits(self, x: Tensor) -> Tensor:
        return 2 * x


def test_pseudo_labels_of_pixels_follow_cutmix_and_leave_out_the_border() -> None:
    made = torch.Generator().manual_seed(0)
    weak, strong = (3 * torch.randn(2, 3, 4, 4, generator=made) for _ in range(2))
    outside = torch.zeros(2, 4, 4, dtype=torch.bool)
    outside[0, 0] = True
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[1, :2, :3] = True
    batch = Unlabeled(weak, torch.arange(2), strong=strong, outside=outside, cut=Cut(torch.tensor([1, 0]), inside))
    step = StrategyInputs(_Network(), batch, Outputs(strong, strong), None, None)  # type: ignore[arg-type]
    strategy = FixMatch(0.7)
    result = strategy.loss(step)
    confidence, label = weak.softmax(1).max(1)
    accepted = (confidence >= 0.7) & ~outside
    label[1, :2, :3], accepted[1, :2, :3] = label[0, :2, :3].clone(), accepted[0, :2, :3].clone()
    expected = (F.cross_entropy(strong, label, reduction="none") * accepted).mean()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(result.weight, accepted.float())  # type: ignore[arg-type]
    assert 0 < accepted.float().mean() < 1
    teacher = MeanTeacher()
    teacher.build(StrategyContext(3, 8, None, "segmentation"))  # type: ignore[arg-type]
    assert (teacher.views, teacher.student) == (("weak", "strong"), "strong")
    assert MeanTeacher.student == "weak"
    target, counted = (2 * weak).softmax(1), (~outside).float()
    target[1, :, :2, :3], counted[1, :2, :3] = target[0, :, :2, :3].clone(), counted[0, :2, :3].clone()
    each = (strong.softmax(1) - target).square().mean(1)
    assert teacher.loss(step).loss.item() == pytest.approx((each * counted).mean().item(), rel=1e-5)


@pytest.mark.parametrize("strategy", [UniMatch(0.5, 0.3, 0.25), UniMatchV2(0.5)])
def test_unimatch_by_hand(strategy: UniMatch | UniMatchV2) -> None:
    model = semi(strategy)
    model.average.eval()  # type: ignore[union-attr]
    made = torch.Generator().manual_seed(0)
    raw = RawBatch(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=made), None, torch.arange(4), 7)
    views = SegmentationViews((3, 32, 32), WeakView(crop_padding=8), ColorView(cutmix=1.0))
    batch = views.make_unlabeled(raw, strategy.views)
    assert batch.cut is not None
    assert batch.cut_2 is not None
    assert not torch.equal(batch.cut.inside, batch.cut_2.inside)
    assert batch.outside is not None
    assert batch.outside.any()

    def compute(x: Tensor, scales: list[Tensor] | None = None) -> Tensor:
        maps = collect_maps(model.backbone.net, model.backbone.decoder.levels, x)  # type: ignore[arg-type, union-attr]
        if scales is not None:
            maps = [m * s[:, :, None, None] for m, s in zip(maps, scales, strict=True)]
        logits: Tensor = model.head(model.backbone.decoder(maps, (32, 32)))  # type: ignore[operator]
        return logits

    def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor, cut: Cut | None) -> Tensor:
        weight = weight * ~batch.outside  # type: ignore[operator]
        labels, weights = y.clone(), weight.clone()
        for i, partner in enumerate([] if cut is None else cut.order.tolist()):
            inside = cut.inside[i]  # type: ignore[union-attr]
            labels[i][inside], weights[i][inside] = y[partner][inside], weight[partner][inside]
        each = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        return (each * weights).mean()

    model.train()
    seed = torch.Generator().manual_seed(batch.seed)
    channels = [level.channels for level in model.backbone.decoder.levels]  # type: ignore[union-attr]
    if isinstance(strategy, UniMatch):
        p, label = compute(batch.weak).softmax(1).max(1)
        scales = [(torch.rand(4, c, generator=seed) >= 0.25) / 0.75 for c in channels]
        parts = [0.3 * cross_entropy(compute(batch.weak, scales), label, (p >= 0.5).float(), None)]
        for x, cut in ((batch.strong, batch.cut), (batch.strong_2, batch.cut_2)):
            parts.append(0.35 * cross_entropy(compute(x), label, (p >= 0.5).float(), cut))  # type: ignore[arg-type]
    else:
        p, label = model.average(batch.weak).softmax(1).max(1)  # type: ignore[misc]
        whole = torch.randperm(4, generator=seed)[:2]
        firsts = [2.0 * (torch.rand(4, c, generator=seed) < 0.5) for c in channels]
        for first in firsts:
            first[whole] = 1
        logits = compute(torch.cat([batch.strong, batch.strong_2]), [torch.cat([one, 2 - one]) for one in firsts])  # type: ignore[list-item]
        parts = [
            0.5 * cross_entropy(logits[:4], label, (p >= 0.5).float(), batch.cut),
            0.5 * cross_entropy(logits[4:], label, (p >= 0.5).float(), batch.cut_2),
        ]
    student = None if strategy.student is None else model.outputs(batch.strong)
    result = strategy.loss(StrategyInputs(model, batch, student, None, None))  # type: ignore[arg-type]
    assert result.loss.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-4)
    assert 0 < (p >= 0.5).float().mean() < 1
    plain, _ = build_backbone("resnet8", (3, 32, 32))
    with pytest.raises(InputError, match=r"'resnet8' has no maps whose channels"), plain.scale_maps(torch.zeros):
        pass


def semi(strategy: Any, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"backbone": "resnet8", "num_classes": 3, "input_spec": (3, 32, 32), "target": "mask"}
    fixed |= {"optimizer": lambda p: torch.optim.AdamW(p, 0.003), "ema_decay": 0.9}
    return SemiSupervisedModule(strategy, **{**fixed, **settings})


def test_unsupported_strategies_and_settings_say_so() -> None:
    with pytest.raises(InputError, match=r"FreeMatch learns from one label of each example, and these have masks: set"):
        semi(FreeMatch())
    with pytest.raises(InputError, match=r"segmentation_loss is 'dice', and the examples have no masks"):
        make_task("class", 3, segmentation_loss="dice")
    with pytest.raises(InputError, match=r"segmentation_loss is 'iou': give cross_entropy, dice"):
        make_task("mask", 3, segmentation_loss="iou")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"multi_label_loss is 'asymmetric'"):
        make_task("mask", 3, multi_label_loss="asymmetric")


def test_a_mask_gets_the_size_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_predictions, "_STRIP", 300)  # several strips
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    for sides in ((20, 20), (30, 12), (7, 25)):
        geometry = Geometry(8, resize="pad")
        mask, confidence = classify_pixels(logits, sides, geometry.box(*sides, None))
        assert mask.shape == sides[::-1]
        _, columns, rows = place_box(sides, 8, geometry.box(*sides, None))
        inside = logits[None, :, rows[0] : rows[1], columns[0] : columns[1]]
        whole = F.interpolate(inside, sides[::-1], mode="bilinear", align_corners=False)[0]
        assert (whole.argmax(0).numpy() == mask).mean() > 0.99  # but for ties
        assert confidence == pytest.approx(float(whole.softmax(0).amax(0).mean()), abs=1e-4)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_four_commands_know_masks(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(Path("d"), 48, 40)
    Path("d/classes.txt").write_text("background\nsquare\ndisc\n")
    assert main(["fit", "--model=FineTuneClassifier", *FIT, "--trainer.max_epochs=8", "--run_name=seg"]) == 0
    run = Path("lightning_logs/seg/version_0")
    (_best,) = (run / "checkpoints").glob("best-*mean_iou=*.ckpt")
    assert main(["validate", str(run)]) == 0
    assert main(["test", str(run)]) == 0
    metrics = {row["metric"]: float(row["value"]) for row in read_rows(run / "metrics.csv")}
    assert metrics["test/mean_iou"] > 0.5
    assert {"test/iou_background", "test/iou_square", "test/iou_disc", "test/mean_dice"} <= metrics.keys()
    # Masks and overlays have the size of the image; shares are those of the mask.
    image, truth = make_scene(99, 48)
    Path("new/sub").mkdir(parents=True)
    Image.fromarray(image[:, :40]).save("new/sub/a.png")
    assert main(["predict", str(run), "new"]) == 0
    (row,) = read_rows(run / "predictions.csv")
    assert row["path"] == "sub/a.png"
    with Image.open(run / row["mask"]) as mask, Image.open(run / row["overlay"]) as overlay:
        assert mask.mode == "P"
        assert mask.size == overlay.size == (40, 48)
        found = np.asarray(mask)
    assert (found == truth[:, :40]).mean() > 0.7
    for k, name in enumerate(("background", "square", "disc")):
        assert float(row[f"share({name})"]) == pytest.approx((found == k).mean(), abs=1e-6)
    assert 0.3 < float(row["confidence"]) <= 1
    assert main(["predict", str(run)]) == 0  # the test split: another source, and another folder
    rows = read_rows(run / "predictions.csv")
    assert len(rows) == 4
    assert (run / "predictions_1.csv").is_file()
    assert (run / "predicted_masks/sub/a.png").is_file()
    assert all(one["mask"].startswith("predicted_masks_1/") for one in rows)
    # What takes one class for each example says so, before anything is computed.
    capsys.readouterr()
    assert main(["rank", "--data=ImageDataModule", "--data.source=sample", f"--candidates=[{{weights: {run}}}]"]) == 2
    assert "classifies pixels, and classes of examples are needed" in capsys.readouterr().err
    assert main(["fit", "--model=DecoupledFeatureClassifier", "--model.feature_loss=SupCon", *FIT]) == 2
    assert "and these have masks: use FineTuneClassifier" in capsys.readouterr().err
    pretraining = ["--model=SelfSupervisedModule", "--model.objective=SimCLR", *FIT]
    assert main(["fit", *pretraining]) == 2
    assert "gives no views for pre-training: give the images to ImageDataModule" in capsys.readouterr().err


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name != "UniMatch" else [])
        for name in ("FixMatch", "MeanTeacher", "UniMatch", "UniMatchV2")
    ],
)
def test_a_resumed_run_ends_the_same_to_the_bit(strategy: str, workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scenes(Path("d"), 40, 30)
    words = ["--model=SemiSupervisedModule", f"--model.strategy={strategy}", "--model.ema_decay=0.9", *FIT]
    words += ["--model.warmup_steps=0", "--model.ramp_steps=0", "--data.num_labels=8", "--data.steps_per_epoch=4"]
    words += ["--data.strong_view.cutmix=0.5", "--model.control=true"]
    if strategy != "MeanTeacher":
        words += ["--model.strategy.threshold=0.5"]
    assert main(["fit", *words, "--trainer.max_epochs=1", "--run_name=half"]) == 0
    assert re.search(
        r"(Control|Warning): with the unlabeled examples the mean IoU of an image on 4 validation", caplog.text
    )
    assert main(["fit", *words, "--trainer.max_epochs=2", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main(["fit", *words, "--trainer.max_epochs=2", "--run_name=whole"]) == 0
    folders = [Path(f"lightning_logs/{name}/version_0") for name in ("half", "whole")]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in folders]
    assert not moved(*states)
    logged = read_rows(folders[1] / "metrics.csv")
    accepted = [float(row["value"]) for row in logged if row["metric"] == "pseudo_labels/accepted"]
    assert accepted
    assert all(0 < value <= 1 for value in accepted)


def test_pixels_are_learned_without_labels_of_the_unlabeled(tmp_path: Path) -> None:
    data = module(write_scenes(tmp_path / "d", 30), num_labels=6, strong_view=ColorView(blur=0))
    model, seen = semi(FixMatch(0.5), warmup_steps=0, ramp_steps=0), Recorder()
    trainer([seen], max_epochs=1).fit(model, data)
    batch = seen.batches[0]
    assert isinstance(batch["unlabeled"].weak, Tensor)
    assert batch["unlabeled"].weak.shape == (4, 3, 32, 32)
    assert batch["labeled"].y.shape == (4, 32, 32)
    assert all(np.isfinite(seen.losses))


def test_the_control_is_kept_where_images_without_masks_did_harm(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scenes(Path("d"), 40, 30)
    words = ["--model=SemiSupervisedModule", "--model.strategy=FixMatch", "--model.strategy.threshold=0", *FIT]
    words += ["--model.warmup_steps=0", "--model.ramp_steps=0", "--model.ema_decay=0", "--data.num_labels=12"]
    words += ["--model.lambda_u=300", "--model.control=true", "--trainer.max_epochs=5", "--run_name=run"]
    assert main(["fit", *words]) == 0
    said = (
        r"Warning: with the unlabeled examples the mean IoU of an image on 4 validation examples is (0\.\d+), on the "
    )
    found = re.search(said + r"labels alone (0\.\d+): the run keeps the network of the labels alone", caplog.text)
    assert found is not None
    worse, better = map(float, found.groups())
    assert worse < better
    logged = read_rows(Path("lightning_logs/run/version_0/metrics.csv"))
    control = [float(row["value"]) for row in logged if row["metric"] == "val/control_image_iou"]
    assert control[-1] == pytest.approx(better, abs=1e-3)
    data = module(Path("d"), num_labels=12)
    data.setup("test")
    state = torch.load("lightning_logs/run/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kept = FineTuneClassifier("resnet8", 3, data.input_spec, target="mask").eval()
    kept.load_state_dict({name: t for name, t in state.items() if name.startswith(("backbone", "head"))}, strict=False)
    with torch.no_grad():
        scores = [
            kept.task.example_scores(kept(b.x), b.y) for b in data.labeled_batches(99, torch.device("cpu"), "val")
        ]
    assert torch.cat(scores).mean().item() == pytest.approx(better, abs=1e-3)


def test_a_run_returns_to_its_start_where_most_images_lost(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scenes(Path("d"), 60, 50)
    given = ["--data.val_size=10", "--data.num_labels=16"]
    assert main(["fit", "--model=FineTuneClassifier", *FIT, *given, "--trainer.max_epochs=6", "--run_name=start"]) == 0
    words = ["--model=SemiSupervisedModule", "--model.strategy=FixMatch", "--model.strategy.threshold=0", *FIT, *given]
    words += ["--model.weights=lightning_logs/start/version_0", "--model.head_weights=lightning_logs/start/version_0"]
    words += ["--model.warmup_steps=0", "--model.ramp_steps=0", "--model.ema_decay=0", "--model.lambda_u=300"]
    words += ["--model.optimizer.lr=0.05", "--trainer.max_epochs=1", "--run_name=run"]
    caplog.clear()
    assert main(["fit", *words]) == 0
    assert re.search(
        r"Warning: semi-supervised training lowered the mean IoU of an image from 0\.\d+ at step 0 to 0", caplog.text
    )
    starts, ends = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("start", "run")
    )
    assert torch.equal(starts["head.weight"], ends["head.weight"])

"""Reports and exports of a network of pixels."""

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from sft_lightning.__main__ import main
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.networks.weights import read_weights
from sft_lightning.report.pixel_evaluation import PixelEvaluation
from sft_lightning.report.pixels import render_confusions
from sft_lightning.tasks.segmentation_metrics import average_iou, bootstrap_mean_iou, count_by_example
from sft_lightning.training.callbacks.vision.tiles import classify_tiles, place_tiles
from tests.scenes import make_scene, write_scenes
from tests.tasks.test_segmentation import FIT, draw, read_rows

RUN = "lightning_logs/seg/version_0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network on 30 of 40 scenes with masks, and return the folder."""
    folder = tmp_path_factory.mktemp("seg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_scenes(Path("d"), 40, 30)
        Path("d/classes.txt").write_text("background\nsquare\ndisc\nnothing\n")
        words = ["--model=FineTuneClassifier", *FIT, "--data.test_size=8", "--data.eval_batch_size=3"]
        assert main(["fit", *words, "--trainer.max_epochs=6", "--run_name=seg"]) == 0
        assert main(["test", RUN]) == 0
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return Path(RUN)


def test_counts_by_image_give_the_means_and_an_interval() -> None:
    logits, y = draw(20, 5, 16)
    y[0] = -1
    guess = logits.argmax(1)
    counts = count_by_example(guess, y, 5)
    for i in range(20):
        known = y[i] >= 0
        for c in range(5):
            g, t = (guess[i] == c) & known, y[i] == c
            assert counts[i, :, c].tolist() == [int((g & t).sum()), int(t.sum()), int(g.sum())]
    means = average_iou(counts)
    assert means[0] == 1  # nothing to be wrong about
    union = counts[:, 1] + counts[:, 2] - counts[:, 0]
    assert means[3].item() == pytest.approx(np.mean((counts[3, 0] / union[3])[union[3] > 0].numpy()))
    # The interval is about that of the normal distribution over draws of images by NumPy.
    rng = np.random.default_rng(1)
    drawn = [average_iou(counts[rng.integers(0, 20, 20)].sum(0)).item() for _ in range(2000)]
    low, high = bootstrap_mean_iou(counts)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.003)
    assert low < average_iou(counts.sum(0)) < high
    assert bootstrap_mean_iou(counts) == (low, high)
    twice = counts.repeat(3, 1, 1)  # three equal slices of each patient
    assert bootstrap_mean_iou(twice, groups=[f"p{k % 20}" for k in range(60)]) == pytest.approx((low, high))


def test_the_evaluation_of_a_report_is_that_of_the_run(run: Path) -> None:
    evaluation = PixelEvaluation(LoadedRun(str(run)))
    judged, data = evaluation.judged, evaluation.data
    metrics = {row["metric"]: float(row["value"]) for row in read_rows(run / "metrics.csv")}
    assert float(average_iou(judged.totals)) == pytest.approx(metrics["test/mean_iou"], abs=1e-5)
    assert judged.ids == data.splits["test"].ids
    pairs: list[tuple[Tensor, Tensor]] = [data.read_pair("test", i) for i in range(8)]
    logits = torch.cat([evaluation.compute_logits(x[None]) for x, _ in pairs])
    target = torch.stack([y for _, y in pairs])
    assert torch.equal(judged.confusion, torch.bincount(target.flatten() * 4 + logits.argmax(1).flatten(),
                                                        minlength=16).view(4, 4))  # fmt: skip
    torch.testing.assert_close(judged.losses, evaluation.task.example_losses(logits, target))
    assert len(judged.labels) == len(judged.logits) == target.numel()  # fewer than are kept
    assert torch.equal(judged.labels.bincount(minlength=4), target.flatten().bincount(minlength=4))
    unlabeled = evaluation.predict_unlabeled()
    assert unlabeled is not None
    assert len(unlabeled.ids) == 10
    assert not unlabeled.totals.any()  # hidden masks are not looked at
    assert evaluation.validation is not None
    assert len(evaluation.validation.ids) == 4
    judged.confusion = torch.diag(torch.tensor([5, 2, 1, 1]))
    assert "Every pixel is right." in render_confusions(evaluation)
    judged.confusion[0, 2] = 3
    assert re.search(r"<td>background</td><td>disc</td><td>3</td><td>37.5%</td>", render_confusions(evaluation))


def test_a_report_shows_the_worst_images_first(run: Path) -> None:
    assert main(["report", str(run), "--label_next=3"]) == 0
    page = (run / "report.html").read_text()
    evaluation = PixelEvaluation(LoadedRun(str(run)))
    judged = evaluation.judged
    low, high = bootstrap_mean_iou(judged.counts)
    mean = float(average_iou(judged.totals))
    assert f"Test mean IoU: {mean:.3f} on 8 masks (95% interval {low:.3f} to {high:.3f}" in page
    assert "Calling every pixel background would give 0." in page
    worst = page[page.index("<h2>Worst images") : page.index("<h2>Calibration of pixels")]
    shown = re.findall(r"<div>IoU (\d\.\d+)</div>", worst)
    assert shown == [f"{value:.3f}" for value in judged.image_ious.sort().values.tolist()]
    assert worst.count("<img") == 4 * 8
    table = page[page.index("<h2>Results by class") : page.index("<h2>Most frequent")]
    right, true, predicted = judged.totals[:, 1].tolist()
    cells = [f"{true:,}", f"{true / int(judged.totals[1].sum()):.1%}"]
    cells += [f"{right / (true + predicted - right):.3f}", f"{2 * right / (true + predicted):.3f}"]
    assert f"<td>square</td><td>18</td><td>8</td>{''.join(f'<td>{cell}</td>' for cell in cells)}" in table
    assert "<td>nothing</td><td>0</td><td>0</td><td>0</td><td>0.0%</td>" in table
    assert "In pixels, it is " in page
    assert "mean iou" in page[page.index("<h2>Training curves") :]
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)
    with (run / "label_next.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["id"] for row in rows} < {f"images/s{k:03}.png" for k in range(30, 40)}
    assert all(0 < float(row["uncertainty"]) < 1 for row in rows)


@pytest.mark.parametrize("language", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_a_program_gives_the_logits_of_all_pixels(language: str, run: Path) -> None:
    assert main(["export", str(run), f"--format={language}"]) == 0
    file = run / f"model.{language}"
    metadata = json.loads(Path(f"{file}.json").read_text())
    assert metadata["output"]["shape"] == ["batch", 4, 32, 32]
    assert metadata["parity"]["equal_classes"] == 1
    assert metadata["parity"]["largest_difference"] < 1e-3
    assert metadata["parity"]["images"] == 8
    assert "thresholds" not in metadata
    evaluation = PixelEvaluation(LoadedRun(str(run)))
    x, _ = evaluation.data.read_pair("test", 0)
    pixels = (x[None] * 255).round().to(torch.uint8)
    if language == "onnx":
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": pixels.numpy()})
    else:
        logits = torch.export.load(file).module()(pixels).detach().numpy()
    expected = evaluation.compute_logits(x[None]).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    counts = evaluation.judged.counts
    low, high = bootstrap_mean_iou(counts)
    card = (run / "model_card.md").read_text()
    mean = float(average_iou(counts.sum(0)))
    assert f"| mean IoU | {mean:.4f} (95% interval {low:.3f} to {high:.3f}) |" in card
    assert metadata["metrics"]["mean_iou"] == pytest.approx(mean, abs=1e-6)
    assert re.search(r"\| square \| 0\.\d{4} \|", card)
    assert "pipeline_tag: image-segmentation" in card
    assert "It learned from 18 masks" in card
    assert "of the whole image, padded to a square" in card
    # The code of the card gives the mask of an image.
    shutil.copy(evaluation.data.splits["test"].part.storage.path_of(evaluation.data.splits["test"].indices[0]),  # type: ignore[attr-defined]
                run / "image.png")  # fmt: skip
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shown = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True, check=True).stdout
    shares = ast.literal_eval(shown)
    with Image.open(run / "mask.png") as mask:
        found = np.asarray(mask)
    assert (found == expected[0].argmax(0)).mean() > 0.99
    assert shares["background"] == pytest.approx((found == 0).mean())


def test_an_exported_network_starts_another_training(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("model", "backbone"):
        assert main(["export", str(run), f"--part={part}", "--measure_on=0"]) == 0
        words = ["--model=FineTuneClassifier", *FIT, f"--model.weights={run / part}.safetensors", f"--run_name={part}"]
        words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.optimizer.lr=0"]
        caplog.clear()
        assert main(["fit", *words]) == 0
        assert "The decoder of the weights was taken over, too." in caplog.text
        ours, theirs = (
            torch.load(Path(at) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for at in (run, f"lightning_logs/{part}/version_0")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if "decoder" in name and "weight" in name)
        assert torch.equal(ours["head.weight"], theirs["head.weight"]) == (part == "model")


def test_tiles_cover_each_pixel_once_or_more_and_are_joined_without_seams() -> None:
    for length in (5, 16, 17, 29, 100):
        starts = place_tiles(length, 16)
        covered = np.zeros(max(length, 16), dtype=int)
        for start in starts:
            covered[max(0, start) : start + 16] += 1
        assert covered[:length].min() >= 1
        assert length <= 16 or (starts[0] == 0 and starts[-1] + 16 == length)
        assert all(b - a <= 12 for a, b in pairwise(starts))
    seen: list[int] = []

    def compute(images: Tensor) -> Tensor:
        """Call bright pixels class 1."""
        seen.append(len(images))
        bright = images.float().mean(1) / 255
        return torch.stack([1 - bright, bright], 1) * 20

    for sides in ((40, 30), (100, 10), (16, 50)):
        pixels = (np.mgrid[: sides[1], : sides[0]].sum(0) % 9 < 4) * 255
        image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
        mask, confidence = classify_tiles(compute, image, 16, 16, (255, 255, 255), 3)
        assert np.array_equal(mask, pixels > 0)
        assert confidence > 0.99
    assert max(seen) == 3
    constant = torch.tensor([0.0, 1.0, 3.0])[None, :, None, None].expand(-1, -1, 8, 8)
    mask, confidence = classify_tiles(lambda x: constant.expand(len(x), -1, -1, -1), image, 20, 8, (0, 0, 0), 4)
    assert (mask == 2).all()
    assert confidence == pytest.approx(float(constant[0, :, 0, 0].softmax(0)[2]), abs=1e-5)


def test_large_images_are_predicted_in_tiles(run: Path) -> None:
    image, truth = (np.concatenate([np.concatenate(row, 1) for row in pair]) for pair in zip(
        *[[[make_scene(70 + 3 * k + j)[which] for j in range(3)] for which in range(2)] for k in range(2)], strict=True
    ))  # fmt: skip
    Path("large").mkdir()
    Image.fromarray(image).save("large/a.png")
    Image.fromarray(image[:32, :32]).save("large/small.png")
    shares = {}
    for words in ([], ["--data.predict_tile=32"]):
        assert main(["predict", str(run), "large", *words]) == 0
        for row in read_rows(run / "predictions.csv"):
            with Image.open(run / row["mask"]) as mask:
                expected = truth if row["path"] == "a.png" else truth[:32, :32]
                assert mask.size == expected.shape[::-1]
                shares[row["path"], bool(words)] = (np.asarray(mask) == expected).mean()
    assert shares["a.png", True] > max(0.85, shares["a.png", False])
    assert shares["small.png", True] == shares["small.png", False]


def test_a_masked_autoencoder_is_a_start(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its network is learned from the images without their masks; the decoder of pixels starts anew."""
    words = ["--model=SelfSupervisedModule", "--model.objective=MAE", "--model.backbone=resnet8"]
    words += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.001", "--data=ImageDataModule"]
    words += ["--data.source=d/images", "--data.image_size=32", "--data.batch_size=16", "--data.num_workers=0"]
    words += ["--data.val_size=0", "--data.test_size=0", "--data.steps_per_epoch=2", "--trainer.max_epochs=1"]
    assert main(["fit", *words, "--run_name=mae"]) == 0
    start, _ = read_weights(Path("lightning_logs/mae/version_0/encoder.safetensors"))
    words = ["--model=FineTuneClassifier", *FIT, "--model.weights=lightning_logs/mae/version_0", "--run_name=from_mae"]
    words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.optimizer.lr=0"]
    caplog.clear()
    assert main(["fit", *words]) == 0
    assert "decoder of the weights" not in caplog.text
    ours = torch.load("lightning_logs/from_mae/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    learned = [name for name in start if name.endswith("weight")]
    assert len(learned) > 8
    assert all(torch.equal(ours[f"backbone.{name}"], start[name]) for name in learned)

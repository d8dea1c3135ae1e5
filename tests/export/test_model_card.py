"""The model card, over the real command line: each of its figures found again by another way."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from sft_lightning.__main__ import main
from sft_lightning.export.export import export
from sft_lightning.export.model_card import BLANK, CardData, _write_data, _write_limits, escape_markdown
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.tasks.classification_metrics import wilson
from sft_lightning.utils.environment import format_machine
from tests.paradigms.helpers import cli


def fitted(name: str, *words: str, config: str = "fine_tune") -> Path:
    return Path(str(cli("fit", config, f"--run_name={name}", *words).trainer.log_dir))


def carded(run: Path | str, *words: str) -> str:
    assert main(["export", str(run), *words]) == 0
    folder = Path(run) if Path(run).is_dir() else Path(run).parent.parent
    found = next(path for path in (folder / "model_card.md", Path(run).parent / "model_card.md") if path.is_file())
    return found.read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def front(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_the_card_has_the_metrics_of_the_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fitted("run", "--trainer.max_epochs=4")
    card = carded(run)
    file = run / "model.safetensors"
    assert f"Written: {file}, {run / 'model.json'} and {run / 'model_card.md'}" in capsys.readouterr().out
    tested = cli("test", "fine_tune", "--config", str(run / "fit.yaml"), f"--ckpt_path={run}")
    metrics = {n: float(v) for n, v in tested.trainer.callback_metrics.items()}
    model, data = tested.model.eval(), tested.datamodule

    def seen(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(data.batches_of(name, torch.device("cpu")))
        with torch.no_grad():
            return torch.cat([model(b.x) for b in batches]), torch.cat([b.y for b in batches])

    (x, y), (scaled, labels) = seen("val"), seen("test")
    t = fit_temperature(x, y)
    measured = section(card, "Metrics")
    low, high = wilson(metrics["test/accuracy"], 2000)
    assert "on all 2,000 images of the test split: last iterate (step 24)." in measured
    assert f"| accuracy | {metrics['test/accuracy']:.4f} (95% interval {low:.3f} to {high:.3f}) |" in measured
    assert f"| macro F1 | {metrics['test/macro_f1']:.4f} |" in measured
    assert f"| expected calibration error (15 bins) | {metrics['test/calibration_error']:.4f} |" in measured
    assert f"| cross-entropy | {metrics['test/loss']:.4f} |" in measured
    assert f"temperature {t:.3f}, under which the labels of 1,000 validation images" in measured
    told = json.loads((run / "model.json").read_text())
    assert told["temperature"] == {"value": pytest.approx(t, rel=1e-4), "validation_images": 1000}
    assert told["metrics"]["accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert (told["metrics"]["split"], told["metrics"]["images"]) == ("test", 2000)
    sure = (scaled / t).softmax(1).max(1)
    bins, right = (sure.values * 15).ceil(), sure.indices == labels
    gaps = [abs(float((right[bins == k].float() - sure.values[bins == k]).sum())) for k in bins.unique()]
    assert f"| the same with the temperature | {sum(gaps) / 2000:.4f} |" in measured
    matter = front(card)
    assert "# license: to be filled in by you" in card
    assert "license" not in matter
    assert (matter["library_name"], matter["pipeline_tag"]) == ("sft-lightning", "image-classification")
    accuracy, f1 = matter["model-index"][0]["results"][0]["metrics"]
    assert (accuracy["value"], f1["value"]) == (
        round(metrics["test/accuracy"], 4),
        round(metrics["test/macro_f1"], 4),
    )
    with (run / "split.csv").open(newline="") as opened:
        about = json.loads(opened.readline().removeprefix("# "))
        rows = list(csv.DictReader(opened))
    counts = {n: sum(row["split"] == n and row["label"] == "Coat" for row in rows) for n in ("labeled", "val", "test")}
    described = section(card, "Data")
    assert f"| Coat | {counts['labeled']} | {counts['val']} | {counts['test']} |" in described
    assert f"- SHA-256: {about['sha256']}" in described
    assert "- splits: 40 labeled, 8,960 unlabeled, 1,000 val, 2,000 test" in described
    assert "- source: sample" in described
    labels_used = section(card, "How labels were used")
    assert "40 labels were used (num_labels: 40). The 8,960 unlabeled images were not looked at." in labels_used
    assert "The labels of 1,000 validation images were measured against." in labels_used
    link = json.loads((run / "lineage.json").read_text())[-1]
    trained = section(card, "Training")
    assert f"- hardware: {format_machine(link['machine'])}" in trained
    assert f"- when: {link['date']}, by sft-lightning {link['version']}" in trained
    assert "- steps: 24" in trained
    assert f"- repeated by: `sft-lightning repeat {run}`" in trained
    assert f"FineTuneClassifier (mlp)  on sample  [{run}]" in trained
    limits = section(card, "Limits")
    assert "It sees 28 x 28 gray pixels" in limits
    assert "It knows 10 classes and no other" in limits
    assert "It learned from 40 labels, 4 of class" in limits
    assert "images from elsewhere than sample" in limits
    assert section(card, "License").strip().startswith(BLANK)
    assert BLANK in section(card, "Intended use")


@pytest.mark.slow
def test_the_card_counts_the_measured_images(workdir: Path) -> None:
    run = fitted("run")
    card = carded(run, "--measure_on=50")
    assert "on 50 of the 2,000 images of the test split: last iterate (step 12)." in card
    assert "of 50 validation images" in card
    none = carded(run, "--measure_on=0")
    assert section(none, "Metrics").strip().startswith("Not measured at export.")
    assert "model-index" not in front(none)
    best = next((run / "checkpoints").glob("best-*.ckpt"))
    step = torch.load(best, weights_only=True)["global_step"]
    card = carded(best, "--measure_on=0")
    assert f"checkpoint {best.name} (step {step})" in card
    with (run / "metrics.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == "val/macro_f1" and int(r["step"]) == step - 1]
    assert f"macro F1 {float(rows[0]['value']):.4f}" in section(card, "Metrics")
    tuned = fitted("tuned", f"--model.init_args.weights={run}")
    card = carded(tuned, "--wise=0.25", "--measure_on=0")
    assert "last iterate (step 12), 25% of the way from its start" in card
    assert "By the run's own record" not in card  # which is of other weights
    assert f"-> FineTuneClassifier (mlp)  on sample  [{tuned}]" in section(card, "Training")
    head = carded(run, "--part=head", "--measure_on=0")
    assert "--model.init_args.head_weights head.safetensors" in section(head, "Use")
    whole = section(none, "Use")
    assert "--model.init_args.weights model.safetensors" in whole
    assert "--model.init_args.head_weights model.safetensors" in whole
    assert "head_weights" not in section(carded(run, "--part=backbone", "--measure_on=0"), "Use")


def test_user_text_is_escaped(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 8, "val": 2, "test": 2, "unlabeled": 4})
    for part in ("train", "val", "test"):
        (folder / part / "class_0").rename(folder / part / "a|b <i>*x*_")
    shutil.rmtree(folder / "test" / "class_1")
    words = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_labels=null"]
    run = fitted("run", *words, "--data.init_args.labels_per_class=5", "--data.init_args.num_workers=0")
    card = carded(run)
    escaped = "a\\|b \\<i\\>\\*x\\*\\_"
    assert escape_markdown("a|b <i>*x*_") == escaped
    assert f"| {escaped} | 5 | 2 | 2 |" in card
    assert not re.search(r"(?<!\\)<i>", card)
    assert "15 labels were used (labels_per_class: 5). The 21 unlabeled images" in card
    assert "Without an example in the test split: class\\_1." in card
    assert "color pixels" in card


def test_each_paradigm_says_how_it_used_labels(workdir: Path) -> None:
    words = ["--model.class_path=SemiSupervisedModule", "--model.init_args.strategy=PseudoLabel"]
    words += ["--model.init_args.lambda_u=0.5", "--model.init_args.schedule=alternating"]
    words += ["--data.init_args.unlabeled_source=sample-digits", "--data.init_args.unlabeled_ratio=1"]
    card = carded(fitted("semi", *words), "--measure_on=0")
    said = "From 10,000 unlabeled images it learned by PseudoLabel (`alternating`, lambda 0.5)."
    assert said in section(card, "How labels were used")
    assert "- source of the unlabeled images: sample-digits" in section(card, "Data")
    words = ["--model.class_path=DecoupledFeatureClassifier", "--model.init_args.feature_loss=SupCon"]
    card = carded(fitted("decoupled", *words, "--model.init_args.head=nearest_class_mean"), "--measure_on=0")
    assert "The features were learned by SupCon, the classifier is `nearest_class_mean`." in card


def test_a_checkpoint_without_its_run_has_a_card(workdir: Path) -> None:
    run = fitted("run")
    shutil.copy(run / "checkpoints" / "last.ckpt", "alone.ckpt")
    file = export("alone.ckpt", format="pt2")
    card = Path("model_card.md").read_text(encoding="utf-8")
    assert "The data of the run is unknown: crop and background below are guesses." in card
    assert "which are random since run 'alone.ckpt' has no fit.yaml" in card
    assert "- counts: unknown" in card
    assert "- source: unknown" in card
    assert "- hardware: unknown" in card
    assert "Not measured at export: run 'alone.ckpt' has no fit.yaml" in card
    assert "of class" not in section(card, "Limits")
    assert file.is_file()
    (run / "split.csv").write_text("# {}\nid,split,label\na,nowhere,b\n")
    card = carded(run, "--measure_on=0")
    assert "- counts: unknown, since there is no `split.csv` that can be read" in card
    (run / "fit.yaml").write_text("a: [")
    assert main(["export", str(run)]) == 2


def test_many_classes_have_no_table() -> None:
    names = [f"c{k}" for k in range(101)]
    about: dict[str, Any] = {"class_names": names, "data_sha256": "0", "image_shape": [3, 5, 4]}
    told = CardData(Path("a.onnx"), about, Path("last.ckpt"), None, "last iterate", {}, None)
    told.counts = {n: Counter(dict.fromkeys(names, 3)) for n in ("labeled", "val", "test")}
    told.counts["labeled"].update({"c7": 4})
    assert "- classes: 101, with 3 to 7 labels each" in _write_data(told)
    assert "|" not in _write_data(told)
    about["part"] = "model"
    told.counts["labeled"]["c9"] = 1
    assert "from 305 labels, 1 of class c9:" in _write_limits(told)
    assert "It sees 4 x 5 color pixels" in _write_limits(told)
    about["class_names"] = names[:100]
    assert "| c7 | 7 | 3 | 3 |" in _write_data(told)

"""Commands beside the four on examples with several classes: what they write says what `predict` says."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.networks.weights import read_weights
from sft_lightning.report.metrics import bin_reliability, compute_calibration_error
from sft_lightning.tasks.classification import Classification
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.utils.inputs import InputSpec
from tests.tasks.helpers import CLASSES, write_images, write_texts

FIT = ["--data.label_separator=;", "--data.batch_size=16", "--data.val_size=60"]
FIT += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TEXTS = [
    "--model=FineTuneClassifier",
    "--data=TextDataModule",
    "--data.source=texts.csv",
    "--data.tokenizer=words:2048",
    "--model.backbone=fasttext",
]
TEXTS += ["--model.optimizer=Adam", "--model.optimizer.lr=0.05", "--trainer.max_epochs=6"]
IMAGES = [
    "--model=FineTuneClassifier",
    "--data=ImageDataModule",
    "--data.source=images/images.csv",
    "--data.image_size=16",
    "--data.test_size=60",
]
IMAGES += ["--model.backbone=conv", "--model.optimizer=Adam", "--model.optimizer.lr=0.01", "--trainer.max_epochs=3"]
RUNS = {"texts": Path("lightning_logs/texts/version_0"), "images": Path("lightning_logs/images/version_0")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on texts and one on images."""
    folder = tmp_path_factory.mktemp("sets")
    write_texts(folder / "texts.csv", 300)
    write_images(folder / "images", 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--run_name=texts", *TEXTS, *FIT]) == 0
        assert main(["fit", "--run_name=images", *IMAGES, *FIT]) == 0
        for run in RUNS.values():
            assert main(["predict", str(run)]) == 0  # the test split
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_predictions(run: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities, predictions and targets of the test split, (N, C) each."""
    rows = read_rows(run / "predictions.csv")
    lines = (run / "split.csv").read_text().splitlines()
    labels = {row["id"]: row["label"] for row in csv.DictReader(line for line in lines if not line.startswith("#"))}
    probabilities = torch.tensor([[float(row[f"p({name})"]) for name in CLASSES] for row in rows])

    def read_sets(column: list[str]) -> Tensor:
        return torch.tensor([[int(name in one.split(";")) for name in CLASSES] for one in column])

    predicted, targets = [row["predicted"] for row in rows], [labels[row["path"]] for row in rows]
    return probabilities, read_sets(predicted), read_sets(targets)


@pytest.mark.parametrize(
    ("name", "language"),
    [pytest.param("texts", "onnx", marks=pytest.mark.slow), pytest.param("images", "pt2", marks=pytest.mark.slow)],
)
def test_the_code_of_the_card_says_what_predict_says(
    name: str, language: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RUNS[name]
    assert main(["export", str(run), f"--format={language}"]) == 0
    about = json.loads((run / f"model.{language}.json").read_text())
    assert about["target"] == "class_set"
    assert about["parity"]["equal_classes"] == 1
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "To find which of 3 classes apply in" in card
    assert "at least their threshold" in card
    code = card.split("```python\n")[1].split("```")[0]
    rows = read_rows(run / "predictions.csv")[:8]
    content = {f"line {k}": row["text"] for k, row in enumerate(read_rows(Path("texts.csv")), 2)}
    folder = Path("images").resolve()
    monkeypatch.chdir(run)
    for row in rows:
        if name == "texts":
            Path("text.txt").write_text(content[row["path"]], encoding="utf-8")
        else:
            Path("image.png").write_bytes((folder / row["path"]).read_bytes())
        capsys.readouterr()
        exec(compile(code, "card", "exec"), {})  # noqa: S102 (the code of the card, as its reader runs it)
        said = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [one for one, _, _ in said] == [*CLASSES]
        assert ";".join(one for one, _, chosen in said if chosen == "yes") == row["predicted"].strip(";")
        expected = [float(row[f"p({one})"]) for one in CLASSES]
        assert [float(p) for _, p, _ in said] == pytest.approx(expected, abs=1e-4)


def test_the_card_has_the_metrics_of_the_test_split_and_counts_classes() -> None:
    run = RUNS["texts"]
    assert main(["export", str(run)]) == 0
    card = (run / "model_card.md").read_text(encoding="utf-8")
    p, predicted, y = read_predictions(run)
    shown = dict(re.findall(r"\| ([\w ]+) \| ([\d.]+)", card))
    assert float(shown["mean average precision"]) == pytest.approx(average_precision_score(y, p), abs=0.01)
    best = f1_score(y, predicted, average="macro", zero_division=0)
    assert float(shown["macro F1 with temperature and thresholds"]) == pytest.approx(best, abs=1e-4)
    assert "95% interval" in card.split("| all classes right |")[1].split("\n")[0]
    lines = [line for line in (run / "split.csv").read_text().splitlines() if not line.startswith("#")]
    split = list(csv.DictReader(lines))
    for name in CLASSES:
        counts = [
            sum(r["split"] == s and name in r["label"].split(";") for r in split) for s in ("labeled", "val", "test")
        ]
        assert f"| {name} | {' | '.join(map(str, counts))} |" in card


def test_an_exported_model_starts_a_model_of_the_same_answers() -> None:
    run = RUNS["images"]
    assert main(["export", str(run), "--out=whole.safetensors", "--measure_on=0"]) == 0
    tensors, about = read_weights(Path("whole.safetensors"))
    assert about["target"] == "class_set"
    assert about["thresholds"] == [0.5] * 3  # nothing was measured
    spec = InputSpec.parse(about["input_spec"])
    model = FineTuneClassifier("conv", 3, spec, target="class_set", weights="whole.safetensors", head_weights="none")
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(model.head.weight, saved["head.weight"])
    assert model.class_names == [*CLASSES]
    assert set(tensors) >= {"head.weight", "head.bias"}


def flatten(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)).split())


@pytest.mark.parametrize("name", [*RUNS])
def test_the_page_of_a_run_names_sets(name: str) -> None:
    run = RUNS[name]
    assert main(["report", str(run)]) == 0
    p, predicted, y = read_predictions(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    text = flatten(page)
    found = re.search(r"Test mean average precision: ([\d.]+) on (\d+)", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(average_precision_score(y, p), abs=0.01)
    assert int(found[2]) == len(y)
    table = {row[0]: row[1:] for row in re.findall(r"<tr>" + r"<td>([^<]*)</td>" * 8, page)}
    for k, one in enumerate(CLASSES):
        assert int(table[one][1]) == int(y[:, k].sum())
        assert float(table[one][5]) == pytest.approx(f1_score(y[:, k], predicted[:, k], zero_division=0), abs=1e-3)
        assert float(table[one][6]) == pytest.approx(average_precision_score(y[:, k], p[:, k]), abs=0.01)
        chosen, left = p[predicted[:, k] > 0, k], p[predicted[:, k] == 0, k]
        limit = float(table[one][2])
        assert left.max() - 1e-3 <= limit <= chosen.min() + 1e-3
    right = (predicted == y).all(1)
    assert f"All classes are right for {right.double().mean():.1%}" in text
    if not right.all():
        assert "missing: " in text or "wrong: " in text
    assert re.search(r"(is|maybe|near:) \w+ \+ \w+", text)
    assert not re.search(r"(is|x|maybe|near:|,) (\w+)?;(\w| loss| \w+\.png)", re.sub(r"; loss", ",", text))
    proposals = read_rows(run / "label_next.csv")
    assert proposals
    assert all({*row["predicted"].strip(";").split(";")} <= {*CLASSES, ""} for row in proposals)


def test_mistakes_name_the_classes_that_are_missing_and_wrong() -> None:
    task = MultiLabel(4)
    p, target = torch.tensor([0.2, 0.9, 0.1, 0.7]), torch.tensor([1, 0, 1, 1])
    said = task.describe_mistake(p, torch.tensor([0, 1, 0, 1]), target, list("abcd"))
    assert said == "missing: c (10%), a (20%); wrong: b (90%)"


def test_programs_may_differ_where_a_probability_is_at_a_half() -> None:
    expected, near = torch.tensor([[0.0005, 2.0]]), torch.tensor([[-0.0002, 2.0]])
    limit = torch.full((1, 2), 1e-3)
    assert MultiLabel(2).agrees(near, expected, limit).all()
    assert MultiLabel(2).agrees(near, expected, limit / 10).tolist() == [[False, True]]
    assert not Classification(2).agrees(torch.tensor([[1.0, 0.9]]), torch.tensor([[0.9, 1.0]]), limit).any()


def test_uncertainty_and_confidence_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [9.0, -9.0], [1.0, 0.0]])
    p = logits.double().sigmoid()
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2()).mean(1)
    torch.testing.assert_close(MultiLabel(2).uncertainty(logits), entropy)
    torch.testing.assert_close(MultiLabel(2).confidence(logits).double(), torch.maximum(p, 1 - p).prod(1))


def test_reliability_counts_each_pair_of_an_example_and_a_class() -> None:
    made = torch.Generator().manual_seed(0)
    logits, y = torch.randn(200, 3, generator=made), (torch.rand(200, 3, generator=made) < 0.4).long()
    p, t = logits.sigmoid().flatten(), y.flatten()
    bins = (p * 15).long()
    gaps = [float((p[bins == k] - t[bins == k]).sum().abs()) for k in bins.unique()]
    assert compute_calibration_error(logits, y) == pytest.approx(sum(gaps) / 600, abs=1e-5)
    filled = bin_reliability(logits, y)
    assert sum(n for _, _, n in filled) == 600
    assert sum(n * abs(c - a) for c, a, n in filled) / 600 == pytest.approx(sum(gaps) / 600, abs=1e-5)


@pytest.mark.parametrize("name", [*RUNS])
def test_an_audit_counts_each_class_and_the_classes_of_an_example(
    name: str, capsys: pytest.CaptureFixture[str], workdir: Path
) -> None:
    truth = write_texts(Path("texts.csv"), 300) if name == "texts" else write_images(Path("images"), 300)
    assert main(["audit", "--run_name=mine", *(TEXTS if name == "texts" else IMAGES), *FIT]) == 0
    shown = capsys.readouterr().out
    about = json.loads(Path("lightning_logs/mine_audit/audit.json").read_text())
    sizes = about["classes_of_an_example"]
    sets = [{*label.split(";")} - {""} for _, label in truth if label]
    counts = about["classes"]
    for one in CLASSES:
        assert sum(counts[split][one] for split in ("labeled", "val", "test")) == sum(one in own for own in sets)
    assert sum(own["none"] for own in sizes.values()) == sum(not own for own in sets)
    assert max(own["most"] for own in sizes.values()) == max(map(len, sets))
    assert f"{sizes['val']['mean']:.2f} val (at most {sizes['val']['most']}, {sizes['val']['none']} with none)" in shown
    assert (
        "labels   not looked at: a wrong label is found by comparing the class of an example with the others" in shown
    )

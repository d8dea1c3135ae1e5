"""Programs of texts: what the code of the card says is what `predict` says, without the folder of the model."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.data.text.storage import Encoding
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.hugging_face import KEPT
from sft_lightning.networks.text.tokenizers import make_tokenizer
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.inputs import InputSpec
from tests.modality.test_texts import COMMON, WORDS, make_texts
from tests.networks.text.test_text_backbones import write_bert

NEW = "The soup, with bread and cheese — très bon! 🍞"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of texts and a small BERT, and a run of each kind of backbone."""
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "texts.csv").open("w", newline="") as file:
        rows = [(text, label, ("train", "val", "test")[(i // 3) % 3]) for i, (text, label) in enumerate(make_texts(90))]
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    write_bert(folder / "bert", [*{word for words in WORDS.values() for word in words}, *COMMON])
    (folder / "bert" / "modeling.py").write_text("raise SystemExit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in RUNS.items():
            assert main(["fit", f"--run_name={name}", *words, *ARGUMENTS]) == 0
        shutil.move("bert", "gone")  # and no command needs it from here on
    return folder


ARGUMENTS = [
    "--data=TextDataModule", "--data.source=texts.csv", "--data.max_length=24", "--data.batch_size=15",
    "--data.steps_per_epoch=3",
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
TUNED = ["--model=FineTuneClassifier", "--model.optimizer=Adam", "--model.optimizer.lr=0.01"]
RUNS = {
    "fasttext": [*TUNED, "--model.backbone=fasttext"],
    "small_transformer": [*TUNED, "--model.backbone=small_transformer"],
    "bag": ["--model=FrozenFeatureClassifier", "--model.backbone=bag_of_words"],
    "tfidf": ["--model=FrozenFeatureClassifier", "--model.backbone=tfidf"],
    "bert": [*TUNED, "--model.backbone=hf/bert", "--model.weights=default"],
}


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def export_once(name: str, language: str) -> Path:
    """Export a run, unless another test has, and return the folder of the files."""
    out = Path(f"{name}_{language}")
    words = ["export", f"lightning_logs/{name}/version_0", f"--format={language}", f"--out={out}/model.{language}"]
    assert (out / "model_card.md").is_file() or main(words) == 0
    return out


@pytest.mark.parametrize(
    ("name", "language"),
    [("bag", "pt2"), ("tfidf", "onnx"),
     pytest.param("bert", "onnx", marks=pytest.mark.slow),
     pytest.param("fasttext", "onnx", marks=pytest.mark.slow),
     pytest.param("bag", "onnx", marks=pytest.mark.slow),
     pytest.param("bert", "pt2", marks=pytest.mark.slow),
     pytest.param("small_transformer", "onnx", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_code_of_the_card_says_what_predict_says(
    name: str, language: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(f"lightning_logs/{name}/version_0")
    capfd.readouterr()
    out = export_once(name, language)
    assert "def forward" not in capfd.readouterr().err
    Path("new.csv").write_text(f'text\n"{NEW}"\n', encoding="utf-8")
    assert main(["predict", str(folder), "new.csv"]) == 0
    with (folder / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    metadata = json.loads((out / f"model.{language}.json").read_text())
    assert metadata["parity"]["texts"] == 30
    assert metadata["parity"]["equal_classes"] == 1
    assert [one["name"] for one in metadata["inputs"]] == ["input_ids", "attention_mask"]
    card = (out / "model_card.md").read_text(encoding="utf-8")
    assert "It reads the first 24 tokens of a text" in card
    assert "pipeline_tag: text-classification" in card
    assert "image" not in card
    code = card.split("```python\n")[1].split("```")[0]
    assert (out / "encoder" / "tokenizer.json").is_file() == (name == "bert")
    monkeypatch.chdir(out)
    Path("text.txt").write_text(NEW, encoding="utf-8")
    capfd.readouterr()
    exec(compile(code, "card", "exec"), {})
    said, chance = capfd.readouterr().out.split()
    assert said == row["predicted"]
    assert float(chance) == pytest.approx(max(float(v) for k, v in row.items() if k.startswith("p(")), abs=1e-5)


def test_programs_take_texts_of_all_lengths(here: Path) -> None:
    trained = load_trained_network(Path("lightning_logs/bert/version_0/checkpoints/last.ckpt"))
    file = export_once("bert", "onnx") / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count, length in ((1, 3), (1, 24), (5, 11)):
        x = {
            "input_ids": torch.randint(5, 40, (count, length), generator=torch.Generator().manual_seed(length)),
            "attention_mask": (torch.arange(length) < torch.arange(1, count + 1)[:, None] + 1).long(),
        }
        with torch.no_grad():
            expected = F.linear(trained.network()(x), trained.head["weight"], trained.head["bias"])
        found = session.run(None, {name: tensor.numpy() for name, tensor in x.items()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_run_needs_no_folder_of_its_model(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Path("lightning_logs/bert/version_0")
    assert sorted(path.name for path in (run / "encoder").iterdir()) == ["config.json", "tokenizer.json"]
    for command in (["test", str(run)], ["report", str(run)], ["export", str(run)]):
        assert main(command) == 0
    _, metadata = read_weights(run / "model.safetensors")
    spec = InputSpec.parse(metadata["input_spec"])
    encoder, _ = build_encoder("hf/bert", spec, str(run / "model.safetensors"))
    assert encoder.num_features == 32
    again = ["--run_name=again", *ARGUMENTS, *TUNED, f"--model.backbone=hf/{run}/encoder", f"--model.weights={run}"]
    assert main(["fit", *again]) == 0


def test_a_model_that_changed_since_is_not_read(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    KEPT.clear()
    write_bert(here / "bert", ["other", "words"])
    try:
        run = "lightning_logs/bert/version_0"
        with caplog.at_level("INFO"):
            trained = load_trained_network(Path(run) / "checkpoints" / "last.ckpt")
        assert "Model 'hf/bert' has changed since the run: its copy in " in caplog.text
        x: Any = Encoding(make_tokenizer("hf/bert"), 8).encode([("the soup",)])
        assert int((x > 1).sum()) == 4  # all of them known
        assert trained.network().num_features == 32
        assert main(["fit", "--run_name=new", *RUNS["bert"], *ARGUMENTS]) == 2
    finally:
        shutil.rmtree(here / "bert")
        KEPT.clear()

"""Tokenizers that are learned from the training texts: by these alone, and the same wherever the run goes."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from sft_lightning import TextDataModule
from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.networks.text import tokenizers
from sft_lightning.networks.text.tokenizers import HashTokenizer, PieceTokenizer, make_tokenizer
from sft_lightning.utils.errors import InputError
from tests.modality.test_texts import make_texts, read_rows, run

SMALL = [
    "--model.backbone=small_transformer", "--model.optimizer=Adam", "--model.optimizer.lr=0.003",
    "--data=TextDataModule", "--data.source=texts.csv", "--data.tokenizer=bpe:300", "--data.max_length=24",
    "--data.batch_size=10", "--data.unlabeled_ratio=2", "--data.steps_per_epoch=2", "--data.num_labels=30",
    "--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
FIT = ["--model=FineTuneClassifier", *SMALL]


@pytest.fixture
def texts(workdir: Path) -> Callable[..., Path]:
    """Write a table of 150 texts, perhaps with other words in some splits."""

    def write(held_out: str = "", trained: str = "") -> Path:
        with Path("texts.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label", "split"])
            for i, (text, label) in enumerate(make_texts(150)):
                split = ("train", "train", "train", "val", "test")[(i // 3) % 5]
                rows.writerow([f"{text} {trained if split == 'train' else held_out}", label, split])
        return Path("texts.csv")

    write()
    return write


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget what was learned, as another process would not know it."""
    monkeypatch.setattr(tokenizers, "_LEARNED", {})
    return lambda: monkeypatch.setattr(tokenizers, "_LEARNED", {})


def learn(texts: Path, seed: int = 0) -> str:
    data = TextDataModule(str(texts), tokenizer="bpe:300", seed=seed)
    data.setup("fit")
    return data.input_spec.encoding


def test_pieces_are_learned_from_the_training_texts_alone(texts: Callable[..., Path]) -> None:
    name = learn(texts())
    assert name.startswith("bpe:300:")
    assert learn(texts(held_out="zyzzyva zyzzyva")) == name
    assert learn(texts(trained="zyzzyva zyzzyva")) != name


def test_pieces_cover_any_text_and_say_where_they_stand() -> None:
    made = PieceTokenizer(300)
    with pytest.raises(InputError, match="'bpe:300' has not learned from the training texts yet"):
        made.encode([("the",)], 8)
    made.train(["the cat sat on the mat", "the hat of the cat"] * 3)
    ids, longer = made.encode([("The CAT 北 🎈",), ("the cat", "hat")], 9)
    assert longer == 1
    assert made.decode(ids[0][:2].tolist()) == "the cat"
    assert ids.max() < made.num_tokens == 300
    assert 0 not in ids
    assert made.locate(("The CAT",), 9) == [(0, 3), (4, 7)]
    assert make_tokenizer(made.name).encode([("the hat",)], 9)[0].tolist() == made.encode([("the hat",)], 9)[0].tolist()
    assert isinstance(make_tokenizer("words:300"), HashTokenizer)
    for name in ("bpe:257", "bpe:x", "bpe:400:0123456789abcdef"):
        with pytest.raises(InputError, match="tokenizer"):
            make_tokenizer(name)


def test_a_run_keeps_its_tokenizer(texts: Callable[..., Path], forgetful: Callable[[], None]) -> None:
    stop = "--trainer.callbacks+=tests.modality.test_texts.StopAfterAnEpoch"
    run("fit", "--run_name=whole", *FIT)
    run("fit", "--run_name=part", *FIT, stop)
    forgetful()
    run("fit", "--run_name=part", *FIT, "--ckpt_path=last")
    whole, part = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "part")
    )
    assert all(torch.equal(tensor, part["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    folder = Path("lightning_logs/whole/version_0")
    file = folder / "encoder" / "tokenizer.json"
    Tokenizer.from_file(str(file))  # whoever has the library can read it
    recorded = whole["hyper_parameters"]["input_spec"]["encoding"]
    Path("new.csv").write_text("text\nthe soup with bread\nthe moon and a star\n")
    run("predict", f"--ckpt_path={folder}", "--data.predict_source=new.csv")
    expected = read_rows(f"{folder}/predictions.csv")
    texts(trained="other words of another time")
    forgetful()
    run("predict", f"--ckpt_path={folder}", "--data.predict_source=new.csv")
    assert read_rows(f"{folder}/predictions.csv") == expected
    run("export", str(folder), "--measure_on=0", "--out=handed/model.safetensors")
    forgetful()
    again = rebuild_encoder("handed/model.safetensors")
    assert again.input_spec.encoding == recorded
    assert make_tokenizer(recorded).digest.startswith(recorded.rpartition(":")[2])


def test_weights_bring_the_tokenizer_with_which_they_were_learned(
    texts: Callable[..., Path], forgetful: Callable[[], None], cli_error: Callable[..., str]
) -> None:
    masked = [word.replace("--model.backbone", "--model.network") for word in SMALL]
    run("fit", "--run_name=filled", "--model=AutoencoderModule", "--model.hidden=0.2", *masked)
    start = "--model.weights=lightning_logs/filled/version_0"
    forgetful()
    texts(trained="other words of another time")
    run("fit", "--run_name=next", *FIT, start)
    kept = [Path(f"lightning_logs/{name}/version_0/encoder/tokenizer.json") for name in ("filled", "next")]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    refused = cli_error("fit", *FIT, start, "--data.tokenizer=words")
    assert "read the tokens of bpe:300, and the data has those of words: set data.tokenizer to bpe:300" in refused
    forgetful()
    content = json.loads(kept[0].read_text())
    content["model"]["merges"].pop()
    kept[0].write_text(json.dumps(content))
    assert "is not the one of the run" in cli_error("fit", *FIT, start)
    shutil.rmtree(kept[0].parent)
    assert "its file encoder/tokenizer.json was not read" in cli_error("fit", *FIT, start)

"""The audit over real texts and over vectors: what it finds, and what it leaves alone."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sft_lightning.__main__ import main
from sft_lightning.data.text.near_duplicates import DIFFERENCE, TextIndex, find_copies
from sft_lightning.data.text.text_stats import find_script
from tests.audit.conftest import read_audit
from tests.modality.test_texts import make_texts

STORY = (
    "On a cold morning the old clerk opened the door of the archive and found that every letter he had sorted the day "
    "before lay on the floor again"
)


def write_table(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])


def write_splits(count: int = 120) -> list[tuple[str, str, str]]:
    """Return texts of three classes in three splits, none like another."""
    return [(f"{text} {i}", label, ("train", "val", "test")[(i // 3) % 3]) for i, (text, label) in enumerate(
        make_texts(count, share=0.6)
    )]  # fmt: skip


def run_audit(source: str, *words: str) -> int:
    model = ["--model=FineTuneClassifier", "--model.backbone=fasttext", "--model.optimizer=Adam"]
    return main(["audit", *model, "--data=TextDataModule", f"--data.source={source}", "--run_name=mine", *words])


def test_texts_are_checked_as_images_are(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_splits()
    write_table(Path("clean.csv"), rows)
    assert run_audit("clean.csv", "--strict") == 0
    audit = read_audit(0, capsys)
    assert "The data is clean." in audit.text
    assert audit.rows == {}
    assert "logistic regression on the words is right in " in audit.text
    assert audit.about["files"]["scripts"] == {"Latin": 120}
    assert audit.about["near_duplicates"] == {"difference": DIFFERENCE}
    label = {text: label for text, label, _ in rows}
    extra = [
        (rows[3][0], label[rows[3][0]], "train"),  # equals a validation text
        (rows[0][0], label[rows[1][0]], "train"),  # equals a training one of another class
        (STORY, "food", "test"),
        (STORY.replace("cold", "warm") + "!", "food", "train"),
        (" ", "sky", "train"),
        ("Луна и звезды", "sky", "train"),
        ("the cafÃ© serves bread", "food", "train"),
        ("?!", "food", "train"),
        ("sun " * 200, "sky", "train"),
    ]
    write_table(Path("dirty.csv"), [*rows, *extra])
    assert run_audit("dirty.csv", "--strict") == 1
    audit = read_audit(1, capsys)
    found = {name: [row[1:] for row in own] for name, own in audit.rows.items()}
    first = len(rows) + 2
    lines = [f"line {first + k}" for k in range(len(extra))]
    assert found["validation texts that equal a labeled one"] == [("line 5", f"equals {lines[0]}")]
    ((name, detail),) = found["test texts that nearly equal a labeled one"]
    assert name == lines[2]
    assert detail.startswith(f"nearly equals {lines[3]}, difference 0.")
    ((name, detail),) = found["texts that equal one of another class"]
    assert (name, detail) == (lines[1], f"'{label[rows[1][0]]}'; line 2 is '{label[rows[0][0]]}'")
    assert found["blank texts"] == [(lines[4], "")]
    assert found["texts in another writing system than Latin, which most have"] == [(lines[5], "Cyrillic")]
    assert found["texts with characters that were read in a wrong encoding"][0][0] == lines[6]
    assert found["texts without a letter or digit"] == [(lines[7], "'?!'")]
    assert found["texts that are longer than 128 tokens"] == [(lines[8], "200 tokens")]
    assert "1% of all texts are cut off there: raise max_length" in audit.text
    assert "scripts  Latin (126), " in audit.text
    assert {row["kind"] for row in audit.about["findings"]} >= {"leak", "label_conflict", "truncated", "script"}


def test_wrong_labels_of_texts_are_doubted(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_splits(180)
    wrong = next(i for i, row in enumerate(rows) if row[1:] == ("food", "train"))
    rows[wrong] = (rows[wrong][0], "sport", "train")
    write_table(Path("a.csv"), rows)
    assert run_audit("a.csv") == 0
    doubted = read_audit(0, capsys).rows["labels that may be wrong"]
    assert doubted[0][1] == f"line {wrong + 2}"
    assert doubted[0][2].startswith("'sport', looks like 'food'")


def test_files_in_another_encoding_and_columns_are_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"Käse und Brot Nummer {i},{'ab'[i % 2]},x\n" for i in range(20))
    Path("a.csv").write_bytes(("text,label,mood\n" + rows).encode("cp1252"))
    assert run_audit("a.csv") == 0
    found = read_audit(0, capsys).rows
    assert found["files that are not UTF-8"][0][1] == "a.csv"
    assert found["columns that are not read"][0][1] == "mood"


def test_vectors_are_compared_by_their_content(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{'ab'[i % 2]},{['train', 'val', 'test'][(i > 11) + (i > 13)]},{i % 2}.{i}" for i in range(16)]
    Path("v.csv").write_text("\n".join(["label,split,x", *rows, "b,train,0.14", "a,train,"]) + "\n")
    words = ["--model=FineTuneClassifier", "--model.backbone=tests.modality.vectors.VectorEncoder"]
    words += ["--model.optimizer=Adam", "--data=tests.modality.vectors.VectorDataModule"]
    assert main(["audit", *words, "--data.source=v.csv", "--run_name=mine"]) == 0
    audit = read_audit(0, capsys)
    assert audit.rows["test examples that equal a labeled one"] == [("test", "row 14", "equals row 16")]
    assert audit.rows["examples that equal one of another class"][0][2] == "'a'; row 16 is 'b'"
    assert "logistic regression on the " in audit.text
    assert audit.about["near_duplicates"] == {}


def test_only_changed_copies_are_near_duplicates() -> None:
    others = [text for text, _ in make_texts(50)]

    def difference(text: str, other: str) -> float | None:
        found = TextIndex([text]).find_nearest(0, TextIndex([*others, other]))
        return None if found is None else found[0]

    words = STORY.split()
    swapped = " ".join([*words[:10], words[11], words[10], *words[12:]])
    for other in (STORY.upper() + "?", STORY.replace("clerk", "judge"), " ".join(words[2:]), swapped):
        changed = difference(STORY, other)
        assert changed is not None
        assert changed <= DIFFERENCE
    assert difference(STORY, STORY.upper() + "?") == 0
    assert difference(STORY, " ".join(words[:13])) is None
    assert difference("a native or inhabitant of England", "a native or inhabitant of Portugal") is None
    assert difference("Good bread", "good, bread!") == 0
    assert difference("😀", "😀 😀") is None


def test_bands_find_what_a_comparison_of_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    texts = []
    for i in range(60):
        words = [f"w{i}_{k}" for k in range(30)]
        texts.append(" ".join(words))
        for number in (1, 2, 4):
            for k in rng.integers(0, 30, number):
                words[k] = f"other{i}_{k}"
            texts.append(" ".join(words))
    index = TextIndex(texts)
    near = {(i, j) for i in range(len(texts)) for j in range(i) if index.measure_difference(i, index, j) is not None}
    found = {(i, j) for i, j in near if j in index.find_candidates(i, index)}
    assert len(near) > 80
    assert len(found) >= 0.97 * len(near)
    copies = find_copies([*texts, texts[0]])
    assert copies.exact == 1
    assert copies.near >= 60
    assert copies.sets[-1] == copies.sets[0] == copies.sets[1] != copies.sets[4]


@pytest.mark.parametrize(
    ("text", "script"),
    [("Hello", "Latin"), ("привет мир", "Cyrillic"), ("مرحبا", "Arabic"), ("東京へ行く", "Japanese"), ("北京", "Han"),
     ("안녕", "Hangul"), ("123 😀", "")],
)  # fmt: skip
def test_scripts_are_found_by_letters(text: str, script: str) -> None:
    assert find_script(text) == script

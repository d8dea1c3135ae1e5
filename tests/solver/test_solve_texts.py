"""`solve` on texts: a table with few labels becomes a model, predictions and texts to label next."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.classifiers import CoTrainedRegression
from sft_lightning.classifiers.co_trained_regression import SecondView
from sft_lightning.data.open_data import find_modality, open_data
from sft_lightning.solver import trainings
from sft_lightning.solver.deliver import EXPORTS, ONNX
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.recipes import train
from sft_lightning.solver.starts import estimate_fill, load_start
from sft_lightning.solver.trials import Trials
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.utils.errors import InputError
from tests.modality.test_texts import COMMON, WORDS, make_texts
from tests.networks.text.test_text_backbones import write_bert


@pytest.fixture(autouse=True, scope="module")
def no_program() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(EXPORTS, ONNX)
        yield


def write_table(path: Path, each: int) -> Path:
    """Write 600 texts, of which `each` of each class have a label."""
    seen: dict[str, int] = {}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "label"])
        for i, (text, label) in enumerate(make_texts(600)):
            seen[label] = seen.get(label, 0) + 1
            rows.writerow([f"t{i}", text, label if seen[label] <= each else ""])
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_of_texts_is_solved(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(workdir / "texts.csv", 8)
    assert main(["solve", "texts.csv", "--minutes=0.2", "--name=mine"]) == 0
    shown = capsys.readouterr()
    assert "texts.csv: texts, read up to 128 tokens" in shown.err
    assert "name one with --candidates, such as hf/ and the folder of a sentence encoder" in shown.err
    assert "of texts like the 24 labeled ones" in shown.out
    assert "then solve with --labels" in shown.out
    assert "sft-lightning label SOURCE --ids" in shown.out
    folder = Path("lightning_logs/solve/mine")
    summary = json.loads((folder / "summary.json").read_text())
    names = {f"{kind} on words" for kind in ("logistic regression", "naive Bayes", "label spreading")}
    assert set(summary["recipes"]) == names
    truth = {f"t{i}": label for i, (_, label) in enumerate(make_texts(600))}
    predictions = read_rows(folder / "predictions.csv")
    assert len(predictions) == 600 - 24
    assert sum(row["predicted"] == truth[row["id"]] for row in predictions) > 0.7 * len(predictions)
    following = read_rows(folder / "label_next.csv")
    texts = {f"t{i}": text for i, (text, _) in enumerate(make_texts(600))}
    assert len(following) == 20
    assert all(row["text"] == texts[row["id"]] for row in following)
    (workdir / "new.csv").write_text("text\nsoup and bread with cheese for dinner\n")
    assert main(["predict", str(folder), "new.csv"]) == 0
    rows = read_rows(Path(summary["run"]) / "predictions.csv")
    assert [row["predicted"] for row in rows] == ["food"]
    labels = workdir / "labels.csv"
    labels.write_text("id,label\n" + "\n".join(f"{row['id']},{truth[row['id']]}" for row in following))
    again = solve("texts.csv", minutes=0.2, name="mine", labels="labels.csv")
    assert "of texts like the 44 labeled ones" in again.verdict[0]
    given = [
        "soup and bread with cheese for dinner",
        'a "quoted"\nline, with 🥖 soup',
        "soup and bread with cheese for dinner",
    ]
    answers = again.predict(given)
    assert [answer["text"] for answer in answers] == given
    assert answers[0]["predicted"] == answers[2]["predicted"] == "food"
    assert {"text", "predicted", "p(food)"} <= {*answers[0]}
    with pytest.raises(InputError, match=r"inputs\[1\] is blank: give texts alone"):
        again.predict(["soup", " "])
    with pytest.raises(InputError, match=r"inputs is 'soup', which is not a folder or table: give texts in a list"):
        again.predict("soup")


def test_what_a_source_holds_decides_how_it_is_read(tmp_path: Path) -> None:
    def holds_texts(name: str, head: str) -> bool:
        (tmp_path / name).write_text(head)
        return find_modality(str(tmp_path / name)) == "text"

    assert holds_texts("a.csv", "Text;label\n")
    assert holds_texts("a.tsv", "id\ttext\tlabel\n")
    assert holds_texts("a.jsonl", "{}\n")
    assert not holds_texts("b.csv", "path,label\n")
    assert not holds_texts("c.csv", "path,text,label\n")
    assert not holds_texts("d.csv", "")
    assert holds_texts("e.csv", "# of the shop\nsep=;\n\n" + "text;label\n")
    (tmp_path / "f.csv").write_text("text,label\n", encoding="utf-16")
    assert find_modality(str(tmp_path / "f.csv")) == "text"
    assert find_modality("sample") == "image"
    for name in ("a.txt", "b.txt", "c.png"):
        (tmp_path / "folder" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / "x" / name).write_text("")
    assert find_modality(str(tmp_path / "folder")) == "text"
    (tmp_path / "folder" / "x" / "d.png").write_text("")  # as many images as captions
    assert find_modality(str(tmp_path / "folder")) == "image"
    (tmp_path / "folder" / "x" / "d.png").unlink()
    with pytest.raises(InputError, match=r"image_size is 32, and source .* holds texts: leave it out"):
        open_data(str(tmp_path / "folder"), {"image_size": 32})


def test_a_sentence_encoder_is_a_start(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "plan_halving", lambda *rest: (1, 3))
    monkeypatch.setattr(trainings, "PATIENCE", 1000.0)  # on a busy machine, too
    write_table(workdir / "texts.csv", 4)
    write_bert(workdir / "bert", [*{word for words in WORDS.values() for word in words}, *COMMON])
    with pytest.raises(InputError, match=r"'hf/brt' is neither a folder nor in the cache of Hugging Face"):
        solve("texts.csv", candidates=["hf/brt"])
    result = solve("texts.csv", minutes=2, name="mine", candidates=["hf/bert"])
    assert "logistic regression on hf/bert (published)" in result.summary["recipes"]
    assert any(name.startswith("fine-tuning from hf/bert") for name in result.summary["recipes"]), result.summary
    assert "features of 600 texts at 128 tokens from hf/bert" in capsys.readouterr().err


def test_co_training_is_judged_as_it_is_delivered(workdir: Path) -> None:
    """A held-out text has no say, and the delivered run learns from the same words as the judged one."""
    write_table(workdir / "texts.csv", 4)
    write_bert(workdir / "bert", [*{word for words in WORDS.values() for word in words}, *COMMON])
    source = read_source("texts.csv", Path("out"), None, None, 0, "data", None, False)
    trials = Trials(source, Plan(workdir / "plan.json", source.key, 1e6), "mine", workdir, lambda text: None)
    trials.judge_start(load_start(Candidate("hf/bert", "default"), source, 1e6))
    position = next(i for i, one in enumerate(trials.results) if one.recipe.name.startswith("co-trained"))
    recipe, space = trials.results[position].recipe, trials.results[position].space
    assert trials.find_default(range(len(trials.results))) == position
    assert recipe.uses_unlabeled
    seen = space.source
    assert seen is not None
    assert space.second is not None
    assert space.second.has_counts
    held, names = torch.from_numpy(seen.folds == 0), len(seen.data.class_names)
    second = SecondView(space.second.labeled[~held], space.second.unlabeled, True)
    fitted = CoTrainedRegression().fit(space.labeled[~held], seen.labels[~held], space.pool, names, second)
    judged = trials.results[position].probabilities[0, held]
    # Held-out texts are neighbors without a label, so that the two are close but not equal.
    assert (judged - fitted.predict_proba(space.labeled[held])).abs().max() < 0.02
    labels, labeled = seen.data.splits["labeled"].part.labels, seen.data.splits["labeled"].indices
    positions = [labeled[i] for i in held.nonzero()[:, 0].tolist()]
    kept = labels[positions].clone()
    labels[positions] = (kept + 1) % names
    assert recipe.cross_fit is not None
    assert torch.equal(recipe.cross_fit(replace(seen))[0, held], judged)
    labels[positions] = kept
    cli = train(recipe, seen, None, "delivered")
    whole = CoTrainedRegression().fit(space.labeled, seen.labels, space.pool, names, space.second)
    assert torch.allclose(cli.model.head.weight, whole.weight, atol=1e-3)


def test_short_texts_take_less_time_than_the_longest_that_could_come(workdir: Path) -> None:
    write_table(workdir / "texts.csv", 4)
    source = read_source("texts.csv", Path("out"), None, None, 0, "data", None, False)
    words = [len(text.split()) for text, _ in make_texts(600)]
    assert source.data.mean_share == pytest.approx(sum(words) / len(words) / 128, rel=0.1)
    assert estimate_fill(source) == pytest.approx(1.4 * source.data.mean_share)
    assert estimate_fill(source, longest=1000) == 1

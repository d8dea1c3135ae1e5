"""Other wordings of texts that were made beforehand are the strong views, and nothing else sees them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning import TextDataModule, TextView
from sft_lightning.data.batches import BatchViews
from sft_lightning.data.loaders import RawBatch
from sft_lightning.utils.errors import InputError
from tests.modality.test_texts import make_texts, run

COLUMNS = ["back_1", "back_2"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 texts `text I`, whose other wordings are `first I` and `second I and more`; one has none, one has one."""
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", *COLUMNS])
        for i in range(40):
            first, second = ("" if i == 7 else f"first {i}"), ("" if i in (7, 8) else f"second {i} and more")
            rows.writerow([f"text {i}", "xy"[i % 2] if i < 20 else "", first, second])
    return tmp_path / "texts.csv"


def read(path: Path, **settings: Any) -> TextDataModule:
    still = TextView()
    settings = {"augmented_columns": COLUMNS, "weak_view": still, "strong_view": still, "max_length": 8, **settings}
    data = TextDataModule(str(path), val_size=0, test_size=0, **settings)
    data.setup("fit")
    return data


def test_strong_views_are_the_other_wordings(table: Path) -> None:
    data = read(table)
    assert data.views.has_strong
    storage = data.splits["unlabeled"].part.storage
    met: dict[str, set[str]] = {}
    for name in ("labeled", "unlabeled"):
        split = data.splits[name]
        rows = split.part.storage.data[torch.as_tensor(split.indices)]  # type: ignore[attr-defined]
        for seed in range(8):
            raw = RawBatch(rows, None, torch.arange(len(rows)), seed)
            views = BatchViews(data.views).unlabeled(raw, ("strong", "strong_2"))
            for text, *strong in zip(
                *(data.views.show(x) for x in (views.weak, views.strong, views.strong_2)), strict=True
            ):
                met.setdefault(text, set()).update(strong)
    assert met["text 7"] == {"text 7"}
    assert met["text 8"] == {"first 8", "text 8"}
    assert all(met[f"text {i}"] == {f"first {i}", f"second {i} and more"} for i in range(40) if i not in (7, 8))
    assert storage.sizes([0]) == read(table, augmented_columns=None).splits["unlabeled"].part.storage.sizes([0])
    assert data.inputs_of("unlabeled", [0, 1])["input_ids"].shape == (2, 2)
    assert data.encoding.truncated == (0, 40)


def test_strong_views_are_changed_too_and_budgets_count_the_longest_wording(table: Path) -> None:
    data = read(table, strong_view=TextView(hide=1.0))
    x = data.views.prepare(data.splits["labeled"].part.storage.data)  # type: ignore[attr-defined]
    shown = data.views.show(data.views.strong(x, 0))
    assert {len(text.split()) for text in shown} == {2, 4}
    assert set("".join(shown)) == {"…", " "}
    split = data.splits["labeled"]
    assert sorted({*split.part.storage.count_tokens(split.indices).tolist()}) == [2, 4]  # type: ignore[attr-defined]


def test_the_content_of_other_wordings_is_part_of_the_digest(table: Path) -> None:
    before = read(table)
    table.write_text(table.read_text().replace("second 30", "third 30"))
    after = read(table)
    assert before.source.load()["unlabeled"].storage.digest() != after.source.load()["unlabeled"].storage.digest()


def test_other_forms_and_what_is_missing(table: Path, tmp_path: Path) -> None:
    with table.open() as file:
        lines = [json.dumps(row) for row in csv.DictReader(file)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    ours, theirs = (read(path).splits["labeled"].part.storage for path in (table, tmp_path / "texts.jsonl"))
    assert ours.digest() == theirs.digest()
    with pytest.raises(InputError, match=r"lacks the column 'back_3' .* name the right one with augmented_columns"):
        read(table, augmented_columns=["back_3"])
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "folder" / "x" / "a.txt").write_text("a text")
    with pytest.raises(InputError, match="has no columns, and augmented_columns names some"):
        read(tmp_path / "folder")


def test_a_run_learns_from_them_and_predicts_without_them(workdir: Path, cli_error: Callable[..., str]) -> None:
    with Path("texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "text_aug"), *((*row, row[0][::-1]) for row in make_texts(90))])
    same = [f"--data.strong_view.{name}=0" for name in ("delete", "hide", "swap", "span")]
    words = [
        "--model=SemiSupervisedModule", "--model.strategy=SoftMatch", "--model.backbone=fasttext",
        "--model.optimizer=Adam", "--model.optimizer.lr=0.01", "--data=TextDataModule", "--data.source=texts.csv",
        "--data.num_labels=12", "--data.batch_size=6", "--data.unlabeled_ratio=2", "--data.labeled_view=both",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *same,
    ]  # fmt: skip
    assert "set one of them or augmented_columns" in cli_error("fit", "--run_name=other", *words)
    run("fit", "--run_name=run", *words, "--data.augmented_columns=[text_aug]")
    run("test", "--ckpt_path=lightning_logs/run/version_0")
    Path("new.csv").write_text("text\nthe moon and a star\n")
    run("predict", "--ckpt_path=lightning_logs/run/version_0", "--data.predict_source=new.csv")
